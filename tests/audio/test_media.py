import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flasepformer.audio import AudioError, read_audio
from flasepformer.installing import how_to_install

RATE = 16_000
pytest.importorskip("av", reason='needs PyAV: pip install "flasepformer[media]"')


def refusal(path: Path, **options) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(path, **options)
    return str(caught.value).removeprefix(f"{path}: ")


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize("n_samples", [16_000, 16_001, 47_999])
@pytest.mark.parametrize("codec", ["aac", "alac"])
def test_m4a_comes_back_with_its_length_and_in_time(
    tmp_path, speechlike, encode_media, lag, codec, n_samples
):
    recording = read_audio(encode_media(tmp_path / "talk.m4a", codec, [speechlike[:n_samples]]))
    assert recording.samples.shape == (1, n_samples)
    assert recording.sample_rate == RATE
    assert recording.warnings == ()
    assert lag(recording.samples[0], speechlike[:n_samples]) == 0


def test_content_counts_and_not_the_name(tmp_path, speechlike, encode_media):
    path = encode_media(tmp_path / "talk.m4a", "alac", [speechlike]).rename(tmp_path / "talk.wav")
    np.testing.assert_allclose(read_audio(path).samples[0], speechlike, atol=1 / 2**15)


@pytest.mark.parametrize("name", ["talk.mp4", "talk.mkv", "talk.mov"])
def test_sound_of_a_video_starts_when_the_picture_does(tmp_path, speechlike, encode_media, lag, name):
    path = encode_media(tmp_path / name, "aac", [speechlike], video=True)
    recording = read_audio(path)
    assert recording.samples.shape[1] == pytest.approx(48_000, abs=1024)  # Matroska does not tell the padding
    assert lag(recording.samples[0], speechlike) == 0
    assert recording.warnings == ()


def test_sound_that_sets_in_after_the_picture_is_preceded_by_silence(tmp_path, speechlike, encode_media, lag):
    path = encode_media(tmp_path / "late.mkv", "flac", [speechlike], video=True, start_seconds=0.5)
    recording = read_audio(path)
    assert recording.samples.shape == (1, 56_000)
    np.testing.assert_array_equal(recording.samples[0, :8_000], 0)
    assert lag(recording.samples[0], speechlike) == 8_000
    assert recording.warnings == ()


def test_video_without_sound_has_no_audio_stream(tmp_path, encode_media):
    assert refusal(encode_media(tmp_path / "silent.mp4", "aac", [], video=True)) == "no audio stream"


def test_first_of_several_streams_is_taken_and_the_others_are_listed(tmp_path, speechlike, encode_media, lag):
    path = encode_media(tmp_path / "two.mkv", "flac", [speechlike, speechlike[::-1].copy()], video=True)
    first, second = read_audio(path), read_audio(path, stream=1)
    np.testing.assert_allclose(first.samples[0], speechlike, atol=1 / 2**15)
    np.testing.assert_allclose(second.samples[0], speechlike[::-1], atol=1 / 2**15)
    (note,) = first.warnings
    assert note.startswith("the file has 2 audio streams (0: flac 16000 Hz mono; 1: flac 16000 Hz mono)")
    assert second.warnings == ()
    assert read_audio(path, stream=0).warnings == ()
    assert refusal(path, stream=2).startswith(
        "there is no audio stream 2; the file has 2 audio streams, counted from 0 (0: flac"
    )
    assert refusal(path, stream=-1).startswith("there is no audio stream -1")


@pytest.mark.parametrize("name", ["holes.mkv", "holes.mp4"])
def test_gap_in_the_time_stamps_becomes_silence(tmp_path, speechlike, encode_media, name):
    gap = (16_384, 24_576)  # whole frames of 4096 or 4608 samples lie inside
    path = encode_media(tmp_path / name, "flac", [speechlike], silent_gap=gap)
    recording = read_audio(path)
    assert recording.samples.shape == (1, 48_000)
    silent = np.flatnonzero(np.convolve(recording.samples[0] == 0, np.ones(9), "same") == 9)
    start, end = silent[0] - 4, silent[-1] + 5
    assert gap[0] <= start < end <= gap[1] + 4608
    assert end - start > 4000
    np.testing.assert_allclose(recording.samples[0, :start], speechlike[:start], atol=1 / 2**15)
    np.testing.assert_array_equal(recording.samples[0, start:end], 0)
    np.testing.assert_allclose(recording.samples[0, end:], speechlike[end:], atol=1 / 2**15)
    filled = f"the time stamps leave gaps, filled with silence, at {start / RATE:.2f} s"
    assert recording.warnings == (filled,)


def test_m4a_without_its_index_is_explained(tmp_path, speechlike, encode_media):
    path = encode_media(tmp_path / "talk.m4a", "aac", [speechlike])
    path.write_bytes(path.read_bytes()[:10_000])
    assert refusal(path).startswith("the index (moov) of this MP4 (m4a, mp4, mov) file is missing or damaged")


def test_m4a_cut_behind_its_index_is_read_with_the_seconds_lost(tmp_path, speechlike, encode_media, lag):
    path = encode_media(tmp_path / "talk.m4a", "aac", [speechlike], options={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    recording = read_audio(path)
    n_read = recording.samples.shape[1]
    assert 18_000 < n_read < 27_000
    assert lag(recording.samples[0], speechlike[:n_read]) == 0
    lost = f"the recording is cut short: the last {3 - n_read / RATE:.2f} s of 3.00 s are missing"
    assert lost in recording.warnings


def test_cut_mkv_is_read_with_the_seconds_lost(tmp_path, speechlike, encode_media):
    path = encode_media(tmp_path / "talk.mkv", "flac", [speechlike], video=True)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    recording = read_audio(path)
    n_read = recording.samples.shape[1]
    assert 16_000 < n_read < 40_000
    np.testing.assert_allclose(recording.samples[0], speechlike[:n_read], atol=1 / 2**15)
    lost = f"the recording is cut short: the last {3 - n_read / RATE:.2f} s of 3.00 s are missing"
    assert lost in recording.warnings


@pytest.mark.parametrize("tag", [b"drms", b"enca"])
def test_protected_audio_is_named(tmp_path, speechlike, encode_media, tag):
    path = replaced(encode_media(tmp_path / "song.m4a", "aac", [speechlike]), b"mp4a", tag)
    assert refusal(path) == f"protected audio (DRM): '{tag.decode()}', codec aac"


def test_unsupported_codec_is_named(tmp_path, speechlike, encode_media):
    path = replaced(encode_media(tmp_path / "talk.mkv", "aac", [speechlike]), b"A_AAC", b"A_XYZ")
    assert refusal(path) == "unsupported audio codec (A_XYZ)"
    path = replaced(encode_media(tmp_path / "talk.mp4", "alac", [speechlike]), b"alac", b"zzzz")
    assert refusal(path) == "unsupported audio codec (zzzz)"


def test_missing_pyav_names_the_extra(tmp_path, speechlike, encode_media, monkeypatch):
    path = encode_media(tmp_path / "talk.m4a", "aac", [speechlike])
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    assert refusal(path) == f"MP4 (m4a, mp4, mov) needs PyAV to be read: {how_to_install('media')}"
    (tmp_path / "noise.bin").write_bytes(bytes(range(128, 256)) * 40)
    assert refusal(tmp_path / "noise.bin").startswith("not audio: unknown content")
    soundfile.write(tmp_path / "talk.wav", speechlike, RATE)
    assert read_audio(tmp_path / "talk.wav").warnings == ()


def test_many_channels_of_a_crashed_recorder_stay_apart(tmp_path):
    samples = np.arange(1, 7, dtype=np.float32)[:, None] / 8 * np.resize([1, -1], 8_000)
    path = tmp_path / "array.wav"
    soundfile.write(path, samples.T, RATE, subtype="PCM_16", format="WAV")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_allclose(read_audio(path).samples, samples, atol=1 / 2**14)
