"""Modules with parameters that more than one model family is built from."""

from flasepformer.layers.attention import FocusedLinearAttention, GatedResidualAttention
from flasepformer.layers.convolution import DepthwiseConv

__all__ = ["DepthwiseConv", "FocusedLinearAttention", "GatedResidualAttention"]
