"""Mix the channels of a recording down to one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.blocks import BLOCK_LENGTH
from flasepformer.audio.channel_levels import ChannelLevels

CANCELLED = 0.01
"""Energy of the mean, against the mean of unrelated channels, below which channels cancel out (-20 dB)."""

UNRELATED = 0.1
"""Cross-correlation that two different talkers stay below; 150 pairs of real speech reached 0.097."""

_LAG_SECONDS = 0.05  # sound travels 17 m in that time
_BLOCK_SECONDS = 4.0
_LONGEST_BLOCK = 1 << 18


@dataclass(frozen=True)
class MixDown:
    """How the channels of a recording become one; see `Channels.mix_down`."""

    channel: int | None
    """The only one to take; None averages them."""
    mean: float
    """Of the samples that come out, over the whole recording."""
    warnings: tuple[str, ...] = ()

    def apply(self, samples: NDArray[np.floating]) -> NDArray[np.floating]:
        """Turn samples (channel, time) into an array of its own (time,), of the same type."""
        return samples[self.channel].copy() if self.channel is not None else _average(samples)


class Channels:
    """Compares the channels of a recording, block by block.

    Args:
        n_channels: Of every block, at least one.
        sample_rate: In Hz; None where nobody asks for talkers.
    """

    def __init__(self, n_channels: int, sample_rate: float | None) -> None:
        self.n_samples = 0
        self.peak = 0.0
        """Largest absolute sample of all channels."""
        self.n_channels, self._sample_rate = n_channels, sample_rate
        self._equal = True
        self._energies, self._sums = np.zeros(n_channels), np.zeros(n_channels)
        self._energy_of_mean = self._sum_of_mean = 0.0
        self._pair: tuple[_Pair, ChannelLevels] | None = None
        if n_channels == 2 and sample_rate is not None:
            self._pair = _Pair(sample_rate), ChannelLevels(sample_rate)

    def add(self, block: NDArray[np.floating]) -> None:
        """Look at the next samples (channel, time)."""
        self.n_samples += block.shape[1]
        self.peak = max(self.peak, float(block.max()), -float(block.min()))
        self._equal = self._equal and all(np.array_equal(block[0], channel) for channel in block[1:])
        self._sums += [float(channel.sum(dtype=np.float64)) for channel in block]
        self._energies += [_energy(channel) for channel in block]
        if self.n_channels > 1:
            mean = _average(block)
            self._energy_of_mean += _energy(mean)
            self._sum_of_mean += float(mean.sum(dtype=np.float64))
        for each in self._pair or ():
            each.add(block)

    def mix_down(self) -> MixDown:
        """Decide how to make one of the channels: their mean, or the strongest where they would cancel."""
        if self._equal:
            return MixDown(0, self._sums[0] / self.n_samples)  # the mean of equal channels, not rounded
        if self.n_channels**2 * self._energy_of_mean >= CANCELLED * self._energies.sum():
            return MixDown(None, self._sum_of_mean / self.n_samples)
        strongest = int(self._energies.argmax())
        warning = (
            f"the channels cancel one another (they are in antiphase); channel {strongest + 1} alone is used"
        )
        return MixDown(strongest, self._sums[strongest] / self.n_samples, (warning,))

    def have_talkers(self) -> bool:
        """Tell whether each channel carries a talker of its own; see `talkers_have_channels`."""
        if self._pair is None or self._sample_rate is None or self.n_samples < self._sample_rate:
            return False
        pair, levels = self._pair
        energies = self._energies - self._sums**2 / self.n_samples
        if energies.min() < CANCELLED * energies.max():
            return False  # one channel is silent, or next to it
        unrelated = pair.are_unrelated(self._sums / self.n_samples, energies)
        return (unrelated and levels.vary_like_speech()) or levels.take_turns()


def mix_down(samples: NDArray[np.floating]) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    """Average the channels of a recording; where they would cancel each other, take the strongest one.

    Args:
        samples: (channel, time), at least one channel and one sample.

    Returns:
        (time,), of the same type, and the warnings, one sentence each.

    >>> mix_down(np.array([[0.5, -0.25], [0.0, 0.75]]))
    (array([0.25, 0.25]), ())
    """
    if samples.ndim != 2 or samples.shape[0] < 1:
        raise ValueError(
            f"samples must be (channel, time) with at least one channel, got shape {samples.shape}"
        )
    decided = _compare(samples, None).mix_down()
    return decided.apply(samples), decided.warnings


def talkers_have_channels(samples: NDArray[np.floating], sample_rate: int) -> bool:
    """Tell whether each channel of a stereo recording carries a talker of its own, as calls often do.

    That is so when both are heard and neither is found in the other, at any delay between microphones, and
    when they are loud by turns, with the other talker as crosstalk at most. Hum and most music are no talker.

    Args:
        samples: (channel, time).
        sample_rate: In Hz.

    Returns:
        False for any other number of channels than two, and for less than a second.
    """
    if len(samples) != 2 or samples.shape[1] < sample_rate:
        return False
    return _compare(samples, sample_rate).have_talkers()


def _compare(samples: NDArray[np.floating], sample_rate: float | None) -> Channels:
    channels = Channels(len(samples), sample_rate)
    for start in range(0, samples.shape[1], BLOCK_LENGTH):
        channels.add(samples[:, start : start + BLOCK_LENGTH])
    return channels


def _average(samples: NDArray[np.floating]) -> NDArray[np.floating]:
    mean = np.zeros_like(samples[0])
    for channel in samples:
        mean += channel / len(samples)
    return mean


class _Pair:
    """Adds up the cross-correlation of two channels, in blocks of a few seconds."""

    def __init__(self, sample_rate: float) -> None:
        self._n_lags = max(1, min(round(_LAG_SECONDS * sample_rate), _LONGEST_BLOCK // 8))
        self._length = max(1, min(round(_BLOCK_SECONDS * sample_rate), _LONGEST_BLOCK))
        self._rest: list[NDArray[np.floating]] = []
        n = 2 * self._n_lags + 1
        self._products, self._sums, self._counts = np.zeros(n), np.zeros((2, n)), np.zeros(n)

    def add(self, block: NDArray[np.floating]) -> None:
        while block.shape[1]:
            room = self._length - sum(part.shape[1] for part in self._rest)
            self._rest.append(block[:, :room].copy())
            if block.shape[1] >= room:
                self._close()
            block = block[:, room:]

    def are_unrelated(self, means: NDArray[np.float64], energies: NDArray[np.float64]) -> bool:
        """Tell it of the channels without their means, whose energies these are."""
        if self._rest:
            self._close()
        # the sum of (x - mean) (y - mean), over the pairs of samples that each lag has
        correlation = (
            self._products
            - means[1] * self._sums[0]
            - means[0] * self._sums[1]
            + means[0] * means[1] * self._counts
        )
        return bool(np.abs(correlation).max() < UNRELATED * np.sqrt(energies.prod()))

    def _close(self) -> None:
        """Add the correlation of what has come, each lag with the sums of the samples it pairs."""
        x, y = np.concatenate(self._rest, axis=1).astype(np.float64)
        self._rest = []
        n, n_lags = len(x), self._n_lags
        spectra = np.fft.rfft([x, y], self._length + n_lags)
        circular = np.fft.irfft(spectra[0] * spectra[1].conj(), self._length + n_lags)
        self._products += np.concatenate([circular[-n_lags:], circular[: n_lags + 1]])
        lags = np.arange(-n_lags, n_lags + 1)  # x[t + lag] meets y[t]
        before, behind = np.minimum(np.maximum(lags, 0), n), np.minimum(np.maximum(-lags, 0), n)
        for index, (samples, head, tail) in enumerate(((x, before, behind), (y, behind, before))):
            upto = np.concatenate([[0.0], np.cumsum(samples)])
            self._sums[index] += np.where(head + tail < n, upto[n - tail] - upto[np.minimum(head, n)], 0.0)
        self._counts += np.maximum(n - np.abs(lags), 0)


def _energy(channel: NDArray[np.floating]) -> float:
    return float(np.einsum("t,t->", channel, channel, dtype=np.float64))
