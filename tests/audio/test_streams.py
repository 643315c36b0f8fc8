"""Recordings as streams: the same samples as in one piece, whatever the size of the pieces (issue 16)."""

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from flasepformer.audio import (
    ArrayStream,
    AudioError,
    RecordingFile,
    StoredSignals,
    mix_down,
    read_audio,
    regular_blocks,
    resample,
    resample_blocks,
    resampled_length,
    write_audio,
    write_blocks,
)
from flasepformer.audio.defects import Checkup
from flasepformer.audio.mixdown import Channels
from flasepformer.audio.mp3 import repair
from flasepformer.audio.ogg import walk_pages
from flasepformer.audio.window import FileBytes

RATE = 16_000


def in_parts(samples, length):
    return [samples[..., start : start + length] for start in range(0, samples.shape[-1], length)]


def damaged(path):
    content = bytearray(path.read_bytes())
    n_bytes = (
        len(content) // 10 if path.suffix == ".mp3" else 40
    )  # damage inside a frame of MP3 does not show
    content[len(content) // 2 : len(content) // 2 + n_bytes] = bytes(n_bytes)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kept_bytes", [0, 10**9])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a", "a.mkv", "damaged.flac",
                                  "damaged.ogg", "damaged.mp3", "damaged.wav"])  # fmt: skip
def test_every_sweep_over_a_file_gives_what_reading_it_gives(
    tmp_path, speechlike, encode_media, name, kept_bytes
):
    path = tmp_path / name
    if path.suffix in (".m4a", ".mkv"):
        encode_media(path, "aac", [speechlike])
    else:
        soundfile.write(path, np.stack([speechlike, speechlike[::-1]], 1), RATE)
    if path.stem == "damaged":
        damaged(path)
    expected = read_audio(path)
    with RecordingFile(path, kept_bytes=kept_bytes) as recording:
        for length in (32_768, 1_000, 999_999):  # the first sweep, a second and a third one
            blocks = list(recording.blocks(length))
            assert {block.shape[1] for block in blocks[:-1]} <= {length}
            np.testing.assert_array_equal(np.concatenate(blocks, axis=1), expected.samples)
        assert (recording.n_samples, recording.sample_rate) == (expected.samples.shape[1], RATE)
        assert recording.warnings == expected.warnings
        assert recording.n_kept_bytes == (expected.samples.nbytes if kept_bytes else 0)


def test_a_file_that_shrinks_between_two_sweeps_is_told(tmp_path, speechlike):
    path = tmp_path / "talk.wav"
    soundfile.write(path, speechlike, RATE)
    with RecordingFile(path, kept_bytes=0) as recording:
        for _ in recording.blocks():
            pass
        with path.open("r+b") as file:
            file.truncate(20_000)
        with pytest.raises(AudioError, match=r"talk.wav: the file changed while it was read"):
            list(recording.blocks())


@settings(max_examples=60, deadline=None)
@given(
    rates=st.tuples(*2 * [st.sampled_from([2000, 7999, 8000, 11_025, 16_000, 44_100, 48_000, 192_000])]),
    n_samples=st.integers(1, 20_000),
    length=st.integers(1, 9_000),
    n_channels=st.integers(1, 3),
)
def test_a_stream_is_resampled_as_a_whole_is_bit_by_bit(rates, n_samples, length, n_channels):
    samples = np.random.default_rng(0).standard_normal((n_channels, n_samples)).astype(np.float32)
    blocks = resample_blocks(in_parts(samples, length), n_samples, *rates)
    expected = resample(samples, *rates)
    assert expected.shape[1] == resampled_length(n_samples, *rates)
    np.testing.assert_array_equal(np.concatenate(list(blocks), axis=1), expected)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "auto"), ("a.wav", "PCM_16"), ("a.flac", "PCM_24"), ("a.ogg", "auto"), ("a.mp3", "auto")],
)
def test_blocks_become_the_same_file_byte_by_byte(tmp_path, speechlike, name, subtype):
    write_audio(tmp_path / name, speechlike, RATE, subtype=subtype)
    expected = (tmp_path / name).read_bytes()
    blocks = [part[None] for part in in_parts(speechlike, 10_007)]
    write_blocks(tmp_path / name, iter(blocks), 1, len(speechlike), RATE, subtype=subtype)
    assert (
        read_audio(tmp_path / name).samples == read_audio(io_copy(tmp_path, expected, name)).samples
    ).all()
    if name != "a.ogg":  # a random serial number is part of every Ogg stream
        assert (tmp_path / name).read_bytes() == expected


def io_copy(folder, content, name):
    path = folder / f"copy-{name}"
    path.write_bytes(content)
    return path


def test_blocks_that_cannot_be_written_leave_no_file(tmp_path):
    fine, loud = np.full((1, 70_000), 0.5, np.float32), np.full((1, 10), 1.5, np.float32)
    with pytest.raises(ValueError, match=r"the peak of 1.5 would be clipped in PCM_16"):
        write_blocks(tmp_path / "a.wav", [fine, loud], 1, 70_010, RATE, subtype="PCM_16")

    def interrupted():
        yield fine
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_blocks(tmp_path / "a.wav", interrupted(), 1, 10**6, RATE)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(writes=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 40)), max_size=8))
def test_signals_in_a_file_are_those_in_memory(tmp_path_factory, writes):
    in_memory, in_file = StoredSignals(2, 140), StoredSignals(2, 140, tmp_path_factory.getbasetemp())
    rng = np.random.default_rng(0)
    for first, length in writes:
        samples = rng.standard_normal((2, length)).astype(np.float32)
        in_memory.write(first, samples)
        in_file.write(first, samples)
    for first, last in ((0, 140), (0, 1), (60, 61), (139, 140)):
        np.testing.assert_array_equal(in_file.read(first, last), in_memory.read(first, last))


def test_a_disk_without_room_for_signals_says_so_at_once(tmp_path):
    with pytest.raises(OSError, match=r"No space left|File too large"):
        StoredSignals(1, 2**50, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [1, 2, 3, 7, 1000])
def test_plateaus_across_blocks_count_as_what_they_are(length):
    signal = np.full(1000, 0.25, np.float32)
    signal[100:104] = signal[500:503] = 0.99  # 7 samples in rows of three or more
    signal[300:302] = signal[700] = 0.99  # too short to be a plateau
    signal[900:905] = -1.0  # 5 samples
    checkup = Checkup(1)
    for part in in_parts(signal[None], length):
        checkup.add(part)
    assert checkup.warnings(100_000) == (
        "the recording is clipped: 1.20% of its samples are cut off at full scale",
    )


def test_a_louder_plateau_takes_the_place_of_a_lower_one():
    checkup = Checkup(1)
    checkup.add(np.full((1, 100), 0.97, np.float32))
    checkup.add(np.concatenate([np.full(96, 0.1), np.full(4, 0.98)])[None].astype(np.float32))
    assert checkup.warnings(10**6)[0].startswith("the recording is clipped: 2.00%")


@pytest.mark.parametrize("length", [333, 4_096, 10**6])
@pytest.mark.parametrize("kind", ["talkers", "delayed", "antiphase", "equal", "one silent"])
def test_channels_are_compared_the_same_in_blocks_of_any_size(length, kind):
    rng = np.random.default_rng(0)
    aloud = np.repeat([1.0, 0.02, 0.6, 0.02, 1.0], 4_000)  # as in speech; steady sound is no talker
    # an offset makes them alike, unless it is taken out
    first, other = 0.1 * aloud * rng.standard_normal((2, 20_000)) + 0.3
    second = {"talkers": other, "delayed": np.roll(first, 37), "antiphase": -first, "equal": first,
              "one silent": 1e-4 * other}[kind]  # fmt: skip
    samples = np.stack([first, second]).astype(np.float32)
    channels = Channels(2, 8000)
    for part in in_parts(samples, length):
        channels.add(part)
    assert channels.have_talkers() == (kind == "talkers")
    decided = channels.mix_down()
    expected, warnings = mix_down(samples)
    assert decided.warnings == warnings
    assert (len(warnings) == 1) == (kind == "antiphase")
    np.testing.assert_array_equal(decided.apply(samples), expected)
    assert decided.mean == pytest.approx(expected.mean(dtype=np.float64), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300), window=st.integers(1, 40), start=st.integers(0, 320),
       length=st.integers(0, 60), wanted=st.binary(min_size=1, max_size=3))  # fmt: skip
def test_a_file_through_a_window_is_like_its_bytes(data, window, start, length, wanted):
    file = FileBytes(io.BytesIO(data), len(data), window)
    assert len(file) == len(data)
    assert file[start : start + length] == data[start : start + length]
    assert file[:start] == data[:start]
    assert file.find(wanted, start) == data.find(wanted, start)
    assert file.find(data[-2:], 0) == data.find(data[-2:], 0)


def test_damage_is_found_through_a_window_as_in_the_whole_file(tmp_path, speechlike):
    for name in ("a.mp3", "a.ogg"):
        soundfile.write(tmp_path / name, speechlike, RATE)
        data = damaged(tmp_path / name).read_bytes()
        through = FileBytes(io.BytesIO(data), len(data), 700)
        if name == "a.ogg":
            assert walk_pages(through, RATE) == walk_pages(data, RATE)
            assert len(walk_pages(data, RATE).spans) == 1
        else:
            whole, windowed = repair(data), repair(through)
            assert windowed == whole
            assert whole.lost
            assert b"".join(windowed.repaired(through)) == b"".join(whole.repaired(data))


def test_blocks_of_one_length_hold_all_samples():
    samples = np.arange(1000, dtype=np.float32)[None]
    parts = [samples[:, :1], samples[:, 1:1], samples[:, 1:600], samples[:, 600:]]
    blocks = list(regular_blocks(parts, 256))
    assert [block.shape[1] for block in blocks] == [256, 256, 256, 232]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), samples)
    assert [block.shape[1] for block in ArrayStream(samples, 8000).blocks(600)] == [600, 400]
