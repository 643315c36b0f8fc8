"""Find what is wrong with samples that a decoder was content with: not numbers, clipped, offset."""

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.recording import AudioError

MAX_NON_FINITE_SHARE = 0.5
"""A recording with more samples than this that are not numbers is refused."""
MIN_CLIPPED_SHARE = 1e-4
"""Fewer clipped samples than this are not worth a word."""
MIN_CLIPPING_LEVEL = 0.95
"""A plateau counts from here on; below it, a quiet recording with few bits looks the same."""
MAX_OFFSET = 0.1
"""Largest mean of a channel, against its standard deviation, that passes as silence between the words."""

_SHORTEST_PLATEAU = 3


def replace_non_finite(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return samples with 0 for NaN and infinity, themselves if there are none; and how many there are.

    >>> replace_non_finite(np.array([1.0, np.nan], np.float32))
    (array([1., 0.], dtype=float32), 1)
    """
    finite = np.isfinite(block)
    n_bad = block.size - int(np.count_nonzero(finite))
    return (np.where(finite, block, np.float32(0)) if n_bad else block), n_bad


class Checkup:
    """Looks at a recording block by block, and says at its end what is wrong with it.

    Args:
        n_channels: Of every block.
    """

    def __init__(self, n_channels: int) -> None:
        self.n_samples = 0
        """Seen so far, of every channel."""
        self._n_channels = n_channels
        self._n_bad = 0
        self._plateaus = [_Plateaus(sign) for _ in range(n_channels) for sign in (1, -1)]
        self._sums = np.zeros(n_channels)
        self._energies = np.zeros(n_channels)

    def add(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a block (channel, time) with 0 in place of NaN and infinity; itself if it has none."""
        block, n_bad = replace_non_finite(block)
        self._n_bad += n_bad
        self.n_samples += block.shape[1]
        for index, channel in enumerate(block):
            self._plateaus[2 * index].add(channel)
            self._plateaus[2 * index + 1].add(channel)
        self._sums += block.sum(axis=1, dtype=np.float64)
        self._energies += np.einsum("ct,ct->c", block, block, dtype=np.float64)
        return block

    def warnings(self, sample_rate: int) -> tuple[str, ...]:
        """Return what is to be said, one sentence each.

        Raises:
            AudioError: When more than half of the samples are not numbers.
        """
        return (*self._non_finite(), *self._clipping(), *self._offset(sample_rate))

    def _non_finite(self) -> tuple[str, ...]:
        if self._n_bad == 0:
            return ()
        share = self._n_bad / (self._n_channels * self.n_samples)
        if share > MAX_NON_FINITE_SHARE:
            raise AudioError(
                f"{share:.0%} of its samples are not numbers (NaN or infinity); nothing is left to separate"
            )
        return (
            f"{self._n_bad} samples ({share:.2%}) are not numbers (NaN or infinity) and were replaced by "
            "silence",
        )

    def _clipping(self) -> tuple[str, ...]:
        """Report the share of clipped samples: several in a row at the very top or bottom of a channel."""
        n_clipped = sum(plateaus.n_samples for plateaus in self._plateaus)
        share = n_clipped / (self._n_channels * self.n_samples)
        if share < MIN_CLIPPED_SHARE:
            return ()
        return (f"the recording is clipped: {share:.2%} of its samples are cut off at full scale",)

    def _offset(self, sample_rate: int) -> tuple[str, ...]:
        """Report a constant (DC) offset; below a tenth of a second it cannot be told from sound."""
        if self.n_samples < sample_rate / 10:
            return ()
        offset = self._sums / self.n_samples
        spread = np.sqrt(np.maximum(self._energies / self.n_samples - offset**2, 0))
        worst = int(np.argmax(np.abs(offset)))
        if abs(offset[worst]) <= MAX_OFFSET * spread[worst]:
            return ()
        return (
            f"the recording has a constant (DC) offset of {offset[worst]:+.3g} of full scale in channel "
            f"{worst}",
        )


class _Plateaus:
    """Counts the samples of one channel that lie in a row at its highest (sign 1) or lowest (-1) value."""

    def __init__(self, sign: int) -> None:
        self._sign = np.float32(sign)
        self._limit = np.float32(-np.inf)
        self._n_closed = 0  # in rows that have ended
        self._open = 0  # length of the row that goes on

    @property
    def n_samples(self) -> int:
        if abs(self._limit) < MIN_CLIPPING_LEVEL:
            return 0
        return self._n_closed + (self._open if self._open >= _SHORTEST_PLATEAU else 0)

    def add(self, channel: NDArray[np.float32]) -> None:
        top = self._sign * (channel.max() if self._sign > 0 else channel.min())
        if top > self._limit:
            self._limit, self._n_closed, self._open = top, 0, 0
        if abs(self._limit) < MIN_CLIPPING_LEVEL:
            return
        below = np.flatnonzero(self._sign * channel != self._limit) if top == self._limit else None
        if below is None:  # nothing here reaches the limit
            self._close(np.array([self._open]))
            self._open = 0
            return
        rows = np.diff(below, prepend=-1, append=channel.size) - 1
        rows[0] += self._open
        self._close(rows[:-1])
        self._open = int(rows[-1])

    def _close(self, rows: NDArray[np.intp]) -> None:
        self._n_closed += int(rows[rows >= _SHORTEST_PLATEAU].sum())
