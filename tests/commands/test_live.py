"""`flasepformer live`: tracks that can be played at every moment, whatever ends the stream."""

import json
import os
import signal
import time

import numpy as np
import pytest
import soundfile
import torch
from tests.models.conftest import tiny_config
from tests.processes import start
from typer.testing import CliRunner

from flasepformer import StreamingSeparator
from flasepformer.cli import app
from flasepformer.models import SepReformer, save_model

RATE = 16000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A causal network, far too small to separate anything: two talkers at 8 kHz, 32 ms behind."""
    torch.manual_seed(0)
    config = tiny_config(masking=True, layer_scale=0.5, hop_length=32, filter_length=64, causal=True)
    folder = tmp_path_factory.mktemp("model")
    save_model(SepReformer(config), folder, {"licence": "CC0-1.0"})
    return folder


@pytest.fixture
def talk(tmp_path):
    samples = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(tmp_path / "talk.wav", samples, RATE, "FLOAT")
    return tmp_path / "talk.wav"


@pytest.fixture
def run(model, tmp_path):
    def invoke(*arguments):
        words = ["live", "--model", str(model), "--device", "cpu", "--out", str(tmp_path / "tracks")]
        result = CliRunner().invoke(app, [*words, *map(str, arguments)], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return invoke


def expected(model, samples):
    stream = StreamingSeparator.from_pretrained(model, RATE, "cpu")
    return np.concatenate([stream.feed(samples), stream.flush()], axis=1)


def read_tracks(folder):
    tracks = [soundfile.read(path, dtype="float32") for path in sorted(folder.glob("*_speaker?.wav"))]
    assert [rate for _, rate in tracks] == [RATE, RATE]
    return np.stack([track for track, _ in tracks])


def test_a_replayed_recording_is_separated_and_how_it_went_is_said(run, talk, model, tmp_path):
    code, out, err = run("--replay", talk, "--speed", 100, "--json")
    assert code == 0
    told = json.loads(out)
    assert [os.path.basename(path) for path in told["tracks"]] == ["talk_speaker1.wav", "talk_speaker2.wav"]
    assert told["delay_seconds"] == pytest.approx(
        0.02 + 2 * 0.005, abs=1e-3
    )  # 160 samples, and the resampling
    assert told["seconds"] == 1.0
    assert 1 <= told["n_blocks"] <= 50  # of 20 ms, or what came meanwhile
    assert "lag 30 ms behind" in err
    assert "real-time factor" in err
    samples = soundfile.read(talk, dtype="float32")[0]
    assert np.abs(read_tracks(tmp_path / "tracks") - expected(model, samples)).max() < 1e-5


def test_what_is_wrong_with_a_replayed_recording_is_said_when_it_has_been_played(run, talk):
    talk.write_bytes(talk.read_bytes()[:-8000])  # 2000 of 16000 samples
    code, _, err = run("--replay", talk, "--speed", 100)
    assert code == 0
    assert "talk.wav: the recording is cut short: the last 0.12 s of 1.00 s are missing" in err


def test_a_replay_takes_the_time_that_it_lasts(run, talk):
    began = time.monotonic()
    run("--replay", talk, "--speed", 2)
    assert time.monotonic() - began >= 0.5


def live_from(path, words):
    descriptor = os.open(path, os.O_RDONLY)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    import sys

    from flasepformer.cli import main

    sys.stdin = os.fdopen(0)
    sys.argv = ["flasepformer", "live", *words]
    main()


@pytest.fixture
def start_live(model, tmp_path):
    """Start the command, reading what is written into a pipe; return the process and the pipe."""
    processes = []

    def begin(*words, out=tmp_path / "tracks"):
        pipe = tmp_path / f"pipe{len(processes)}"
        os.mkfifo(pipe)
        arguments = ["-", "--rate", str(RATE), "--samples", "f32", "--model", str(model), "--device", "cpu",
                     "--out", str(out), *words]  # fmt: skip
        processes.append(start(live_from, str(pipe), arguments))
        return processes[-1], open(pipe, "wb", buffering=0)

    yield begin
    for process in processes:
        process.kill()
        process.join()


def wait_for(folder, n_samples):
    for _ in range(600):
        paths = sorted(folder.glob("*_speaker?.wav"))
        if len(paths) == 2 and all(soundfile.info(path).frames >= n_samples for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError("nothing is written")


def test_standard_input_is_separated_until_it_ends(start_live, model, tmp_path):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE // 2)).astype("<f4")
    process, pipe = start_live()
    with pipe:
        for part in (samples.tobytes()[:999], samples.tobytes()[999:]):  # cut within a sample
            pipe.write(part)
    process.join(30)
    assert process.exitcode == 0
    assert np.abs(read_tracks(tmp_path / "tracks") - expected(model, samples)).max() < 1e-5


def test_after_ctrl_c_all_that_was_said_is_in_the_tracks(start_live, model, tmp_path):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE // 2)).astype("<f4")
    process, pipe = start_live()
    with pipe:
        pipe.write(samples.tobytes())
        wait_for(tmp_path / "tracks", RATE // 4)
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
    assert process.exitcode == 130
    tracks = read_tracks(tmp_path / "tracks")
    n_heard = tracks.shape[1]  # and nothing of it is missing, the delay included
    assert n_heard % (RATE // 50) == 0
    assert np.abs(tracks - expected(model, samples[:n_heard])).max() < 1e-5


def test_a_killed_program_leaves_tracks_that_can_be_played(start_live, model, tmp_path):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE // 2)).astype("<f4")
    process, pipe = start_live()
    with pipe:
        pipe.write(samples.tobytes())
        wait_for(tmp_path / "tracks", RATE // 4)
        process.kill()
        process.join(30)
    tracks = read_tracks(tmp_path / "tracks")
    assert np.abs(tracks - expected(model, samples)[:, : tracks.shape[1]]).max() < 1e-5


def test_what_makes_no_sense_is_wrong_usage(run, talk, tmp_path):
    assert "give --rate" in run("-")[2]
    assert run("-")[0] == run("talk.wav")[0] == run("-", "--rate", RATE, "--replay", talk)[0] == 2
    (tmp_path / "text.wav").write_text("hello, this is no sound at all")
    code, _, err = run("--replay", tmp_path / "text.wav")
    assert (code, "not audio" in err) == (1, True)


def test_tracks_that_exist_are_not_replaced_unasked(run, talk, tmp_path):
    assert run("--replay", talk, "--speed", 100)[0] == 0
    code, _, err = run("--replay", talk, "--speed", 100)
    assert code == 3
    assert "talk_speaker1.wav exists; give --overwrite" in err
    assert run("--replay", talk, "--speed", 100, "--overwrite")[0] == 0


def test_without_a_microphone_the_way_to_one_is_said(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", None)
    code, _, err = run()
    assert code == 3
    assert "[live]" in err
    assert "--replay" in err
