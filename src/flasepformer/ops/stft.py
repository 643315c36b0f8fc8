"""Short-time Fourier transform, for recordings of any length from one sample on."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
