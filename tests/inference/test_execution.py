"""What a model runner does when memory, disk or numbers run out; the models are real and small."""

import copy
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from flasepformer.audio import StoredSignals
from flasepformer.files.scratch import spill_folder
from flasepformer.inference import NotEnoughMemory, OutputError
from flasepformer.inference.estimates import (
    need_as_a_whole,
    need_beside_frames,
    need_in_pieces,
    signal_bytes,
)
from flasepformer.inference.execution import ModelRunner
from flasepformer.inference.plans import Plan
from flasepformer.models import SepReformer, SepReformerConfig, TFLocoformer, TFLocoformerConfig
from flasepformer.running import FrameMemory

SECONDS = 3
N_SAMPLES = SECONDS * 8000


@pytest.fixture(scope="module")
def linear():
    return build()


@pytest.fixture(scope="module")
def softmax():
    return build(attention="softmax")


@pytest.fixture(scope="module")
def mixture():
    return 0.1 * np.random.default_rng(0).standard_normal(N_SAMPLES).astype(np.float32)


def build(**changes):
    torch.manual_seed(0)
    sizes = {"n_filters": 16, "n_channels": 8, "n_heads": 2, "n_stages": 2, "local_kernel_size": 5, **changes}
    config = SepReformerConfig(**sizes, hop_length=8, layer_scale=0.5, auxiliary_heads=False)
    return SepReformer(config).eval()


def whole(model, mixture):
    with torch.inference_mode():
        return model.separate_in_pieces(torch.from_numpy(mixture)[None])[0].numpy()


def run(runner, mixture, plan):
    """Separate a mixture (time,); return the estimates, and how they came to be."""
    signals = StoredSignals(1, len(mixture))
    signals.write(0, mixture[None])
    passage = runner.run(signals, plan)
    return passage.estimates.read(0, len(mixture)), passage


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A disk of 4 MB for temporary files."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    mount = subprocess.run(command, capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk to fill: {mount.stderr.strip()}")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "parts"}, "mode must be one of auto, whole, chunks, got 'parts'"),
        ({"precision": "int8"}, "precision must be one of float32, bfloat16, float16"),
        ({"memory": "plenty"}, "a size must be written like 800M or 4G, got 'plenty'"),
        ({"chunk_seconds": 0.5}, "chunk_seconds must be at least 1, got 0.5"),
        ({"chunk_seconds": 8, "overlap_seconds": 5}, r"at most half a chunk \(4 s\), got 5"),
        ({"overlap_seconds": 0}, "overlap_seconds must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(linear, options, message):
    with pytest.raises(ValueError, match=message):
        ModelRunner(linear, "cpu", **options)


def test_linear_attention_goes_in_pieces_and_spills_what_does_not_fit(linear, mixture):
    roomy = ModelRunner(linear, "cpu")
    plan = roomy.plan(N_SAMPLES)
    assert (plan.way, plan.need.disk_bytes, plan.signals_on_disk) == ("pieces", 0, False)
    expected = whole(linear, mixture)
    np.testing.assert_array_equal(run(roomy, mixture, plan)[0], expected)


@pytest.mark.slow
def test_mixture_and_estimates_go_to_the_disk_where_they_would_take_much_of_the_memory(mixture):  # issue 16
    linear, signals = build(n_stages=3, n_channels=64), signal_bytes(2, N_SAMPLES)
    assert signals == 12 * N_SAMPLES
    least, expected = need_beside_frames(linear, N_SAMPLES), whole(linear, mixture)
    for spare, on_disk in ((4 * signals, False), (4 * signals - 4, True), (0, True)):  # a quarter for signals
        tight = ModelRunner(linear, "cpu", memory=least + spare)
        plan = tight.plan(N_SAMPLES)
        assert (plan.way, plan.signals_on_disk) == ("pieces", on_disk)
        assert plan.frame_bytes == spare - (0 if on_disk else signals)
        assert plan.need.memory_bytes <= least + spare
        frames = need_in_pieces(linear, N_SAMPLES, plan.frame_bytes).disk_bytes
        assert plan.need.disk_bytes == frames + signals * on_disk > 0
        np.testing.assert_array_equal(run(tight, mixture, plan)[0], expected)


def test_what_comes_after_the_model_counts_where_it_takes_more(linear):  # issue 16
    signals = signal_bytes(2, N_SAMPLES)
    needed = ModelRunner(linear, "cpu", memory="1G").plan(N_SAMPLES).need.memory_bytes
    runner = ModelRunner(linear, "cpu", memory=needed + 1000)
    for later, stated, on_disk in (
        (needed - signals, needed, False),
        (needed - signals + 1000, needed + 1000, False),
        (needed - signals + 1001, needed - signals + 1001, True),
    ):
        plan = runner.plan(N_SAMPLES, later_bytes=later)
        assert (plan.need.memory_bytes, plan.signals_on_disk) == (stated, on_disk)
    with pytest.raises(NotEnoughMemory, match="minutes need about"):
        runner.plan(N_SAMPLES, later_bytes=needed + 1001)


def test_pieces_become_smaller_before_the_recording_is_cut_into_chunks(linear):  # issue 16
    n_samples = 60 * 8000
    fastest = linear.piece_length(torch.device("cpu"))
    for times in (2, 8):
        least = need_beside_frames(linear, n_samples, fastest // times)
        plan = ModelRunner(linear, "cpu", memory=least).plan(n_samples)
        assert (plan.way, plan.piece_length) == ("pieces", fastest // times)
    with pytest.raises(
        NotEnoughMemory, match=r"1\.0 minutes need about"
    ):  # chunks are in pieces of full length
        ModelRunner(linear, "cpu", memory=least - 1).plan(n_samples)


def test_smaller_pieces_have_the_same_numbers(linear, mixture):
    runner = ModelRunner(linear, "cpu")
    plan = replace(runner.plan(N_SAMPLES), piece_length=256)
    expected = whole(linear, mixture)
    np.testing.assert_allclose(run(runner, mixture, plan)[0], expected, atol=1e-5 * np.abs(expected).max())


def test_chunks_of_a_short_recording_are_the_whole_bit_by_bit(linear, softmax, mixture):
    for model in (linear, softmax):
        runner = ModelRunner(model, "cpu", mode="chunks")
        estimates, passage = run(runner, mixture, runner.plan(N_SAMPLES))
        assert passage.plan.way == "chunks"
        assert passage.joins == []
        assert estimates.tobytes() == whole(model, mixture).tobytes()


def test_softmax_attention_is_the_whole_if_that_fits_and_else_chunks_with_the_reason(softmax, mixture):
    n_samples = 120 * 8000
    need = need_as_a_whole(softmax, n_samples).memory_bytes
    assert ModelRunner(softmax, "cpu", memory=2 * need).plan(n_samples).way == "whole"
    limit = need - 1_000_000
    plan = ModelRunner(softmax, "cpu", memory=limit).plan(n_samples)
    assert (plan.way, plan.chunk_length, plan.overlap) == ("chunks", 240_000, 40_000)
    assert plan.need.memory_bytes <= limit
    assert f"needs about {need / 1e6:.3g} MB of memory and {limit / 1e6:.3g} MB may be used" in plan.reason
    with pytest.raises(NotEnoughMemory, match=rf"2\.0 minutes need about {need / 1e6:.3g} MB"):
        ModelRunner(softmax, "cpu", memory=limit, mode="whole").plan(n_samples)


def test_softmax_attention_takes_more_than_two_minutes_in_chunks_whatever_the_memory(softmax, linear):
    for seconds, way in ((120, "whole"), (121, "chunks")):
        plan = ModelRunner(softmax, "cpu", memory="1T").plan(8000 * seconds)
        assert plan.way == way
        assert ("square of the time beyond 2 minutes" in plan.reason) == (way == "chunks")
    assert ModelRunner(softmax, "cpu", memory="1T", mode="whole").plan(8000 * 121).way == "whole"
    assert ModelRunner(linear, "cpu", memory="1T").plan(8000 * 121).way == "pieces"


def test_chunks_are_halved_until_they_fit_and_then_the_recording_is_refused(softmax):
    n_samples = 100 * 8000

    def chunk_seconds(memory):
        return ModelRunner(softmax, "cpu", mode="chunks", memory=memory).plan(n_samples).chunk_length / 8000

    def need(seconds):
        n_chunk = round(seconds * 8000)
        return need_as_a_whole(softmax, n_chunk).memory_bytes + 2 * 2 * n_chunk * 4

    assert chunk_seconds(need(30)) == 30
    assert chunk_seconds(need(30) - 1) == 15
    assert chunk_seconds(need(7.5)) == 7.5
    with pytest.raises(NotEnoughMemory, match=r"1\.7 minutes need about"):
        chunk_seconds(need(3))


def test_auto_is_advised_only_to_those_who_did_not_choose_it_and_whom_it_helps(linear, softmax):  # issue 16
    said = {}
    for name, model in (("linear", linear), ("softmax", softmax)):
        for mode in ("whole", "auto"):
            with pytest.raises(NotEnoughMemory) as refused:
                ModelRunner(model, "cpu", mode=mode, memory="1M").plan(160 * 8000)
            said[name, mode] = str(refused.value)
    assert [key for key, text in said.items() if "choose --mode auto" in text] == [("softmax", "whole")]
    assert said["linear", "auto"] == said["linear", "whole"]  # which needs less than chunks


def test_even_the_least_is_counted_before_the_start(linear):
    least = need_beside_frames(linear, 10 * N_SAMPLES, linear.piece_length(torch.device("cpu")) // 8)
    with pytest.raises(NotEnoughMemory, match=f"need about {least / 1e6:.3g} MB"):
        ModelRunner(linear, "cpu", mode="whole", memory=least - 1).plan(10 * N_SAMPLES)
    runner = ModelRunner(linear, "cpu", memory="50M")
    with pytest.raises(NotEnoughMemory, match="need about 70 MB of memory and 50 MB may be used"):
        runner.plan(N_SAMPLES, held_bytes=50_000_000)


def test_a_model_that_nobody_knows_is_cut_only_where_it_is_long():
    model = FailingSeparator(longest=10**9)
    runner = ModelRunner(model, "cpu")
    assert runner.plan(30 * 8000) == Plan(way="whole", need=None)
    plan = runner.plan(31 * 8000)
    assert (plan.way, plan.need, plan.reason[:12]) == ("chunks", None, "nobody knows")
    assert ModelRunner(model, "cpu", mode="whole").plan(10**8).way == "whole"


class FailingSeparator(nn.Module):
    """Split at half the mixture's band; what is longer than `longest` ends like a full device."""

    sample_rate, n_sources = 8000, 2

    def __init__(self, longest):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.longest = longest
        self.lengths = []

    def forward(self, mixture):
        self.lengths.append(mixture.shape[-1])
        if mixture.shape[-1] > self.longest:
            raise torch.OutOfMemoryError("out of memory")
        low = torch.fft.irfft(torch.fft.rfft(mixture)[:, : mixture.shape[-1] // 8], n=mixture.shape[-1])
        return torch.stack([low, mixture - low], dim=1)


def test_a_device_that_runs_out_of_memory_gets_smaller_chunks(mixture):  # row 60
    model = FailingSeparator(longest=9 * 8000)
    runner = ModelRunner(model, "cpu")
    long = np.tile(mixture, 14)[: 40 * 8000]
    plan = Plan(way="whole", need=None)
    estimates, passage = run(runner, long, plan)
    assert [n / 8000 for n in model.lengths[:4]] == [40, 30, 15, 7.5]
    assert passage.plan.chunk_length == 7.5 * 8000
    assert passage.warnings == [
        f"cpu ran out of memory; going on on the CPU with chunks of {seconds} s" for seconds in (30, 15, 7.5)
    ]
    np.testing.assert_allclose(estimates.sum(0), long, atol=1e-3)


def test_when_the_least_is_too_much_the_recording_is_refused(mixture):
    with pytest.raises(NotEnoughMemory, match=r"0\.1 minutes need more memory than there is"):
        run(ModelRunner(FailingSeparator(longest=1), "cpu"), mixture, Plan(way="whole", need=None))


def test_memory_that_runs_out_in_pieces_leaves_them_to_the_disk(linear, mixture):
    class Forgetful(SepReformer):
        n_calls = 0

        def estimates_in_pieces(self, *arguments, **options):
            self.n_calls += 1
            if self.n_calls == 1:
                raise torch.OutOfMemoryError("out of memory")
            return super().estimates_in_pieces(*arguments, **options)

    model = Forgetful(linear.config).eval()
    model.load_state_dict(linear.state_dict())
    runner = ModelRunner(model, "cpu")
    plan = Plan(way="pieces", need=need_in_pieces(linear, N_SAMPLES, None))
    estimates, passage = run(runner, mixture, plan)
    assert passage.plan.frame_bytes == 0
    assert passage.plan.need.disk_bytes > 0
    assert passage.warnings == ["cpu ran out of memory; going on on the CPU with temporary files"]
    np.testing.assert_array_equal(estimates, whole(linear, mixture))


def test_any_other_failure_on_the_processor_is_told_as_it_is(linear, mixture):
    model = copy.deepcopy(linear)
    model.encoder = nn.Conv1d(1, 3, 16, 8)
    runner = ModelRunner(model, "cpu", mode="chunks")
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        run(runner, mixture, Plan(way="whole", need=None))


class OverflowingSeparator(nn.Module):
    """Halve the mixture by way of numbers that float16 does not hold where the mixture is loud."""

    sample_rate, n_sources = 8000, 2

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.up.weight.fill_(2.0**15)
            self.down.weight.copy_(torch.tensor([[0.25], [0.75]]) * 2.0**-15)
        self.dtypes = []

    def forward(self, mixture):
        huge = self.up(mixture.unsqueeze(-1))
        self.dtypes.append(huge.dtype)
        return self.down(huge).transpose(1, 2)


def test_numbers_that_overflow_in_float16_are_computed_again_in_float32_chunk_by_chunk():  # row 64
    mixture = np.full(40_000, 0.5, np.float32)
    mixture[30_000:] = 8.0  # 8 * 2 ** 15 is more than 65504
    model = OverflowingSeparator()
    options = {"mode": "chunks", "chunk_seconds": 2, "overlap_seconds": 0.5, "precision": "float16"}
    runner = ModelRunner(model, "cpu", **options)
    estimates, passage = run(runner, mixture, runner.plan(len(mixture)))
    assert passage.warnings == ["numbers overflowed in float16; that part was done again in float32"]
    assert model.dtypes[:3] == [torch.float16] * 3  # one call for each chunk before the loud part
    assert torch.float32 in model.dtypes
    assert np.isfinite(estimates).all()
    np.testing.assert_allclose(estimates[:, :20_000].sum(0), mixture[:20_000], rtol=1e-2)
    np.testing.assert_allclose(estimates[:, 32_000:].sum(0), mixture[32_000:], rtol=1e-2)


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_and_needs_no_warning(linear, mixture):
    runner = ModelRunner(linear, "cpu", precision="bfloat16")
    estimates, passage = run(runner, mixture, runner.plan(N_SAMPLES))
    expected = whole(linear, mixture)
    assert passage.warnings == []
    error = estimates - expected
    assert 0 < np.square(error).mean() < 0.01 * np.square(expected).mean()


def test_a_disk_without_room_is_found_before_the_start(linear, small_disk):  # rows 42, 61
    n_samples = 240 * 8000
    assert spill_folder() == str(small_disk)
    memory = need_beside_frames(linear, n_samples) + 100_000
    plan = ModelRunner(linear, "cpu", memory=memory).plan(n_samples)
    assert plan.way == "chunks"
    assert f"on disk and {small_disk} has 4.19 MB free (set TMPDIR to a larger one)" in plan.reason
    with pytest.raises(
        OutputError, match=r"disk full: .* MB are needed for temporary files and .* has 4.19 MB"
    ):
        ModelRunner(linear, "cpu", memory=memory, mode="whole").plan(n_samples)


def test_a_disk_that_fills_up_meanwhile_is_told_with_what_is_needed(linear, mixture, small_disk):  # row 42
    runner = ModelRunner(linear, "cpu")
    need = need_in_pieces(linear, N_SAMPLES, 0)
    (small_disk / "others").write_bytes(bytes(4_180_000))
    with pytest.raises(OutputError, match=f"disk full: {need.disk_bytes / 1e6:.3g} MB are needed"):
        run(runner, mixture, Plan(way="pieces", need=need, frame_bytes=0))
    assert [path.name for path in small_disk.iterdir()] == ["others"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sepreformer", "tflocoformer"])
def test_what_is_kept_between_two_sweeps_is_counted_exactly(family, mixture):
    if family == "sepreformer":
        model = build()
    else:
        sizes = {"n_blocks": 2, "n_channels": 8, "n_heads": 2, "n_groups": 2, "attention_channels": 8}
        model = TFLocoformer(TFLocoformerConfig(**sizes, feed_forward_channels=8)).eval()
    for limit in (None, 70_000, 0):
        need = need_in_pieces(model, N_SAMPLES, limit)
        memory = FrameMemory(limit)
        model.separate_in_pieces(torch.from_numpy(mixture)[None], memory)
        assert need.disk_bytes == memory.n_file_bytes
        assert need.memory_bytes == need_beside_frames(model, N_SAMPLES) + memory.peak_bytes
