"""Pure tensor functions, without parameters or state: the mathematics that the layers are made of."""

from flasepformer.ops.framing import overlap_add
from flasepformer.ops.linear_attention import (
    KeyValueSums,
    attend,
    causal_linear_attention,
    focus,
    key_value_sums,
    linear_attention,
    linear_attention_naive,
)
from flasepformer.ops.stft import stft

__all__ = [
    "KeyValueSums",
    "attend",
    "causal_linear_attention",
    "focus",
    "key_value_sums",
    "linear_attention",
    "linear_attention_naive",
    "overlap_add",
    "stft",
]
