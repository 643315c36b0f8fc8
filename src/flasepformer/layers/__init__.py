"""Modules with parameters that more than one model family is built from."""

from flasepformer.layers.attention import FocusedLinearAttention, GatedResidualAttention
from flasepformer.layers.convolution import DepthwiseConv
from flasepformer.layers.norms import GlobalNorm, RMSGroupNorm
from flasepformer.layers.relative_attention import RelativeAttention, RelativePositions
from flasepformer.layers.rotary import RotaryAttention

__all__ = [
    "DepthwiseConv",
    "FocusedLinearAttention",
    "GatedResidualAttention",
    "GlobalNorm",
    "RMSGroupNorm",
    "RelativeAttention",
    "RelativePositions",
    "RotaryAttention",
]
