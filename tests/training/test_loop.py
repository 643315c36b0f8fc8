import csv
import dataclasses
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from tests.processes import CONTEXT
from tests.training.conftest import MINIATURES, SEPREFORMER, TFLOCOFORMER, changed, curve, with_data
from tests.training.processes import train_in_two_processes, train_until_killed

from flasepformer.data import DynamicMixing, DynamicMixingConfig, SpeechStore, read_utterances
from flasepformer.metrics import best_permutation, pairwise, si_snr
from flasepformer.models import SepReformer, load_model
from flasepformer.training import TrainingError, load_recipe, multi_stage_loss, save_recipe, train
from flasepformer.training.averaging import average_checkpoints
from flasepformer.training.loop import _Run, _Scores

SOURCE_OF_NOISE = "output_conv.bias"
"""SI-SNR does not hear a constant, so the gradient of this is rounding, which AdamW brings to full size."""


def load(path):
    return torch.load(path, weights_only=True)


def assert_same_weights(folder, other, part="model", **tolerance):
    """Compare the weights of two runs' checkpoints, exactly unless there is a tolerance."""
    tolerance = {"rtol": 0, "atol": 0, **tolerance}
    first, second = (load(run / "checkpoint.pt")[part] for run in (folder, other))
    if tolerance["atol"]:
        for weights in (first, second):
            weights.pop(SOURCE_OF_NOISE, None)
    torch.testing.assert_close(first, second, **tolerance)


@pytest.mark.slow
def test_a_run_leaves_recipe_curve_checkpoint_and_best_weights(recipe, tmp_path):
    best = train(recipe, tmp_path / "run")
    model = load_model(best)
    assert model.config == recipe.model
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    rows = curve(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6]
    assert [bool(row["valid_si_snr_improvement_db"]) for row in rows] == [False, True, False, True]
    assert float(rows[-1]["hours_heard"]) == pytest.approx(6 * 2 * 0.5 / 3600, abs=1e-3)
    rates = [float(row["learning_rate"]) for row in rows]  # of the step, not of the next one
    assert rates == pytest.approx([3e-3, 3e-3, 3e-3, 1.5e-3])
    assert "1 processes" in (tmp_path / "run" / "environment.txt").read_text()
    assert list((tmp_path / "run" / "tensorboard").rglob("events.*"))


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is_and_the_time_that_is_left(small_recipe, tmp_path, monkeypatch):
    class Terminal(io.StringIO):  # issue 16
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(small_recipe, tmp_path / "run")
    last = terminal.getvalue().split("\r")[-1]
    assert "training: 100%" in last
    assert re.search(r"4/4 \[\d+:\d+<00:00", last)


SOON = ("fla-sepreformer", "tflocoformer")
"""Both families and both kinds of attention."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOON else pytest.mark.long) for name in MINIATURES]
)
def test_a_miniature_of_each_kind_learns_and_its_checkpoint_separates(name, recipe, tmp_path):
    short = dataclasses.replace(
        changed(recipe, n_steps=24, batch_size=2, learning_rate=5e-3, decay_steps=0),
        model=MINIATURES[name],
        fourier_filters=name.endswith("sepreformer"),
        data=dataclasses.replace(recipe.data, n_valid_mixtures=1, valid_segment_seconds=0.25),
        mixing=DynamicMixingConfig(segment_seconds=0.25),
        validate_every=24,
        log_every=8,
    )
    best = train(short, tmp_path / "run")
    losses = [float(row["train_loss_db"]) for row in curve(tmp_path / "run")]
    assert losses[-1] < losses[0] - 4
    store = SpeechStore.load(read_utterances(recipe.data.speech, "train"), 8000)
    mixture, sources = DynamicMixing(store, DynamicMixingConfig(segment_seconds=1.0), seed=99).example(0)
    scores = pairwise(si_snr, load_model(best)(mixture[None])[0].detach(), sources)
    separated = scores.gather(0, best_permutation(scores)[None]).mean()
    assert separated > si_snr(mixture.expand_as(sources), sources).mean() + 2


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights_and_curve(recipe, tmp_path, finished):
    finished(recipe, tmp_path / "whole")
    # Half a run, as if stopped after step 3: the schedule is that of the whole one.
    with pytest.raises(KeyboardInterrupt):
        train_until(3, recipe, tmp_path / "halves")
    train(recipe, tmp_path / "halves", resume=True)
    assert load(tmp_path / "halves" / "checkpoint.pt")["progress"]["step"] == 6
    for part in ("model", "average"):
        assert_same_weights(tmp_path / "whole", tmp_path / "halves", part)
    assert curve(tmp_path / "whole") == curve(tmp_path / "halves")


def train_until(step, recipe, folder):
    """Train, and send this process the signal that ends a run when the curve reaches a step."""
    from flasepformer.training import loop

    class Stopper(loop._Run):
        def _step(self, mixtures, sources):
            if self.progress.step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super()._step(mixtures, sources)

    original, loop._Run = loop._Run, Stopper
    try:
        return train(recipe, folder)
    finally:
        loop._Run = original


@pytest.mark.slow
def test_a_run_killed_after_a_checkpoint_writes_the_rest_of_the_curve_anew(small_recipe, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train_until(2, small_recipe, run)
    checkpoint = (run / "checkpoint.pt").read_bytes()
    train(small_recipe, run, resume=True)
    whole, weights = curve(run), load(run / "checkpoint.pt")["model"]
    # A kill at step 4 with the checkpoint of step 2, in the midst of the next one and of a row.
    (run / "checkpoint-previous.pt").write_bytes(checkpoint)
    (run / "checkpoint.pt").rename(run / "checkpoint.part")
    with (run / "curve.csv").open("a") as file:
        file.write("5,0.0")
    train(small_recipe, run, resume=True)
    assert curve(run) == whole
    torch.testing.assert_close(load(run / "checkpoint.pt")["model"], weights, rtol=0, atol=0)
    assert not list(run.glob("*.part"))


def test_a_damaged_checkpoint_is_named_with_the_one_before_it(small_recipe, tmp_path, finished):
    finished(small_recipe, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"checkpoint.pt is damaged.*checkpoint-previous.pt"):
        train(small_recipe, tmp_path / "run", resume=True)


def test_the_checkpoint_of_an_older_version_resumes(small_recipe, tmp_path, finished):
    finished(small_recipe, tmp_path / "run")
    state = load(tmp_path / "run" / "checkpoint.pt")
    known = ("step", "n_heard", "seconds", "best_db", "n_bad")
    state["progress"] = {key: state["progress"][key] for key in known}
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    train(changed(small_recipe, n_steps=5), tmp_path / "run", resume=True)
    assert [int(row["step"]) for row in curve(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_the_curve_of_an_older_version_stays_and_goes_on(small_recipe, tmp_path, finished):
    run = tmp_path / "run"
    finished(small_recipe, run)
    older = ("step", "hours_heard", "minutes", "learning_rate", "train_loss_db", "gradient_norm",
             "valid_si_snr_improvement_db", "best_db")  # fmt: skip
    with (run / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (run / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, older, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    train(changed(small_recipe, n_steps=5), run, resume=True)
    with (run / "curve.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [{key: row[key] for key in older} for row in found[:4]] == [
        {key: row[key] for key in older} for row in rows
    ]
    assert [bool(row["steps_per_second"]) for row in found] == [False] * 4 + [True]


def test_a_curve_without_a_checkpoint_is_of_another_run(small_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "curve.csv").write_text("step,train_loss_db\n1,7.0\n2,6.0\n")
    train(changed(small_recipe, n_steps=1), tmp_path / "run")
    assert [row["step"] for row in curve(tmp_path / "run")] == ["1"]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "moment"), [("speech", "checkpoint"), ("mixtures", "row")])
def test_a_run_that_is_killed_and_resumed_gives_the_curve_of_one_that_was_not(
    small_recipe, fixed_recipe, tmp_path, kind, moment
):
    recipe = dataclasses.replace(
        changed(small_recipe if kind == "speech" else fixed_recipe, n_steps=8, average_best=2),
        steps_per_epoch=3,
        log_every=1,
        checkpoint_minutes=0.0,
    )
    train(recipe, tmp_path / "whole")
    killed = tmp_path / "killed"
    process = CONTEXT.Process(target=train_until_killed, args=(recipe, killed, moment))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    assert load(killed / "checkpoint.pt")["progress"]["step"] == 3
    assert len(curve(killed)) == 4
    assert bool(list(killed.glob("*.part"))) == (moment == "checkpoint")
    train(recipe, killed, resume=True)
    assert curve(killed) == curve(tmp_path / "whole")
    for part in ("model", "average", "optimizers"):
        assert_same_weights(tmp_path / "whole", killed, part)
    best = [load_model(run / "best").state_dict() for run in (tmp_path / "whole", killed)]
    torch.testing.assert_close(*best, rtol=0, atol=0)


@pytest.mark.long  # the command that people use; the tests below start their processes in a faster way
def test_two_processes_of_torchrun_share_a_run_whose_auxiliary_heads_fall_idle(recipe, tmp_path):
    falling = changed(recipe, auxiliary_decay_steps=3)
    train(changed(falling, n_steps=1, warmup_steps=1, decay_steps=0), tmp_path / "run")
    save_recipe(falling, tmp_path / "recipe.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        "-m",
        "flasepformer",
        "train",
        tmp_path / "recipe.yaml",
        "--out",
        tmp_path / "run",
        "--resume",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    progress = load(tmp_path / "run" / "checkpoint.pt")["progress"]
    assert (progress["step"], progress["n_heard"]) == (6, 1 * 2 + 5 * 4)
    assert "2 processes" in (tmp_path / "run" / "environment.txt").read_text()


def test_processes_that_do_not_find_each_other_are_refused(small_recipe, tmp_path, monkeypatch):
    from accelerate import PartialState

    PartialState(cpu=True)  # this process is alone, whatever the environment says from here on
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        TrainingError, match=r"WORLD_SIZE says that there are 2 processes, but 1 found together"
    ):
        train(small_recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["speech", "mixtures"])
def test_two_processes_train_to_the_same_weights_as_twice_the_batch(
    small_recipe, fixed_recipe, tmp_path, kind
):
    recipe = small_recipe if kind == "speech" else fixed_recipe
    train_in_two_processes(changed(recipe, batch_size=2), tmp_path / "two")
    train(changed(recipe, batch_size=4), tmp_path / "one")
    assert_same_weights(tmp_path / "two", tmp_path / "one", rtol=0, atol=1e-4)
    assert load(tmp_path / "two" / "checkpoint.pt")["progress"]["n_heard"] == 4 * 4
    assert "2 processes" in (tmp_path / "two" / "environment.txt").read_text()
    scores = [float(row["valid_si_snr_improvement_db"]) for row in curve(tmp_path / "two")]
    expected = [float(row["valid_si_snr_improvement_db"]) for row in curve(tmp_path / "one")]
    assert scores == pytest.approx(expected, abs=0.01)


@pytest.mark.long
def test_two_processes_go_on_where_one_stopped(small_recipe, tmp_path):
    whole = changed(small_recipe, batch_size=4)
    train(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_until(2, whole, tmp_path / "parts")
    train_in_two_processes(changed(small_recipe, batch_size=2), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", rtol=0, atol=1e-4)
    assert [row["step"] for row in curve(tmp_path / "parts")] == ["1", "2", "3", "4"]


@pytest.mark.long
def test_one_process_goes_on_where_two_stopped(small_recipe, tmp_path):
    train(changed(small_recipe, batch_size=4), tmp_path / "whole")
    train_in_two_processes(changed(small_recipe, batch_size=2, n_steps=2), tmp_path / "parts")
    train(changed(small_recipe, batch_size=4), tmp_path / "parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts", rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_processes_with_batch_normalisation_train_as_one_that_accumulates_their_batches(
    small_recipe, tmp_path
):
    normalised = dataclasses.replace(small_recipe, model=dataclasses.replace(SEPREFORMER, dropout=0.0))
    train_in_two_processes(normalised, tmp_path / "two")
    train(changed(normalised, accumulate_steps=2), tmp_path / "one")
    two, one = (load(tmp_path / name / "checkpoint.pt")["model"] for name in ("two", "one"))
    trained = [name for name in two if "running" not in name and "num_batches" not in name]
    torch.testing.assert_close([two[n] for n in trained], [one[n] for n in trained], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_accumulated_batches_are_one_large_batch(small_recipe, tmp_path):
    train(changed(small_recipe, batch_size=4), tmp_path / "large")
    train(changed(small_recipe, batch_size=2, accumulate_steps=2), tmp_path / "small")
    assert_same_weights(tmp_path / "large", tmp_path / "small", rtol=0, atol=1e-4)
    for large, small in zip(curve(tmp_path / "large"), curve(tmp_path / "small"), strict=True):
        for column in ("hours_heard", "train_loss_db", "gradient_norm"):
            assert float(small[column]) == pytest.approx(float(large[column]), rel=0.01, abs=0.002)


@pytest.mark.slow
def test_other_batches_after_a_resume_go_on_with_the_next_mixture(small_recipe, tmp_path, monkeypatch):
    heard = []
    example = DynamicMixing.example

    def overheard(self, index):
        if self.seed == small_recipe.seed:  # not the validation
            heard.append(index)
        return example(self, index)

    monkeypatch.setattr(DynamicMixing, "example", overheard)
    train(changed(small_recipe, n_steps=2, batch_size=2), tmp_path / "run")
    train(changed(small_recipe, n_steps=3, batch_size=3), tmp_path / "run", resume=True)
    assert heard == [0, 1, 2, 3, 4, 5, 6]


def test_the_share_of_the_auxiliary_loss_falls_by_epochs(small_recipe, tmp_path, monkeypatch):
    shares = []

    def overheard(estimates, auxiliaries, sources, auxiliary_weight, limit_db):
        shares.append(auxiliary_weight)
        return multi_stage_loss(estimates, auxiliaries, sources, auxiliary_weight, limit_db)

    monkeypatch.setattr("flasepformer.training.loop.multi_stage_loss", overheard)
    falling = {"auxiliary_decay_factor": 0.5, "auxiliary_decay_start_epoch": 1, "auxiliary_decay_epochs": 2}
    train(changed(small_recipe, auxiliary_weight=0.4, **falling), tmp_path / "run")
    assert shares == pytest.approx([0.4, 0.2, 0.2, 0.1])


@pytest.mark.slow
def test_checkpointed_activations_train_to_the_same_weights(recipe, tmp_path):
    short = changed(recipe, n_steps=3, decay_steps=1)
    train(short, tmp_path / "plain")
    train(changed(short, checkpoint_activations=True), tmp_path / "lean")
    for part in ("model", "average"):
        assert_same_weights(tmp_path / "plain", tmp_path / "lean", part, atol=1e-6)


def frozen(recipe, **changes):
    """Return a recipe whose steps are too small to change anything, so that no epoch is better."""
    return changed(recipe, learning_rate=1e-30, weight_decay=0.0, warmup_steps=0, decay_steps=0, **changes)


@pytest.mark.slow
def test_the_learning_rate_falls_on_a_plateau_also_after_a_resume(small_recipe, tmp_path):
    stalling = frozen(small_recipe, n_steps=7, plateau_factor=0.5, plateau_patience=1, plateau_start_epoch=1)
    # Epoch 1 is not watched, epoch 2 is the first and so the best; 4 is the second after it, then 6.
    rates = []
    for n_steps in (4, 5, 7):
        train(changed(stalling, n_steps=n_steps), tmp_path / "run", resume=n_steps > 4)
        (optimizer,) = load(tmp_path / "run" / "checkpoint.pt")["optimizers"]
        rates.append(optimizer["param_groups"][0]["lr"] / 1e-30)
    assert rates == pytest.approx([1, 0.5, 0.25])


def test_a_run_stops_early_and_stays_stopped(small_recipe, tmp_path, capsys):
    stalling = frozen(small_recipe, n_steps=100, early_stop_epochs=2)
    best = train(stalling, tmp_path / "run")
    assert capsys.readouterr().err == ""
    train(stalling, tmp_path / "run", resume=True)
    assert "was ended at step 3 by optimization.early_stop_epochs, after 2 epochs" in capsys.readouterr().err
    assert [int(row["step"]) for row in curve(tmp_path / "run")] == [1, 2, 3]
    assert load_model(best).config == TFLOCOFORMER


def test_the_running_average_is_validated_and_shipped(small_recipe, tmp_path, monkeypatch):
    from flasepformer.training import loop

    step, passed = loop._Run._step, []

    def overheard(run, mixtures, sources):
        norm = step(run, mixtures, sources)
        passed.append({name: value.clone() for name, value in run.model.state_dict().items()})
        return norm

    monkeypatch.setattr(loop._Run, "_step", overheard)
    once = dataclasses.replace(changed(small_recipe, average_decay=0.75), steps_per_epoch=4)
    shipped = load_model(train(once, tmp_path / "run")).state_dict()
    assert len(passed) == 4
    for name, value in shipped.items():
        expected = passed[0][name]
        for later in passed[1:]:
            expected = 0.75 * expected + 0.25 * later[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(shipped[name], passed[-1][name]) for name in shipped)


@pytest.mark.slow
def test_the_mean_of_the_best_validations_is_shipped(small_recipe, tmp_path, capsys):
    whole, killed, robbed = (tmp_path / name for name in ("whole", "killed", "robbed"))
    averaging = changed(small_recipe, n_steps=6, average_best=2, average_decay=0.0, decay_steps=0)
    with pytest.raises(KeyboardInterrupt):
        train_until(3, averaging, whole)
    for run in (killed, robbed):
        shutil.copytree(whole, run)
    mean = load_model(train(averaging, whole, resume=True)).state_dict()

    scores = {int(row["step"]): float(row["valid_si_snr_improvement_db"]) for row in curve(whole)}
    kept = sorted(sorted(scores, key=scores.get)[-2:])
    candidates = sorted((whole / "candidates").iterdir())
    assert [path.name for path in candidates] == [f"step-{step:08d}" for step in kept]
    torch.testing.assert_close(mean, average_checkpoints(candidates).state_dict())
    info = json.loads((whole / "best" / "config.json").read_text())["info"]
    assert info["mean_of"] == {str(step): scores[step] for step in sorted(kept, key=scores.get)[::-1]}

    shutil.copytree(candidates[0], killed / "candidates" / "step-00000009")  # after the last checkpoint
    best = train(averaging, killed, resume=True)
    torch.testing.assert_close(load_model(best).state_dict(), mean)
    assert sorted(path.name for path in (killed / "candidates").iterdir()) == [p.name for p in candidates]

    shutil.rmtree(robbed / "candidates")
    train(averaging, robbed, resume=True)
    assert "are gone" in capsys.readouterr().err


def test_bf16_computes_the_loss_in_float32():
    from flasepformer.training.loop import _TrainingStep

    torch.manual_seed(0)
    step = _TrainingStep(SepReformer(SEPREFORMER)).eval()
    sources = torch.randn(2, 2, 2000)
    with torch.autocast("cpu", torch.bfloat16):
        loss = step(sources.sum(1), sources, 0.4)
        estimates, auxiliaries = step.model.forward_with_auxiliary(sources.sum(1))
    expected = multi_stage_loss(estimates.double(), [a.double() for a in auxiliaries], sources.double(), 0.4)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), abs=1e-3)


def test_a_run_does_not_overwrite_another(small_recipe, tmp_path, finished):
    finished(small_recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already"):
        train(small_recipe, tmp_path / "run")


@pytest.mark.parametrize("n_steps", [2, 1])
def test_a_run_at_its_end_says_so_and_stays_as_it_is(small_recipe, tmp_path, capsys, n_steps):
    recipe = changed(small_recipe, n_steps=2)
    best = train(recipe, tmp_path / "run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*") if path.is_file()}
    capsys.readouterr()
    assert train(changed(recipe, n_steps=n_steps), tmp_path / "run", resume=True) == best
    said = f"nothing to do: the run is at step 2 and optimization.n_steps is {n_steps}; raise it to go on\n"
    assert capsys.readouterr() == ("", said)
    assert {path: path.read_bytes() for path in files} == files


def test_there_must_be_something_to_resume(small_recipe, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(small_recipe, tmp_path / "run", resume=True)


def test_a_run_of_another_network_is_not_resumed(small_recipe, tmp_path, finished):
    finished(small_recipe, tmp_path / "run")
    other = dataclasses.replace(small_recipe, model=dataclasses.replace(small_recipe.model, n_channels=8))
    with pytest.raises(TrainingError, match="another network") as refusal:
        train(other, tmp_path / "run", resume=True)
    assert len(str(refusal.value)) < 150  # not every weight that differs
    assert load_recipe(tmp_path / "run/recipe.yaml") == small_recipe


def refused_before_it_begins(recipe, run, **changes):
    with pytest.raises((ValueError, TrainingError, FileNotFoundError)):
        train(with_data(recipe, **changes), run)
    assert not run.parent.exists()


def test_a_refused_run_leaves_nothing(small_recipe, speech, tmp_path):
    run = tmp_path / "runs" / "new"
    for changes in ({"speech": ""}, {"speech": str(tmp_path / "nowhere")}, {"valid_split": "train"}):
        refused_before_it_begins(small_recipe, run, **changes)
    damaged = damaged_speech(speech, tmp_path / "damaged", n_copies=60)
    refused_before_it_begins(small_recipe, run, speech=str(damaged), max_corrupt_share=0.005)
    with pytest.raises(ValueError, match="no recordings of noise"):  # when the speech is decoded
        train(
            dataclasses.replace(small_recipe, mixing=DynamicMixingConfig(noise=(str(tmp_path / "no"),))), run
        )
    assert not run.parent.exists()
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(small_recipe, run, resume=True)
    assert not run.parent.exists()
    run.mkdir(parents=True)
    (run / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="names no speech"):
        train(with_data(small_recipe, speech=""), run)
    assert [path.name for path in run.iterdir()] == ["note.txt"]


@pytest.mark.slow
def test_training_starts_from_a_checkpoint(recipe, tmp_path):
    best = train(recipe, tmp_path / "first")
    one_step = changed(recipe, n_steps=1, learning_rate=1e-12, warmup_steps=0, decay_steps=0)
    start = dataclasses.replace(one_step, initial_checkpoint=str(best))
    train(start, tmp_path / "second")
    before, after = load_model(best), load_model(tmp_path / "second" / "best")
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_a_speaker_in_both_splits_is_refused(recipe, tmp_path):
    same = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, valid_split="train"))
    with pytest.raises(ValueError, match="anna"):
        train(same, tmp_path / "run")


@pytest.mark.slow
def test_a_loss_that_stays_not_finite_ends_the_run_and_keeps_the_batch(recipe, tmp_path):
    wild = {"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30}
    exploding = changed(recipe, n_steps=50, max_bad_steps=3, **wild)
    with pytest.raises(TrainingError, match=r"not finite.* begin anew, as there is no checkpoint yet$"):
        train(exploding, tmp_path / "run")
    batch = load(tmp_path / "run" / "bad-batch-0.pt")
    assert batch["mixtures"].shape == (2, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("average_best", [1, 2])  # the second saves after every validation
def test_no_checkpoint_is_written_after_steps_that_were_skipped(
    small_recipe, tmp_path, capsys, monkeypatch, average_best
):
    n_losses = 0

    def broken_from_the_fourth_step_on(*arguments):
        nonlocal n_losses
        n_losses += 1
        return multi_stage_loss(*arguments) * (1.0 if n_losses < 4 else math.nan)

    run = tmp_path / "run"
    failing = changed(small_recipe, n_steps=50, max_bad_steps=3, average_best=average_best)
    failing = dataclasses.replace(failing, checkpoint_minutes=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("flasepformer.training.loop.multi_stage_loss", broken_from_the_fourth_step_on)
        with pytest.raises(TrainingError, match=r"4 steps .*resuming goes on from step 3; .*previous\.pt in"):
            train(failing, run)
    steps = [load(run / name)["progress"]["step"] for name in ("checkpoint.pt", "checkpoint-previous.pt")]
    assert steps == [3, 2]
    assert capsys.readouterr().err.startswith("step 4: loss nan")
    losses = [row["train_loss_db"] for row in curve(run)]
    assert all(losses[:3])
    assert losses[3:] == ["", "", ""]

    train(changed(failing, n_steps=5), run, resume=True)
    assert [bool(row["train_loss_db"]) for row in curve(run)] == [True] * 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_step_that_is_not_finite_leaves_no_trace_in_the_running_statistics(recipe, tmp_path, capsys):
    # Gains up to beyond what float32 holds: some mixtures are not finite, the others are turned down.
    loud = DynamicMixingConfig(segment_seconds=0.25, level_db=0.0, gain_range_db=(600.0, 776.0))
    data = dataclasses.replace(recipe.data, n_valid_mixtures=1)
    train(dataclasses.replace(changed(recipe, batch_size=1), mixing=loud, data=data), tmp_path / "run")
    skipped = capsys.readouterr().err.count("skipped")
    assert 0 < skipped < 6
    state = load(tmp_path / "run" / "checkpoint.pt")
    for part in ("model", "average"):
        assert all(value.isfinite().all() for value in state[part].values())
    assert state["average"]["n_averaged"] == 6 - skipped


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_run_that_ends_without_weights_says_so(small_recipe, tmp_path):
    deafening = DynamicMixingConfig(segment_seconds=0.25, level_db=0.0, gain_range_db=(790.0, 800.0))
    with pytest.raises(TrainingError, match="no validation was finite"):
        train(dataclasses.replace(small_recipe, mixing=deafening), tmp_path / "run")


def damaged_speech(speech, root, n_copies):
    """Return a copy of the speech with more recordings of each speaker, and a page in place of one."""
    shutil.copytree(speech, root)
    for folder in sorted(root.glob("*/*")):
        for k in range(n_copies):
            shutil.copy(folder / f"{k % 3}.wav", folder / f"copy-{k}.wav")
    (root / "train" / "anna" / "copy-0.wav").write_text("<html>not found</html>")
    return root


@pytest.mark.slow
def test_a_corrupt_recording_is_skipped_and_counted_up_to_the_limit_of_the_recipe(
    speech, small_recipe, tmp_path, capsys
):
    root = damaged_speech(speech, tmp_path / "speech", n_copies=60)
    data = dataclasses.replace(small_recipe.data, speech=str(root))
    train(dataclasses.replace(changed(small_recipe, n_steps=1), data=data), tmp_path / "run")
    assert "train: skipped 1 corrupt of 126 recordings" in capsys.readouterr().err
    strict = dataclasses.replace(small_recipe, data=dataclasses.replace(data, max_corrupt_share=0.005))
    with pytest.raises(TrainingError, match=r"^split 'train': 1 of 126 .*copy-0\.wav.*_share is 0\.005; "):
        train(strict, tmp_path / "strict")
    with pytest.raises(TrainingError, match=r"^split 'train': 1 of 126 .*max_corrupt_share is 0\.005; "):
        train(strict, tmp_path / "strict", speech_cache=tmp_path / "run" / "speech-cache")  # decoded already


def test_a_recipe_may_allow_more_corrupt_recordings_in_a_small_split(speech, small_recipe, tmp_path, capsys):
    root = damaged_speech(speech, tmp_path / "speech", n_copies=1)
    small = with_data(changed(small_recipe, n_steps=1), speech=str(root))
    with pytest.raises(TrainingError, match="1 of 8 utterances are corrupt"):
        train(small, tmp_path / "strict")
    train(with_data(small, max_corrupt_share=0.2), tmp_path / "run")
    assert "train: skipped 1 corrupt of 8 recordings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_costs_the_checkpoint_but_not_the_run(recipe, tmp_path, capsys):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mount], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    often = dataclasses.replace(recipe, checkpoint_minutes=0.0)
    try:
        train(often, mount / "run", speech_cache=tmp_path / "cache")
        assert len(curve(mount / "run")) == 4
        assert not list((mount / "run").glob("*.part"))
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
    assert "disk full" in capsys.readouterr().err


@pytest.fixture
def varied_recipe(recipe):
    """Return a recipe with a long step after every two others, and all that can be validated."""
    varied = changed(recipe, long_every=3, long_seconds=(1.0, 3.0), long_batch_size=1, loss_limit_db=30.0)
    mixing = DynamicMixingConfig(
        segment_seconds=0.5, turn_seconds=(0.1, 0.5), turn_pause_seconds=(0.0, 0.2),
        conversation_probability=0.5, long_conversation_probability=0.8,
    )  # fmt: skip
    return with_data(dataclasses.replace(varied, mixing=mixing), n_valid_conversations=2)


@pytest.mark.slow
def test_long_steps_come_at_their_turn_and_are_heard_in_full(varied_recipe, tmp_path, monkeypatch):
    lengths = []
    step = _Run._step

    def measured(self, mixtures, sources):
        lengths.append((len(mixtures), mixtures.shape[-1] / 8000))
        return step(self, mixtures, sources)

    monkeypatch.setattr(_Run, "_step", measured)
    train(varied_recipe, tmp_path / "run")
    assert [lengths[k] for k in (0, 1, 3, 4)] == [(2, 0.5)] * 4
    assert [count for count, _ in (lengths[2], lengths[5])] == [1, 1]
    assert {seconds for _, seconds in (lengths[2], lengths[5])} <= {1.0, 2.0, 3.0}
    progress = load(tmp_path / "run" / "checkpoint.pt")["progress"]
    assert progress["n_heard"] == 10
    assert progress["n_drawn"] == 12  # a long step uses up the numbers of a usual one
    assert progress["seconds_heard"] == sum(count * seconds for count, seconds in lengths)
    last = curve(tmp_path / "run")[-1]
    assert 0 <= float(last["wrong_turns"]) <= 0.5


@pytest.mark.long
def test_a_run_with_long_steps_resumes_to_the_same_bits(varied_recipe, tmp_path):
    train(varied_recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_until(2, varied_recipe, tmp_path / "halves")  # the next step is a long one
    train(varied_recipe, tmp_path / "halves", resume=True)
    for part in ("model", "average"):
        assert_same_weights(tmp_path / "whole", tmp_path / "halves", part)
    assert curve(tmp_path / "whole") == curve(tmp_path / "halves")


@pytest.mark.parametrize(
    ("held_out_db", "wrong", "expected"), [(None, None, 8.0), (6.0, None, 7.0), (6.0, 0.3, 4.0)]
)
def test_the_best_weights_are_chosen_by_all_that_is_validated(held_out_db, wrong, expected):
    assert _Scores(8.0, 9.0, held_out_db, wrong).choice_db == pytest.approx(expected)
