"""Levels: what counts as silence, how loud the talkers are, how loud a track must be."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]

MODEL_RMS = 10 ** (-23 / 20)
"""Level of every mixture that a model gets: that of two talkers at -26 dBFS each, as in training."""

SILENCE_PEAK = 1e-4
"""-80 dBFS: three steps of a 16-bit recording, just above its dither. Nothing louder than this is speech."""

MAX_CONDITION = 100.0
"""Estimates more alike than this (two of them: correlation 0.98) leave their single gains undetermined."""

MAX_TRACK_LEVEL = 2.0
"""A track this many times as loud as the mixture can only be cancelled by another one."""

_BLOCK = 1 << 20  # samples widened to float64 at once, so that a long recording is never copied whole


def explaining_gains(mixture: Samples, estimates: Samples) -> NDArray[np.float64]:
    """Return the gains with which the sum of the estimates explains the mixture best, by least squares.

    The scale of an estimate means nothing to a model trained for SI-SNR, nor does its polarity: a negative
    gain puts it right. Where the estimates are too alike for single gains (`MAX_CONDITION`), or would cancel
    each other (`MAX_TRACK_LEVEL`), all get one common gain, the best that keeps them below that level.

    Args:
        mixture: (time,).
        estimates: (source, time), zero-mean or nearly so.

    Returns:
        (source,). The sum of the estimates times these gains is never further from the mixture than without
        them, unless `MAX_TRACK_LEVEL` had to cut the common gain.
    """
    n_sources, n_samples = estimates.shape
    gram = np.zeros((n_sources + 1, n_sources + 1))
    for start in range(0, n_samples, _BLOCK):
        block = np.vstack([estimates[:, start : start + _BLOCK], mixture[start : start + _BLOCK]]).astype(
            np.float64
        )
        gram += block @ block.T
    norms = np.sqrt(gram.diagonal())
    heard = np.flatnonzero(norms[:-1] > 0)
    gains = np.zeros(n_sources)
    if heard.size == 0 or norms[-1] == 0:
        return gains
    correlation = gram[np.ix_(heard, heard)] / np.outer(norms[heard], norms[heard])
    if np.linalg.cond(correlation) <= MAX_CONDITION:
        levels = np.linalg.solve(correlation, gram[heard, -1] / (norms[heard] * norms[-1]))
        if np.abs(levels).max() <= MAX_TRACK_LEVEL:
            gains[heard] = levels * norms[-1] / norms[heard]
            return gains
    limit = MAX_TRACK_LEVEL * norms[-1] / norms[heard].max()
    energy_of_sum = max(gram[:-1, :-1].sum(), np.finfo(np.float64).tiny)
    gains[heard] = np.clip(gram[:-1, -1].sum() / energy_of_sum, -limit, limit)
    return gains


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
