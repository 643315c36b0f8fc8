"""The script for one GPU without internet, on the CPU: what it packs, plans, leaves and goes on from."""

import contextlib
import csv
import dataclasses
import importlib.util
import itertools
import math
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.training.conftest import TFLOCOFORMER, changed, curve

from flasepformer.data import SpeechStore, read_utterances
from flasepformer.models import count_parameters, load_model, save_model
from flasepformer.models.registry import FAMILIES, build_model
from flasepformer.training import TrainingError, learning_rate, load_recipe, save_recipe, train
from flasepformer.training.loop import _Progress
from flasepformer.training.optimizers import build_optimizers
from flasepformer.training.run_folder import RunFolder

RECIPES = Path(__file__).parents[2] / "recipes"
_specification = importlib.util.spec_from_file_location("gpu_run", RECIPES / "gpu_run.py")
gpu_run = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(gpu_run)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def noisy(recipe, tmp_path):
    """Return the recipe with a folder of noise, of which it knows only the name."""
    (tmp_path / "hum").mkdir()
    hum = 0.1 * np.random.default_rng(0).standard_normal(8000)
    soundfile.write(tmp_path / "hum" / "a.wav", hum, 8000)
    return dataclasses.replace(
        recipe, mixing=dataclasses.replace(recipe.mixing, noise=(str(tmp_path / "hum"),))
    )


# --- pack ---


def test_what_was_packed_comes_back_in_its_order_and_to_the_sample(noisy, speech, tmp_path):
    assert gpu_run.pack(noisy, speech, tmp_path / "pack", max_bytes=10**6) == 16.0
    gpu_run.unpack(tmp_path / "pack", tmp_path / "speech")
    for split in ("train", "valid"):
        before, after = (
            read_utterances(place, split) for place in (speech, tmp_path / "speech/MANIFEST.csv")
        )
        assert [u.speaker for u in after] == [u.speaker for u in before]
        stores = [SpeechStore.load(utterances, 8000) for utterances in (before, after)]
        assert stores[0].offsets.tolist() == stores[1].offsets.tolist()
        for k in range(len(before)):
            first, second = (store.waveform(k) for store in stores)
            error_db = 10 * np.log10(np.mean((first - second) ** 2))  # both have power 1
            assert error_db < -12
    assert [path.name for path in (tmp_path / "speech/noise/hum").iterdir()] == ["00012.wav"]


def test_the_bit_rate_is_what_fits(recipe, speech, tmp_path):
    n_bytes = round(13_000 / 8 * 24)  # 24 s of speech
    kbit = gpu_run.pack(recipe, speech, tmp_path / "pack", max_bytes=n_bytes)
    assert 12 < kbit < 13
    assert 0.7 * n_bytes < gpu_run.folder_bytes(tmp_path / "pack") <= n_bytes
    with pytest.raises(ValueError, match=r"do not fit into 0.0 MiB; about 0.00 h would, .*give max_hours"):
        gpu_run.pack(recipe, speech, tmp_path / "pack", max_bytes=n_bytes // 2)


def test_few_hours_are_shared_by_all_speakers(recipe, speech, tmp_path):
    gpu_run.pack(recipe, speech, tmp_path / "pack", max_bytes=10**6, max_hours=9 / 3600)
    rows = rows_of(tmp_path / "pack" / "index.csv")
    kept = [row["speaker"] for row in rows if row["split"] == "train"]
    assert kept == ["anna", "anna", "ben", "ben"]  # of three each, of 2 s
    assert len([row for row in rows if row["split"] == "valid"]) == 6


def test_a_folder_with_something_else_is_no_place_for_a_pack(recipe, speech, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="not empty and holds no pack"):
        gpu_run.pack(recipe, speech, tmp_path, max_bytes=10**6)
    strange = dataclasses.replace(recipe, mixing=dataclasses.replace(recipe.mixing, noise=("nowhere",)))
    with pytest.raises(ValueError, match="neither here nor in"):
        gpu_run.pack(strange, speech, tmp_path / "pack", max_bytes=10**6)


def test_half_a_pack_is_noticed(recipe, speech, tmp_path):
    gpu_run.pack(recipe, speech, tmp_path / "pack", max_bytes=10**6)
    (tmp_path / "pack" / "000.opus").unlink()
    with pytest.raises(ValueError, match="not whole"):
        gpu_run.unpack(tmp_path / "pack", tmp_path / "speech")
    assert not (tmp_path / "speech" / "MANIFEST.csv").exists()


# --- results ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a function that trains a recipe once, and gives its run ever after."""
    runs = {}

    def run_of(recipe):
        key = str(recipe)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("finished") / "run"
            train(recipe, runs[key])
        return runs[key]

    return run_of


def checkpoint_of(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def test_results_are_a_checkpoint_and_become_the_same_run_again(recipe, finished, tmp_path):
    run, out = finished(recipe), tmp_path / "out"
    gpu_run.export(run, out, recipe, None, gpu_run.Limits())
    names = [
        "checkpoint-00000006-1-of-1.part",
        "config.json",
        "curve.csv",
        "model.safetensors",
        "recipe.yaml",
    ]
    assert sorted(path.name for path in out.iterdir()) == names
    assert load_recipe(out / "recipe.yaml") == recipe
    assert "flasepformer" in (out / "recipe.yaml").read_text().splitlines()[0]
    best, halved = load_model(run / "best").state_dict(), load_model(out).state_dict()
    torch.testing.assert_close(halved, best, rtol=1e-3, atol=1e-6)
    assert gpu_run.restore(out, tmp_path / "again")
    torch.testing.assert_close(checkpoint_of(tmp_path / "again"), checkpoint_of(run), rtol=0, atol=0)
    assert curve(tmp_path / "again") == curve(run)


def test_a_checkpoint_that_is_too_large_is_shrunk_then_left_out(recipe, finished, tmp_path, capsys):
    run, out = finished(recipe), tmp_path / "out"
    whole = len(gpu_run._serialised(checkpoint_of(run)))
    small = len(gpu_run._serialised(gpu_run.shrink(checkpoint_of(run))))
    assert small < 0.75 * whole
    weights = (run / "best" / "model.safetensors").stat().st_size // 2
    limits = gpu_run.Limits(file_bytes=small // 3 + 1, n_files=8, total_bytes=10**9)
    assert weights < limits.file_bytes
    gpu_run.export(run, out, recipe, None, limits)
    assert len(list(out.glob("checkpoint-00000006-*-of-3.part"))) == 3
    assert max(path.stat().st_size for path in out.iterdir()) <= limits.file_bytes
    assert gpu_run.restore(out, tmp_path / "again")
    before, after = checkpoint_of(run), checkpoint_of(tmp_path / "again")
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)
    torch.testing.assert_close(after["optimizers"], before["optimizers"], rtol=2**-8, atol=0)
    for name, value in before["average"].items():  # the difference from the weights keeps 8 bits
        slack = 2**-8 * (value - before["model"][name.removeprefix("module.")]) if "." in name else 0 * value
        assert ((after["average"][name] - value).abs() <= slack.abs() + 1e-7).all()
    train(changed(recipe, n_steps=7), tmp_path / "again", resume=True)
    gpu_run.export(run, out, recipe, None, dataclasses.replace(limits, n_files=6))
    assert "the checkpoint is left out" in capsys.readouterr().out
    assert not list(out.glob("checkpoint-*"))  # nor an older one
    assert not gpu_run.restore(out, tmp_path / "weights")


def test_weights_larger_than_a_file_are_split_and_joined(recipe, finished, tmp_path, capsys):
    run, out = finished(recipe), tmp_path / "out"
    gpu_run.export(run, tmp_path / "whole", recipe, None, gpu_run.Limits())
    n_bytes = (tmp_path / "whole" / "model.safetensors").stat().st_size
    limits = gpu_run.Limits(file_bytes=n_bytes // 2 + 1, n_files=40, total_bytes=10**8)
    gpu_run.export(run, out, recipe, None, limits)
    assert f"{n_bytes / 2**20:.1f} MiB" in capsys.readouterr().out
    assert not (out / "model.safetensors").exists()
    gpu_run.main(["join", str(out), "--out", str(tmp_path / "joined")])
    joined, whole = load_model(tmp_path / "joined" / "best"), load_model(tmp_path / "whole")
    torch.testing.assert_close(joined.state_dict(), whole.state_dict(), rtol=0, atol=0)
    with pytest.raises(TrainingError, match="the weights have"):
        gpu_run.export(run, out, recipe, None, dataclasses.replace(limits, n_files=5))


def test_parts_that_are_missing_or_damaged_are_not_gone_on_from(recipe, finished, tmp_path):
    run, out = finished(recipe), tmp_path / "out"
    limits = gpu_run.Limits(file_bytes=100_000, n_files=40, total_bytes=10**8)
    gpu_run.export(run, out, recipe, None, limits)
    first, second = sorted(out.glob("checkpoint-*-[12]-of-*.part"))
    content = second.read_bytes()
    second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged"):
        gpu_run.restore(out, tmp_path / "a")
    first.unlink()
    with pytest.raises(ValueError, match="parts of checkpoint-00000006"):
        gpu_run.restore(out, tmp_path / "b")
    with pytest.raises(ValueError, match="holds no weights"):
        gpu_run.restore(tmp_path, tmp_path / "c")


def test_the_recipe_for_the_gpu_is_size_t_and_its_results_fit(tmp_path):
    recipe = load_recipe(RECIPES / "gpu-default.yaml")
    published = build_model("fla-sepreformer-t").config
    same = ("n_filters", "filter_length", "hop_length", "n_channels", "n_stages", "n_encoder_blocks",
            "n_decoder_blocks", "attention", "gated", "masking")  # fmt: skip
    assert [getattr(recipe.model, name) for name in same] == [getattr(published, name) for name in same]
    gpu_run._check_schedules(recipe)
    model = FAMILIES[recipe.family][1](recipe.model)
    assert count_parameters(model) == 3_680_544
    (optimizer,) = build_optimizers(model, recipe.optimization)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    run = RunFolder(tmp_path / "run")
    average = {"n_averaged": torch.tensor(1), **{f"module.{k}": v for k, v in model.state_dict().items()}}
    progress = dataclasses.asdict(_Progress(step=9))
    run.save_checkpoint(
        {"model": model.state_dict(), "average": average, "optimizers": [optimizer.state_dict()],
         "progress": progress}
    )  # fmt: skip
    save_model(model, run.best)
    (run.path / "environment.txt").write_text("torch")
    run.curve.write_text("step")
    (tmp_path / "log.txt").write_text("done")
    gpu_run.export(run.path, tmp_path / "out", recipe, tmp_path / "log.txt", gpu_run.Limits())
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert len([name for name in sizes if name.startswith("checkpoint-")]) == 3
    assert len(sizes) == 8
    assert max(sizes.values()) <= 16 * 2**20
    assert sum(sizes.values()) <= 64 * 2**20


# --- train ---


class FakeTraining:
    """In place of `train`, on a clock of its own; it notes the learning rate of every step, as a share of the
    peak in the recipe."""

    def __init__(self, step_seconds, setup_seconds=5.0, peak=3e-3):
        self.peak = peak
        self.now, self.stop_at = 0.0, math.inf
        self.step_seconds, self.setup_seconds = step_seconds, setup_seconds
        self.rates, self.ends = {}, []

    def __call__(self, recipe, folder, *, resume, speech_cache):
        run, optimization = RunFolder(folder), recipe.optimization
        self.closing = recipe
        assert resume == (run.checkpoint is not None)
        progress = run.load_checkpoint()["progress"] if resume else {"step": 0, "seconds": 0.0}
        self.now += self.setup_seconds
        if self.now > self.stop_at:
            raise KeyboardInterrupt
        seconds = self.step_seconds[min(len(self.ends), len(self.step_seconds) - 1)]
        while progress["step"] < optimization.n_steps and self.now <= self.stop_at:
            self.rates[progress["step"]] = learning_rate(
                progress["step"], peak=optimization.learning_rate / self.peak, n_steps=optimization.n_steps,
                warmup_steps=optimization.warmup_steps, decay_steps=optimization.decay_steps,
            )  # fmt: skip
            self.now += seconds
            progress = {"step": progress["step"] + 1, "seconds": progress["seconds"] + seconds}
        self.ends.append(progress["step"])
        run.save_checkpoint({"progress": progress})
        if self.now > self.stop_at:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def alarm(self, seconds):
        self.stop_at = self.now + seconds
        try:
            yield
        except KeyboardInterrupt:
            raise gpu_run.OutOfTimeError from None
        finally:
            self.stop_at = math.inf


@pytest.fixture
def in_time(recipe, tmp_path, monkeypatch):
    """Return a function that trains with a fake for 540 s of its clock, and gives recipe, budget, exports."""
    monkeypatch.setattr(gpu_run, "_tell_mixing_rate", lambda *_: None)

    def run(fake, recipe=recipe, decay=0.4, train=None):
        monkeypatch.setattr(gpu_run, "train", train or fake)
        monkeypatch.setattr(gpu_run, "_alarm", fake.alarm)
        monkeypatch.setattr(gpu_run.time, "monotonic", lambda: fake.now)
        budget, exports = gpu_run.Budget(fake.now, 540.0), []
        ended = gpu_run.train_in_time(
            recipe, tmp_path / "run", tmp_path, budget, decay=decay, validate_minutes=1.5,
            export=exports.append,
        )  # fmt: skip
        return ended, budget, exports

    return run


def test_the_learning_rate_has_fallen_to_zero_when_the_time_is_up(recipe, in_time):
    fake = FakeTraining([1.0, 0.12, 0.1])  # seconds of a step: the first ones are slow
    ended, budget, exports = in_time(fake, changed(recipe, n_steps=200, warmup_steps=100))
    assert 0.94 * 540 < budget.spent < 540
    assert fake.ends == [recipe.optimization.n_steps for recipe in exports]
    assert len(exports) == 4
    rates = list(fake.rates.values())
    assert list(fake.rates) == list(range(ended.optimization.n_steps))
    assert rates[:100] == pytest.approx(np.arange(1, 101) / 100)
    fall = next(step for step in range(100, len(rates)) if rates[step] < 1)
    assert 0.5 < fall / len(rates) < 0.6  # about when 60 % of the time are over
    assert rates[fall - 1 :] == pytest.approx(np.linspace(1, 0, len(rates) - fall + 2)[:-1])
    assert ended.steps_per_epoch == 900  # 90 s


def test_a_run_that_will_go_on_keeps_its_learning_rate(recipe, in_time):
    fake = FakeTraining([0.1])
    ended, budget, _ = in_time(fake, changed(recipe, warmup_steps=1), decay=0.0)
    assert set(fake.rates.values()) == {1.0}
    assert 0.94 * 540 < budget.spent < 540
    before = ended.optimization.n_steps
    again, _, _ = in_time(fake, ended, decay=0.4)
    assert again.optimization.n_steps == pytest.approx(2 * before, rel=0.02)
    assert fake.rates[before] == 1
    assert fake.rates[again.optimization.n_steps - 1] < 0.001


def test_a_machine_that_becomes_slow_costs_steps_not_the_run(recipe, in_time, capsys):
    fake = FakeTraining([0.1, 0.1, 0.1, 0.2])
    ended, budget, exports = in_time(fake)
    assert "out of time" in capsys.readouterr().out
    assert 0.9 * 540 < budget.spent < 540
    assert len(exports) == 4  # three segments, and what was cut short
    last = max(fake.rates)
    assert fake.closing.optimization.n_steps == last + 1 == fake.closing.steps_per_epoch  # it is validated
    assert fake.rates[last - 1] > 0.3
    assert fake.rates[last] == 0  # and left as it was
    assert (ended, ended.optimization.n_steps > last + 1) == (exports[-1], True)  # what had been planned
    assert ended.optimization.learning_rate == recipe.optimization.learning_rate


def test_too_little_time_for_a_step_is_said(in_time):
    with pytest.raises(TrainingError, match="the time was up before the first step"):
        in_time(FakeTraining([0.1], setup_seconds=600.0))


def test_a_warm_up_longer_than_the_run_is_shortened(recipe, in_time, capsys):
    ended, _, _ = in_time(FakeTraining([1.0]), changed(recipe, n_steps=500, warmup_steps=400))
    assert "warm-up ends at step" in capsys.readouterr().out
    assert ended.optimization.warmup_steps == pytest.approx(0.1 * ended.optimization.n_steps, rel=0.2)


def test_a_fall_from_the_first_minute_on_waits_for_the_warm_up(recipe, in_time):
    fake = FakeTraining([0.1])
    ended, _, _ = in_time(fake, changed(recipe, n_steps=2000, warmup_steps=1000), decay=1.0)
    rates = [fake.rates[step] for step in range(ended.optimization.n_steps)]
    assert rates[:1000] == pytest.approx(np.arange(1, 1001) / 1000)  # as steep in each of the segments
    assert rates[1000:] == pytest.approx(np.linspace(1, 0, len(rates) - 999)[:-1])


def test_batches_that_the_gpu_cannot_hold_are_halved(recipe, in_time, capsys):
    fake = FakeTraining([0.1])
    sizes = []

    def train_on_a_small_gpu(recipe, *arguments, **options):
        sizes.append((recipe.optimization.batch_size, recipe.optimization.accumulate_steps))
        if sizes[-1][0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        fake(recipe, *arguments, **options)

    settings = changed(recipe, batch_size=8, accumulate_steps=1)
    ended, _, _ = in_time(fake, settings, train=train_on_a_small_gpu)
    assert sizes[:4] == [(8, 1), (4, 2), (2, 4), (2, 4)]
    assert "out of memory; now 4 batches of 2 a step" in capsys.readouterr().out
    assert ended.optimization.batch_size == 2


def test_the_alarm_ends_what_is_under_way_and_an_interrupt_by_hand_stays_one():
    with pytest.raises(KeyboardInterrupt), gpu_run._alarm(60):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(gpu_run.OutOfTimeError), gpu_run._alarm(0.01):
        time.sleep(20)


def test_schedules_in_epochs_are_refused(recipe, in_time):
    with pytest.raises(ValueError, match="plateau_factor counts epochs"):
        in_time(FakeTraining([0.1]), changed(recipe, plateau_factor=0.5))


def test_pack_train_and_resume_on_the_cpu(noisy, speech, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ticks = itertools.count()  # a clock that goes on when it is looked at: a step is always as long
    monkeypatch.setattr(time, "monotonic", lambda: 0.01 * next(ticks))
    monkeypatch.setattr(gpu_run, "_alarm", lambda seconds: contextlib.nullcontext())  # goes by the wall
    smallest = dataclasses.replace(noisy, model=TFLOCOFORMER, fourier_filters=False)
    save_recipe(changed(smallest, warmup_steps=4), tmp_path / "tiny.yaml")
    pack = ["pack", "tiny.yaml", "--speech", str(speech), "--out", "pack", "--no-wheels", "--no-checkout"]
    gpu_run.main(pack)
    printed = capsys.readouterr().out
    command = next(line for line in printed.splitlines() if "gpu_run.py train" in line).split()
    arguments = command[command.index("train") :]
    for option, value in (("--out", "first"), ("--minutes", "0.015")):
        arguments[arguments.index(option) + 1] = value
    gpu_run.main([*arguments, "--work", "work"], age=0.0)
    printed = capsys.readouterr().out
    assert {path.name for path in Path("first").iterdir()} >= {
        "model.safetensors", "config.json", "curve.csv", "log.txt", "recipe.yaml",
    }  # fmt: skip
    log = Path("first/log.txt").read_text()
    assert "a process mixes" in log
    assert "a process mixes" in printed
    assert load_model("first").config == TFLOCOFORMER
    ended = load_recipe("first/recipe.yaml")
    assert ended.mixing.noise == noisy.mixing.noise  # by the names of the recipe, not of this machine
    rows = rows_of(Path("first/curve.csv"))
    assert int(rows[-1]["step"]) == ended.optimization.n_steps > gpu_run.N_PROBE_STEPS
    settings = ended.optimization
    assert float(rows[-1]["learning_rate"]) == pytest.approx(
        settings.learning_rate / settings.decay_steps, abs=1e-8
    )
    assert rows[-1]["valid_si_snr_improvement_db"]

    gpu_run.main(
        ["train", "tiny.yaml", "--pack", "pack", "--out", "second", "--minutes", "0.012", "--work", "other",
         "--resume", "first"],
        age=0.0,
    )  # fmt: skip
    more = rows_of(Path("second/curve.csv"))
    assert more[: len(rows)] == rows
    assert int(more[-1]["step"]) > int(rows[-1]["step"])


def test_without_a_checkpoint_the_weights_are_the_start(
    recipe, speech, finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_recipe(recipe, Path("tiny.yaml"))
    gpu_run.pack(recipe, speech, Path("pack"), max_bytes=10**6)
    gpu_run.export(finished(recipe), Path("earlier"), recipe, None, gpu_run.Limits())
    next(Path("earlier").glob("checkpoint-*")).unlink()
    began = {}

    def look(recipe, folder, **_):
        began["weights"] = load_model(recipe.initial_checkpoint).state_dict()
        raise TrainingError("seen")

    monkeypatch.setattr(gpu_run, "train", look)
    with pytest.raises(SystemExit, match="error: seen"):
        gpu_run.main(
            ["train", "tiny.yaml", "--pack", "pack", "--out", "out", "--minutes", "1", "--resume", "earlier"],
            age=0.0,
        )
    assert "the optimizers start anew" in capsys.readouterr().out
    torch.testing.assert_close(began["weights"], load_model("earlier").state_dict(), rtol=0, atol=0)


def test_a_run_that_is_interrupted_leaves_what_it_has(recipe, speech, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_recipe(recipe, Path("tiny.yaml"))
    gpu_run.pack(recipe, speech, Path("pack"), max_bytes=10**6)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_run, "train", interrupted)
    with pytest.raises(SystemExit) as ended:
        gpu_run.main(
            ["train", "tiny.yaml", "--pack", "pack", "--out", "out", "--minutes", "1", "--resume",
             str(finished(recipe))],
            age=0.0,
        )  # fmt: skip
    assert ended.value.code == 130
    assert gpu_run.restore(Path("out"), Path("again"))
    assert checkpoint_of(Path("again"))["progress"]["step"] == 6
