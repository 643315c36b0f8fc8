"""Mix the channels of a recording down to one."""

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.channel_levels import ChannelLevels

CANCELLED = 0.01
"""Energy of the mean, against the mean of unrelated channels, below which channels cancel out (-20 dB)."""

UNRELATED = 0.1
"""Cross-correlation that two different talkers stay below; 150 pairs of real speech reached 0.097."""

_LAG_SECONDS = 0.05  # sound travels 17 m in that time
_BLOCK_SECONDS = 4.0


def mix_down(samples: NDArray[np.floating]) -> tuple[NDArray[np.floating], tuple[str, ...]]:
    """Average the channels of a recording; where they would cancel each other, take the strongest one.

    Args:
        samples: (channel, time), at least one channel.

    Returns:
        (time,), of the same type, and the warnings, one sentence each.

    >>> mix_down(np.array([[0.5, -0.25], [0.0, 0.75]]))
    (array([0.25, 0.25]), ())
    """
    if samples.ndim != 2 or samples.shape[0] < 1:
        raise ValueError(
            f"samples must be (channel, time) with at least one channel, got shape {samples.shape}"
        )
    first = samples[0]
    if all(np.array_equal(first, channel) for channel in samples[1:]):
        return first.copy(), ()  # the mean of equal channels, without its rounding
    n_channels = samples.shape[0]
    mean = np.zeros_like(first)
    for channel in samples:  # one at a time: hours of several channels would not fit in memory twice
        mean += channel / n_channels
    energies = np.array([_energy(channel) for channel in samples])
    if n_channels**2 * _energy(mean) >= CANCELLED * energies.sum():
        return mean, ()
    strongest = int(energies.argmax())
    warning = (
        f"the channels cancel one another (they are in antiphase); channel {strongest + 1} alone is used"
    )
    return samples[strongest].copy(), (warning,)


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
    n_channels, n_samples = samples.shape
    if n_channels != 2 or n_samples < sample_rate:
        return False
    offsets = samples.mean(axis=1, keepdims=True, dtype=np.float64)
    energies = np.zeros(2)
    levels = ChannelLevels(sample_rate)
    n_lags, n_block = round(_LAG_SECONDS * sample_rate), round(_BLOCK_SECONDS * sample_rate)
    correlation = np.zeros(2 * n_lags + 1)
    for start in range(0, n_samples, n_block):
        block = samples[:, start : start + n_block].astype(np.float64) - offsets
        spectra = np.fft.rfft(block, n_block + n_lags)
        circular = np.fft.irfft(spectra[0] * spectra[1].conj(), n_block + n_lags)
        correlation += np.concatenate([circular[-n_lags:], circular[: n_lags + 1]])
        energies += [_energy(channel) for channel in block]
        levels.add(block)
    if energies.min() < CANCELLED * energies.max():
        return False  # one channel is silent, or next to it
    unrelated = np.abs(correlation).max() < UNRELATED * np.sqrt(energies.prod())
    return bool(unrelated and levels.vary_like_speech()) or levels.take_turns()


def _energy(channel: NDArray[np.floating]) -> float:
    return float(np.einsum("t,t->", channel, channel, dtype=np.float64))
