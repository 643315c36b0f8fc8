"""Work on a long recording piece by piece, where a frame depends on its neighbours only."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE_LENGTH = 2048
"""Frames in a piece where nothing else is said."""

CACHE_BYTES = 1 << 21
"""Size that an intermediate result may have to stay in the cache of one core."""


def map_pieces(
    function: Callable[[Tensor], Tensor], x: Tensor, *, halo: int = 0, width: int | None = None
) -> Tensor:
    """Apply a function piece by piece, so that its intermediate results never exist for all frames.

    The same as `function(x)` up to rounding. Where gradients are recorded they need the intermediate results
    anyway, so there the function is applied to everything at once.

    Args:
        function: Maps (batch, frames, channels) to (batch, frames, other channels). Each frame of the result
            depends on at most `halo` frames on either side; beyond the ends it takes zeros.
        x: (batch, frames, channels).
        halo: Neighbours that a frame depends on.
        width: Channels of the widest intermediate result, which the pieces are made to keep in the cache.

    Returns:
        (batch, frames, other channels).
    """
    n_frames, length = x.shape[1], PIECE_LENGTH
    if width is not None:
        length = max(cached_frames(x, width), 16 * halo)
    if torch.is_grad_enabled() or n_frames <= length:
        return function(x)
    result = None
    for start in range(0, n_frames, length):
        stop = min(start + length, n_frames)
        first = max(start - halo, 0)
        piece = function(x[:, first : min(stop + halo, n_frames)])[:, start - first : stop - first]
        if result is None:
            result = piece.new_empty(x.shape[0], n_frames, piece.shape[-1])
        result[:, start:stop] = piece
    assert result is not None
    return result


def cached_frames(x: Tensor, width: int) -> int:
    """Return the frames of `width` channels, of the batch and the type of `x`, that the cache holds."""
    return max(CACHE_BYTES // (x.shape[0] * width * x.element_size()), 1)
