"""Waveforms from overlapping frames."""

from torch import Tensor
from torch.nn import functional as F


def overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """Add up frames that overlap: the transpose of cutting a waveform into frames.

    Args:
        frames: (..., frames, window_length).
        hop_length: Samples from the start of one frame to that of the next.

    Returns:
        (..., time) with time = (frames - 1) * hop_length + window_length.
    """
    n_frames, window_length = frames.shape[-2:]
    n_pieces = -(-window_length // hop_length)
    pieces = F.pad(frames, (0, n_pieces * hop_length - window_length)).unflatten(-1, (n_pieces, hop_length))
    waveform = frames.new_zeros(*frames.shape[:-2], n_frames + n_pieces - 1, hop_length)
    for i in range(n_pieces):
        waveform[..., i : i + n_frames, :] += pieces[..., i, :]
    return waveform.flatten(-2)[..., : (n_frames - 1) * hop_length + window_length]
