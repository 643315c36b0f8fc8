import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

from flasepformer.data import DynamicMixingConfig
from flasepformer.models import SepReformerConfig, load_model
from flasepformer.training import (
    OptimizationConfig,
    Recipe,
    SpeechConfig,
    TrainingError,
    load_recipe,
    save_recipe,
    train,
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Return a folder of four synthetic talkers, two to train on and two to validate on: buzzing tones that
    come and go."""
    root = tmp_path_factory.mktemp("speech")
    time_axis = np.arange(16_000) / 8000
    for i, speaker in enumerate(("train/anna", "train/ben", "valid/cleo", "valid/dan")):
        (root / speaker).mkdir(parents=True)
        for k in range(3):
            pitch = 90 * (i + 1) + 7 * k
            voice = sum(np.sin(2 * np.pi * pitch * n * time_axis) / n for n in range(1, 8))
            voice *= np.sin(2 * np.pi * (1 + 0.3 * k) * time_axis) ** 2
            soundfile.write(root / speaker / f"{k}.wav", 0.1 * voice, 8000)
    return root


@pytest.fixture
def recipe(speech):
    return Recipe(
        seed=5,
        model=SepReformerConfig(
            n_filters=64, filter_length=32, hop_length=16, n_channels=16, n_heads=2, n_stages=2,
            n_encoder_blocks=1, n_decoder_blocks=1, local_kernel_size=5, layer_scale=0.1, masking=True,
            dropout=0.1,
        ),
        fourier_filters=True,
        data=SpeechConfig(speech=str(speech), n_valid_mixtures=4),
        mixing=DynamicMixingConfig(segment_seconds=0.5),
        optimization=OptimizationConfig(
            n_steps=6, batch_size=2, learning_rate=3e-3, warmup_steps=2, decay_steps=2, average_decay=0.5
        ),
        validate_every=3,
        log_every=2,
        checkpoint_minutes=0.0,
    )  # fmt: skip


def curve(folder):
    with (folder / "curve.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def changed(recipe, **changes):
    return dataclasses.replace(recipe, optimization=dataclasses.replace(recipe.optimization, **changes))


def test_a_run_leaves_recipe_curve_checkpoint_and_best_weights(recipe, tmp_path):
    best = train(recipe, tmp_path / "run")
    model = load_model(best)
    assert model.config == recipe.model
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe
    rows = curve(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 6]
    assert [bool(row["valid_si_snr_improvement_db"]) for row in rows] == [False, True, False, True]
    assert float(rows[-1]["hours_heard"]) == pytest.approx(6 * 2 * 0.5 / 3600, abs=1e-3)
    assert (tmp_path / "run" / "environment.txt").read_text()
    assert list((tmp_path / "run" / "tensorboard").rglob("events.*"))


def test_training_learns(recipe, tmp_path):
    longer = dataclasses.replace(
        changed(recipe, n_steps=40, decay_steps=10), validate_every=40, log_every=20, checkpoint_minutes=10.0
    )
    train(longer, tmp_path / "run")
    rows = curve(tmp_path / "run")
    assert float(rows[-1]["train_loss_db"]) < float(rows[0]["train_loss_db"]) - 1


def test_a_resumed_run_ends_with_the_same_weights(recipe, tmp_path):
    train(recipe, tmp_path / "whole")
    # Half a run, as if killed after step 3: the schedule is that of the whole one.
    source = tmp_path / "halves"
    with pytest.raises(KeyboardInterrupt):
        train_until(3, recipe, source)
    train(recipe, source, resume=True)
    checkpoints = (tmp_path / name / "checkpoint.pt" for name in ("whole", "halves"))
    whole, halves = (torch.load(path, weights_only=True) for path in checkpoints)
    assert halves["progress"]["step"] == 6
    for part in ("model", "average"):
        for key, value in whole[part].items():
            assert torch.equal(value, halves[part][key]), key


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
def test_a_killed_run_resumes_from_its_last_checkpoint(recipe, tmp_path):
    long = changed(recipe, n_steps=100_000)
    save_recipe(long, tmp_path / "long.yaml")
    command = [sys.executable, "-m", "flasepformer", "train", str(tmp_path / "long.yaml")]
    command += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()
    step = torch.load(checkpoint, weights_only=True)["progress"]["step"]
    train(changed(recipe, n_steps=step + 2), tmp_path / "run", resume=True)
    assert torch.load(checkpoint, weights_only=True)["progress"]["step"] == step + 2


@pytest.mark.slow
def test_two_processes_share_a_run_whose_auxiliary_heads_fall_idle(recipe, tmp_path):
    train(changed(recipe, n_steps=1, auxiliary_decay_steps=3), tmp_path / "run")
    save_recipe(changed(recipe, auxiliary_decay_steps=3), tmp_path / "recipe.yaml")
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
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    progress = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["progress"]
    assert (progress["step"], progress["n_heard"]) == (6, 1 * 2 + 5 * 4)


def test_a_run_does_not_overwrite_another(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already"):
        train(recipe, tmp_path / "run")


def test_there_must_be_something_to_resume(recipe, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_run_of_another_network_is_not_resumed(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, n_channels=8))
    with pytest.raises(TrainingError, match="another network"):
        train(other, tmp_path / "run", resume=True)


def test_training_starts_from_a_checkpoint(recipe, tmp_path):
    best = train(recipe, tmp_path / "first")
    start = dataclasses.replace(changed(recipe, n_steps=1, learning_rate=1e-12), initial_checkpoint=str(best))
    train(start, tmp_path / "second")
    before, after = load_model(best), load_model(tmp_path / "second" / "best")
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=name)


def test_a_speaker_in_both_splits_is_refused(recipe, tmp_path):
    same = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, valid_split="train"))
    with pytest.raises(ValueError, match="anna"):
        train(same, tmp_path / "run")


def test_a_loss_that_stays_not_finite_ends_the_run_and_keeps_the_batch(recipe, tmp_path):
    wild = {"learning_rate": 1e30, "warmup_steps": 0, "clip_norm": 1e30}
    exploding = changed(recipe, n_steps=50, max_bad_steps=3, **wild)
    with pytest.raises(TrainingError, match="not finite"):
        train(exploding, tmp_path / "run")
    batch = torch.load(tmp_path / "run" / "bad-batch.pt", weights_only=True)
    assert batch["mixtures"].shape == (2, 4000)


def test_a_full_disk_costs_the_checkpoint_but_not_the_run(recipe, tmp_path, capsys):
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", mount], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        train(recipe, mount / "run", speech_cache=tmp_path / "cache")
        assert len(curve(mount / "run")) == 4
        assert not list((mount / "run").glob("*.part"))
    finally:
        subprocess.run(["umount", "-l", mount], check=True)
    assert "disk full" in capsys.readouterr().err
