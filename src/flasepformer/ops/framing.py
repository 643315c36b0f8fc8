"""Waveforms to overlapping frames, and back."""

import torch
from torch import Tensor
from torch.nn import functional as F


def is_exporting() -> bool:
    """Tell whether `torch.export` is looking: operations that few runtimes have are then spelled out."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def cut_frames(waveform: Tensor, window_length: int, hop_length: int) -> Tensor:
    """Cut a waveform into frames that overlap.

    Args:
        waveform: (..., time), whole windows.
        window_length: Samples in a frame.
        hop_length: Samples from the start of one frame to that of the next, at most a window.

    Returns:
        (..., frames, window_length).
    """
    if not is_exporting():
        return waveform.unfold(-1, window_length, hop_length)
    n_pieces = -(-window_length // hop_length)
    n_frames = (waveform.shape[-1] - window_length) // hop_length + 1
    n_missing = (n_frames + n_pieces - 1) * hop_length - waveform.shape[-1]
    pieces = F.pad(waveform, (0, n_missing)).unflatten(-1, (n_frames + n_pieces - 1, hop_length))
    frames = torch.cat([pieces[..., i : i + n_frames, :] for i in range(n_pieces)], dim=-1)
    return frames[..., :window_length]


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
    if is_exporting():  # sums of padded pieces: writing into slices would become scattering
        added = F.pad(pieces[..., 0, :], (0, 0, 0, n_pieces - 1))
        for i in range(1, n_pieces):
            added = added + F.pad(pieces[..., i, :], (0, 0, i, n_pieces - 1 - i))
        return added.flatten(-2)[..., : (n_frames - 1) * hop_length + window_length]
    waveform = frames.new_zeros(*frames.shape[:-2], n_frames + n_pieces - 1, hop_length)
    for i in range(n_pieces):
        waveform[..., i : i + n_frames, :] += pieces[..., i, :]
    return waveform.flatten(-2)[..., : (n_frames - 1) * hop_length + window_length]
