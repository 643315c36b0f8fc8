"""`load_model` with the type that a type checker needs to know what a model gives."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from flasepformer.models import DEFAULT_MODEL
from flasepformer.models import load_model as load_network

if TYPE_CHECKING:
    from torch import Tensor, nn

    class SeparationModel(nn.Module):
        """A network: mixture (batch, time) to estimates (batch, source, time)."""

        sample_rate: int
        """In Hz, of mixture and estimates."""
        n_sources: int
        """Talkers that it separates."""

        def __call__(self, mixture: Tensor) -> Tensor:
            """Separate mixtures."""

else:
    from torch.nn import Module as SeparationModel

__all__ = ["SeparationModel", "load_model"]


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> SeparationModel:
    """Load a model, ready to separate (in eval mode, float32, on the CPU).

    Args:
        name_or_path: See `flasepformer.models.load_model`; a folder of a training run means its best weights.

    Returns:
        The model: mixture (batch, time) to estimates (batch, source, time).

    Raises:
        CheckpointError: If there is no such model, or its checkpoint is refused.
    """
    return cast(SeparationModel, load_network(name_or_path))
