"""Levels of a stream that know its past only."""

from math import exp

import numpy as np
from numpy.typing import NDArray

from flasepformer.inference.levels import SILENCE_PEAK

MEMORY_SECONDS = 30.0
"""After so long, what was said counts for 1/e."""

PAUSE_SHARE = 1e-4
"""Energy, against that of the loudest, below which a block is a pause: 40 dB less."""

LARGEST_CHANGE = 4.0
"""Most that a common gain of the tracks may be, and 1 over the least."""


class PastLevel:
    """The level of the talking so far: root mean square of the blocks that are no pauses.

    Args:
        block_seconds: Length of a block.
    """

    def __init__(self, block_seconds: float) -> None:
        self._keep = exp(-block_seconds / MEMORY_SECONDS)
        self.numbers = np.zeros(3)
        """Energy and number of the blocks that count, and the energy of the loudest."""

    def take(self, block: NDArray[np.float32]) -> float:
        """Take in the next block (time,); return the level until its end, 0 as long as all is silent."""
        energy, loudest = float(np.mean(np.square(block, dtype=np.float64))), self.numbers[2] * self._keep
        loudest = max(energy, loudest)
        if energy >= PAUSE_SHARE * loudest and np.abs(block).max() > SILENCE_PEAK:
            self.numbers[:2] = self.numbers[:2] * self._keep + (energy, 1)
            self.numbers[2] = loudest
        total, count, _ = self.numbers
        return float(np.sqrt(total / count)) if count else 0.0


class PastGain:
    """The common gain with which the sum of the tracks explains what was heard so far.

    Args:
        block_seconds: Length of a block.
    """

    def __init__(self, block_seconds: float) -> None:
        self._keep = exp(-block_seconds / MEMORY_SECONDS)
        self.numbers = np.array([0.0, 0.0, 1.0])
        """Product of tracks and mixture, energy of the tracks, and the gain at the end of the last block."""

    def apply(self, tracks: NDArray[np.float32], mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the next block of tracks (source, time) with their gain, given the mixture (time,)."""
        together = tracks.sum(0, dtype=np.float64)
        self.numbers[:2] = self.numbers[:2] * self._keep + (together @ mixture, together @ together)
        product, energy, before = self.numbers
        gain = before
        if product > 0 < energy:
            gain = float(np.clip(product / energy, 1 / LARGEST_CHANGE, LARGEST_CHANGE))
        self.numbers[2] = gain
        return tracks * ramp(before, gain, tracks.shape[1])


def ramp(first: float, last: float, n: int) -> NDArray[np.float32]:
    """Return n numbers from `first`, left out, to `last`."""
    return (first + (last - first) * np.arange(1, n + 1) / n).astype(np.float32)
