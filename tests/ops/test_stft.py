import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flasepformer.ops import inverse_stft, stft


def test_a_cosine_stands_in_its_bin_with_its_size():
    n_fft, frequency_bin = 32, 5
    cosine = torch.cos(2 * torch.pi * frequency_bin / n_fft * torch.arange(400))
    magnitude = stft(cosine[None], n_fft, 16).abs()[0, 10]
    expected = torch.zeros(17)
    expected[4:7] = torch.tensor([n_fft / 8, n_fft / 4, n_fft / 8])  # the transform of a Hann window
    assert_close(magnitude, expected, atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(n_samples=st.integers(1, 200), hop_length=st.sampled_from([4, 8]), seed=st.integers(0, 99))
def test_the_inverse_gives_any_length_back_exactly(n_samples, hop_length, seed):
    waveform = torch.randn(2, n_samples, generator=torch.Generator().manual_seed(seed))
    spectrum = stft(waveform, 32, hop_length)
    assert spectrum.shape == (2, 1 + max(n_samples, 17) // hop_length, 17)
    assert_close(inverse_stft(spectrum, hop_length, n_samples), waveform, atol=1e-5, rtol=0)


def test_a_short_recording_is_followed_by_zeros_and_a_longer_one_is_not():
    waveform = torch.randn(1, 17)
    assert_close(stft(waveform[:, :16], 32, 8), stft(waveform * (torch.arange(17) < 16), 32, 8))
    assert_close(
        stft(waveform, 32, 8),
        torch.stft(waveform, 32, 8, window=torch.hann_window(32), return_complex=True).mT,
    )


def test_the_end_of_a_recording_fades_instead_of_clicking():
    n_fft, hop_length, n_samples = 128, 64, 6 * 64 + 63
    true = torch.sin(torch.arange(n_samples) / 3)[None]
    spectrum = stft(true, n_fft, hop_length)
    error = 0.1 * torch.randn(
        spectrum.shape, dtype=spectrum.dtype, generator=torch.Generator().manual_seed(0)
    )
    whole = inverse_stft(error, hop_length, n_samples)[0]
    assert whole.abs().max() < 0.2  # torch.istft: 2.3
    clean = inverse_stft(spectrum, hop_length, n_samples)
    assert_close(clean[:, :-12], true[:, :-12], atol=1e-5, rtol=0)
    last = math.sin(torch.pi * 126 / 128) ** 4 / 0.01  # the window's square over the least overlap
    assert_close(clean[:, -1], true[:, -1] * last, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_analysed_in_single_precision(dtype):
    waveform = torch.randn(1, 100).to(dtype)
    assert torch.equal(stft(waveform, 32, 8), stft(waveform.float(), 32, 8))
