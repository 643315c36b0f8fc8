"""Mel spectrograms of pieces of a recording: what it is counted by how many talk at a time."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from flasepformer.inference.finishing import Read, Samples, read_resampled

SAMPLE_RATE = 8000
"""Of what is listened to here, in Hz."""
HOP = 160
"""Samples from one frame to the next: 20 ms."""
N_FFT = 256
N_MELS = 40
LOWEST_HZ, HIGHEST_HZ = 60.0, 3800.0

_TINY = 1e-10


@cache
def mel_filters() -> Tensor:
    """Return triangles of equal width in mel, 60 to 3800 Hz: (bins, mels), each of sum 1."""
    hz = hz_of(np.linspace(mel_of(LOWEST_HZ), mel_of(HIGHEST_HZ), N_MELS + 2))
    bins = np.arange(N_FFT // 2 + 1)[:, None] * SAMPLE_RATE / N_FFT
    rising = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2])
    falling = (hz[2:] - bins) / (hz[2:] - hz[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling)) + 1e-6  # a narrow one may miss every bin
    return torch.from_numpy((triangles / triangles.sum(0)).astype(np.float32))


def mel_of(hz: float) -> float:
    """Return how high a frequency in Hz is on the mel scale."""
    return float(2595 * np.log10(1 + hz / 700))


def hz_of(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the frequencies in Hz of places on the mel scale."""
    return 700 * (10 ** (mels / 2595) - 1)


def log_mel(samples: Samples) -> Tensor:
    """Return the log powers (..., frames, mels) of samples (..., time) at 8 kHz, a frame each 20 ms begun."""
    waveform = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
    n_frames = -(-waveform.shape[-1] // HOP)
    before = (N_FFT - HOP) // 2
    after = n_frames * HOP + N_FFT - HOP - before - waveform.shape[-1]
    windows = F.pad(waveform, (before, after)).unfold(-1, N_FFT, HOP) * torch.hann_window(N_FFT)
    power = torch.fft.rfft(windows).abs().square() @ mel_filters()
    return (power / N_FFT + _TINY).log()


def read_mels(read: Read, n_samples: int, sample_rate: int, first: int, last: int) -> Tensor:
    """Return the log mel powers (..., last - first, mels) of some frames, whatever the sample rate is.

    Args:
        read: Of samples (..., time).
        n_samples: How many there are.
        sample_rate: Of them, in Hz.
        first: Frame.
        last: The one after the last.
    """
    begin = max(first - 1, 0)  # so that the first window is whole
    samples = read_resampled(read, n_samples, sample_rate, SAMPLE_RATE, begin * HOP, (last + 1) * HOP)
    return log_mel(samples)[..., first - begin : last - begin, :]
