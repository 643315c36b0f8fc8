"""A recording in pieces gives the numbers of the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_tflocoformer import tiny_model
from torch.nn import functional as F
from torch.testing import assert_close

from flasepformer.models import TFLocoformer, long_tflocoformer
from flasepformer.models.long_form import FrameMemory
from flasepformer.models.long_tflocoformer import DirectConvolution, FastConvolution, with_neighbours

VARIANTS = {
    "plain": {},
    "ungated, three talkers": {"gated": False, "n_sources": 3},
    "one block, even kernel, large hop": {"n_blocks": 1, "feed_forward_kernel": 8},
    "plain linear, no value convolution": {"attention": "linear", "value_kernel_size": 0},
    "no convolution at all": {"value_kernel_size": 0, "feed_forward_kernel": 1},
    "odd hop": {"hop_length": 7, "feed_forward_kernel": 7},
    "input added once, level as it is": {"repeat_input": False, "normalize_variance": False},
}


@pytest.fixture(autouse=True)
def fast_convolutions_from_the_first_frame_on(monkeypatch):
    monkeypatch.setattr(long_tflocoformer, "SHORTEST_FAST_RECORDING", 1)


def assert_same(estimates, expected):
    rms = expected.square().mean().sqrt().item()
    assert_close(estimates, expected, rtol=0, atol=rms * (1e-4 if expected.dtype == torch.float32 else 1e-9))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_frames_in_piece", [1, 5, 1000])
def test_pieces_of_any_length_give_the_whole(variant, n_frames_in_piece, monkeypatch):
    monkeypatch.setattr(long_tflocoformer, "PIECE_LENGTH", 17 * n_frames_in_piece)
    model = tiny_model(**VARIANTS[variant]).double()
    mixture = (torch.randn(2, 803) * torch.tensor([[1.0], [0.1]])).double()
    assert_same(model.separate_in_pieces(mixture), model(mixture).detach())


@settings(max_examples=40, deadline=None)
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_tflocoformer, "PIECE_LENGTH", 17 * n_frames_in_piece)
        patch.setattr(long_tflocoformer, "SHORTEST_FAST_RECORDING", 1)
        assert_same(model.separate_in_pieces(mixture), model(mixture).detach())


@pytest.mark.parametrize("kernel", [4, 8])
def test_single_precision_gives_the_whole(kernel):
    model = tiny_model(feed_forward_kernel=kernel)
    mixture = torch.randn(1, 5000)
    with torch.no_grad():
        estimates = model(mixture)
    assert_same(estimates, model(mixture).detach())


@given(length=st.integers(0, 80), kernel=st.integers(1, 32), n_rows=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_the_convolutions_equal_their_definition(length, kernel, n_rows):
    x, weight, bias = torch.randn(length, n_rows, 3), torch.randn(5, 3, kernel), torch.randn(5)
    expected = torch.empty(0, n_rows, 5)
    if length >= kernel:
        expected = F.conv1d(x.permute(1, 2, 0), weight, bias).permute(2, 0, 1)
    for convolution in (DirectConvolution, FastConvolution):
        assert_close(convolution(weight, bias)(x), expected, rtol=0, atol=1e-5 * (3 * kernel) ** 0.5)


def test_the_neighbours_of_a_piece_are_at_hand():
    numbers = torch.arange(11)
    for halo in (0, 2, 20):
        seen = []
        for window, core in with_neighbours(iter(numbers.split([1, 3, 2, 5])), halo):
            first, last = window[core][0].item(), window[core][-1].item()
            assert torch.equal(window, numbers[max(first - halo, 0) : last + halo + 1])
            seen.append(window[core])
        assert torch.equal(torch.cat(seen), numbers)


def test_inference_goes_in_pieces_and_training_does_not(monkeypatch):
    ways = []
    monkeypatch.setattr(TFLocoformer, "separate_in_pieces", lambda self, mixture: ways.append("pieces"))
    model, mixture = tiny_model(), torch.randn(1, 100)
    with torch.no_grad():
        model(mixture)
        model.train()(mixture)
        tiny_model(attention="softmax")(mixture)
    model.eval()(mixture)
    assert ways == ["pieces"]


@pytest.mark.parametrize("limit", [0, 20_000, None])
def test_frames_in_files_are_the_same_frames(limit, tmp_path):
    model, mixture = tiny_model(), torch.randn(2, 1500)
    memory = FrameMemory(limit, tmp_path)
    estimates = model.separate_in_pieces(mixture, memory)
    assert torch.equal(estimates, model.separate_in_pieces(mixture))
    assert memory.n_bytes == 0  # everything was given back
    n_bytes_of_features = 4 * 8 * 17 * (1 + 1500 // 16)
    assert memory.n_file_bytes == (0 if limit is None else 2 * n_bytes_of_features)
    assert list(tmp_path.iterdir()) == []


def test_one_copy_of_one_recording_s_features_is_kept(monkeypatch):
    monkeypatch.setattr(long_tflocoformer, "PIECE_LENGTH", 64)
    used = []

    class Watched(FrameMemory):
        def allocate(self, shape, like):
            frames = super().allocate(shape, like)
            used.append(self.n_bytes)
            return frames

    tiny_model().separate_in_pieces(torch.randn(2, 1600), Watched())
    assert used == [4 * 8 * 17 * 101] * 2


def test_progress_rises_to_one(monkeypatch):
    monkeypatch.setattr(long_tflocoformer, "PIECE_LENGTH", 17 * 20)
    told = []
    tiny_model().separate_in_pieces(torch.randn(2, 1600), progress=told.append)
    assert told == sorted(told)
    assert len(told) > 20
    assert told[-1] == pytest.approx(1)


def test_softmax_attention_says_that_it_cannot():
    with pytest.raises(ValueError, match="softmax attention cannot be evaluated in pieces"):
        tiny_model(attention="softmax").separate_in_pieces(torch.randn(1, 500))


@pytest.mark.parametrize("limit", [0, None])
def test_bfloat16_in_pieces_is_close_to_the_whole(limit, tmp_path):
    model = tiny_model(feed_forward_kernel=8)
    mixture = torch.randn(1, 1600)
    with torch.autocast("cpu", torch.bfloat16):
        estimates = model.separate_in_pieces(mixture, FrameMemory(limit, tmp_path))
    expected = model(mixture).detach()
    assert (estimates - expected).norm() < 0.03 * expected.norm()
