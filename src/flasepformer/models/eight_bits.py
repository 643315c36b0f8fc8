"""Weights in eight bits: a matrix or kernel as whole numbers and a scale for each row."""

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALES = ".row_scales"


def to_eight_bits(weights: Mapping[str, Tensor], levels: int = 127) -> dict[str, Tensor]:
    """Store what has rows in eight bits, other floating-point weights in half precision.

    Args:
        weights: By name.
        levels: Largest number, at most 127; fewer can be compressed further.
    """
    stored = {}
    for name, value in weights.items():
        if value.ndim < 2 or not value.is_floating_point():
            stored[name] = value.half() if value.is_floating_point() else value
            continue
        scales = value.abs().flatten(1).amax(1).float() / levels
        rows = value.flatten(1) / scales.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        stored[name] = rows.round().to(torch.int8).view(value.shape)
        stored[name + _SCALES] = scales
    return stored


def from_eight_bits(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_eight_bits`; weights that are stored otherwise stay as they are.

    Raises:
        ValueError: If scales and rows do not belong together.
    """
    scales = {name.removesuffix(_SCALES): value for name, value in weights.items() if name.endswith(_SCALES)}
    loaded = {}
    for name, value in weights.items():
        if name.endswith(_SCALES):
            continue
        if name in scales:
            if value.dtype != torch.int8 or value.ndim < 2 or scales[name].shape != value.shape[:1]:
                raise ValueError(f"the rows and scales of {name} do not belong together")
            rows = value.flatten(1).float() * scales[name].float().unsqueeze(1)
            value = rows.view(value.shape)
        loaded[name] = value
    if missing := scales.keys() - weights.keys():
        raise ValueError(f"scales without rows: {', '.join(sorted(missing))}")
    return loaded
