import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flasepformer.audio import WRITABLE_FORMATS, allowed_rate, read_audio, write_audio, writing

RATE = 16_000


@pytest.mark.parametrize(
    ("name", "subtype", "written", "step"),
    [
        ("a.wav", "auto", "FLOAT", 0),
        ("a.WAV", "PCM_16", "PCM_16", 2**-16),
        ("a.wav", "PCM_24", "PCM_24", 2**-24),
        ("a.flac", "auto", "PCM_24", 2**-24),
        ("a.flac", "PCM_16", "PCM_16", 2**-16),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_samples_come_back_rounded_to_the_nearest_step(
    tmp_path, speechlike, name, subtype, written, step, n_channels
):
    waveform = speechlike if n_channels == 1 else np.stack([speechlike, speechlike[::-1]])
    write_audio(tmp_path / name, waveform, RATE, subtype=subtype)
    assert soundfile.info(tmp_path / name).subtype == written
    recording = read_audio(tmp_path / name)
    assert recording.sample_rate == RATE
    np.testing.assert_allclose(recording.samples, np.atleast_2d(waveform), rtol=0, atol=step)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_16_bit_recording_survives_bit_for_bit(tmp_path):
    every_value = np.arange(-(2**15), 2**15, dtype=np.float32) / 2**15
    write_audio(tmp_path / "a.wav", every_value, RATE, subtype="PCM_16")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav").samples[0], every_value)


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.mp3"])
def test_lossy_formats_keep_length_and_time(tmp_path, speechlike, lag, name):
    write_audio(tmp_path / name, speechlike, RATE)
    recording = read_audio(tmp_path / name)
    assert recording.samples.shape == (1, 48_000)
    assert recording.warnings == ()
    assert lag(recording.samples[0], speechlike) == 0
    assert np.corrcoef(recording.samples[0], speechlike)[0, 1] > 0.98


def test_full_scale_is_written_and_more_is_refused(tmp_path):
    edges = np.array([-1.0, 1.0, 0.5], np.float32)
    write_audio(tmp_path / "a.wav", edges, RATE, subtype="PCM_16")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav").samples[0], edges, atol=2**-15)
    for name, subtype in [("b.wav", "PCM_16"), ("b.wav", "PCM_24"), ("b.flac", "auto"), ("b.mp3", "auto")]:
        with pytest.raises(ValueError, match=r"peak of 1\.25 would be clipped.*gain of at most 0\.8"):
            write_audio(tmp_path / name, 1.25 * edges, RATE, subtype=subtype)
    write_audio(tmp_path / "b.wav", 380 * edges, RATE)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav").samples[0], 380 * edges)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="not numbers"):
        write_audio(tmp_path / "a.wav", np.array([0.0, bad]), RATE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "waveform", "rate", "subtype", "message"),
    [
        (
            "a.aac",
            np.zeros(9),
            RATE,
            "auto",
            "cannot write 'aac' files; choose one of wav, flac, ogg, opus, mp3",
        ),
        ("a", np.zeros(9), RATE, "auto", "cannot write '' files"),
        ("a.flac", np.zeros(9), RATE, "FLOAT", ".flac files hold PCM_24 or PCM_16, not FLOAT"),
        ("a.mp3", np.zeros((3, 9)), RATE, "auto", ".mp3 files hold at most 2 channels, got 3"),
        ("a.mp3", np.zeros(9), 12_345, "auto", "resample to 12000 Hz"),
        ("a.opus", np.zeros(9), 44_100, "auto", "resample to 48000 Hz"),
        ("a.ogg", np.zeros(9), 384_000, "auto", "resample to 192000 Hz"),
        ("a.wav", np.zeros(9), 0, "auto", "cannot have a sample rate of 0 Hz"),
        ("a.wav", np.zeros(0), RATE, "auto", "at least one sample"),
        ("a.wav", np.zeros(9, np.int16), RATE, "auto", "must be floating point"),
        ("a.wav", np.zeros((1, 1, 9)), RATE, "auto", r"got float64 \(1, 1, 9\)"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, name, waveform, rate, subtype, message):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, waveform, rate, subtype=subtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("audio_format", WRITABLE_FORMATS)
@pytest.mark.parametrize("wanted", [2_000, 8_000, 12_345, 20_000, 44_100, 65_537, 96_000, 384_000, 768_000])
def test_allowed_rates_are_accepted_by_the_encoder(tmp_path, audio_format, wanted):
    rate = allowed_rate(audio_format, wanted)
    path = tmp_path / f"a.{audio_format}"
    write_audio(path, np.full(2000, 0.1), rate)
    assert soundfile.info(path).samplerate == rate


def test_allowed_rate_is_the_nearest_one():
    wanted = [5_000, 9_500, 12_345, 20_000, 44_100, 96_000]
    assert [allowed_rate("opus", rate) for rate in wanted] == [8_000, 8_000, 12_000, 24_000, 48_000, 48_000]
    assert [allowed_rate("mp3", rate) for rate in wanted] == [8_000, 8_000, 12_000, 22_050, 44_100, 48_000]
    assert [allowed_rate("flac", rate) for rate in (44_100, 65_537, 10**6)] == [44_100, 65_540, 655_350]


def test_same_samples_give_the_same_bytes_whenever_they_are_written(tmp_path, speechlike):
    write_audio(tmp_path / "a.wav", speechlike, RATE)
    content = (tmp_path / "a.wav").read_bytes()
    time_stamp = content.index(b"PEAK") + 12
    assert content[time_stamp : time_stamp + 4] == bytes(4)


def test_callers_waveform_is_not_changed(tmp_path, speechlike):
    before = speechlike.copy()
    write_audio(tmp_path / "a.flac", speechlike, RATE)
    np.testing.assert_array_equal(speechlike, before)


def test_wav_becomes_rf64_where_its_sizes_end(tmp_path, speechlike, monkeypatch):
    monkeypatch.setattr(writing, "_WAV_LIMIT", 4 * 48_000 - 1)
    write_audio(tmp_path / "long.wav", speechlike, RATE)
    write_audio(tmp_path / "short.wav", speechlike[1:], RATE)
    assert (tmp_path / "long.wav").read_bytes()[:4] == b"RF64"
    assert (tmp_path / "short.wav").read_bytes()[:4] == b"RIFF"
    np.testing.assert_array_equal(read_audio(tmp_path / "long.wav").samples[0], speechlike)
    assert read_audio(tmp_path / "long.wav").warnings == ()


@pytest.mark.long
def test_more_than_4_gib_are_written_and_found_again(tmp_path):
    n_samples = 2**31 + 12_345
    quiet = np.broadcast_to(np.float32(0.25), n_samples)
    write_audio(tmp_path / "long.wav", quiet, RATE, subtype="PCM_16")
    with soundfile.SoundFile(tmp_path / "long.wav") as sound:
        assert (sound.format, sound.frames) == ("RF64", n_samples)
        sound.seek(n_samples - 10)
        np.testing.assert_array_equal(sound.read(), np.full(10, 0.25))


# Faults of the disk and of the process


@pytest.fixture
def tiny_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mount.returncode != 0:
        pytest.skip(f"mounting a file system is not permitted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_full_disk_says_so_and_keeps_what_was_there(tiny_disk, name):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 30 * RATE)
    write_audio(tiny_disk / name, noise[:1000], RATE)
    before = (tiny_disk / name).read_bytes()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_audio(tiny_disk / name, noise, RATE)
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in tiny_disk.iterdir()] == [name]
    assert (tiny_disk / name).read_bytes() == before


def test_read_only_disk_says_so(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system") as caught:
        write_audio(tiny_disk / "a.wav", np.zeros(9), RATE)
    assert caught.value.errno == errno.EROFS


def test_missing_folder_and_folder_in_the_way_are_told_apart(tmp_path):
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_audio(tmp_path / "folder.wav", np.zeros(9), RATE)
    with pytest.raises(FileNotFoundError):
        write_audio(tmp_path / "no" / "a.wav", np.zeros(9), RATE)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.wav"]


def test_longest_name_has_room_for_the_temporary_one(tmp_path):
    write_audio(tmp_path / ("n" * 251 + ".wav"), np.zeros(9), RATE)
    assert [len(file.name) for file in tmp_path.iterdir()] == [255]


def writer(path: Path, n_times: int) -> "subprocess.Popen[str]":
    """Start a process that writes three seconds of noise n_times, and wait until it is under way."""
    code = (
        "import sys, numpy as np; from flasepformer.audio import write_audio\n"
        "noise = np.random.default_rng(0).uniform(-0.9, 0.9, 144_000).astype('f4')\n"
        "write_audio(sys.argv[1], np.tile(noise, int(sys.argv[2])), 48000)"
    )
    command = [sys.executable, "-c", code, str(path), str(n_times)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300  # never needed, even on a machine with much else to do
    while process.poll() is None and time.monotonic() < deadline:
        if any(file.stat().st_size > 100_000 for file in path.parent.iterdir()):
            return process
        time.sleep(0.001)
    process.kill()
    raise AssertionError(f"the writer did not start: {process.communicate()[1]}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n_times"), [("a.flac", 40), ("a.wav", 400)])
def test_interruption_leaves_nothing_behind_and_is_not_swallowed(tmp_path, name, n_times):
    process = writer(tmp_path / name, n_times)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "ignored" not in errors
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_only_a_hidden_temporary_file(tmp_path):
    process = writer(tmp_path / "a.flac", 40)
    process.kill()
    process.communicate(timeout=300)
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".flasepformer-")
    assert left.endswith(".part")
