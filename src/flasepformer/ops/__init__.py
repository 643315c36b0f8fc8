"""Pure tensor functions, without parameters or state: the mathematics that the layers are made of."""

from flasepformer.ops.framing import overlap_add
from flasepformer.ops.linear_attention import focus, linear_attention, linear_attention_naive

__all__ = ["focus", "linear_attention", "linear_attention_naive", "overlap_add"]
