import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from contextlib import contextmanager
from multiprocessing import forkserver

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tests.networks import tiny
from tests.processes import CONTEXT, start_command
from typer.testing import CliRunner

from flasepformer.cli import app, main
from flasepformer.inference import Separator, weights_digest
from flasepformer.inference.estimates import need_as_a_whole, need_beside_frames
from flasepformer.inference.passes import MAX_PASSES
from flasepformer.models import SepReformer, SepReformerConfig, load_model, save_model

RATE = 8000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A real model, far too small to separate anything, with two talkers at 8 kHz."""
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny(), folder, {"licence": "CC0-1.0"})
    return folder


@pytest.fixture
def run(model):
    """Run `flasepformer separate` in this process; exit code, stdout and stderr come back."""

    def invoke(*arguments, stdin=None):
        words = ["separate", "--model", str(model), "--device", "cpu", *map(str, arguments)]
        result = CliRunner().invoke(app, words, input=stdin, catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return invoke


@pytest.fixture
def start(model):
    """Start `flasepformer separate` as a process of its own."""
    processes = []

    def popen(*arguments, before=(), **options):
        words = [
            sys.executable,
            "-m",
            "flasepformer",
            "separate",
            "--model",
            model,
            "--device",
            "cpu",
            *arguments,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        processes.append(subprocess.Popen([*before, *map(os.fspath, words)], env=environment, **pipes))
        return processes[-1]

    yield popen
    for process in processes:
        process.kill()
        process.communicate()


def record(path, seconds=0.5, seed=0, **options):
    """Write noise that the program takes for speech."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).standard_normal(int(RATE * seconds))
    with path.open("wb") as file:
        soundfile.write(file, noise, RATE, **{"format": "WAV", **options})
    return path


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def outputs(*stems):
    return sorted(
        f"{stem}_{end}" for stem in stems for end in ("separation.json", "speaker1.wav", "speaker2.wav")
    )


@contextmanager
def small_disk(folder, options):
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no small disk to fill: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_recording_becomes_tracks_whose_names_are_printed(run, tmp_path):
    record(tmp_path / "talk.wav")
    code, stdout, stderr = run(tmp_path / "talk.wav", "--out", tmp_path / "out")
    assert code == 0
    assert stdout.splitlines() == [str(tmp_path / "out" / f"talk_speaker{index}.wav") for index in (1, 2)]
    doubt = r"unsure: .*talk\.wav: track \d \(\d+%\)( and \d \(\d+%\))? may not be one talker alone\n"
    assert re.fullmatch(doubt, stderr), stderr  # random weights separate nothing
    assert names(tmp_path / "out") == outputs("talk")
    assert soundfile.info(tmp_path / "out" / "talk_speaker1.wav").frames == 4000


def test_json_is_one_object_with_a_result_for_every_input(run, model, tmp_path):
    record(tmp_path / "talk.wav")
    code, stdout, stderr = run(
        tmp_path / "talk.wav", tmp_path / "gone.wav", "--out", tmp_path / "out", "--json"
    )
    summary = json.loads(stdout)
    assert code == summary["exit_code"] == 1
    assert (summary["done"], summary["skipped"], summary["failed"], summary["error"]) == (1, 0, 1, None)
    failed, done = summary["results"]
    assert failed == {
        "input": str(tmp_path / "gone.wav"),
        "status": "failed",
        "reason": "no such file or directory",
    }
    assert done["status"] == "done"
    assert done["tracks"] == [str(tmp_path / "out" / f"talk_speaker{index}.wav") for index in (1, 2)]
    known = {"name": str(model), "licence": "CC0-1.0", "sample_rate": 8000, "n_sources": 2}
    assert done["model"] == {**known, "weights_sha256": weights_digest(load_model(model))}
    assert done["seconds"] == 0.5
    assert "error: " in stderr


def test_bad_inputs_are_named_and_the_others_are_done(run, tmp_path):  # rows 1, 3, 5, 6, 7, 8, 65
    record(tmp_path / "good.wav")
    record(tmp_path / "flac called.mp3", format="FLAC")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "page.wav").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    record(tmp_path / "header.wav", seconds=0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no audio")
    inputs = ["gone.wav", "good.wav", "empty.wav", "page.wav", "header.wav", "folder", "flac called.mp3", ""]
    code, stdout, stderr = run(
        *(tmp_path / name if name else "" for name in inputs), "--out", tmp_path / "out"
    )
    assert code == 1
    assert len(stdout.splitlines()) == 4
    assert names(tmp_path / "out") == outputs("good", "flac called")
    lines = stderr.splitlines()
    for name, reason in {
        "gone.wav": "no such file or directory",
        "empty.wav": "empty file",
        "page.wav": "not audio: looks like HTML",
        "header.wav": "recording has no samples",
        "folder": "there is no audio in this folder",
    }.items():
        assert any(line.startswith(f"error: {tmp_path / name}: {reason}") for line in lines), name
        assert any(line.startswith(f"  failed  {tmp_path / name}: {reason}") for line in lines), name
    assert "2 done, 0 skipped, 6 failed" in lines


def test_a_folder_keeps_its_shape_and_is_done_once(run, tmp_path):  # rows 2, 43
    record(tmp_path / "in" / "a.wav")
    record(tmp_path / "in" / "deep" / "er" / "b.WAV")
    record(tmp_path / "in" / ".hidden.wav")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    out = tmp_path / "in" / "tracks"
    assert run(tmp_path / "in", "--out", out, "--no-recursive")[0] == 0
    assert names(out) == outputs("a")
    code, stdout, stderr = run(
        tmp_path / "in", "--out", out
    )  # its own tracks are no input, and a.wav is done
    assert code == 0
    assert stdout.splitlines() == [  # the skipped one is done, too
        str(out / f"{stem}_speaker{index}.wav") for stem in ("a", "deep/er/b") for index in (1, 2)
    ]
    assert names(out) == outputs("a", "deep/er/b")
    assert f"skipped: {tmp_path / 'in' / 'a.wav'}: " in stderr
    assert "1 done, 1 skipped, 0 failed" in stderr


def test_tracks_beside_their_recordings_are_not_separated_again(run, tmp_path):
    record(tmp_path / "a.wav")
    record(tmp_path / "b_speaker1.wav")  # somebody's recording, not a track: there is no report
    for _ in range(2):
        assert run(tmp_path, "--out", tmp_path)[0] == 0
    assert names(tmp_path) == sorted([*outputs("a", "b_speaker1"), "a.wav", "b_speaker1.wav"])


@pytest.mark.slow
def test_existing_tracks_are_replaced_only_when_asked(run, tmp_path):  # row 43
    record(tmp_path / "talk.wav")
    arguments = (tmp_path / "talk.wav", "--out", tmp_path / "out")
    run(*arguments)
    track = tmp_path / "out" / "talk_speaker1.wav"
    track.write_bytes(b"precious")
    code, stdout, stderr = run(*arguments)
    assert code == 0
    assert stdout.splitlines() == [str(tmp_path / "out" / f"talk_speaker{index}.wav") for index in (1, 2)]
    assert "skipped: " in stderr
    assert "exist" in stderr
    assert run(*arguments, "--suffix", "_again")[0] == 0
    assert track.read_bytes() == b"precious"
    assert names(tmp_path / "out") == outputs("talk", "talk_again")
    assert run(*arguments, "--overwrite")[0] == 0
    assert soundfile.info(track).frames == 4000
    (tmp_path / "out" / "talk_separation.json").unlink()
    code, _, stderr = run(*arguments)
    assert code == 1
    assert "talk_speaker1.wav exists, but not all of talk_separation.json and its tracks" in stderr


@pytest.mark.slow
def test_another_recording_of_the_same_name_is_never_passed_over(run, model, tmp_path):  # row 43, issue 16
    for seed, meeting in enumerate(("m1", "m2")):
        record(tmp_path / meeting / "meeting.wav", seed=seed)
    first, second = (tmp_path / meeting / "meeting.wav" for meeting in ("m1", "m2"))
    out = ("--out", tmp_path / "out")
    assert run(first, *out)[0] == 0
    kept = (tmp_path / "out" / "meeting_speaker1.wav").read_bytes()
    code, stdout, stderr = run(second, *out)
    assert (code, stdout) == (1, "")
    assert "it is of another recording" in stderr
    for option, reason in {
        "--mix-channels": "another mixing of channels: no, now yes",
        "--mode=chunks": "another mode: auto, now chunks",
        "--subtype=pcm16": "another subtype: auto, now pcm16",
        "--channel=1": "another channel: none, now 1",
    }.items():
        code, _, stderr = run(first, *out, option)
        assert (code, reason in stderr) == (1, True), stderr
    save_model(tiny(1), tmp_path / "other")
    code, _, stderr = run(first, *out, "--model", tmp_path / "other")
    assert code == 1
    assert "by another model" in stderr
    assert (tmp_path / "out" / "meeting_speaker1.wav").read_bytes() == kept
    first.write_bytes(second.read_bytes())  # recorded again
    assert run(first, *out)[0] == 1
    assert run(first, *out, "--overwrite")[0] == 0
    code, stdout, _ = run(first, *out, "--memory", "4G", "--json")  # how much memory decides no sample here
    summary = json.loads(stdout)
    assert (code, summary["skipped"]) == (0, 1)
    [result] = summary["results"]
    assert result["tracks"] == [str(tmp_path / "out" / f"meeting_speaker{index}.wav") for index in (1, 2)]
    assert result["seconds"] == 0.5


def test_a_report_of_an_earlier_version_counts_as_of_something_else(run, tmp_path):  # row 43, issue 16
    talk = record(tmp_path / "talk.wav")
    run(talk, "--out", tmp_path / "out")
    report = tmp_path / "out" / "talk_separation.json"
    content = json.loads(report.read_text())
    report.write_text(json.dumps({key: value for key, value in content.items() if key != "content"}))
    code, _, stderr = run(talk, "--out", tmp_path / "out")
    assert code == 1
    assert "an earlier version wrote it, which does not say of which recording" in stderr


def test_recordings_of_one_name_get_tracks_of_their_own(run, tmp_path):  # row 44
    for seed, name in enumerate(["a/talk.wav", "b/talk.wav", "b/Talk.flac"]):
        record(tmp_path / name, seed=seed, format="FLAC" if name.endswith("flac") else "WAV")
    paths = [tmp_path / "a" / "talk.wav", tmp_path / "b" / "talk.wav", tmp_path / "b" / "Talk.flac"]
    assert run(*paths, paths[0], "--out", tmp_path / "out")[0] == 0  # the first one again: once is enough
    assert names(tmp_path / "out") == outputs("talk", "talk_2", "Talk_3")
    assert json.loads((tmp_path / "out" / "talk_2_separation.json").read_text())["input"] == str(paths[1])


def test_a_run_that_would_write_over_its_inputs_is_refused(run, tmp_path):  # row 45
    for name in ("talk.wav", "talk_speaker1.wav"):
        record(tmp_path / name)
    before = [(tmp_path / name).read_bytes() for name in names(tmp_path)]
    both = (tmp_path / "talk.wav", tmp_path / "talk_speaker1.wav", "--out", tmp_path, "--overwrite")
    for arguments in (both, (tmp_path / "talk.wav", "--out", tmp_path / "talk.wav")):
        code, _, stderr = run(*arguments)
        assert code == 2
        assert "would be written over" in stderr
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)] == before


@pytest.mark.slow
def test_names_of_all_kinds_work(run, tmp_path, monkeypatch):  # rows 46, 47
    inputs = [
        "a b.wav",
        "Gespräch 😀.wav",
        "-x.wav",
        "x" * 251 + ".wav",
        "two\nlines.wav",
        "CON.wav",
        "q?.wav",
    ]
    inputs.append(os.fsdecode(b"caf\xe9.wav"))
    for name in inputs:
        record(tmp_path / name, seconds=0.1)
    monkeypatch.chdir(tmp_path)
    code, stdout, stderr = run("--out", "out", "--", *inputs)
    assert code == 0, stderr
    tracks = [name for name in names(tmp_path / "out") if name.endswith(".wav")]
    assert len(tracks) == 16
    assert len(stdout.splitlines()) == 16  # none of them on two lines
    assert {
        "a b_speaker1.wav",
        "Gespräch 😀_speaker2.wav",
        "-x_speaker1.wav",
        "two_lines_speaker1.wav",
    } < set(tracks)
    assert {"_CON_speaker1.wav", "q__speaker1.wav", os.fsdecode(b"caf\xe9_speaker1.wav")} < set(tracks)
    code, stdout, _ = run("--out", "out", "--json", "--", *inputs)
    assert (code, json.loads(stdout)["skipped"]) == (0, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="root may read everything elsewhere")
def test_a_recording_that_may_not_be_read_is_a_failure_of_its_own(model, tmp_path):  # row 4
    secret, talk = record(tmp_path / "secret.wav"), record(tmp_path / "talk.wav")
    secret.chmod(0)
    stderr = tmp_path / "stderr"
    stderr.touch()
    words = ("separate", "--model", model, "--device", "cpu", secret, talk, "--out", tmp_path / "out")
    process = start_command(*words, stderr=stderr, powerless=True)
    process.join(timeout=300)
    assert process.exitcode == 1
    told = stderr.read_text().splitlines()
    assert told[0].startswith(f"error: {secret}: ")
    assert told[0].endswith("permission denied")
    assert names(tmp_path / "out") == outputs("talk")


def test_a_disk_that_is_read_only_is_found_before_the_model_is_loaded(run, tmp_path):  # row 41
    talk = record(tmp_path / "talk.wav")
    with small_disk(tmp_path / "out", "ro") as out:
        code, _, stderr = run(talk, "--out", out, "--model", "no such model")
        assert code == 3
        assert (
            stderr
            == f"error: cannot write in {out}: Read-only file system; choose another folder with --out\n"
        )


def test_an_output_folder_is_made_and_a_file_is_refused(run, tmp_path):  # row 41
    talk = record(tmp_path / "talk.wav")
    (tmp_path / "file").touch()
    assert run(talk, "--out", tmp_path / "new" / "out")[0] == 0
    assert names(tmp_path / "new" / "out") == outputs("talk")
    code, stdout, stderr = run(talk, "--out", tmp_path / "file", "--json")
    assert code == json.loads(stdout)["exit_code"] == 3
    assert f"cannot write in {tmp_path / 'file'}: it is a file; choose another folder with --out" in stderr


def test_a_full_disk_keeps_what_is_done_and_says_what_is_needed(run, tmp_path):  # row 42
    short, long = record(tmp_path / "a.wav"), record(tmp_path / "b.wav", seconds=10)  # 2 x 16 kB, 2 x 320 kB
    with small_disk(tmp_path / "out", "size=500k") as out:
        code, stdout, stderr = run(short, long, short.with_name("c.wav"), "--out", out)
        assert code == 3
        assert len(stdout.splitlines()) == 2
        assert names(out) == outputs("a")
        assert not [path for path in out.iterdir() if path.is_dir()]
    assert "disk full: the tracks need 0.6 MB and" in stderr


def test_a_recording_too_long_for_the_memory_is_refused_and_the_others_are_done(run, tmp_path):  # row 61
    record(tmp_path / "long.wav", seconds=60)
    record(tmp_path / "short.wav", seconds=1)
    inputs = (tmp_path / "long.wav", tmp_path / "short.wav")
    sizes = {"n_filters": 16, "n_channels": 8, "n_heads": 2, "n_stages": 1, "n_encoder_blocks": 1}
    network = SepReformer(SepReformerConfig(**sizes, n_decoder_blocks=1, attention="softmax"))
    save_model(network, tmp_path / "softmax", {})  # linear attention takes any length
    limit = need_as_a_whole(network, 60 * 8000).memory_bytes - 1_000_000
    limits = (
        "--mode",
        "whole",
        "--memory",
        limit,
        "--model",
        tmp_path / "softmax",
        "--out",
        tmp_path / "out",
    )
    code, _, stderr = run(*inputs, *limits)
    assert code == 3
    assert names(tmp_path / "out") == outputs("short")
    refused = f"error: {tmp_path / 'long.wav'}: 1.0 minutes need about "
    (line,) = [line for line in stderr.splitlines() if line.startswith(refused)]
    assert re.search(r"about [\d.]+ MB of memory and [\d.]+ MB may be used; .* \(--memory\)", line), line


@pytest.mark.slow
def test_frames_that_neither_memory_nor_disk_can_hold_stop_the_run(
    run, model, tmp_path, monkeypatch
):  # row 42
    record(tmp_path / "talk.wav", seconds=35)
    limit = need_beside_frames(load_model(model), 35 * RATE) + 8_000_000
    with small_disk(tmp_path / "small", "size=1m") as folder:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "small"))
        monkeypatch.setattr("tempfile.tempdir", None)
        arguments = (tmp_path / "talk.wav", "--memory", limit, "--out", tmp_path / "out")
        code, _, stderr = run(*arguments, "--mode", "whole")
        assert code == 3
        assert re.search(r"error: disk full: [\d.]+ MB are needed for temporary files and", stderr), stderr
        assert f"{folder} has 1.05 MB free; make room, set TMPDIR" in stderr
        assert names(tmp_path / "out") == []
        code, stdout, stderr = run(*arguments, "--json")  # which lets the chunks help
        assert code == 0
        assert len(re.findall(r"the recording is separated in chunks of [\d.]+ s", stderr)) == 1
        (result,) = json.loads(stdout)["results"]
        assert (result["mode"], result["disk_bytes"]) == ("chunks", 0)
        assert result["n_joins"] >= 1


@pytest.mark.slow
def test_chunks_are_of_the_length_that_is_asked_for(run, tmp_path):
    record(tmp_path / "talk.wav", seconds=3.1)
    options = ("--mode", "chunks", "--chunk", 1, "--overlap", 0.25, "--precision", "auto")
    code, stdout, _ = run(tmp_path / "talk.wav", *options, "--out", tmp_path / "out", "--json")
    assert code == 0
    (result,) = json.loads(stdout)["results"]
    assert (result["mode"], result["n_joins"]) == ("chunks", 3)
    assert soundfile.info(result["tracks"][0]).frames == 24_800


def test_several_passes_are_made_and_reported_and_too_many_refused(run, tmp_path):
    record(tmp_path / "talk.wav", seconds=1.0)
    arguments = (tmp_path / "talk.wav", "--out", tmp_path / "out", "--passes")
    code, _, stderr = run(*arguments, MAX_PASSES + 1)
    assert (code, "--passes" in stderr, (tmp_path / "out").exists()) == (2, True, False)
    assert run(*arguments, MAX_PASSES)[0] == 0
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert report["options"]["passes"] == MAX_PASSES


def test_a_second_model_is_taken_by_name_and_an_unknown_one_refused(run, tmp_path):
    record(tmp_path / "talk.wav", seconds=1.0)
    arguments = (tmp_path / "talk.wav", "--out", tmp_path / "out", "--also")
    code, _, stderr = run(*arguments, "no-such-model")
    assert (code, "no-such-model" in stderr) == (3, True)
    assert run(*arguments, "default-fast")[0] == 0
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert report["options"]["also"] == "default-fast"


def test_short_recordings_keep_their_length(run, tmp_path):  # rows 34, 35
    lengths = (1, 15, 801)
    talks = [record(tmp_path / f"{length}.wav", seconds=(length + 0.1) / RATE) for length in lengths]
    assert run(*talks, "--out", tmp_path)[0] == 0
    assert [soundfile.info(tmp_path / f"{length}_speaker2.wav").frames for length in lengths] == list(lengths)


def test_silence_gives_silent_tracks_and_a_note(run, tmp_path):  # rows 31, 32
    for name, peak in (("silence", 0), ("dither", 2)):
        samples = np.random.default_rng(0).integers(-peak, peak + 1, RATE).astype(np.int16)
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
    code, _, stderr = run(tmp_path / "silence.wav", tmp_path / "dither.wav", "--out", tmp_path / "out")
    assert code == 0
    for name in ("silence", "dither"):
        assert f"note: {tmp_path / name}.wav: no speech" in stderr
        report = json.loads((tmp_path / "out" / f"{name}_separation.json").read_text())
        assert [note.split(":")[0] for note in report["notes"]] == ["no speech"]
        for index in (1, 2):
            track, _ = soundfile.read(tmp_path / "out" / f"{name}_speaker{index}.wav")
            assert track.shape == (RATE,)
            assert not track.any()
    assert run(tmp_path / "silence.wav", "--out", tmp_path / "quiet", "--quiet")[2] == ""


def test_speech_after_a_long_silence_is_found_in_place(run, tmp_path):  # row 33
    speech = 0.1 * np.random.default_rng(0).standard_normal(RATE)
    soundfile.write(tmp_path / "talk.flac", np.concatenate([np.zeros(12 * RATE), speech]), RATE)
    assert run(tmp_path / "talk.flac", "--out", tmp_path, "--format", "flac")[0] == 0
    track, _ = soundfile.read(tmp_path / "talk_speaker1.flac")
    assert len(track) == 13 * RATE
    assert not track[: 12 * RATE - 400].any()
    assert track[12 * RATE :].any()


def test_a_truncated_recording_is_used_and_strict_tells(run, tmp_path):  # row 9 through the command
    talk = record(tmp_path / "talk.wav", seconds=1)
    talk.write_bytes(talk.read_bytes()[: 44 + RATE])  # half of its 16-bit samples
    for strict, expected in (((), 0), (("--strict",), 1)):
        code, _, stderr = run(talk, "--out", tmp_path / "out", "--overwrite", *strict)
        assert code == expected
        assert f"warning: {talk}: " in stderr
        assert names(tmp_path / "out") == outputs("talk")
    warnings = json.loads((tmp_path / "out" / "talk_separation.json").read_text())["warnings"]
    assert any("0.5" in warning for warning in warnings), warnings
    assert soundfile.info(tmp_path / "out" / "talk_speaker1.wav").frames == RATE // 2


def video(path, n_audio_streams):
    """Make a real video with any number of audio streams, each of a noise of its own."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        voices = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(n_audio_streams)]
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        for seed, voice in enumerate(voices):
            noise = np.random.default_rng(seed).integers(-3000, 3000, (1, RATE // 2), dtype=np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate = RATE
            container.mux(voice.encode(frame))
            container.mux(voice.encode())
    return path


@pytest.mark.slow
def test_the_sound_of_a_video_is_separated_stream_by_stream(run, tmp_path):  # rows 21, 22, 23
    code, _, stderr = run(video(tmp_path / "mute.mkv", 0), "--out", tmp_path / "out")
    assert code == 1
    assert "no audio stream" in stderr
    two = video(tmp_path / "two.mkv", 2)
    code, _, stderr = run(two, "--out", tmp_path / "first")
    assert code == 0
    assert f"warning: {two}: " in stderr
    assert run(two, "--out", tmp_path / "second", "--stream", "1")[0] == 0
    tracks = [soundfile.read(tmp_path / folder / "two_speaker1.wav")[0] for folder in ("first", "second")]
    assert [len(track) for track in tracks] == [RATE // 2] * 2
    assert not np.array_equal(*tracks)


def test_one_channel_of_several_is_chosen(run, model, tmp_path):  # row 20
    samples = 0.1 * np.random.default_rng(0).standard_normal((RATE, 6))
    soundfile.write(tmp_path / "array.wav", samples, RATE, subtype="FLOAT")
    assert run(tmp_path / "array.wav", "--channel", "4", "--out", tmp_path)[0] == 0
    expected = Separator.from_pretrained(model, "cpu").separate(samples[:, 3], RATE)
    np.testing.assert_allclose(soundfile.read(tmp_path / "array_speaker1.wav")[0], expected[0], atol=1e-6)
    code, _, stderr = run(tmp_path / "array.wav", "--channel", "7", "--out", tmp_path / "out")
    assert code == 1
    assert "has 6 channels, so there is no channel 7" in stderr


def test_standard_input_and_output_carry_recording_and_track(run, model, tmp_path):  # rows 39, 40
    talk = record(tmp_path / "talk.wav")
    assert run("-", "--out", tmp_path / "out", stdin=talk.read_bytes())[0] == 0
    assert names(tmp_path / "out") == outputs("stdin")
    words = ["separate", "--model", str(model), "-", "--out", "-", "--track", "2"]
    result = CliRunner().invoke(app, words, input=talk.read_bytes())
    assert result.exit_code == 0
    assert result.stdout_bytes == (tmp_path / "out" / "stdin_speaker2.wav").read_bytes()
    code, _, stderr = run("-", "--out", tmp_path / "out", stdin=talk.read_bytes())
    assert (code, "skipped" in stderr) == (0, True)
    code, _, stderr = run("-", "--out", tmp_path / "none", stdin=b"")
    assert (code, stderr.strip()) == (1, "error: -: empty file")


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.wav", "--out", "-"),  # row 40: which track?
        ("a.wav", "--track", "1"),
        ("a.wav", "b.wav", "--out", "-", "--track", "1"),
        ("a.wav", "--out", "-", "--track", "1", "--json"),
        ("a.wav", "--format", "mp3", "--subtype", "pcm16"),
        ("a.wav", "--format", "flac", "--subtype", "float"),
        ("a.wav", "--format", "aac"),
        ("a.wav", "--device", "abacus"),
        ("a.wav", "--suffix", "../x"),
        ("a.wav", "--memory", "plenty"),
        ("a.wav", "--chunk-seconds", "8", "--overlap-seconds", "4.5"),
        ("a.wav", "--overlap-seconds", "0"),
        ("a.wav", "--memory", "10"),  # of what?
        ("a.wav", "--out", ""),
        ("a.wav", "--no-such-option"),
        (),
    ],
)
def test_wrong_usage_exits_with_2_and_writes_nothing(run, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    for name in ("a.wav", "b.wav"):
        record(tmp_path / name)
    code, stdout, stderr = run(*arguments)
    assert (code, stdout) == (2, "")
    assert "Usage: " in stderr
    assert names(tmp_path) == ["a.wav", "b.wav"]


def test_a_track_that_there_is_not_is_refused_before_the_work(run, tmp_path):  # issue 16
    (tmp_path / "page.wav").write_text("<html>")
    code, _, stderr = run(tmp_path / "page.wav", "--out", "-", "--track", "3")
    assert code == 2
    assert "the model gives 2" in stderr
    assert "not audio" not in stderr  # it was not even read


def test_a_pipe_that_nobody_writes_into_is_not_waited_for_without_end(run, tmp_path, monkeypatch):
    monkeypatch.setattr("flasepformer.inference.inputs.PIPE_PATIENCE_SECONDS", 0.2)  # issue 16
    os.mkfifo(tmp_path / "pipe.wav")
    code, _, stderr = run(tmp_path / "pipe.wav", "--out", tmp_path / "out")
    assert code == 1
    assert "is a pipe, and nobody wrote into it for 0.2 s" in stderr


@pytest.mark.slow
def test_random_weights_are_told_once_and_stand_in_the_report(tmp_path):  # issue 16
    talks = [str(record(tmp_path / name)) for name in ("a.wav", "b.wav")]
    words = ["separate", *talks, "--model", "fla-sepreformer-t", "--device", "cpu", "--strict"]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.count("has random weights") == 1
    for name in "ab":
        report = json.loads((tmp_path / "out" / f"{name}_separation.json").read_text())
        assert "fla-sepreformer-t has random weights" in report["warnings"][0]


@pytest.mark.slow
def test_several_recordings_are_separated_at_a_time(run, tmp_path, monkeypatch):  # issue 16, row 66
    monkeypatch.setattr("flasepformer.inference.workers._CONTEXT", CONTEXT)  # begin in a moment
    talks = [record(tmp_path / f"{name}.wav", seed=seed) for seed, name in enumerate("abc")]
    (tmp_path / "d.wav").write_text("<html>")
    code, stdout, stderr = run(*talks, tmp_path / "d.wav", "-j", 2, "-o", tmp_path / "two")
    assert code == 1
    assert run(*talks, "--out", tmp_path / "one")[0] == 0
    assert names(tmp_path / "two") == names(tmp_path / "one") == outputs("a", "b", "c")
    for name in names(tmp_path / "one"):
        if name.endswith("wav"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [line.rpartition("/")[2] for line in stdout.splitlines()] == [
        f"{stem}_speaker{index}.wav" for stem in "abc" for index in (1, 2)
    ]
    assert "d.wav: not audio: looks like HTML" in stderr
    assert run(*talks, "--out", tmp_path / "two")[2].count("skipped: ") == 3


@pytest.mark.parametrize("first", ["--model", "talk"])
def test_a_recording_without_a_command_is_separated(model, tmp_path, first):  # issue 16
    talk = record(tmp_path / "talk.wav")
    words = ["-m", str(model), str(talk), "-o", str(tmp_path / "out"), "--device", "cpu"]
    words = words if first == "--model" else [words[2], *words[:2], *words[3:]]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "out") == outputs("talk")
    mistyped = CliRunner().invoke(app, ["seperate", str(talk)])
    assert mistyped.exit_code == 2
    assert "seperate" in mistyped.stderr


def test_old_names_of_options_work_and_say_so(run, tmp_path):  # issue 16
    talk = record(tmp_path / "talk.wav", seconds=3)
    old = ("--mode", "chunks", "--chunk=2", "--overlap", "1")
    code, _, stderr = run(talk, *old, "--out", tmp_path / "out")
    assert code == 0
    assert "note: --chunk is called --chunk-seconds now" in stderr
    assert "note: --overlap is called --overlap-seconds now" in stderr
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert (report["options"]["chunk_seconds"], report["options"]["overlap_seconds"]) == (2.0, 1.0)


def test_short_names_and_completion_are_there():  # issue 16
    for word, expected in {"-h": "separate", "-V": "flasepformer 0", "--show-completion": ""}.items():
        words = [word, "bash"] if word == "--show-completion" else [word]
        result = CliRunner().invoke(app, words)
        assert expected in result.output
    assert CliRunner().invoke(app, ["separate", "-h"]).exit_code == 0
    for shell in ("bash", "zsh", "fish"):
        environment = {"_FLASEPFORMER_COMPLETE": f"source_{shell}"}
        result = CliRunner().invoke(app, [], prog_name="flasepformer", env=environment)
        assert "_FLASEPFORMER_COMPLETE" in result.output


def test_a_card_is_chosen_by_its_number_and_other_devices_are_refused(run, tmp_path):  # issue 16
    talk = record(tmp_path / "talk.wav")
    for device, code in (("cuda:99", 3), ("cuda:x", 2), ("gpu", 2)):
        assert run(talk, "--out", tmp_path / "out", "--device", device)[0] == code


def test_a_library_does_not_speak_under_quiet(model, tmp_path):  # issue 16
    talk = record(tmp_path / "talk.mp3", seconds=3, format="MP3")
    content = bytearray(talk.read_bytes())
    content[3000:3400] = bytes(400)
    talk.write_bytes(content[:-100])
    stderr = tmp_path / "stderr"
    stderr.touch()
    words = ("separate", "--model", model, "--device", "cpu", "--quiet", "--out", tmp_path / "out", talk)
    process = start_command(*words, stderr=stderr)
    process.join(timeout=100)
    assert process.exitcode == 0
    assert all(line.startswith("warning: ") for line in stderr.read_text().splitlines())


def test_devices_loops_and_sparse_files_are_refused(run, tmp_path):  # row 48
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    with (tmp_path / "sparse.wav").open("wb") as file:
        header = record(tmp_path / "talk.wav").read_bytes()[:44]
        file.write(header[:40] + b"\xff\xff\xff\xff")  # a header that was piped: the samples last to the end
        file.truncate(1 << 40)
    code, _, stderr = run(
        "/dev/zero", tmp_path / "loop.wav", tmp_path / "sparse.wav", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "error: /dev/zero: is a device" in stderr
    assert f"error: {tmp_path / 'loop.wav'}: too many levels of symbolic links" in stderr
    assert (
        f"error: {tmp_path / 'sparse.wav'}: sparse file, of 1099.5 GB nearly all were never written" in stderr
    )
    assert names(tmp_path / "out") == []


def test_an_input_that_vanishes_during_the_run_is_a_failure_of_its_own(run, tmp_path):  # row 38
    os.mkfifo(tmp_path / "a.wav")
    for name in ("b.wav", "c.wav"):
        record(tmp_path / name)

    def meddle():
        content = (tmp_path / "c.wav").read_bytes()
        with (tmp_path / "a.wav").open("wb") as pipe:  # opens when the run has come to a.wav
            (tmp_path / "b.wav").unlink()
            pipe.write(content)

    meddler = threading.Thread(target=meddle)
    meddler.start()
    code, _, stderr = run(
        *(tmp_path / name for name in ("a.wav", "b.wav", "c.wav")), "--out", tmp_path / "out"
    )
    meddler.join()
    assert code == 1
    assert f"error: {tmp_path / 'b.wav'}: no such file or directory" in stderr
    assert names(tmp_path / "out") == outputs("a", "c")


def damage_weights(folder, damage):
    weights = load_file(folder / "model.safetensors")
    if damage == "truncated":
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif damage == "pickled":
        torch.save(weights, folder / "model.safetensors")
    else:
        weights["encoder.surplus"] = weights.pop("encoder.weight")
        save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [("truncated", "damaged"), ("pickled", "not a safetensors file"), ("renamed", "encoder.weight")],
)
def test_a_model_that_is_refused_exits_with_3_before_anything_is_written(
    run, model, tmp_path, damage, message
):  # rows 57, 58
    talk = record(tmp_path / "talk.wav")
    shutil.copytree(model, tmp_path / "broken")
    damage_weights(tmp_path / "broken", damage)
    code, _, stderr = run(talk, "--model", tmp_path / "broken", "--out", tmp_path / "out")
    assert code == 3
    assert message in stderr
    assert names(tmp_path / "out") == []


def test_a_model_or_device_that_is_not_there_exits_with_3(run, tmp_path):
    talk = record(tmp_path / "talk.wav")
    code, stdout, stderr = run(talk, "--model", "sepformer", "--out", tmp_path / "out", "--json")
    assert code == json.loads(stdout)["exit_code"] == 3
    assert "no model and no file is called 'sepformer'" in json.loads(stdout)["error"]
    if not torch.cuda.is_available():
        code, _, stderr = run(talk, "--device", "cuda", "--out", tmp_path / "out")
        assert code == 3
        assert "error: device cuda cannot be used" in stderr


@pytest.fixture
def standstill(tmp_path):
    """One recording, then a pipe that stays open and empty: the run stands still there, halfway."""
    record(tmp_path / "a.wav")
    pipe = tmp_path / "b.wav"
    os.mkfifo(pipe)
    opened = []

    def wait():
        deadline = time.monotonic() + 300
        while not opened:
            try:
                opened.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # refused until the run reads it
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    yield (tmp_path / "a.wav", pipe, "--out", tmp_path / "out"), wait
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_is_done(model, standstill, monkeypatch, capfd, number):  # row 51
    arguments, wait = standstill

    ended = threading.Event()

    def interrupt():
        wait()
        while not ended.is_set():  # again where the first comes just before the run begins to wait for data
            signal.pthread_kill(threading.main_thread().ident, number)
            ended.wait(timeout=2)

    # A test run in the background ignores SIGINT, and so would the command.
    handlers = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGTERM)}
    words = ["flasepformer", "separate", "--model", model, "--device", "cpu", *arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    meddler = threading.Thread(target=interrupt)
    meddler.start()
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        ended.set()
        meddler.join()  # before the handlers are those of the tests again
        for each, handler in handlers.items():
            signal.signal(each, handler)
    stdout, stderr = capfd.readouterr()
    assert end.value.code == 130
    assert len(stdout.splitlines()) == 2
    again = f"the same command does what is missing, {arguments[1]} from its beginning"
    assert [line for line in stderr.splitlines() if not line.startswith("unsure: ")] == [
        f"interrupted; {again}"
    ]
    assert names(arguments[-1]) == outputs("a")
    assert not any(path.is_dir() for path in arguments[-1].iterdir())


@pytest.mark.slow
def test_a_killed_run_leaves_whole_tracks_only_and_is_continued(
    run, model, standstill, tmp_path, monkeypatch
):  # row 52, issue 16
    arguments, wait = standstill
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    forkserver.ensure_running()  # the name of its socket would be too long below such a TMPDIR
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    printed = tmp_path / "printed"
    printed.touch()
    process = start_command("separate", "--model", model, "--device", "cpu", *arguments, stdout=printed)
    wait()
    process.kill()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    assert len(printed.read_text().splitlines()) == 2
    assert names(arguments[-1]) == outputs("a")
    left = [*scratch.glob("flasepformer-*"), *arguments[-1].glob(".*")]
    assert left  # the folder of the tracks, and the command's own where the process has this TMPDIR
    foreign = scratch / "flasepformer-scratch-of-mine.txt"
    foreign.touch()
    arguments[1].unlink()
    record(arguments[1])
    code, stdout, stderr = run(*arguments)
    assert (code, len(stdout.splitlines()), "1 done, 1 skipped, 0 failed" in stderr) == (0, 4, True)
    assert names(arguments[-1]) == outputs("a", "b")
    assert not any(map(os.path.exists, left))
    assert [*scratch.glob("flasepformer-*")] == [foreign]


@pytest.mark.slow
def test_a_reader_that_has_left_and_a_plain_locale_do_no_harm(start, tmp_path):  # row 67
    name = os.fsdecode("Gespräch 😀".encode() + b"\xe9.wav")
    record(tmp_path / name)
    process = start(tmp_path / name, "--out", tmp_path / "out", env={"LC_ALL": "C", "PYTHONUTF8": "0"})
    process.stdout.close()  # like head, when it has seen enough
    process.stdout = None
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0
    assert [line for line in stderr.splitlines() if not line.startswith(b"unsure: ")] == []
    assert len(names(tmp_path / "out")) == 3


@pytest.mark.slow
def test_standard_input_feeds_a_run_with_its_other_streams_closed(start, tmp_path):  # rows 39, 67
    talk = record(tmp_path / "talk.wav")
    close_both = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash"]
    with talk.open("rb") as stdin:
        process = start("-", tmp_path / "gone.wav", "--out", tmp_path / "out", before=close_both, stdin=stdin)
        process.communicate(timeout=300)
    assert process.returncode == 1
    assert names(tmp_path / "out") == outputs("stdin")
    assert json.loads((tmp_path / "out" / "stdin_separation.json").read_text())["input"] == "<stdin>"


def test_a_terminal_gets_a_bar_with_the_time_left(model, tmp_path):
    talk = record(tmp_path / "talk.wav")
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 100, 0, 0))
    words = ("separate", "--model", model, "--device", "cpu", talk, "--out", tmp_path / "out")
    process = start_command(*words, stderr=os.ttyname(writer))
    os.close(writer)
    process.join(timeout=300)
    assert process.exitcode == 0
    screen = os.read(reader, 65536)
    os.close(reader)
    assert b"1/1 done 100%|" in screen
    assert b" left" in screen
