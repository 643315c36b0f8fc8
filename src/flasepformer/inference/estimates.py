"""How much memory a recording will take, told before the model runs.

What a network keeps for a whole recording is counted by its score; what it needs for a moment it says itself
(`numbers_at_a_time`). `tests/inference/test_estimates.py` holds the sum against a measurement.
"""

from dataclasses import dataclass

import torch
from torch import nn

from flasepformer.models import SeparationNetwork

SAMPLE_BYTES = 4
"""Of float32, in which all samples and features are."""

WORK_BYTES = 20_000_000
"""Blocks of samples on their way from the file to the model, and from there to the tracks."""

_LIBRARY_BYTES = 45_000_000  # what libraries keep after the first call of a network, whatever its size


@dataclass(frozen=True)
class Need:
    """What a recording takes while it goes through a model."""

    memory_bytes: int
    """Most memory at a time, beside the model."""
    disk_bytes: int = 0
    """Room in temporary files."""


def goes_in_pieces(model: nn.Module) -> bool:
    """Tell whether a model takes a recording of any length in pieces: the time of softmax grows too fast."""
    return isinstance(model, SeparationNetwork) and model.in_pieces


def signal_bytes(n_sources: int, n_samples: int, several: bool = False) -> int:
    """Return what the mixture and the estimates of a recording take, in memory or on disk.

    Args:
        n_sources: Of the model.
        n_samples: Of the mixture.
        several: Whether there are estimates of several passes.
    """
    return (1 + n_sources * (2 if several else 1)) * n_samples * SAMPLE_BYTES


def need_in_pieces(
    model: SeparationNetwork, n_samples: int, frame_bytes: int | None, piece_length: int | None = None
) -> Need:
    """Estimate the exact pass in pieces, without the mixture and the estimates.

    Args:
        model: A network.
        n_samples: Length of the mixture at the model's sample rate.
        frame_bytes: Memory for what is kept between two sweeps, the rest goes to files; None sets no limit.
        piece_length: Frames in a piece; by default what suits the device.
    """
    counted = model.rehearse(n_samples, limit_bytes=frame_bytes, piece_length=piece_length)
    beside = need_beside_frames(model, n_samples, piece_length)
    return Need(beside + counted.peak_bytes, counted.file_bytes)


def need_beside_frames(model: SeparationNetwork, n_samples: int, piece_length: int | None = None) -> int:
    """Estimate the memory of the exact pass without what is kept between two sweeps."""
    return WORK_BYTES + _piece_bytes(model, n_samples, piece_length)


def need_as_a_whole(model: nn.Module, n_samples: int) -> Need | None:
    """Estimate a pass without limit to the memory; None for a network of no family known here."""
    return need_in_pieces(model, n_samples, None) if isinstance(model, SeparationNetwork) else None


def _piece_bytes(model: SeparationNetwork, n_samples: int, piece_length: int | None) -> int:
    """Estimate what exists for one piece of time only."""
    n_frames = min(model.n_frames(n_samples), piece_length or model.piece_length(torch.device("cpu")))
    n_bytes = model.numbers_at_a_time(n_frames) * SAMPLE_BYTES
    return _LIBRARY_BYTES + n_bytes * torch.get_num_threads()  # each works on a piece of its own
