"""Samples that come and go in pieces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from flasepformer.ops import overlap_add, stft
from flasepformer.running import OverlapAdd, TensorSamples, read_reflected, read_with_zeros


def synthesise(spectrum, hop_length, n_samples, sizes=(1000,)):
    """Turn spectra (batch, frames, bins) back into waveforms, in pieces of so many frames."""
    n_fft = 2 * (spectrum.shape[-1] - 1)
    window = torch.hann_window(n_fft)
    windows = torch.fft.irfft(spectrum) * window
    adder, parts, first = OverlapAdd(hop_length, window.square()), [], 0
    while first < windows.shape[1]:
        some = windows[:, first : first + sizes[len(parts) % len(sizes)]]
        first += some.shape[1]
        parts.append(adder.push(overlap_add(some, hop_length), some.shape[1], last=first == windows.shape[1]))
    return torch.cat(parts, -1)[:, n_fft // 2 : n_fft // 2 + n_samples]


@settings(max_examples=40, deadline=None)
@given(
    n_samples=st.integers(1, 200),
    hop_length=st.sampled_from([4, 8]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_what_was_analysed_comes_back_exactly_in_pieces_of_any_size(n_samples, hop_length, sizes):
    waveform = torch.randn(2, n_samples)
    spectrum = stft(waveform, 32, hop_length)
    assert spectrum.shape == (2, 1 + max(n_samples, 17) // hop_length, 17)
    assert_close(synthesise(spectrum, hop_length, n_samples, sizes), waveform, atol=1e-5, rtol=0)


def test_the_end_of_a_recording_fades_instead_of_clicking():
    n_fft, hop_length, n_samples = 128, 64, 6 * 64 + 63
    true = torch.sin(torch.arange(n_samples) / 3)[None]
    spectrum = stft(true, n_fft, hop_length)
    error = 0.1 * torch.randn(
        spectrum.shape, dtype=spectrum.dtype, generator=torch.Generator().manual_seed(0)
    )
    whole = synthesise(error, hop_length, n_samples)[0]
    assert whole.abs().max() < 0.2  # torch.istft: 2.3
    clean = synthesise(spectrum, hop_length, n_samples)
    assert_close(clean[:, :-12], true[:, :-12], atol=1e-5, rtol=0)
    last = math.sin(torch.pi * 126 / 128) ** 4 / 0.01  # the window's square over the least overlap
    assert_close(clean[:, -1], true[:, -1] * last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_samples", [1, 9, 20])
def test_what_lies_beyond_a_recording_is_silent_or_its_mirror_image(n_samples):
    mixture = torch.randn(2, n_samples)
    n = max(n_samples, 9)
    padded = F.pad(mixture, (0, n - n_samples))
    mirrored = F.pad(padded, (8, 8), mode="reflect")
    for first, last in ((-8, n + 8), (-8, -3), (-2, 3), (n - 2, n + 5), (n + 1, n + 4)):
        read = read_reflected(TensorSamples(mixture), first, last, least=9)
        assert torch.equal(read, mirrored[:, first + 8 : last + 8])
        silent = read_with_zeros(TensorSamples(mixture), first, last)
        assert torch.equal(silent, F.pad(mixture, (8, n - n_samples + 8))[:, first + 8 : last + 8])
