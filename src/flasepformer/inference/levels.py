"""Levels: what counts as silence, how loud the talkers are, how loud a track must be."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]

SILENCE_PEAK = 1e-4
"""-80 dBFS: three steps of a 16-bit recording, just above its dither. Nothing louder than this is speech."""

_BLOCK = 1 << 20  # samples widened to float64 at once, so that a long recording is never copied whole


def talking_rms(waveform: Samples, block_length: int) -> float:
    """Return the root mean square without the pauses: over the blocks at most 40 dB below the loudest one.

    Args:
        waveform: (time,), not empty.
        block_length: Samples in each block.
    """
    starts = np.arange(0, len(waveform), block_length)
    energies = _reduce_blocks(
        waveform, block_length, lambda part, at: np.add.reduceat(np.square(part, dtype=np.float64), at)
    )
    lengths = np.diff(starts, append=len(waveform))
    talking = energies / lengths >= 1e-4 * (energies / lengths).max()
    return float(np.sqrt(energies[talking].sum() / lengths[talking].sum()))


def silent_spans(waveform: Samples, sample_rate: int, *, threshold: float) -> list[slice]:
    """Find where nothing reaches the threshold for more than a second, less 50 ms beside each sound.

    Args:
        waveform: (time,), not empty.
        sample_rate: In Hz; sounds are found in blocks of 10 ms.
        threshold: Peak from which on a block counts as sound.
    """
    block_length, margin = max(1, sample_rate // 100), sample_rate // 20
    starts = np.arange(0, len(waveform), block_length)
    peaks = _reduce_blocks(waveform, block_length, lambda part, at: np.maximum.reduceat(np.abs(part), at))
    loud = starts[peaks >= threshold]
    begins = np.concatenate([[0], loud + block_length + margin])
    ends = np.concatenate([loud - margin, [len(waveform)]])
    return [slice(int(a), int(b)) for a, b in zip(begins, ends, strict=True) if b - a > sample_rate]


def _reduce_blocks(
    waveform: Samples, block_length: int, reduce: Callable[[Samples, NDArray[np.intp]], Samples]
) -> Samples:
    """Reduce every block to a number, without a second copy of a long recording."""
    n_at_once = max(1, _BLOCK // block_length) * block_length
    parts = (waveform[start : start + n_at_once] for start in range(0, len(waveform), n_at_once))
    return np.concatenate([reduce(part, np.arange(0, len(part), block_length)) for part in parts])
