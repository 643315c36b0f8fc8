"""Levels of a stream that know its past only."""

from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from flasepformer.inference.levels import SILENCE_PEAK

MEMORY_SECONDS = 30.0
"""After so long, what was said counts for 1/e."""

PAUSE_SHARE = 1e-4
"""Energy, against that of the loudest, below which a block is a pause: 40 dB less."""

AS_IT_IS = (0.35, 5.6)
"""Levels, against the one that a network expects, that it takes as they are: from -9 to 15 dB. `default-live`
loses 0.05 dB SI-SNRi at most there, 0.1 at -15, 1 at -24; that its input is turned up and down costs 0.6."""

TRUST_SECONDS = 1.0
"""Talking after which half of the difference from the expected level is believed: it may begin softly."""


class PastLevel:
    """The level of the talking so far: root mean square of the blocks that are no pauses.

    Args:
        block_seconds: Length of a block.
    """

    def __init__(self, block_seconds: float) -> None:
        self._keep, self._block_seconds = exp(-block_seconds / MEMORY_SECONDS), block_seconds
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

    def take_excess(self, block: NDArray[np.float32], expected: float) -> float:
        """Take in the next block; return how much too loud the talking is for a network, below 1 if too soft.

        Args:
            block: (time,).
            expected: Root mean square of the talking that it knows.
        """
        level = self.take(block) / expected
        if level == 0:
            return 1.0
        seconds = self.numbers[1] * self._block_seconds
        level = float(level ** (seconds / (seconds + TRUST_SECONDS)))
        return level / min(max(level, AS_IT_IS[0]), AS_IT_IS[1])


LEAST_SHARE = 0.25
"""Level of the sum of the tracks, against that of the mixture, however little of the mixture is in it."""


class PastGain:
    """The common gain with which the sum of the tracks explains what was heard so far.

    The scale of a network's estimates is any, since SI-SNR does not see it. Where they hardly fit the
    mixture, they are brought to a quarter of its level.

    Args:
        block_seconds: Length of a block.
    """

    def __init__(self, block_seconds: float) -> None:
        self._keep = exp(-block_seconds / MEMORY_SECONDS)
        self.numbers = np.zeros(4)
        """Energy of the mixture, product of tracks and mixture, energy of the tracks, and the gain at the end
        of the last block, 0 before the first that is not silent."""

    def apply(self, tracks: NDArray[np.float32], mixture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the next block of tracks (source, time) with their gain, given the mixture (time,)."""
        together, heard = tracks.sum(0, dtype=np.float64), mixture.astype(np.float64)
        new = heard @ heard, together @ heard, together @ together
        self.numbers[:3] = self.numbers[:3] * self._keep + new
        mixture_energy, product, energy, before = (float(number) for number in self.numbers)
        gain = before
        if energy > 0:
            gain = max(product / energy, LEAST_SHARE * sqrt(mixture_energy / energy))
        self.numbers[3] = gain
        return tracks * ramp(before or gain, gain, tracks.shape[1])


def ramp(first: float, last: float, n: int) -> NDArray[np.float32]:
    """Return n numbers from `first`, left out, to `last`."""
    return (first + (last - first) * np.arange(1, n + 1) / n).astype(np.float32)
