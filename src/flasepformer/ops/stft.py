"""Short-time Fourier transform and its inverse, for recordings of any length from one sample on."""

import torch
from torch import Tensor
from torch.nn import functional as F

from flasepformer.ops.framing import overlap_add

SMALLEST_OVERLAP = 0.01
"""Least sum of squared windows that the inverse divides by."""


def stft(waveform: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Analyse frames centred at multiples of the hop, with a Hann window and reflected edges.

    A recording of at most n_fft / 2 samples, too short to be reflected, is followed by zeros.

    Args:
        waveform: (batch, time), at least one sample.
        n_fft: Samples in a frame, even.
        hop_length: Samples from one frame to the next.

    Returns:
        Complex (batch, frames, bins) of at least single precision; n_fft / 2 + 1 bins, and one frame more
        than there are whole hops.
    """
    waveform = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
    waveform = F.pad(waveform, (0, max(0, n_fft // 2 + 1 - waveform.shape[-1])))
    window = torch.hann_window(n_fft, dtype=waveform.dtype, device=waveform.device)
    return torch.stft(waveform, n_fft, hop_length, window=window, return_complex=True).mT


def inverse_stft(spectrum: Tensor, hop_length: int, n_samples: int) -> Tensor:
    """Return the waveform whose frames come closest to the given ones, in the least-squares sense.

    Args:
        spectrum: Complex (..., frames, bins), as `stft` gives it.
        hop_length: Samples from one frame to the next, at most half a frame.
        n_samples: Length of the waveform that was analysed.

    Returns:
        (..., time) with time = n_samples. The inverse of `stft`, except that the last few samples fade out
        where the recording ends shortly before a whole hop.
    """
    n_fft = 2 * (spectrum.shape[-1] - 1)
    window = torch.hann_window(n_fft, dtype=spectrum.real.dtype, device=spectrum.device)
    waveform = overlap_add(torch.fft.irfft(spectrum) * window, hop_length)
    overlap = overlap_add(window.square().expand(spectrum.shape[-2], n_fft), hop_length)
    # Differs from torch.istft: there only the end of the last window reaches the last samples, and to divide
    # by its square would raise the errors of estimated frames several hundredfold, to a click.
    waveform = waveform / overlap.clamp_min(SMALLEST_OVERLAP)
    return waveform[..., n_fft // 2 : n_fft // 2 + n_samples]
