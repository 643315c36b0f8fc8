"""Begin a wider network from trained weights, so that it need not learn again what a narrower one knows.

Reference: Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016, section 2.
"""

import re
from dataclasses import replace

import torch
from torch import Tensor

from flasepformer.models.sepreformer import SepReformer, SepReformerConfig

SPREAD = 0.5
"""How unevenly the two copies of a channel share its weights: from a quarter to three quarters."""

_HALVED = re.compile(
    r"(feed_forward\.(expand|convolution)|convolution\.gate|source_split\.expand|output\.0"
    r"|auxiliary_outputs\.\d+\.0|key_value)$"
)
"""Layers of whose output one half gates the other, or that give two things at once."""


def widened_config(config: SepReformerConfig) -> SepReformerConfig:
    """Return the config of `widened`: twice the channels and twice the heads."""
    return replace(config, n_channels=2 * config.n_channels, n_heads=2 * config.n_heads)


@torch.no_grad()
def widened(network: SepReformer, seed: int = 0) -> SepReformer:
    """Return a network of twice the width that separates as the given one does.

    Every channel is there twice. What reads a channel reads both copies, with weights that add up to the old
    one but differ, so that the copies learn different things from the first step on.

    Args:
        network: Of any kind of attention.
        seed: Of how the copies share their weights.

    Raises:
        ValueError: If the wider network would be too wide.
    """
    config = network.config
    generator = torch.Generator().manual_seed(seed)
    wide = SepReformer(widened_config(config))
    weights = {}
    for name, value in network.state_dict().items():
        wanted = wide.state_dict()[name].shape
        for axis in range(value.ndim):
            if wanted[axis] != value.shape[axis]:
                reads = axis == 1 and value.ndim == 2
                value = _doubled(value, axis, _n_parts(name, axis, config), generator if reads else None)
        weights[name] = value
    wide.load_state_dict(weights)
    return wide


def _n_parts(name: str, axis: int, config: SepReformerConfig) -> int:
    """Return how many parts an axis has that a layer takes apart, each to be doubled by itself."""
    module = name.rpartition(".")[0]
    if axis == 1:
        return 2 if module.endswith("fusion") else 1  # from below, and the skip
    if module == "source_split.contract":
        return config.n_sources
    return 2 if _HALVED.search(module) else 1


def _doubled(value: Tensor, axis: int, n_parts: int, generator: torch.Generator | None) -> Tensor:
    """Double every part of an axis; with a generator what is read, shared unevenly between both copies."""
    parts = value.unflatten(axis, (n_parts, -1))
    first = second = parts
    if generator is not None:
        share = 0.5 + SPREAD * (torch.rand(parts.shape, generator=generator) - 0.5)
        first, second = parts * share, parts * (1 - share)
    return torch.cat([first, second], axis + 1).flatten(axis, axis + 1)
