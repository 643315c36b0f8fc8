"""Pure tensor functions, without parameters or state: the mathematics that the layers are made of."""

from flasepformer.ops.framing import cut_frames, is_exporting, overlap_add
from flasepformer.ops.linear_attention import (
    KeyValueSums,
    attend,
    causal_linear_attention,
    focus,
    key_value_sums,
    linear_attention,
    linear_attention_naive,
    running_sums,
)
from flasepformer.ops.stft import real_fft, real_ifft, stft

__all__ = [
    "KeyValueSums",
    "attend",
    "causal_linear_attention",
    "cut_frames",
    "focus",
    "is_exporting",
    "key_value_sums",
    "linear_attention",
    "linear_attention_naive",
    "overlap_add",
    "real_fft",
    "real_ifft",
    "running_sums",
    "stft",
]
