"""Pure tensor functions, without parameters or state: the mathematics that the layers are made of."""

from flasepformer.ops.framing import overlap_add
from flasepformer.ops.linear_attention import focus, linear_attention, linear_attention_naive
from flasepformer.ops.pieces import map_pieces

__all__ = ["focus", "linear_attention", "linear_attention_naive", "map_pieces", "overlap_add"]
