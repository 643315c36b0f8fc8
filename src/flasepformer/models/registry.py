"""The models by name: every published size, and what to build for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from flasepformer.models.network import SeparationNetwork
from flasepformer.models.sepreformer import SepReformer, SepReformerConfig
from flasepformer.models.tflocoformer import TFLocoformer, TFLocoformerConfig

DEFAULT_MODEL = "default"
"""Name of the trained model that comes with the package and is used where none is named."""

FAST_MODEL = "default-fast"
"""Name of the one that does with a quarter of the arithmetic, for less clean tracks."""

FAMILIES: dict[str, tuple[type[Any], type[SeparationNetwork]]] = {
    "sepreformer": (SepReformerConfig, SepReformer),
    "tflocoformer": (TFLocoformerConfig, TFLocoformer),
}
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
    giga_multiply_adds: float | None
    """Billions of multiply-adds per second of a recording of 10 s; None where nobody has counted them."""
    trained: bool
    """Whether `load_model` gives trained weights; False: random ones, to train from."""
    description: str
    """One sentence."""
    licence: str
    """Licence of the weights, empty for random ones."""
    data: str = ""
    """What they were trained on, where it is on record."""
    citation: str = ""
    """Publication to cite for them, where it is on record."""
    source: str = ""
    """Where they were published, if not by us."""
    post_filter: float = 0.0
    """Share of a filter that makes its tracks better; see `flasepformer.inference.post_filter`."""
    filter: str = ""
    """Model of the package with whose network to filter; without one, by Wiener's gains."""


_SEPREFORMER: dict[str, dict[str, Any]] = {
    "T": {"n_channels": 64},
    "S": {"n_channels": 64, "filter_length": 8, "hop_length": 2, "n_stages": 5},
    "B": {"n_channels": 128},
    "M": {"n_channels": 128, "filter_length": 8, "hop_length": 2, "n_stages": 5},
    "L": {"n_channels": 256, "dropout": 0.1},
}
_FLA_TFLOCOFORMER: dict[str, dict[str, Any]] = {
    "S": {"n_blocks": 4, "n_channels": 96, "attention_channels": 96, "feed_forward_channels": 128},
    "M": {"n_blocks": 6},
    "L": {"n_blocks": 9},
}
_TFLOCOFORMER: dict[str, dict[str, Any]] = {
    "S": {"n_blocks": 4, "n_channels": 96, "feed_forward_channels": 256},
    "M": {"n_blocks": 6, "feed_forward_channels": 384},
    "L": {"n_blocks": 9, "feed_forward_channels": 384},
}
_PUBLISHED: tuple[tuple[str, str, dict[str, dict[str, Any]], dict[str, Any]], ...] = (
    # title, family, sizes, and what the sizes have in common
    ("FLA-SepReformer", "sepreformer", {size: _SEPREFORMER[size] for size in "TBL"}, {}),
    ("SepReformer", "sepreformer", _SEPREFORMER, {"attention": "softmax"}),
    ("FLA-TFLocoformer", "tflocoformer", _FLA_TFLOCOFORMER, {}),
    (
        "TF-Locoformer",
        "tflocoformer",
        _TFLOCOFORMER,
        {"attention": "softmax", "feed_forward_kernel": 4, "repeat_input": False},
    ),
)


_MULTIPLY_ADDS = {
    "fla-sepreformer-t": 5.47, "fla-sepreformer-b": 21.31, "fla-sepreformer-l": 84.11,
    "sepreformer-t": 6.06, "sepreformer-s": 11.52, "sepreformer-b": 21.57, "sepreformer-m": 42.39,
    "sepreformer-l": 80.97,
    "fla-tflocoformer-s": 43.86, "fla-tflocoformer-m": 130.13, "fla-tflocoformer-l": 195.16,
    "tflocoformer-s": 53.50, "tflocoformer-m": 140.79, "tflocoformer-l": 211.16,
}  # fmt: skip
"""Billions of multiply-adds per second of a recording of 10 s, as `multiply_adds` counts them: to count takes
seconds, so the figures stand here, and a test counts them again."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    title: str
    family: str
    fields: Mapping[str, Any]

    def config(self) -> Any:
        return FAMILIES[self.family][0](**self.fields)


_REGISTRY = {
    f"{title.replace('TF-', 'tf')}-{size}".lower(): _Entry(
        title=f"{title}-{size}",
        family=family,
        fields={**fields, **common},
    )
    for title, family, sizes, common in _PUBLISHED
    for size, fields in sizes.items()
}


def registered_names() -> tuple[str, ...]:
    """Return the names that `build_model` knows: every published size."""
    return tuple(_REGISTRY)


def build_model(name: str) -> SeparationNetwork:
    """Build a published model with random weights.

    Args:
        name: One of `registered_names()`.

    Raises:
        KeyError: If no model has that name.
    """
    entry = _REGISTRY[name]
    return FAMILIES[entry.family][1](entry.config())


@cache  # it takes a tenth of a second to build a network, even without its weights
def registered_info(name: str) -> ModelInfo:
    """Describe a published model without building it.

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
        giga_multiply_adds=_MULTIPLY_ADDS[name],
        trained=False,
        description=f"{entry.title} as published, random weights",
        licence="",
    )


def count_parameters(model: SeparationNetwork) -> int:
    """Count the trainable parameters that separation needs, which leaves out the auxiliary heads."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith("auxiliary_"))
