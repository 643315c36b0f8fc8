"""A recording in pieces gives the numbers of the whole."""

import resource
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.conftest import tiny_config
from torch.testing import assert_close

from flasepformer.layers import GlobalNorm, Moments
from flasepformer.models import SepReformer
from flasepformer.running import FrameMemory, TensorSamples

VARIANTS = {
    "plain": {},
    "ungated, three talkers": {"gated": False, "n_sources": 3},
    "one block": {"n_encoder_blocks": 1, "n_decoder_blocks": 1},
    "masks, as the default model": {
        "masking": True,
        "normalize_variance": True,
        "n_filters": 24,
        "filter_length": 32,
        "hop_length": 16,
        "n_encoder_blocks": 1,
    },
    "no value convolution": {"value_kernel_size": 0, "n_stages": 3},
    "published padding": {"pad_end": False},
    "plain linear attention": {"attention": "linear"},
    "softmax attention": {"attention": "softmax"},
    "softmax attention without gate, clamped": {"attention": "softmax", "gated": False, "max_distance": 5},
    "another power": {"focusing_power": 2},
    "many channels, as size L": {"n_channels": 136, "n_encoder_blocks": 1, "n_decoder_blocks": 1},
}


def build(**changes):
    torch.manual_seed(0)
    model = SepReformer(tiny_config(layer_scale=0.5, **changes))
    for name, buffer in model.named_buffers():  # statistics as after a training
        if name.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


def whole(model, mixture):
    return model.forward_with_auxiliary(mixture)[0].detach()


def assert_same(estimates, expected):
    rms = expected.square().mean().sqrt().item()
    assert_close(estimates, expected, rtol=0, atol=rms * (1e-4 if expected.dtype == torch.float32 else 1e-9))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("piece_length", [16, 62])
def test_pieces_of_any_length_give_the_whole(variant, piece_length):
    model = build(**VARIANTS[variant]).double()
    mixture = (torch.randn(2, 363) * torch.tensor([[1.0], [0.1]])).double()
    assert_same(model.separate_in_pieces(mixture, piece_length=piece_length), whole(model, mixture))


@pytest.fixture(scope="module")
def plain_model():
    return build().double()


@settings(max_examples=15, deadline=None)
@given(n_samples=st.integers(1, 400), half=st.integers(10, 40))
def test_a_recording_of_any_length_gives_the_whole(plain_model, n_samples, half):
    mixture = torch.randn(1, n_samples).double()
    assert_same(plain_model.separate_in_pieces(mixture, piece_length=2 * half), whole(plain_model, mixture))


def test_gradients_do_not_change_what_forward_does():
    model, mixture = build(), torch.randn(1, 900)
    with torch.no_grad():
        assert_same(model(mixture), model.train(False).forward_with_auxiliary(mixture)[0])
        without = model(mixture)
    assert_same(model(mixture).detach(), without)


class Read:
    """Samples that note what is read of them, and have no more than asked for."""

    def __init__(self, mixture):
        self.mixture, self.n_samples, self.most = mixture, mixture.shape[-1], 0

    def read(self, first, last):
        assert 0 <= first <= last <= self.n_samples
        self.most = max(self.most, last - first)
        return self.mixture[:, first:last].clone()


@pytest.mark.parametrize("variant", ["plain", "published padding", "masks, as the default model"])
def test_samples_that_are_read_when_needed_give_estimates_one_after_the_other(variant, tmp_path):
    model = build(**VARIANTS[variant]).double()
    mixture = torch.randn(1, 3003).double()
    samples = Read(mixture)
    memory = FrameMemory(0, tmp_path)
    pieces = list(model.estimates_in_pieces(samples, memory, piece_length=48))
    assert torch.equal(torch.cat(pieces, -1), model.separate_in_pieces(mixture, piece_length=48))
    assert len(pieces) > 3
    if variant == "plain":  # else the level is measured first, a million samples at a time
        assert samples.most < 1000
        assert max(piece.shape[-1] for piece in pieces) < 1000
    memory.limit_bytes = None
    kept = torch.cat(list(model.estimates_in_pieces(TensorSamples(mixture), memory, piece_length=48)), -1)
    assert torch.equal(kept, torch.cat(pieces, -1))


@pytest.mark.parametrize("limit", [0, 20_000, None])
def test_frames_in_files_are_the_same_frames(limit, tmp_path):
    model = build()
    mixture = torch.randn(2, 1500)
    memory = FrameMemory(limit, tmp_path)
    estimates = model.separate_in_pieces(mixture, memory)
    assert_same(estimates, model.separate_in_pieces(mixture))
    assert memory.n_bytes == 0  # everything was given back
    assert (memory.n_file_bytes > 0) == (limit is not None)
    assert list(tmp_path.iterdir()) == []


def test_the_memory_in_use_stays_below_its_limit(tmp_path):
    used = []

    class Watched(FrameMemory):
        def allocate(self, shape, like):
            frames = super().allocate(shape, like)
            used.append(self.n_bytes)
            return frames

    build().separate_in_pieces(torch.randn(1, 4000), Watched(100_000, tmp_path), piece_length=64)
    assert 50_000 < max(used) <= 100_000


def test_a_full_disk_shows_before_the_work_begins(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            FrameMemory(0, tmp_path).allocate((1, 1000, 8), torch.zeros(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [0, None])
def test_two_pieces_at_a_time_are_the_same_pieces(limit, tmp_path):
    model = build().double()
    mixture = torch.randn(2, 1501).double()
    expected = whole(model, mixture)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        estimates = model.separate_in_pieces(mixture, FrameMemory(limit, tmp_path), piece_length=64)
        again = model.separate_in_pieces(mixture, FrameMemory(limit, tmp_path), piece_length=64)
    finally:
        torch.set_num_threads(before)
    assert_same(estimates, expected)
    assert torch.equal(estimates, again)


def test_progress_rises_to_one():
    told = []
    build().separate_in_pieces(torch.randn(1, 3000), progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_moments_of_pieces_are_those_of_the_whole():
    x = 100 + torch.randn(2, 1000, 6)
    moments = reduce(add, map(Moments.of, x.split([1, 499, 500], dim=1)))
    norm, plain = GlobalNorm(6, eps=1e-8), torch.nn.GroupNorm(1, 6, eps=1e-8)
    torch.nn.init.normal_(plain.weight)
    torch.nn.init.normal_(plain.bias)
    norm.load_state_dict(plain.state_dict())
    assert_close(norm.given(moments)(x[:, 7:9], 7), plain(x.mT).mT[:, 7:9], rtol=1e-4, atol=1e-4)


def test_bfloat16_in_pieces_is_close_to_the_whole():
    model = build()
    mixture = torch.randn(1, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        estimates = model.separate_in_pieces(mixture)
    expected = whole(model, mixture)
    assert estimates.isfinite().all()
    assert (estimates - expected).square().mean() < 0.01 * expected.square().mean()
