"""What networks are made of: layers with parameters, which say what frames they need; see `layers.layer`."""

from flasepformer.layers.attention import FocusedLinearAttention, GatedResidualAttention
from flasepformer.layers.convolution import Delay, DepthwiseConv, Weights, depthwise_conv, with_past
from flasepformer.layers.layer import Carry, Given, GlobalLayer, Join, Layer, WholeLayer
from flasepformer.layers.norms import GlobalNorm, LayerNorm, Moments, RMSGroupNorm, widest
from flasepformer.layers.relative_attention import RelativeAttention, RelativePositions
from flasepformer.layers.rotary import RotaryAttention

__all__ = [
    "Carry",
    "Delay",
    "DepthwiseConv",
    "FocusedLinearAttention",
    "GatedResidualAttention",
    "Given",
    "GlobalLayer",
    "GlobalNorm",
    "Join",
    "Layer",
    "LayerNorm",
    "Moments",
    "RMSGroupNorm",
    "RelativeAttention",
    "RelativePositions",
    "RotaryAttention",
    "Weights",
    "WholeLayer",
    "depthwise_conv",
    "widest",
    "with_past",
]
