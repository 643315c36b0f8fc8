"""Work on a long recording piece by piece, where a frame depends on its neighbours only."""

from collections.abc import Callable

import torch
from torch import Tensor

PIECE_LENGTH = 2048
"""Frames in a piece: few enough that intermediate results stay in the cache."""


def map_pieces(function: Callable[[Tensor], Tensor], x: Tensor, *, halo: int = 0) -> Tensor:
    """Apply a function piece by piece, so that its intermediate results never exist for all frames.

    The same as `function(x)` up to rounding. Where gradients are recorded they need the intermediate results
    anyway, so there the function is applied to everything at once.

    Args:
        function: Maps (batch, frames, channels) to (batch, frames, other channels). Each frame of the result
            depends on at most `halo` frames on either side; beyond the ends it takes zeros.
        x: (batch, frames, channels).
        halo: Neighbours that a frame depends on.

    Returns:
        (batch, frames, other channels).
    """
    n_frames = x.shape[1]
    if torch.is_grad_enabled() or n_frames <= PIECE_LENGTH:
        return function(x)
    result = None
    for start in range(0, n_frames, PIECE_LENGTH):
        stop = min(start + PIECE_LENGTH, n_frames)
        first = max(start - halo, 0)
        piece = function(x[:, first : min(stop + halo, n_frames)])[:, start - first : stop - first]
        if result is None:
            result = piece.new_empty(x.shape[0], n_frames, piece.shape[-1])
        result[:, start:stop] = piece
    assert result is not None
    return result
