"""Find what is wrong with samples that a decoder was content with: not numbers, clipped, offset."""

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.recording import AudioError

MAX_NON_FINITE_SHARE = 0.5
"""A recording with more samples than this that are not numbers is refused."""
MIN_CLIPPED_SHARE = 1e-4
"""Fewer clipped samples than this are not worth a word."""
MAX_OFFSET = 0.1
"""Largest mean of a channel, against its standard deviation, that passes as silence between the words."""


def replace_non_finite(samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Put 0 in place of NaN and infinity.

    Args:
        samples: (channel, time); left as it is.

    Returns:
        (channel, time), the same array when there is nothing to replace; and the warnings.

    Raises:
        AudioError: When more than half of the samples are not numbers.
    """
    finite = np.isfinite(samples)
    n_bad = samples.size - int(np.count_nonzero(finite))
    if n_bad == 0:
        return samples, ()
    share = n_bad / samples.size
    if share > MAX_NON_FINITE_SHARE:
        raise AudioError(
            f"{share:.0%} of its samples are not numbers (NaN or infinity); nothing is left to separate"
        )
    warning = f"{n_bad} samples ({share:.2%}) are not numbers (NaN or infinity) and were replaced by silence"
    return np.where(finite, samples, np.float32(0)), (warning,)


def clipping_warnings(samples: NDArray[np.float32]) -> tuple[str, ...]:
    """Report the share of clipped samples: at least three in a row at the very top or bottom of a channel.

    A plateau counts from 0.95 of full scale on; below it, a quiet recording with few bits looks the same.
    """
    n_clipped = 0
    for channel in samples:
        for limit in (channel.max(), channel.min()):
            if abs(limit) < 0.95:
                continue
            at_limit = channel == limit
            middle = at_limit[:-2] & at_limit[1:-1] & at_limit[2:]
            in_run = np.zeros_like(at_limit)
            for shift in range(3):
                in_run[shift : in_run.size - 2 + shift] |= middle
            n_clipped += int(np.count_nonzero(in_run))
    share = n_clipped / samples.size
    if share < MIN_CLIPPED_SHARE:
        return ()
    return (f"the recording is clipped: {share:.2%} of its samples are cut off at full scale",)


def offset_warnings(samples: NDArray[np.float32], sample_rate: int) -> tuple[str, ...]:
    """Report a constant (DC) offset; below a tenth of a second it cannot be told from sound."""
    if samples.shape[1] < sample_rate / 10:
        return ()
    offset = samples.mean(axis=1, dtype=np.float64)
    power = np.einsum("ct,ct->c", samples, samples, dtype=np.float64) / samples.shape[1]
    spread = np.sqrt(np.maximum(power - offset**2, 0))
    worst = int(np.argmax(np.abs(offset)))
    if abs(offset[worst]) <= MAX_OFFSET * spread[worst]:
        return ()
    return (
        f"the recording has a constant (DC) offset of {offset[worst]:+.3g} of full scale in channel {worst}",
    )
