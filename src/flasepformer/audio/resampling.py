"""Change the sample rate of a waveform."""

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
from numpy.typing import NDArray

from flasepformer.audio.blocks import first_samples

_QUALITY = "VHQ"


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
    n_out = resampled_length(n_in, from_rate, to_rate)
    resampled = np.zeros((*waveform.shape[:-1], n_out), waveform.dtype)
    if waveform.size > 0:
        channels = soxr.resample(waveform.reshape(-1, n_in).T, from_rate, to_rate, quality=_QUALITY)[:n_out]
        resampled.reshape(-1, n_out)[:, : len(channels)] = channels.T
    return resampled


def resampled_length(n_samples: int, from_rate: float, to_rate: float) -> int:
    """Return the samples that `resample` gives for so many."""
    return max(round(n_samples * to_rate / from_rate), min(n_samples, 1))


def resample_blocks(
    blocks: Iterable[NDArray[np.float32]], n_samples: int, from_rate: float, to_rate: float
) -> Iterator[NDArray[np.float32]]:
    """Resample a stream as `resample` does a whole, bit by bit.

    Args:
        blocks: (channel, some time), one after the other.
        n_samples: Length of all of them together.
        from_rate: Their sample rate in Hz.
        to_rate: Sample rate wanted in Hz.

    Yields:
        (channel, some time), `resampled_length(n_samples, from_rate, to_rate)` samples together.
    """
    if from_rate == to_rate:
        return first_samples(blocks, n_samples)
    resampled = _resampled(blocks, from_rate, to_rate)
    return first_samples(resampled, resampled_length(n_samples, from_rate, to_rate))


def _resampled(
    blocks: Iterable[NDArray[np.float32]], from_rate: float, to_rate: float
) -> Iterator[NDArray[np.float32]]:
    resampler = None
    for block in blocks:
        n_channels = len(block)
        resampler = resampler or soxr.ResampleStream(
            from_rate, to_rate, n_channels, dtype="float32", quality=_QUALITY
        )
        yield resampler.resample_chunk(np.ascontiguousarray(block.T)).reshape(-1, n_channels).T
    if resampler is not None:
        rest = resampler.resample_chunk(np.zeros((0, n_channels), np.float32), last=True)
        yield rest.reshape(-1, n_channels).T
