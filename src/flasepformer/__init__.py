"""FLASepformer: separate people who talk at the same time, from one microphone.

Three lines are enough for a recording::

    from flasepformer import Separator

    Separator.from_pretrained().separate_file("talk.m4a", "tracks/")

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flasepformer.inference import Separator as Separator
    from flasepformer.models import list_models as list_models
    from flasepformer.models import load_model as load_model

__version__ = "0.2.0"

_ROOM_OF = {"Separator": "inference", "list_models": "models", "load_model": "models"}

__all__ = ["Separator", "__version__", "list_models", "load_model"]


def __getattr__(name: str) -> Any:
    """Import the room behind a public name on first use, so that `import flasepformer` stays instant."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
