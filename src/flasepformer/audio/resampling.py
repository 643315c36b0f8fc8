"""Change the sample rate of a waveform."""

import numpy as np
import soxr
from numpy.typing import NDArray


def resample(waveform: NDArray[np.floating], from_rate: float, to_rate: float) -> NDArray[np.floating]:
    """Resample with soxr's very high quality, to an exact length.

    Args:
        waveform: (..., time), float32 or float64.
        from_rate: Sample rate of the waveform in Hz.
        to_rate: Sample rate wanted in Hz.

    Returns:
        (..., time), of the same type, with `round(time * to_rate / from_rate)` samples, though at least one
        for a waveform that has any. The waveform itself when the rates are equal.

    >>> resample(np.zeros((2, 44100), np.float32), 44100, 8000).shape
    (2, 8000)
    """
    waveform = np.asarray(waveform)
    if waveform.dtype not in (np.float32, np.float64):
        raise ValueError(f"waveform must be float32 or float64, got {waveform.dtype}; convert it first")
    if not (from_rate > 0 and to_rate > 0):
        raise ValueError(f"sample rates must be above 0 Hz, got {from_rate} and {to_rate}")
    if from_rate == to_rate:
        return waveform
    n_in = waveform.shape[-1]
    n_out = max(round(n_in * to_rate / from_rate), min(n_in, 1))
    resampled = np.zeros((*waveform.shape[:-1], n_out), waveform.dtype)
    if waveform.size > 0:
        channels = soxr.resample(waveform.reshape(-1, n_in).T, from_rate, to_rate, quality="VHQ")[:n_out]
        resampled.reshape(-1, n_out)[:, : len(channels)] = channels.T
    return resampled
