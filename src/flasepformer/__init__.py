"""FLASepformer: separate people who talk at the same time, from one microphone.

Three lines are enough for a recording::

    from flasepformer import Separator

    Separator.from_pretrained().separate_file("talk.m4a", "tracks/")

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flasepformer.audio import AudioError as AudioError
    from flasepformer.errors import Cancelled as Cancelled
    from flasepformer.errors import FlasepformerError as FlasepformerError
    from flasepformer.errors import InputError as InputError
    from flasepformer.inference import AlreadySeparated as AlreadySeparated
    from flasepformer.inference import DeviceError as DeviceError
    from flasepformer.inference import NotEnoughMemory as NotEnoughMemory
    from flasepformer.inference import OutputError as OutputError
    from flasepformer.inference import OutputExists as OutputExists
    from flasepformer.inference import SeparationError as SeparationError
    from flasepformer.inference import Separator as Separator
    from flasepformer.inference import StateError as StateError
    from flasepformer.inference import StreamingSeparator as StreamingSeparator
    from flasepformer.models import CheckpointError as CheckpointError
    from flasepformer.models import list_models as list_models
    from flasepformer.typed import SeparationModel as SeparationModel
    from flasepformer.typed import load_model as load_model

__version__ = "0.2.0"

_ROOM_OF = {
    "AlreadySeparated": "inference",
    "AudioError": "audio",
    "Cancelled": "errors",
    "CheckpointError": "models",
    "DeviceError": "inference",
    "FlasepformerError": "errors",
    "InputError": "errors",
    "NotEnoughMemory": "inference",
    "OutputError": "inference",
    "OutputExists": "inference",
    "SeparationError": "inference",
    "SeparationModel": "typed",
    "Separator": "inference",
    "StateError": "inference",
    "StreamingSeparator": "inference",
    "list_models": "models",
    "load_model": "typed",
}

__all__ = [
    "AlreadySeparated",
    "AudioError",
    "Cancelled",
    "CheckpointError",
    "DeviceError",
    "FlasepformerError",
    "InputError",
    "NotEnoughMemory",
    "OutputError",
    "OutputExists",
    "SeparationError",
    "SeparationModel",
    "Separator",
    "StateError",
    "StreamingSeparator",
    "__version__",
    "list_models",
    "load_model",
]


def __getattr__(name: str) -> Any:
    """Import the room behind a public name on first use, so that `import flasepformer` stays instant."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
