import pytest
import torch
from torch.testing import assert_close

from flasepformer.ops import overlap_add


def test_overlap_add_adds_where_frames_overlap():
    frames = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])
    assert overlap_add(frames, 2).tolist() == [1.0, 2.0, 13.0, 20.0, 30.0]


@pytest.mark.parametrize(("window_length", "hop_length"), [(16, 4), (64, 32), (5, 5), (7, 3)])
def test_overlap_add_is_the_transpose_of_cutting_into_frames(window_length, hop_length):
    frames = torch.randn(2, 9, window_length, dtype=torch.float64)
    waveform = torch.randn(2, 8 * hop_length + window_length, dtype=torch.float64)
    cut = waveform.unfold(-1, window_length, hop_length)
    assert_close((cut * frames).sum(), (waveform * overlap_add(frames, hop_length)).sum())
