"""Short-time Fourier transform, for recordings of any length from one sample on."""

import torch
from torch import Tensor
from torch.nn import functional as F

from flasepformer.ops.framing import is_exporting


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


def real_fft(frames: Tensor) -> Tensor:
    """Return the spectra of frames (..., n_fft), n_fft even: (..., n_fft / 2 + 1, 2), real and imaginary."""
    if is_exporting():  # as a matrix product, which every runtime has
        spectra = torch.view_as_real(torch.fft.rfft(torch.eye(frames.shape[-1], dtype=torch.float64)))
        matrix = _constant(spectra.flatten(1), frames)  # (n_fft, bins * 2)
        return (frames @ matrix).unflatten(-1, (-1, 2))
    return torch.view_as_real(torch.fft.rfft(frames))


def real_ifft(spectra: Tensor) -> Tensor:
    """Return the frames (..., n_fft) of spectra as `real_fft` gives them."""
    n_bins = spectra.shape[-2]
    n_fft = 2 * (n_bins - 1)
    if is_exporting():
        basis = torch.eye(2 * n_bins, dtype=torch.float64).unflatten(1, (n_bins, 2)).contiguous()
        frames = torch.fft.irfft(torch.view_as_complex(basis), n_fft)
        return spectra.flatten(-2) @ _constant(frames, spectra)
    return torch.fft.irfft(torch.view_as_complex(spectra.contiguous()), n_fft)


def _constant(matrix: Tensor, like: Tensor) -> Tensor:
    return matrix.to(like.dtype).to(like.device)
