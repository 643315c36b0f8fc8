"""Mix the channels of a recording down to one."""

import numpy as np
from numpy.typing import NDArray

CANCELLED = 0.01
"""Energy of the mean, against the mean of unrelated channels, below which channels cancel out (-20 dB)."""


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
    warning = f"the channels cancel one another (they are in antiphase); channel {strongest} alone is used"
    return samples[strongest].copy(), (warning,)


def _energy(channel: NDArray[np.floating]) -> float:
    return float(np.einsum("t,t->", channel, channel, dtype=np.float64))
