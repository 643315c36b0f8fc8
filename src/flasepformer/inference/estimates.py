"""How much memory a recording will take, told before the model runs.

What a network keeps for a whole recording is counted exactly: a moment of noise goes through it, and the
room it asks for grows in proportion to the length. What it needs for a moment is a formula over the sizes of
its config, with constants measured once for each family as the peak of the resident memory, above the loaded
model, on a CPU in float32. `tests/inference/test_estimates.py` holds them against a new measurement.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flasepformer.models import SepReformer, TFLocoformer
from flasepformer.models.long_form import FrameMemory, Frames
from flasepformer.models.long_sepreformer import longest_piece
from flasepformer.ops import PIECE_LENGTH

SAMPLE_BYTES = 4
"""Of float32, in which all samples and features are."""

_PROBE_SECONDS = 0.5
_LIBRARY_BYTES = 45_000_000  # what libraries keep after the first call of a network, whatever its size
_SEPREFORMER_LIVE = 36  # tensors as large as a piece of the talkers' features that exist at a time
_TFLOCOFORMER_LIVE, _TF_SOFTMAX_LIVE = 30, 3  # and as large as the widest that a piece turns into
_TFLOCOFORMER_FEATURES = 1.4  # as large as all its features: softmax over time takes one bin after another


@dataclass(frozen=True)
class Need:
    """What a recording takes while it goes through a model."""

    memory_bytes: int
    """Most memory at a time, beside the model and the mixture."""
    disk_bytes: int = 0
    """Room in temporary files."""


def goes_in_pieces(model: nn.Module) -> bool:
    """Tell whether a model takes a recording of any length in pieces: the time of softmax grows too fast."""
    config = getattr(model, "config", None)
    return hasattr(model, "separate_in_pieces") and getattr(config, "attention", "softmax") != "softmax"


def need_in_pieces(model: nn.Module, n_samples: int, frame_bytes: int | None) -> Need:
    """Estimate the exact pass in pieces.

    Args:
        model: One with `separate_in_pieces`.
        n_samples: Length of the mixture at the model's sample rate.
        frame_bytes: Memory for what is kept between two sweeps, the rest goes to files; None sets no limit.
    """
    sample_rate: int = model.sample_rate  # type: ignore[assignment]
    n_probe = min(n_samples, round(_PROBE_SECONDS * sample_rate))
    scale = n_samples / n_probe
    memory = _PeakMemory(None if frame_bytes is None else int(frame_bytes / scale))
    device = next(model.parameters()).device
    noise = torch.randn(1, n_probe, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        model.separate_in_pieces(noise, memory)  # type: ignore[operator]
    kept = round(memory.peak_bytes * scale)
    if frame_bytes is not None:
        kept = min(kept, frame_bytes)
    n_sources: int = model.n_sources  # type: ignore[assignment]
    at_the_end = (2 + 3 * n_sources) * n_samples * SAMPLE_BYTES  # the estimates grown, trimmed, multiplied
    memory_bytes = max(need_beside_frames(model, n_samples) + kept, at_the_end)
    return Need(memory_bytes, round(memory.n_file_bytes * scale))


def need_beside_frames(model: nn.Module, n_samples: int) -> int:
    """Estimate the memory of the exact pass without what is kept between two sweeps."""
    n_sources: int = model.n_sources  # type: ignore[assignment]
    signals = (2 + n_sources) * n_samples * SAMPLE_BYTES  # the mixture normalised and padded, the estimates
    return signals + _piece_bytes(model, n_samples)


def need_as_a_whole(model: nn.Module, n_samples: int) -> Need | None:
    """Estimate a forward pass of everything at once; None for a network of no family known here."""
    config: Any = getattr(model, "config", None)
    if goes_in_pieces(model) or isinstance(model, SepReformer):
        return need_in_pieces(model, n_samples, None)
    if isinstance(model, TFLocoformer):
        n_frames = n_samples / config.hop_length
        per_frame = _TFLOCOFORMER_FEATURES * (config.n_fft // 2 + 1) * config.n_channels
    else:
        return None
    return Need(round(n_frames * per_frame * SAMPLE_BYTES) + _piece_bytes(model, n_samples))


def _piece_bytes(model: nn.Module, n_samples: int) -> int:
    """Estimate what exists for one piece of time only."""
    config: Any = getattr(model, "config", None)
    n_values = 0
    if isinstance(model, SepReformer):
        n_frames = min(n_samples // config.hop_length, longest_piece(config) + config.local_kernel_size)
        n_values = _SEPREFORMER_LIVE * config.n_sources * n_frames * config.n_channels
        n_values *= torch.get_num_threads()  # each works on a piece of its own
    elif isinstance(model, TFLocoformer):
        n_live = _TF_SOFTMAX_LIVE if config.attention == "softmax" else _TFLOCOFORMER_LIVE
        n_values = n_live * PIECE_LENGTH * 2 * config.feed_forward_channels
    return _LIBRARY_BYTES + n_values * SAMPLE_BYTES


class _PeakMemory(FrameMemory):
    """Remembers the most that was in use."""

    peak_bytes = 0

    def allocate(self, shape: tuple[int, int, int], like: Tensor) -> Frames:
        frames = super().allocate(shape, like)
        self.peak_bytes = max(self.peak_bytes, self.n_bytes)
        return frames
