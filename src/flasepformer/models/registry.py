"""The models by name: the paper's sizes, and what to build for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flasepformer.models.sepreformer import SepReformer, SepReformerConfig

DEFAULT_MODEL = "default"
"""Name of the trained model that comes with the package."""

FAMILIES: dict[str, tuple[type[Any], type[nn.Module]]] = {"sepreformer": (SepReformerConfig, SepReformer)}
"""Config and network class of every family, by the name that our checkpoints carry."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a person wants to know of a model before using it."""

    name: str
    """Name for `load_model`."""
    family: str
    """Architecture, a key of `FAMILIES`."""
    sample_rate: int
    """Sample rate in Hz at which the model works."""
    n_sources: int
    """Talkers that the model separates."""
    n_parameters: int
    """Trainable parameters, without the auxiliary heads."""
    trained: bool
    """Whether `load_model` gives trained weights; False: random ones, to train from."""
    description: str
    """One sentence."""
    licence: str
    """Licence of the weights, empty for random ones."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    family: str
    config: Callable[[], Any]
    description: str


_REGISTRY = {
    "fla-sepreformer-t": _Entry(
        family="sepreformer",
        config=lambda: SepReformerConfig(n_channels=64),
        description="FLA-SepReformer-T of the paper, random weights",
    ),
    "fla-sepreformer-b": _Entry(
        family="sepreformer",
        config=lambda: SepReformerConfig(n_channels=128),
        description="FLA-SepReformer-B of the paper, random weights",
    ),
    "fla-sepreformer-l": _Entry(
        family="sepreformer",
        config=lambda: SepReformerConfig(n_channels=256, dropout=0.1),
        description="FLA-SepReformer-L of the paper, random weights",
    ),
}


def registered_names() -> tuple[str, ...]:
    """Return the names that `build_model` knows: the paper's sizes."""
    return tuple(_REGISTRY)


def build_model(name: str) -> nn.Module:
    """Build a model of the paper with random weights.

    Args:
        name: One of `registered_names()`.

    Raises:
        KeyError: If no model has that name.
    """
    entry = _REGISTRY[name]
    return FAMILIES[entry.family][1](entry.config())


def registered_info(name: str) -> ModelInfo:
    """Describe a model of the paper without building it.

    Raises:
        KeyError: If no model has that name.
    """
    entry = _REGISTRY[name]
    with torch.device("meta"):
        model = build_model(name)
    config = entry.config()
    return ModelInfo(
        name=name,
        family=entry.family,
        sample_rate=config.sample_rate,
        n_sources=config.n_sources,
        n_parameters=count_parameters(model),
        trained=False,
        description=entry.description,
        licence="",
    )


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters that separation needs, which leaves out the auxiliary heads."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary_"))
