import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from flasepformer.audio import AUDIO_EXTENSIONS, AudioError, read_audio
from flasepformer.audio.content import looks_like

RATE = 16_000
DATA_SIZE_AT = 40  # in the 44-byte header that libsndfile writes for PCM


@pytest.fixture
def wav(tmp_path, speechlike):
    path = tmp_path / "talk.wav"
    soundfile.write(path, speechlike, RATE, subtype="PCM_16")
    return path


def patched(path: Path, at: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


# What cannot be read at all


def refusal(path: Path, **options) -> str:
    with pytest.raises(AudioError) as caught:
        read_audio(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def test_missing_file_is_named(tmp_path):
    assert refusal(tmp_path / "no.wav") == "cannot be read: no such file or directory"


def test_unreadable_file_says_permission_denied(wav):
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    secret = folder / "secret.wav"
    secret.write_bytes(wav.read_bytes())
    folder.chmod(0o755)
    secret.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # root may read everything
        assert refusal(secret) == "cannot be read: permission denied"
    finally:
        os.seteuid(user)
        secret.unlink()
        folder.rmdir()


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert refusal(tmp_path / "s") == "is a socket, not a recording"
    assert refusal(tmp_path / "pipe.wav") == "is a pipe, not a recording"
    assert refusal(tmp_path / "loop.wav") == "cannot be read: too many levels of symbolic links"
    assert refusal(tmp_path) == "is a folder, not a recording"
    assert refusal(Path("/dev/zero")) == "is a device, not a recording"


def test_empty_file(tmp_path):
    (tmp_path / "a.wav").touch()
    assert refusal(tmp_path / "a.wav") == "empty file"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"PK\x03\x04" + bytes(500), "a ZIP archive"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a picture"),
        (b"Dear diary,\nI recorded a talk.\n", "plain text"),
        ("Lieber Leser, grüße dich ".encode() * 200, "plain text"),
        (b"#EXTM3U\n#EXTINF:3,\nfile:///etc/hostname\n", "plain text"),
    ],
)
def test_what_is_not_audio_is_named(tmp_path, content, what):
    (tmp_path / "talk.wav").write_bytes(content)
    assert refusal(tmp_path / "talk.wav") == f"not audio: looks like {what}"


def test_unknown_content_is_not_audio(tmp_path):
    (tmp_path / "talk.wav").write_bytes(bytes(100_000))
    assert refusal(tmp_path / "talk.wav").startswith("not audio: unknown content, it begins with 00 00")


def test_text_cut_inside_a_character_is_still_text():
    assert looks_like("ä".encode() * 2047 + b"\xc3") == "plain text"


def test_header_without_samples(wav):
    wav.write_bytes(wav.read_bytes()[:44])
    assert refusal(wav) == "recording has no samples"
    soundfile.write(wav, np.zeros(0, np.float32), RATE)
    assert refusal(wav) == "recording has no samples"


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (24, struct.pack("<I", 0), "bad header: the sample rate is 0 Hz"),
        (24, struct.pack("<I", 4_000_000_000), "bad header: the sample rate is 4000000000 Hz"),
        (
            24,
            struct.pack("<I", 1999),
            "has a sample rate of 1999 Hz; below 2000 Hz nothing of speech is left",
        ),
        (22, struct.pack("<H", 0), "has 0 channels by its header; 1 to 64 can be read"),
        (22, struct.pack("<H", 65), "has 65 channels by its header; 1 to 64 can be read"),
        (22, struct.pack("<H", 65535), "has 65535 channels by its header; 1 to 64 can be read"),
    ],
)
def test_absurd_headers_are_explained(wav, at, data, message):
    assert refusal(patched(wav, at, data)) == message


def test_known_format_that_cannot_be_decoded_has_a_bad_header(tmp_path):
    (tmp_path / "talk.flac").write_bytes(b"fLaC" + bytes(5000))
    assert refusal(tmp_path / "talk.flac").startswith("bad header: the file begins like FLAC")


def test_endless_row_of_empty_chunks_is_no_header(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(4) + b"WAVE" + b"JUNK\0\0\0\0" * 5_000)
    assert refusal(tmp_path / "a.wav").startswith("bad header: the file begins like WAV")


def test_huge_sparse_file_is_refused_before_it_takes_memory(tmp_path):
    header = (
        b"RF64" + struct.pack("<I", 2**32 - 1) + b"WAVEds64" + struct.pack("<IQQQI", 28, 2**41, 2**41, 0, 0)
    )
    header += b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data" + b"\xff" * 4
    path = tmp_path / "huge.wav"
    path.write_bytes(header)
    try:
        os.truncate(path, 2**41)
    except OSError as error:
        pytest.skip(f"no file of 2 TiB can be made here: {error}")
    assert "19,088.7 hours" in refusal(path)
    assert "4,096 GiB once decoded" in refusal(path)


# What is read as it should be


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 128),
        ("WAV", "PCM_16", 1 / 2**15),
        ("WAV", "PCM_24", 1 / 2**23),
        ("WAV", "PCM_32", 1 / 2**23),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 0),
        ("WAV", "ALAW", 0.02),
        ("WAV", "ULAW", 0.02),
        ("WAV", "IMA_ADPCM", 0.1),
        ("RF64", "PCM_16", 1 / 2**15),
        ("W64", "PCM_16", 1 / 2**15),
        ("AIFF", "PCM_16", 1 / 2**15),
        ("CAF", "PCM_16", 1 / 2**15),
        ("FLAC", "PCM_24", 1 / 2**23),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_sample_format_comes_as_float(tmp_path, speechlike, container, subtype, tolerance, n_channels):
    samples = np.stack([speechlike * gain for gain in np.linspace(1, 0.5, n_channels)])
    path = tmp_path / "talk.mp3"  # the content counts, not the name
    soundfile.write(path, samples.T, RATE, format=container, subtype=subtype)
    recording = read_audio(path)
    assert recording.samples.dtype == np.float32
    assert recording.sample_rate == RATE
    assert recording.warnings == ()
    assert recording.seconds == pytest.approx(3, abs=0.1)  # IMA ADPCM fills its last block
    np.testing.assert_allclose(recording.samples[:, :48_000], samples, rtol=0, atol=tolerance)


def test_six_channels_stay_apart(tmp_path):
    samples = np.arange(1, 7, dtype=np.float32)[:, None] / 10 * np.resize([1, -1], 800)
    soundfile.write(tmp_path / "room.wav", samples.T, RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "room.wav").samples, samples)


@pytest.mark.parametrize("container", ["MP3", "OGG"])
def test_delay_of_the_encoder_is_trimmed(tmp_path, speechlike, lag, container):
    soundfile.write(tmp_path / "talk", speechlike, RATE, format=container)
    recording = read_audio(tmp_path / "talk")
    assert recording.samples.shape == (1, 48_000)
    assert lag(recording.samples[0], speechlike) == 0
    assert recording.warnings == ()


@pytest.mark.parametrize("n_samples", [1, 2, 15, 16, 17])
def test_a_few_samples_are_a_recording(tmp_path, n_samples):
    soundfile.write(tmp_path / "click.wav", np.full(n_samples, 0.5), RATE)
    recording = read_audio(tmp_path / "click.wav")
    np.testing.assert_array_equal(recording.samples, np.full((1, n_samples), 0.5))
    assert recording.warnings == ()


@pytest.mark.parametrize("sample_rate", [2_000, 12_345, 384_000])
def test_odd_sample_rates_are_read(tmp_path, speechlike, sample_rate):
    soundfile.write(tmp_path / "talk.wav", speechlike, sample_rate)
    assert read_audio(tmp_path / "talk.wav").sample_rate == sample_rate


def test_level_far_above_full_scale_is_kept(tmp_path, speechlike):
    soundfile.write(tmp_path / "loud.wav", 380 * speechlike, RATE, subtype="FLOAT")
    recording = read_audio(tmp_path / "loud.wav")
    np.testing.assert_array_equal(recording.samples[0], 380 * speechlike)
    assert recording.warnings == ()


@pytest.mark.parametrize(
    "name", ["-x.wav", "two words.wav", "träume 🎙.wav", "line\nbreak.raw", "b\udcff.wav", "n" * 251 + ".wav"]
)
def test_any_name_is_read_and_shown_on_one_line(tmp_path, wav, name):
    path = wav.rename(tmp_path / name)
    assert read_audio(path).samples.shape == (1, 48_000)
    path.write_bytes(b"")
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    str(caught.value).encode()
    assert "\n" not in str(caught.value)


def test_extensions_are_lower_case_suffixes():
    assert {".wav", ".m4a", ".mkv"} <= AUDIO_EXTENSIONS
    assert all(name == name.lower() and name.startswith(".") for name in AUDIO_EXTENSIONS)


def test_reading_imports_neither_torch_nor_pyav():
    code = "import sys, flasepformer.audio; print(*sorted({'torch', 'av'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "\n"
    )


# What is damaged or cut short


def test_cut_wav_is_read_with_the_seconds_lost(wav, speechlike):
    recording = read_audio(cut(wav, 0.5))
    assert recording.samples.shape == (1, 23_989)  # (96,044 / 2 - 44) / 2
    np.testing.assert_allclose(recording.samples[0], speechlike[:23_989], atol=1 / 2**15)
    assert recording.warnings == ("the recording is cut short: the last 1.50 s of 3.00 s are missing",)


def test_cut_mp3_is_read_with_the_seconds_lost(tmp_path, speechlike, lag):
    soundfile.write(tmp_path / "talk.mp3", speechlike, RATE)
    recording = read_audio(cut(tmp_path / "talk.mp3", 0.5))
    n_read = recording.samples.shape[1]
    assert 20_000 < n_read < 26_000
    assert lag(recording.samples[0], speechlike[:n_read]) == 0
    missing = 3 - n_read / RATE
    assert recording.warnings == (
        f"the recording is cut short: the last {missing:.2f} s of 3.00 s are missing",
    )


def test_cut_flac_is_read_with_the_seconds_lost(tmp_path, speechlike):
    soundfile.write(tmp_path / "talk.flac", speechlike, RATE)
    recording = read_audio(cut(tmp_path / "talk.flac", 0.5))
    n_read = recording.samples.shape[1]
    assert 15_000 < n_read < 30_000
    np.testing.assert_allclose(recording.samples[0], speechlike[:n_read], atol=1 / 2**15)
    missing = 3 - n_read / RATE
    assert recording.warnings == (
        f"the recording is cut short: the last {missing:.2f} s of 3.00 s are missing",
    )


def test_cut_ogg_has_no_end_mark(tmp_path, speechlike):
    soundfile.write(tmp_path / "talk.ogg", speechlike, RATE)
    assert read_audio(cut(tmp_path / "talk.ogg", 0.5)).warnings == (
        "the recording has no end mark: it may be cut short",
    )


@pytest.mark.parametrize(("share", "bit"), [(0.06, 0), (0.37, 7), (0.74, 3), (0.85, 5)])
def test_flac_with_one_flipped_bit_loses_one_frame_and_keeps_its_time(tmp_path, share, bit):
    rng = np.random.default_rng(3)
    samples = (0.1 * rng.standard_normal(40_960)).astype(np.float32)
    path = tmp_path / "talk.flac"
    soundfile.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    path.write_bytes(content)
    recording = read_audio(path)
    assert recording.samples.shape == (1, 40_960)
    wrong = np.abs(recording.samples[0] - samples) > 1 / 2**15
    assert 0 < wrong.sum() <= 4097  # one frame, and the sample before it
    start = int(wrong.argmax())
    assert recording.warnings == (
        f"the recording is damaged at {start / RATE:.2f} s; what could not be read there is silent",
    )


def test_mp3_that_lost_frames_keeps_its_time(tmp_path, speechlike, lag):
    path = tmp_path / "talk.mp3"
    soundfile.write(path, speechlike, RATE)
    content = path.read_bytes()
    n_bytes = len(content)
    path.write_bytes(
        content[: n_bytes // 4] + bytes(2 * n_bytes // 20) + content[n_bytes // 4 + 2 * n_bytes // 20 :]
    )
    recording = read_audio(path)
    assert recording.samples.shape == (1, 48_000)
    late = recording.samples[0, 24_000:]
    assert lag(late, speechlike[24_000:]) == 0
    assert np.corrcoef(late, speechlike[24_000:])[0, 1] > 0.98
    (warning,) = recording.warnings
    damaged_at = float(warning.split(" at ")[1].split(" s")[0])
    assert damaged_at == pytest.approx(0.75, abs=0.15)  # a quarter of the way
    assert warning.startswith("the recording is damaged at ")


def test_mp3_with_tags_at_both_ends_is_whole(tmp_path, speechlike):
    path = tmp_path / "talk.mp3"
    soundfile.write(path, speechlike, RATE)
    frame_of_another_stream = b"\xff\xfb\x90\x00".ljust(417, b"\0")  # 128 kbit/s at 44.1 kHz
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 13, 4]) + 4 * frame_of_another_stream
    path.write_bytes(tag + path.read_bytes() + b"TAG" + bytes(125))
    recording = read_audio(path)
    assert recording.samples.shape == (1, 48_000)
    assert recording.warnings == ()
    (warning,) = read_audio(cut(path, 0.5)).warnings
    assert warning.startswith("the recording is cut short")


def test_mp3_tag_with_nothing_behind_it_is_a_bad_header(tmp_path):
    (tmp_path / "talk.mp3").write_bytes(b"ID3\x04\x00\x00" + bytes([0, 0, 8, 0]) + bytes(2000))
    assert refusal(tmp_path / "talk.mp3").startswith("bad header: the file begins like MP3")


def test_ogg_that_lost_a_page_keeps_its_time(tmp_path, lag):
    rng = np.random.default_rng(5)
    noise = (0.1 * rng.standard_normal(5 * RATE)).astype(np.float32)
    path = tmp_path / "talk.ogg"
    soundfile.write(path, noise, RATE)
    patched(path, path.stat().st_size // 2, b"damage")
    recording = read_audio(path)
    assert recording.samples.shape == (1, 5 * RATE)
    assert lag(recording.samples[0, 4 * RATE :], noise[4 * RATE :]) == 0
    assert recording.warnings[0].startswith("the recording is damaged at ")


@pytest.mark.parametrize("riff_size", [None, 0, 36])
def test_wav_of_a_crashed_recorder_is_read_by_the_size_of_the_file(wav, speechlike, riff_size):
    patched(wav, DATA_SIZE_AT, bytes(4))
    if riff_size is not None:
        patched(wav, 4, struct.pack("<I", riff_size))
    recording = read_audio(wav)
    np.testing.assert_allclose(recording.samples, speechlike[None], atol=1 / 2**15)
    assert recording.warnings == (
        "the recorder never wrote the length of this recording, as after a crash; all of it is used",
    )


def test_empty_wav_with_a_note_behind_it_has_no_samples(wav):
    content = wav.read_bytes()[:DATA_SIZE_AT] + bytes(4) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    wav.write_bytes(content)
    assert refusal(patched(wav, 4, struct.pack("<I", len(content) - 8))) == "recording has no samples"


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1, 2**31 - 37])
def test_wav_from_a_pipe_is_read_to_its_end(wav, speechlike, size):
    recording = read_audio(patched(wav, DATA_SIZE_AT, struct.pack("<I", size)))
    np.testing.assert_allclose(recording.samples, speechlike[None], atol=1 / 2**15)
    assert recording.warnings == ()


def test_growing_file_is_read_as_far_as_it_was(tmp_path):
    path = tmp_path / "live.wav"
    soundfile.write(path, np.zeros(2_000_000, np.int16), RATE)
    patched(path, DATA_SIZE_AT, b"\xff" * 4)
    done = threading.Event()

    def record():
        with path.open("ab", buffering=0) as file:
            while not done.is_set():
                file.write(b"\x00\x10" * 100)

    recorder = threading.Thread(target=record)
    recorder.start()
    try:
        recording = read_audio(path)
    finally:
        done.set()
        recorder.join()
    assert 2_000_000 <= recording.samples.shape[1] < (path.stat().st_size - 44) // 2
    assert "the file grew while it was read; only what was there at the start is used" in recording.warnings


# What the samples tell


def test_samples_that_are_not_numbers_become_silence(tmp_path, speechlike):
    damaged = speechlike.copy()
    damaged[1000:1010] = np.nan
    damaged[2000] = np.inf
    soundfile.write(tmp_path / "talk.wav", damaged, RATE, subtype="FLOAT")
    recording = read_audio(tmp_path / "talk.wav")
    expected = speechlike.copy()
    expected[1000:1010] = expected[2000] = 0
    np.testing.assert_array_equal(recording.samples[0], expected)
    assert recording.warnings == (
        "11 samples (0.02%) are not numbers (NaN or infinity) and were replaced by silence",
    )


def test_recording_of_mostly_no_numbers_is_refused(tmp_path, speechlike):
    soundfile.write(
        tmp_path / "a.wav", np.where(np.arange(48_000) < 25_000, np.nan, 0), RATE, subtype="FLOAT"
    )
    assert refusal(tmp_path / "a.wav").startswith("52% of its samples are not numbers")


def test_clipping_is_measured(tmp_path):
    time = np.arange(RATE) / RATE
    sine = np.sin(2 * np.pi * 100 * time)
    soundfile.write(tmp_path / "talk.wav", np.clip(2 * sine, -1, 1), RATE, subtype="PCM_16")
    share = 2 / 3  # of the time, |sin| is above 1/2
    (warning,) = read_audio(tmp_path / "talk.wav").warnings
    assert warning.startswith("the recording is clipped: ")
    assert float(warning.split()[4].rstrip("%")) / 100 == pytest.approx(share, abs=0.01)
    soundfile.write(tmp_path / "talk.wav", sine, RATE, subtype="PCM_16")
    assert read_audio(tmp_path / "talk.wav").warnings == ()


def test_offset_is_reported_and_kept(tmp_path, speechlike):
    samples = np.stack([speechlike, 0.3 * speechlike - 0.25])
    soundfile.write(tmp_path / "talk.wav", samples.T, RATE, subtype="FLOAT")
    recording = read_audio(tmp_path / "talk.wav")
    assert recording.samples[1].mean() == pytest.approx(-0.25, abs=1e-3)
    assert recording.warnings == (
        "the recording has a constant (DC) offset of -0.25 of full scale in channel 1",
    )


def test_digital_silence_is_a_recording(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(8_000), RATE)
    recording = read_audio(tmp_path / "silence.wav")
    np.testing.assert_array_equal(recording.samples, np.zeros((1, 8_000)))
    assert recording.warnings == ()
