"""`flasepformer live`: tracks that can be played at every moment, whatever ends the stream."""

import io
import json
import os
import resource
import signal
import time
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch
from tests.audio.test_live_sources import PortAudio
from tests.models.conftest import tiny_config
from tests.processes import start
from typer.testing import CliRunner

from flasepformer import StreamingSeparator
from flasepformer.cli import app
from flasepformer.cli.live import _Meters
from flasepformer.inference.live import LiveReport
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


def expected(model, samples, rate=RATE):
    stream = StreamingSeparator.from_pretrained(model, rate, "cpu")
    return np.concatenate([stream.feed(samples), stream.flush()], axis=1)


def read_tracks(folder, expected_rate=RATE):
    tracks = [soundfile.read(path, dtype="float32") for path in sorted(folder.glob("*_speaker?.wav"))]
    assert [rate for _, rate in tracks] == [expected_rate, expected_rate]
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


@pytest.mark.slow
def test_a_replay_takes_the_time_that_it_lasts(run, talk):
    began = time.monotonic()
    run("--replay", talk, "--speed", 2)
    assert time.monotonic() - began >= 0.5


def live_from(path, words, n_bytes=0):
    if n_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
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

    def begin(*words, out=tmp_path / "tracks", n_bytes=0):
        pipe = tmp_path / f"pipe{len(processes)}"
        os.mkfifo(pipe)
        arguments = ["-", "--rate", str(RATE), "--samples", "f32", "--model", str(model), "--device", "cpu",
                     "--out", str(out), *words]  # fmt: skip
        processes.append(start(live_from, str(pipe), arguments, n_bytes))
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


@pytest.mark.slow
def test_standard_input_is_separated_until_it_ends(start_live, model, tmp_path):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE // 2)).astype("<f4")
    process, pipe = start_live()
    with pipe:
        for part in (samples.tobytes()[:999], samples.tobytes()[999:]):  # cut within a sample
            pipe.write(part)
    process.join(30)
    assert process.exitcode == 0
    assert np.abs(read_tracks(tmp_path / "tracks") - expected(model, samples)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_ctrl_c_all_that_was_said_is_in_the_tracks(start_live, model, tmp_path, number):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE // 2)).astype("<f4")
    process, pipe = start_live()
    with pipe:
        pipe.write(samples.tobytes())
        wait_for(tmp_path / "tracks", RATE // 4)
        os.kill(process.pid, number)
        process.join(30)
    assert process.exitcode == 130
    tracks = read_tracks(tmp_path / "tracks")
    n_heard = tracks.shape[1]  # and nothing of it is missing, the delay included
    assert n_heard % (RATE // 50) == 0
    assert np.abs(tracks - expected(model, samples[:n_heard])).max() < 1e-5


@pytest.mark.slow
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


@pytest.mark.slow
def test_when_the_disk_is_full_the_tracks_are_whole_up_to_there(start_live, model, tmp_path):
    samples = (0.1 * np.random.default_rng(1).standard_normal(RATE)).astype("<f4")
    process, pipe = start_live(n_bytes=80 + 4 * RATE // 2)  # no file has room for more than half a second
    with pipe, suppress(BrokenPipeError):
        for n_before in range(0, RATE, RATE // 10):
            pipe.write(samples[n_before : n_before + RATE // 10].tobytes())
            if n_before < RATE // 2:
                wait_for(tmp_path / "tracks", n_before + RATE // 20)
    process.join(30)
    assert process.exitcode == 3
    tracks = [soundfile.read(path, dtype="float32")[0] for path in sorted((tmp_path / "tracks").iterdir())]
    for track, whole in zip(tracks, expected(model, samples), strict=True):
        assert 0.4 * RATE <= len(track) <= RATE // 2
        assert np.abs(track - whole[: len(track)]).max() < 1e-5


class Devices(PortAudio):
    """A microphone that hears noise until it is unplugged, and speakers that soon are."""

    def __init__(self):
        super().__init__()
        self.samples = (0.1 * np.random.default_rng(2).standard_normal(44100)).astype(np.float32)

    def start(self):
        if "callback" in self.options:
            for block in np.split(self.samples, 100):
                self.options["callback"](block[:, None], len(block), None, io.StringIO())
            self.deliver(0, overflow=True)
            self.unplug()

    write_available = 10**6

    def write(self, samples):
        if self.played:
            raise self.PortAudioError("device unavailable")
        super().write(samples)


def test_an_unplugged_microphone_leaves_whole_tracks_and_a_reason(run, model, tmp_path, monkeypatch):
    devices = Devices()
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", devices)
    code, out, err = run("--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["n_overruns"]) == (1, 1, 1)
    assert "error: the microphone is gone: unplugged, or taken by another program" in err
    assert "warning: input overrun: the driver lost samples (1 so far), at " in err
    heard = np.append(devices.samples, np.zeros(100, np.float32))
    assert np.abs(read_tracks(tmp_path / "tracks", 44100) - expected(model, heard, 44100)).max() < 1e-5


def test_speakers_that_are_unplugged_do_not_end_the_files(run, talk, model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", Devices())
    code, out, err = run("--replay", talk, "--speed", 50, "--play", "left", "--play", "right", "--json")
    assert code == 0
    assert "warning: the device right plays no more: device unavailable" in err
    assert RATE < json.loads(out)["n_dropped_samples"] <= 2 * RATE
    samples = soundfile.read(talk, dtype="float32")[0]
    assert np.abs(read_tracks(tmp_path / "tracks") - expected(model, samples)).max() < 1e-5


def test_when_nobody_hears_it_any_more_it_ends(model, talk, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sounddevice", Devices())
    monkeypatch.chdir(tmp_path)
    words = ["live", "-m", model, "--replay", talk, "--speed", 20, "--play", "left", "--play", "right"]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 1
    assert "no device plays the tracks any more, and there are no files" in result.stderr
    assert not (tmp_path / "separated").exists()


def test_who_says_nothing_else_gets_the_live_model_and_a_folder(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["live", "--replay", talk, "--speed", 100, "--device", "cpu", "--seconds", 0.2]
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0
    assert "the tracks of default-live lag 90 ms behind" in result.stderr
    assert sorted(path.name for path in (tmp_path / "separated").iterdir()) == [
        "talk_speaker1.wav", "talk_speaker2.wav",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_replay_that_falls_behind_says_how_far(run, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.full(12 * 2000, 0.1), 2000)
    code, out, err = run("--replay", tmp_path / "long.wav", "--speed", 1e7, "--json")
    assert code == 0
    assert json.loads(out)["longest_behind_seconds"] > 10
    assert "of the stream behind; of a microphone, what is beyond 10 s is lost" in err


def test_a_terminal_shows_a_meter_for_each_talker_delay_and_real_time_factor(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    report = LiveReport(seconds=2.0, delay_seconds=0.08)
    report.times.add(0.1, 2.0)
    _Meters(2, shown=True).tell(report, np.array([[0.1, -1.0], [0.0316, 0.0]], np.float32))
    assert screen.getvalue().endswith(
        f"     2.0 s  1 |{'#' * 20}|  2 |{'#' * 10}{' ' * 10}|  delay 80 ms  RTF 0.05"
    )


def test_what_makes_no_sense_is_wrong_usage(run, talk, tmp_path):
    assert "give --rate" in run("-")[2]
    assert run("-")[0] == run("talk.wav")[0] == run("-", "--rate", RATE, "--replay", talk)[0] == 2
    (tmp_path / "text.wav").write_text("hello, this is no sound at all")
    code, _, err = run("--replay", tmp_path / "text.wav")
    assert (code, "not audio" in err) == (1, True)


@pytest.mark.slow
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
