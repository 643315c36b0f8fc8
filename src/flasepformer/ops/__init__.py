"""Pure tensor functions, without parameters or state: the mathematics that the layers are made of."""

from flasepformer.ops.framing import overlap_add
from flasepformer.ops.linear_attention import (
    KeyValueMeans,
    attend_to_means,
    focus,
    key_value_means,
    linear_attention,
    linear_attention_naive,
)
from flasepformer.ops.pieces import PIECE_LENGTH, cached_frames, map_pieces
from flasepformer.ops.stft import inverse_stft, stft
from flasepformer.ops.threads import Threads

__all__ = [
    "PIECE_LENGTH",
    "KeyValueMeans",
    "Threads",
    "attend_to_means",
    "cached_frames",
    "focus",
    "inverse_stft",
    "key_value_means",
    "linear_attention",
    "linear_attention_naive",
    "map_pieces",
    "overlap_add",
    "stft",
]
