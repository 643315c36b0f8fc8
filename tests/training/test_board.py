"""TensorBoard: read back what a run wrote for it."""

import contextlib
import dataclasses
import io
import subprocess
import time

import numpy as np
import pytest
import soundfile
import torch
from tests.training.conftest import changed, curve
from torch.testing import assert_close

from flasepformer.metrics import best_permutation, pairwise, si_snr
from flasepformer.models import load_model
from flasepformer.training import board as board_module
from flasepformer.training import train
from flasepformer.training.board import Board, spectrograms
from flasepformer.training.examples import open_examples
from flasepformer.training.run_folder import BOARD_FOLDER, RunFolder

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def shown(run):
    """Return what TensorBoard shows of a run."""
    everything = tensorboard.EventAccumulator(str(run / "tensorboard"), {"audio": 0, "images": 0})
    everything.Reload()
    return everything


def heard(events, tag):
    return [soundfile.read(io.BytesIO(event.encoded_audio_string)) for event in events.Audio(tag)]


@pytest.mark.slow
def test_a_run_shows_numbers_tracks_and_spectrograms(recipe, tmp_path):
    train(recipe, tmp_path / "run")
    events, rows = shown(tmp_path / "run"), curve(tmp_path / "run")
    for column in ("train_loss_db", "gradient_norm", "learning_rate", "hours_heard"):
        points = [(event.step, event.value) for event in events.Scalars(column)]
        assert points == [(int(row["step"]), pytest.approx(float(row[column]))) for row in rows]
    for tag in ("audio_seconds_per_second", "steps_per_second"):
        assert all(event.value > 0 for event in events.Scalars(tag))
    scores = {event.step: event.value for event in events.Scalars("valid_si_snr_improvement_db")}
    assert list(scores) == [event.step for event in events.Scalars("valid_loss_db")] == [3, 6]

    _, validate_on = open_examples(recipe, tmp_path / "cache")
    for number in (1, 2):
        mixture, sources = validate_on.example(number - 1)
        tracks = {"mixture": mixture, "source_1": sources[0], "source_2": sources[1]}
        for label, track in tracks.items():  # once, as they stay the same
            ((samples, rate),) = heard(events, f"mixture_{number}/{label}")
            assert rate == 8000
            assert_close(torch.from_numpy(samples), track.double(), rtol=0, atol=1e-4)
        for label in ("estimate_1", "estimate_2"):
            tag = f"mixture_{number}/{label}"
            assert [event.step for event in events.Audio(tag)] == [3, 6]
            assert [len(samples) for samples, _ in heard(events, tag)] == [4000, 4000]
        pictures = events.Images(f"mixture_{number}/spectrograms")
        assert [(picture.step, picture.width, picture.height) for picture in pictures] == [
            (3, 63, 5 * 130), (6, 63, 5 * 130)
        ]  # fmt: skip
    assert not any("mixture_3" in tag for tag in events.Tags()["audio"])


@pytest.mark.slow
def test_the_weights_that_are_validated_are_heard(recipe, tmp_path):
    model = load_model(train(dataclasses.replace(recipe, validate_every=6), tmp_path / "run"))
    mixture, sources = open_examples(recipe, tmp_path / "cache")[1].example(0)
    with torch.inference_mode():
        estimates = model(mixture[None])[0]
    events = shown(tmp_path / "run")
    scores = pairwise(si_snr, estimates, sources)
    for source, estimate in enumerate(estimates[best_permutation(scores)], start=1):
        ((samples, _),) = heard(events, f"mixture_1/estimate_{source}")
        assert si_snr(torch.from_numpy(samples), estimate.double()) > 30  # 16 bits, quite soft


def test_estimates_stand_by_their_sources_at_their_level(recipe, tmp_path, monkeypatch):
    from flasepformer.training import loop

    def all_but_perfect(run, network, mixture):
        sources = next(s for m, s in pairs if torch.equal(m, mixture))
        return torch.stack([-30 * sources[1], 0.01 * sources[0]])

    pairs = [open_examples(recipe, tmp_path / "cache")[1].example(index) for index in range(2)]
    monkeypatch.setattr(loop._Run, "_estimates", all_but_perfect)
    one_step = changed(recipe, n_steps=1, warmup_steps=0, decay_steps=0)
    train(dataclasses.replace(one_step, n_logged_mixtures=1), tmp_path / "run")
    events = shown(tmp_path / "run")
    assert {tag.split("/")[0] for tag in events.Tags()["audio"]} == {"mixture_1"}
    for source in (1, 2):
        (estimate,), (expected,) = (
            heard(events, f"mixture_1/{track}_{source}") for track in ("estimate", "source")
        )
        np.testing.assert_allclose(estimate[0], expected[0], atol=1e-4)


def test_what_leaks_to_a_silent_source_is_heard_and_what_is_no_number_is_silent(tmp_path):
    board = board_in(tmp_path)
    voice = 0.1 * torch.randn(2000)
    sources, estimates = torch.stack([voice, 0 * voice]), torch.stack([20 * voice, 5 * voice])
    estimates[0, :10] = torch.nan
    board.mixture("mixture_1", voice, sources, estimates, 8000, step=1)
    board.close()
    events = shown(tmp_path)
    ((first, _),), ((second, _),) = (heard(events, f"mixture_1/estimate_{k}") for k in (1, 2))
    np.testing.assert_allclose(first[10:], voice[10:], atol=1e-4)
    assert not first[:10].any()
    np.testing.assert_allclose(second, voice, atol=1e-4)


def test_nothing_is_shown_where_the_recipe_says_so(small_recipe, tmp_path):
    train(dataclasses.replace(changed(small_recipe, n_steps=1), n_logged_mixtures=0), tmp_path / "run")
    tags = shown(tmp_path / "run").Tags()
    assert (tags["audio"], tags["images"]) == ([], [])
    assert "train_loss_db" in tags["scalars"]


def test_a_spectrogram_is_bright_where_the_sound_is():
    rate, tone = 8000, torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / 8000)
    tone[4000:] = 0
    picture = spectrograms(torch.stack([tone, 0.01 * tone]), rate)
    assert picture.shape == (2 * 130, 126)
    assert picture.max() == 255
    row = 128 - 32  # of 1000 Hz: frequencies fall from 4000 Hz, 31.25 Hz a row
    assert np.unravel_index(picture[:129].argmax(), (129, 126))[0] == row
    assert (picture[row, 1:60] > 240).all()
    assert (picture[row, 66:] == 0).all()
    assert picture[130 + row, 30] == pytest.approx(255 / 3, abs=2)  # 40 of 60 dB below
    assert (picture[[129, 259]] == 128).all()


def test_a_long_track_is_drawn_on_no_more_columns_than_fit():
    assert spectrograms(torch.randn(1, 480_000), 8000).shape == (130, 401)


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder that is a disk of 100 kB."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", mount]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def board_in(folder, step=0):
    from accelerate import Accelerator

    return Board(Accelerator(log_with="tensorboard", project_dir=str(folder), cpu=True), step)


def first_in_order_of_names(run):
    """Rename the only events so far: names tell the second, then a number, so that 10 comes before 9."""
    (events,) = (run / "tensorboard").glob("events.out.tfevents.*")
    events.rename(events.with_name("events.out.tfevents.0"))


def test_what_does_not_fit_on_the_disk_is_left_out(small_disk, capsys):
    board = board_in(small_disk)
    board.numbers({"train_loss_db": 1.0}, step=1)
    tracks = torch.rand(5, 16_000)  # 32 kB each
    board.mixture("mixture_1", tracks[0], tracks[1:3], tracks[3:], 8000, step=1)
    assert capsys.readouterr().err.count("disk full") == 1
    board.numbers({"train_loss_db": 2.0}, step=2)
    board.close()
    events = shown(small_disk)
    assert [(event.step, event.value) for event in events.Scalars("train_loss_db")] == [(1, 1.0), (2, 2.0)]
    assert events.Tags()["audio"] == []
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the writer's thread
def test_a_writer_that_met_a_full_disk_is_replaced_after_a_while(small_disk, monkeypatch, capsys):
    board = board_in(small_disk)
    board.numbers({"train_loss_db": 1.0}, step=1)
    with (small_disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
        while True:
            other.write(bytes(1000))
    monkeypatch.setattr(board_module, "_BYTES_OF_NUMBERS", 0)  # as if the disk had filled up just then
    told = ""
    for step in range(2, 2000):  # until the last page is full and the writer's thread has met it
        board.numbers({"train_loss_db": 2.0}, step)
        told += capsys.readouterr().err
        if told:
            break
        time.sleep(0.01)
    assert told.count("disk full") == 1
    (small_disk / "other").unlink()
    board.numbers({"train_loss_db": 3.0}, step=3000)  # too soon to try again
    first_in_order_of_names(small_disk)
    monkeypatch.setattr(board_module, "_RETRY_SECONDS", 0.0)
    board.numbers({"train_loss_db": 4.0}, step=3001)
    board.close()
    points = {event.step: event.value for event in shown(small_disk).Scalars("train_loss_db")}
    assert (points[1], points[3001], 3000 in points) == (1.0, 4.0, False)
    assert capsys.readouterr().err == ""


def test_what_was_shown_beyond_the_checkpoint_is_hidden_when_a_run_goes_on(tmp_path):
    for first_step, value in ((0, 1.0), (2, 2.0)):
        board = board_in(tmp_path, first_step)
        for step in range(first_step + 1, 5):
            board.numbers({"train_loss_db": value}, step)
        board.close()
        if not first_step:
            first_in_order_of_names(tmp_path)
    points = [(event.step, event.value) for event in shown(tmp_path).Scalars("train_loss_db")]
    assert points == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_a_run_that_is_begun_anew_shows_nothing_of_the_one_before(tmp_path):  # issue 16
    from accelerate import Accelerator

    folder = RunFolder(tmp_path)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path))
    board = Board(accelerator, 0)
    board.numbers({"train_loss_db": -1.0}, 7)
    board.close()
    assert list((tmp_path / BOARD_FOLDER).glob("events.*"))
    (tmp_path / "notes.txt").write_text("somebody's")
    folder.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
