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

_BLOCK = 1 << 17  # samples widened to float64 at once, so that a long recording is never copied whole


class Products:
    """Adds up the products of estimates and mixture with one another, block by block.

    Args:
        n_sources: Number of estimates.
    """

    def __init__(self, n_sources: int) -> None:
        self.gram = np.zeros((n_sources + 1, n_sources + 1))
        """Of the estimates, and the mixture in the last row and column."""

    def add(self, mixture: Samples, estimates: Samples) -> None:
        """Take the next samples of the mixture (time,) and of the estimates (source, time)."""
        block = np.vstack([estimates, mixture]).astype(np.float64)
        self.gram += block @ block.T

    def gains(self) -> NDArray[np.float64]:
        """Return the gains of `explaining_gains`."""
        gram = self.gram
        norms = np.sqrt(gram.diagonal())
        heard = np.flatnonzero(norms[:-1] > 0)
        gains = np.zeros(len(gram) - 1)
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
    products = Products(len(estimates))
    for start in range(0, len(mixture), _BLOCK):
        products.add(mixture[start : start + _BLOCK], estimates[:, start : start + _BLOCK])
    return products.gains()


class TalkingLevel:
    """Measures how loud a recording is without its pauses, block by block.

    Args:
        block_length: Samples in each block whose loudness counts.
    """

    def __init__(self, block_length: int) -> None:
        self._blocks = _Blocks(block_length)
        self._energies: list[NDArray[np.float64]] = []

    def add(self, waveform: Samples) -> None:
        """Take the next samples (time,)."""
        self._energies.append(self._blocks.reduce(waveform, _energies).astype(np.float64))

    def rms(self) -> float:
        """Return the root mean square over the blocks at most 40 dB below the loudest one."""
        n_rest = self._blocks.n_waiting
        energies = np.concatenate([*self._energies, self._blocks.rest(_energies)])
        lengths = np.full(len(energies), self._blocks.length)
        if n_rest:
            lengths[-1] = n_rest
        talking = energies / lengths >= 1e-4 * (energies / lengths).max()
        return float(np.sqrt(energies[talking].sum() / lengths[talking].sum()))


class SilenceFinder:
    """Finds where nothing reaches a threshold for more than a second, less 50 ms beside each sound.

    Args:
        sample_rate: In Hz; sounds are found in blocks of 10 ms.
        threshold: Peak from which on a block counts as sound.
    """

    def __init__(self, sample_rate: int, threshold: float) -> None:
        self._blocks = _Blocks(max(1, sample_rate // 100))
        self._margin, self._shortest, self._threshold = sample_rate // 20, sample_rate, threshold
        self._begin = 0  # of the silence that goes on
        self._spans: list[slice] = []

    def add(self, waveform: Samples) -> None:
        """Take the next samples (time,)."""
        first = self._blocks.n_samples - self._blocks.n_waiting
        self._take(first, self._blocks.reduce(waveform, _peaks))

    def spans(self) -> list[slice]:
        """Return the silent samples, in order."""
        self._take(self._blocks.n_samples - self._blocks.n_waiting, self._blocks.rest(_peaks))
        return [*self._spans, *self._long([self._begin], [self._blocks.n_samples])]

    def _take(self, first: int, peaks: Samples) -> None:
        loud = first + self._blocks.length * np.flatnonzero(peaks >= self._threshold)
        if loud.size:
            begins = [self._begin, *(loud + self._blocks.length + self._margin)]
            self._spans += self._long(begins[:-1], list(loud - self._margin))
            self._begin = int(begins[-1])

    def _long(self, begins: list[int], ends: list[int]) -> list[slice]:
        return [slice(int(a), int(b)) for a, b in zip(begins, ends, strict=True) if b - a > self._shortest]


class _Blocks:
    """Reduces every so many samples to one number; what does not fill a block waits for the next samples."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.n_samples = 0
        self._waiting: Samples = np.zeros(0, np.float32)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def reduce(self, waveform: Samples, reduce: Callable[[Samples], Samples]) -> Samples:
        """Return a number for every block that is now full."""
        self.n_samples += len(waveform)
        waveform = np.concatenate([self._waiting, waveform])
        n_full = len(waveform) // self.length
        self._waiting = waveform[n_full * self.length :].copy()
        return reduce(waveform[: n_full * self.length].reshape(n_full, self.length))

    def rest(self, reduce: Callable[[Samples], Samples]) -> Samples:
        """Return the number of the last block, which is not full; nothing if there is none."""
        waiting, self._waiting = self._waiting, self._waiting[:0]
        return reduce(waiting[None]) if len(waiting) else np.zeros(0)


def _energies(blocks: Samples) -> NDArray[np.float64]:
    return np.einsum("bt,bt->b", blocks, blocks, dtype=np.float64)


def _peaks(blocks: Samples) -> Samples:
    return np.abs(blocks).max(axis=1) if len(blocks) else np.zeros(0)
