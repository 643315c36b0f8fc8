import pytest
import torch
from torch.testing import assert_close

from flasepformer.ops import stft


def test_a_cosine_stands_in_its_bin_with_its_size():
    n_fft, frequency_bin = 32, 5
    cosine = torch.cos(2 * torch.pi * frequency_bin / n_fft * torch.arange(400))
    magnitude = stft(cosine[None], n_fft, 16).abs()[0, 10]
    expected = torch.zeros(17)
    expected[4:7] = torch.tensor([n_fft / 8, n_fft / 4, n_fft / 8])  # the transform of a Hann window
    assert_close(magnitude, expected, atol=1e-4, rtol=0)


def test_a_short_recording_is_followed_by_zeros_and_a_longer_one_is_not():
    waveform = torch.randn(1, 17)
    assert_close(stft(waveform[:, :16], 32, 8), stft(waveform * (torch.arange(17) < 16), 32, 8))
    assert_close(
        stft(waveform, 32, 8),
        torch.stft(waveform, 32, 8, window=torch.hann_window(32), return_complex=True).mT,
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_analysed_in_single_precision(dtype):
    waveform = torch.randn(1, 100).to(dtype)
    assert torch.equal(stft(waveform, 32, 8), stft(waveform.float(), 32, 8))
