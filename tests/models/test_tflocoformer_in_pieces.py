"""A recording in pieces gives the numbers of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_tflocoformer import tiny_model
from torch.nn import functional as F
from torch.testing import assert_close

from flasepformer.models.fast_convolution import FastConvolution
from flasepformer.running import FrameMemory

VARIANTS = {
    "plain": {},
    "ungated, three talkers": {"gated": False, "n_sources": 3},
    "one block, even kernel, large hop": {"n_blocks": 1, "feed_forward_kernel": 8},
    "plain linear, no value convolution": {"attention": "linear", "value_kernel_size": 0},
    "no convolution at all": {"value_kernel_size": 0, "feed_forward_kernel": 1},
    "odd hop": {"hop_length": 7, "feed_forward_kernel": 7},
    "input added once, level as it is": {"repeat_input": False, "normalize_variance": False},
}


def assert_same(estimates, expected):
    rms = expected.square().mean().sqrt().item()
    assert_close(estimates, expected, rtol=0, atol=rms * (1e-4 if expected.dtype == torch.float32 else 1e-9))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_frames_in_piece", [1, 5, 1000])
def test_pieces_of_any_length_give_the_whole(variant, n_frames_in_piece):
    model = tiny_model(**VARIANTS[variant]).double()
    mixture = (torch.randn(2, 403) * torch.tensor([[1.0], [0.1]])).double()
    estimates = model.separate_in_pieces(mixture, piece_length=n_frames_in_piece)
    assert_same(estimates, model(mixture).detach())


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    n_samples=st.integers(1, 700),
    n_frames_in_piece=st.integers(1, 30),
    hop_length=st.integers(1, 16),
    kernel=st.integers(1, 9),
)
def test_a_recording_of_any_length_gives_the_whole(n_samples, n_frames_in_piece, hop_length, kernel):
    n_samples = min(n_samples, 45 * hop_length)
    model = tiny_model(n_blocks=1, hop_length=hop_length, feed_forward_kernel=kernel).double()
    mixture = torch.randn(1, n_samples).double()
    estimates = model.separate_in_pieces(mixture, piece_length=n_frames_in_piece)
    assert_same(estimates, model(mixture).detach())


@pytest.mark.parametrize("kernel", [4, 8])
def test_single_precision_gives_the_whole(kernel):
    model = tiny_model(feed_forward_kernel=kernel)
    mixture = torch.randn(1, 5000)
    assert_same(model.separate_in_pieces(mixture), model(mixture).detach())


@given(length=st.integers(0, 80), kernel=st.integers(1, 32), n_rows=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_the_fast_convolution_equals_its_definition(length, kernel, n_rows):
    x, weight, bias = torch.randn(length, n_rows, 3), torch.randn(5, 3, kernel), torch.randn(5)
    expected = torch.empty(0, n_rows, 5)
    if length >= kernel:
        expected = F.conv1d(x.permute(1, 2, 0), weight, bias).permute(2, 0, 1)
    assert_close(FastConvolution(weight, bias)(x), expected, rtol=0, atol=1e-5 * (3 * kernel) ** 0.5)


@pytest.mark.parametrize("limit", [0, 20_000, None])
def test_frames_in_files_are_the_same_frames(limit, tmp_path):
    model, mixture = tiny_model(), torch.randn(2, 1500)
    memory = FrameMemory(limit, tmp_path)
    estimates = model.separate_in_pieces(mixture, memory)
    assert_same(estimates, model.separate_in_pieces(mixture))
    assert memory.n_bytes == 0  # everything was given back
    n_bytes_of_features = 4 * 8 * 17 * (1 + 1500 // 16)
    assert memory.n_file_bytes == (0 if limit is None else 2 * n_bytes_of_features)
    assert list(tmp_path.iterdir()) == []


def test_one_copy_of_the_features_is_kept():
    used = []

    class Watched(FrameMemory):
        def allocate(self, shape, like):
            frames = super().allocate(shape, like)
            used.append(self.n_bytes)
            return frames

    tiny_model().separate_in_pieces(torch.randn(2, 1600), Watched(), piece_length=4)
    assert used == [2 * 4 * 8 * 17 * 101]


def test_progress_rises_to_one():
    told = []
    tiny_model().separate_in_pieces(torch.randn(2, 1600), progress=told.append, piece_length=20)
    assert told == sorted(told)
    assert len(told) > 20
    assert told[-1] == pytest.approx(1)


def test_softmax_attention_needs_all_frames_in_memory(tmp_path):
    model, mixture = tiny_model(attention="softmax").double(), torch.randn(2, 500).double()
    assert_same(model.separate_in_pieces(mixture, piece_length=7), model(mixture).detach())
    with pytest.raises(ValueError, match="needs them in memory"):
        model.separate_in_pieces(mixture, FrameMemory(0, tmp_path))


@pytest.mark.parametrize("limit", [0, None])
def test_bfloat16_in_pieces_is_close_to_the_whole(limit, tmp_path):
    model = tiny_model(feed_forward_kernel=8)
    mixture = torch.randn(1, 1600)
    with torch.autocast("cpu", torch.bfloat16):
        estimates = model.separate_in_pieces(mixture, FrameMemory(limit, tmp_path))
    expected = model(mixture).detach()
    assert (estimates - expected).norm() < 0.03 * expected.norm()
