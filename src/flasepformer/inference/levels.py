"""Levels: what counts as silence, and how loud the talkers are."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]

MODEL_RMS = 10 ** (-23 / 20)
"""Level of every mixture that a model gets: that of two talkers at -26 dBFS each, as in training."""

SILENCE_PEAK = 1e-4
"""-80 dBFS: three steps of a 16-bit recording, just above its dither. Nothing louder than this is speech."""


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
