import io
import json
import os
import re
import resource
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import start

from flasepformer.audio import AudioError, read_audio
from flasepformer.inference import AlreadySeparated, NotEnoughMemory, OutputError, SeparationError, Separator
from flasepformer.inference.estimates import need_beside_frames
from flasepformer.inference.memory import format_size
from flasepformer.models import SepReformer, SepReformerConfig, load_model


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=25, deadline=None)
@given(
    n_samples=st.one_of(st.integers(1, 20), st.integers(1, 3000)),
    sample_rate=st.sampled_from([2000, 7999, 8000, 11025, 16000, 44100, 48000, 192000]),
    n_channels=st.integers(1, 3),
)
def test_tracks_are_finite_and_exactly_as_long_as_the_recording(
    separator, voices, n_samples, sample_rate, n_channels
):
    waveform = voices(n_samples * n_channels).reshape(n_channels, n_samples)
    tracks = separator.separate(waveform, sample_rate)
    assert tracks.shape == (2, n_samples)
    assert np.isfinite(tracks).all()


@pytest.mark.parametrize("n_samples", range(1, 17))
def test_a_few_samples_come_back_as_a_few_samples(separator, voices, n_samples):
    tracks = separator.separate(voices(n_samples), 8000)
    assert tracks.shape == (2, n_samples)
    assert tracks.any() == (n_samples > 1)  # a single sample is nothing but a constant offset


@pytest.mark.parametrize("gain", [2.0**-6, 2.0**9, 2.0**80])
def test_a_gain_passes_through_exactly(separator, voices, gain):
    waveform = voices(12_000)
    expected = np.float32(gain) * separator.separate(waveform, 16_000)
    actual = separator.separate(np.float32(gain) * waveform, 16_000)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(gain=st.floats(1e-2, 1e6))
def test_any_gain_passes_through(separator, voices, gain):
    waveform = voices(4000)
    expected = gain * separator.separate(waveform, 8000)
    actual = separator.separate(gain * waveform, 8000)
    np.testing.assert_allclose(actual, expected, atol=1e-4 * np.abs(expected).max())


def test_the_tracks_sum_to_the_mixture_at_least_as_well_as_the_bare_estimates(separator, voices):
    waveform = voices(16_000)
    with torch.inference_mode():
        bare = separator.model(torch.from_numpy(waveform)[None])[0].sum(0).numpy()
    tracks = separator.separate(waveform, 8000)
    assert np.square(waveform - tracks.sum(0)).sum() <= np.square(waveform - bare).sum()
    # Least squares leaves nothing in the rest that a track could still explain.
    rest = waveform - waveform.mean() - tracks.sum(0)
    assert np.abs(tracks @ rest).max() < 1e-4 * np.square(waveform).sum()


def test_the_same_recording_gives_the_same_bytes(separator, model_folder, voices):
    waveform = voices(9000)
    again = Separator.from_pretrained(model_folder, "cpu")
    assert separator.separate(waveform, 11025).tobytes() == again.separate(waveform, 11025).tobytes()


@pytest.mark.parametrize(
    "silence",
    [
        np.zeros(20_000),
        np.full(20_000, 0.25),  # a constant offset
        np.random.default_rng(0).integers(-2, 3, 20_000) / 2**15,  # dither of a 16-bit recording
    ],
)
def test_silence_gives_silence(separator, silence):
    tracks = separator.separate(silence, 16_000)
    assert tracks.shape == (2, 20_000)
    assert not tracks.any()


def test_sound_that_the_model_cannot_hear_gives_silence(separator):
    tone = np.sin(2 * np.pi * 20_000 / 48_000 * np.arange(24_000)) * np.hanning(24_000)
    assert not separator.separate(0.5 * tone, 48_000).any()
    assert not separator.separate(np.array([0.5, -0.5]), 192_000).any()


def test_tracks_are_silent_until_somebody_speaks(separator, voices):
    speech = voices(8000)
    waveform = np.concatenate([np.zeros(5 * 8000, np.float32), speech])
    tracks = separator.separate(waveform, 8000)
    assert not tracks[:, : 5 * 8000 - 400].any()
    assert np.abs(tracks[:, 5 * 8000 :]).max() > 1e-3


def test_a_constant_offset_changes_nothing(separator, voices):
    waveform = voices(8000)
    expected = separator.separate(waveform, 8000)
    np.testing.assert_allclose(separator.separate(waveform + 0.125, 8000), expected, atol=1e-4)


def test_channels_are_mixed_down_once_and_antiphase_is_told(separator, voices):
    waveform = voices(8000)
    expected = separator.separate(waveform, 8000)
    np.testing.assert_array_equal(separator.separate(np.stack([waveform, waveform]), 8000), expected)
    with pytest.warns(UserWarning, match="antiphase"):
        np.testing.assert_array_equal(separator.separate(np.stack([waveform, -waveform]), 8000), expected)


def test_more_channels_than_two_are_not_mixed_down_without_a_word(separator, voices, tmp_path):  # issue 16
    soundfile.write(tmp_path / "six.wav", np.stack([voices(8000)] * 6, 1), 8000)
    report = separator.separate_file_with_report(tmp_path / "six.wav", tmp_path / "out")
    assert "the 6 channels were mixed down to one; --channel takes one of them" in report.notes


def test_a_talker_on_each_channel_needs_no_model(separator, voices, tmp_path):
    pauses = np.repeat([[1, 1, 0.01, 1, 1], [0.01, 1, 1, 1, 1]], 3200, axis=1).astype(np.float32)
    stereo = pauses * np.stack([voices(16_000), voices(16_000, seed=1)])
    with pytest.warns(UserWarning, match="each channel carries a talker of its own"):
        np.testing.assert_array_equal(separator.separate(stereo, 8000), stereo)
    soundfile.write(tmp_path / "call.wav", stereo.T, 8000, subtype="FLOAT")
    paths = separator.separate_file(tmp_path / "call.wav", tmp_path / "mixed", mix_channels=True)
    expected = separator.separate(stereo.mean(axis=0), 8000)
    for path, track in zip(paths, expected, strict=True):
        np.testing.assert_allclose(soundfile.read(path)[0], track, atol=1e-6)


def test_numpy_gives_numpy_and_torch_gives_torch(separator, voices):
    waveform = voices(8000)
    expected = separator.separate(waveform, 8000)
    assert expected.dtype == np.float32
    tensor = torch.from_numpy(waveform).requires_grad_()
    tracks = separator.separate(tensor, 8000)
    assert tracks.dtype == torch.float32
    assert not tracks.requires_grad
    torch.testing.assert_close(tracks, torch.from_numpy(expected), rtol=0, atol=0)
    assert torch.equal(tensor, torch.from_numpy(waveform))
    np.testing.assert_array_equal(separator.separate(waveform.astype(np.float64), 8000), expected)
    np.testing.assert_allclose(separator.separate(tensor.half(), 8000), expected, atol=2e-3)
    np.testing.assert_allclose(separator.separate(tensor.bfloat16(), 8000), expected, atol=2e-2)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_integers_count_as_their_full_scale(separator, voices, dtype):
    waveform = voices(8000)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    integers = np.round(waveform * 2.0 ** (np.iinfo(dtype).bits - 1) + (low + high + 1) // 2).astype(dtype)
    expected = separator.separate(waveform, 8000)
    step = 2.0 ** (1 - np.iinfo(dtype).bits)
    np.testing.assert_allclose(separator.separate(integers, 8000), expected, atol=20 * step + 1e-5)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.array([0.0, np.nan, np.inf]), 8000, "2 samples that are NaN, infinite or too large"),
        (np.array([0.0, 1e300]), 8000, "1 samples that are NaN, infinite or too large"),
        (np.array([0.0, 1e35]), 8000, r"must not exceed 1e\+30, got 1e\+35"),
        (np.zeros(0), 8000, r"at least one sample, got \(0,\)"),
        (np.zeros((1, 2, 3)), 8000, r"\(time,\) or \(channel, time\)"),
        (np.zeros((8000, 2)), 8000, r"at most 64 channels, got \(8000, 2\); transpose it"),
        (np.zeros(8, complex), 8000, "real numbers, floating point or integer, got complex128"),
        (np.zeros(8, bool), 8000, "real numbers"),
        ([0.0, 0.1], 8000, "numpy array or a torch tensor, got list"),
        (np.zeros(8), 0, "whole number of at least 2000 Hz, got 0"),
        (np.zeros(8), 8000.5, "whole number of at least 2000 Hz"),
        (np.zeros(8), float("nan"), "whole number of at least 2000 Hz"),
    ],
)
def test_what_cannot_be_separated_is_refused_with_the_reason(separator, waveform, rate, message):
    with pytest.raises(ValueError, match=message):
        separator.separate(waveform, rate)


def test_a_model_that_computes_nonsense_gives_no_tracks(model_folder, voices, tmp_path):
    model = load_model(model_folder)
    with torch.no_grad():
        model.feature_projection.weight.fill_(3e38)
    separator = Separator(model, "cpu")
    with pytest.raises(SeparationError, match="answer is not finite"):
        separator.separate(voices(8000), 8000)
    soundfile.write(tmp_path / "talk.wav", voices(8000), 8000)
    with pytest.raises(SeparationError):
        separator.separate_file(tmp_path / "talk.wav", tmp_path / "out")
    assert names(tmp_path / "out") == []


def test_a_file_becomes_tracks_and_a_report(separator, voices, tmp_path):
    near, far = voices(22_050), voices(22_050, seed=1)
    soundfile.write(tmp_path / "talk.wav", np.stack([near, near + far], 1), 22_050)
    steps = []
    paths = separator.separate_file(
        tmp_path / "talk.wav", tmp_path / "out", progress=lambda step, share: steps.append((step, share))
    )
    assert paths == [tmp_path / "out" / "talk_speaker1.wav", tmp_path / "out" / "talk_speaker2.wav"]
    assert names(tmp_path / "out") == ["talk_separation.json", "talk_speaker1.wav", "talk_speaker2.wav"]
    tracks = np.stack([soundfile.read(path, dtype="float32")[0] for path in paths])
    recording = read_audio(tmp_path / "talk.wav")
    np.testing.assert_array_equal(tracks, separator.separate(recording.samples, 22_050))
    assert soundfile.info(paths[0]).samplerate == 22_050
    report = json.loads((tmp_path / "out" / "talk_separation.json").read_text())
    assert report["input"] == str(tmp_path / "talk.wav")
    assert report["tracks"] == ["talk_speaker1.wav", "talk_speaker2.wav"]
    assert report["model"]["licence"] == "CC0-1.0"
    assert (report["seconds"], report["sample_rate"], report["device"], report["gain"]) == (
        1.0,
        22_050,
        "cpu",
        1.0,
    )
    assert report["warnings"] == []
    assert report["notes"] == ["the model works at 8000 Hz: the tracks hold nothing above 4000 Hz"]
    assert 0 < report["real_time_factor"] < report["total_real_time_factor"] < 20
    assert [share for _, share in steps] == sorted(share for _, share in steps)
    assert steps[0] == ("reading", 0.0)
    assert steps[-1] == ("done", 1.0)


def test_a_recording_with_less_than_the_model_learned_from_is_warned_of(separator):
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    with pytest.warns(
        UserWarning, match="at 4000 Hz the recording holds nothing above 2000 Hz, but the model"
    ):
        separator.separate(noise, 4000)


def test_files_that_exist_are_kept_unless_told_otherwise(separator, voices, tmp_path):
    soundfile.write(tmp_path / "talk.wav", voices(4000), 8000)
    paths = separator.separate_file(tmp_path / "talk.wav", tmp_path)
    before = paths[0].stat().st_mtime_ns
    with pytest.raises(AlreadySeparated) as caught:
        separator.separate_file(tmp_path / "talk.wav", tmp_path)
    assert caught.value.tracks == tuple(paths)
    assert paths[0].stat().st_mtime_ns == before
    assert separator.separate_file(tmp_path / "talk.wav", tmp_path, overwrite=True) == paths
    assert paths[0].stat().st_mtime_ns > before
    assert (
        separator.separate_file(tmp_path / "talk.wav", tmp_path, suffix="_b")[0].name == "talk_b_speaker1.wav"
    )
    paths[1].unlink()
    with pytest.raises(FileExistsError, match="but not all"):
        separator.separate_file(tmp_path / "talk.wav", tmp_path)


@pytest.mark.parametrize(
    ("options", "clips"),
    [
        ({}, False),
        ({"subtype": "pcm16"}, True),
        ({"subtype": "pcm24"}, True),
        ({"format": "flac"}, True),
        ({"format": "ogg"}, True),
    ],
)
def test_a_format_that_would_clip_gets_all_tracks_turned_down_alike(
    separator, voices, tmp_path, options, clips
):
    loud = 400 * voices(16_000)
    soundfile.write(tmp_path / "loud.wav", loud, 8000, subtype="FLOAT")
    report = separator.separate_file_with_report(tmp_path / "loud.wav", tmp_path / "out", **options)
    expected = separator.separate(loud, 8000)
    assert np.abs(expected).max() > 1
    tracks = np.stack([soundfile.read(path)[0] for path in report.tracks])
    turned_down = [warning for warning in report.warnings if "turned down by" in warning]
    if not clips:
        np.testing.assert_array_equal(tracks, expected)
        assert report.gain == 1.0
        assert turned_down == []
        return
    assert report.gain == pytest.approx(0.999 / np.abs(expected).max())
    assert len(turned_down) == 1
    if options.get("format") != "ogg":
        np.testing.assert_allclose(tracks, report.gain * expected, atol=2**-15)


def test_a_format_without_the_rate_gets_the_nearest_one(separator, voices, tmp_path):
    soundfile.write(tmp_path / "talk.wav", voices(22_050), 11_025)
    report = separator.separate_file_with_report(tmp_path / "talk.wav", tmp_path / "out", format="opus")
    assert report.sample_rate == 12_000
    assert "opus files have no 11025 Hz: the tracks are at 12000 Hz" in report.notes
    assert report.tracks[0].name == "talk_speaker1.opus"
    assert soundfile.info(report.tracks[0]).samplerate == 12_000
    assert soundfile.info(report.tracks[0]).duration == pytest.approx(2.0, abs=0.01)


@pytest.mark.parametrize(
    "options", [{"format": "flac", "subtype": "float"}, {"format": "aac"}, {"subtype": "u8"}]
)
def test_a_format_that_nobody_writes_is_refused(separator, tmp_path, options):
    with pytest.raises(ValueError, match=r"cannot write .* files with .* samples"):
        separator.separate_file(tmp_path / "talk.wav", tmp_path / "out", **options)


def test_one_channel_can_be_chosen(separator, voices, tmp_path):
    left, right = voices(8000), voices(8000, seed=1)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 8000, subtype="FLOAT")
    path = separator.separate_file(tmp_path / "stereo.wav", tmp_path, channel=2)[0]
    np.testing.assert_array_equal(
        soundfile.read(path, dtype="float32")[0], separator.separate(right, 8000)[0]
    )
    with pytest.raises(ValueError, match="has 2 channels, so there is no channel 3"):
        separator.separate_file(tmp_path / "stereo.wav", tmp_path, channel=3, suffix="x")


def test_a_binary_stream_is_a_recording_too(separator, voices, tmp_path):
    memory = io.BytesIO()
    soundfile.write(memory, voices(8000), 8000, format="WAV")
    memory.seek(0)
    paths = separator.separate_file(memory, tmp_path, name="call")
    assert paths[0].name == "call_speaker1.wav"
    with pytest.raises(AudioError, match=r"^stream: empty file"):
        separator.separate_file(io.BytesIO(), tmp_path, name="nothing")
    assert names(tmp_path) == ["call_separation.json", "call_speaker1.wav", "call_speaker2.wav"]


def test_two_runs_into_the_same_files_do_not_mix(separator, voices, tmp_path):
    soundfile.write(tmp_path / "talk.wav", voices(8000), 8000)
    os.mkfifo(tmp_path / "pipe")
    outcome = []

    def slow_run():
        with pytest.raises(FileExistsError, match="another recording") as caught:
            separator.separate_file(tmp_path / "pipe", tmp_path / "out", name="talk")
        outcome.append(caught.value)

    slow = threading.Thread(target=slow_run)
    slow.start()
    with (tmp_path / "pipe").open(
        "wb"
    ) as pipe:  # opens when the slow run has found no outputs and waits for input
        paths = separator.separate_file(tmp_path / "talk.wav", tmp_path / "out")
        before = [path.read_bytes() for path in paths]
        soundfile.write(tmp_path / "other.wav", voices(8000, seed=1), 8000)
        pipe.write((tmp_path / "other.wav").read_bytes())
    slow.join()
    assert len(outcome) == 1
    assert [path.read_bytes() for path in paths] == before
    assert names(tmp_path / "out") == ["talk_separation.json", "talk_speaker1.wav", "talk_speaker2.wav"]


def test_an_output_folder_that_cannot_be_is_refused_before_the_recording_is_read(separator, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=re.escape(f"cannot write in {tmp_path / 'out'}: it is a file")):
        separator.separate_file(tmp_path / "missing.wav", tmp_path / "out")


@pytest.mark.gpu
def test_a_device_out_of_memory_leaves_the_recording_to_the_processor(model_folder, voices):
    separator = Separator.from_pretrained(model_folder, "cuda")
    waveform = voices(16_000)
    expected = separator.separate(waveform, 8000)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tracks = separator.separate(waveform, 8000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("separated on the CPU" in str(warning.message) for warning in said)
    np.testing.assert_allclose(tracks, expected, atol=1e-2 * np.abs(expected).max())


def separate_five_minutes_in_60_mb(model_folder, answer):
    separator = Separator.from_pretrained(model_folder, "cpu")
    separator.separate(np.random.default_rng(0).standard_normal(8000).astype(np.float32), 8000)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    waveform = np.random.default_rng(0).standard_normal(2_400_000).astype(np.float32)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 60_000_000, -1))
    try:
        separator.separate(waveform, 8000)
    except NotEnoughMemory as error:
        answer.write_text(str(error))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from /proc")
def test_a_recording_too_long_for_the_memory_is_explained(model_folder, tmp_path):
    process = start(separate_five_minutes_in_60_mb, model_folder, tmp_path / "answer")
    process.join(timeout=300)
    assert process.exitcode == 0
    answer = (tmp_path / "answer").read_text()
    assert re.match(r"5\.0 minutes need about [\d.]+ MB of memory and [\d.]+ MB may be used", answer), answer


class ToneSeparator(SepReformer):
    """Split at 1 kHz; every other call swaps the tracks."""

    n_calls = 0

    def separate_in_pieces(self, mixture, *arguments, **options):
        self.n_calls += 1
        low = torch.fft.irfft(torch.fft.rfft(mixture)[:, : mixture.shape[-1] // 8], n=mixture.shape[-1])
        estimates = torch.stack([low, mixture - low], dim=1)
        return estimates.flip(1) if self.n_calls % 2 else estimates


@pytest.fixture
def two_tones():
    """20 seconds of two talkers, who pause together from 5 s to 13 s."""
    time = np.arange(20 * 8000) / 8000
    talkers = 0.3 * np.stack([np.sin(2 * np.pi * 300 * time), np.sin(2 * np.pi * 2000 * time)])
    talkers[:, 5 * 8000 : 13 * 8000] = 0
    return talkers.astype(np.float32)


def test_chunks_keep_each_talker_and_the_report_lists_where_that_is_in_doubt(two_tones, tmp_path):
    network = ToneSeparator(SepReformerConfig(n_filters=16, n_channels=8, n_heads=2, n_stages=2))
    separator = Separator(network, "cpu", mode="chunks", chunk_seconds=4, overlap_seconds=1)
    soundfile.write(tmp_path / "talk.wav", two_tones.sum(0), 8000, subtype="FLOAT")
    shares = []
    report = separator.separate_file_with_report(
        tmp_path / "talk.wav", tmp_path, progress=lambda step, share: shares.append(share)
    )
    tracks = np.stack([soundfile.read(path)[0] for path in report.tracks])
    if np.abs(tracks[0, :8000] - two_tones[0, :8000]).max() > 0.1:  # which one is first is the model's choice
        tracks = tracks[::-1]
    assert np.sqrt(np.square(tracks - two_tones)[:, : 10 * 8000].mean()) < 0.01
    assert (report.mode, report.disk_bytes) == ("chunks", 0)
    assert report.n_joins == 4  # five chunks hold something, and all but the first are joined
    (doubtful,) = report.doubtful_joins
    assert 10 < doubtful["seconds"] < 13
    assert doubtful["margin"] == 0
    expected = "two talkers may have changed tracks at 1 of 4 joins: 0:00:1"
    assert [warning[: len(expected)] for warning in report.warnings] == [expected]
    written = json.loads((tmp_path / "talk_separation.json").read_text())
    assert written["doubtful_joins"] == [doubtful]
    assert len([share for share in shares if 0.1 < share < 0.9]) >= 4


@pytest.mark.slow
def test_a_recording_goes_to_the_disk_and_says_so_before_it_starts(separator, model_folder, voices, tmp_path):
    n_samples = 20 * 8000
    soundfile.write(tmp_path / "talk.wav", voices(n_samples), 8000, subtype="FLOAT")
    limit = need_beside_frames(separator.model, n_samples) + 4 * n_samples
    tight = Separator.from_pretrained(model_folder, "cpu", memory=limit)
    steps = []
    report = tight.separate_file_with_report(
        tmp_path / "talk.wav",
        tmp_path,
        notify=lambda note: steps.append(note),
        progress=lambda step, share: steps.append(step),
    )
    assert report.disk_bytes > 1_000_000
    assert report.memory_bytes <= limit
    (note,) = report.notes
    assert note == (
        f"about {format_size(report.memory_bytes)} of memory and {format_size(report.disk_bytes)} of "
        "temporary files are needed"
    )
    assert steps.index(note) < steps.index("separating")
    tracks = np.stack([soundfile.read(path, dtype="float32")[0] for path in report.tracks])
    np.testing.assert_array_equal(tracks, separator.separate(voices(n_samples), 8000))


def test_the_bar_moves_while_the_model_works(separator, voices, tmp_path):
    soundfile.write(tmp_path / "talk.wav", voices(80_000), 8000)
    steps = []
    separator.separate_file(tmp_path / "talk.wav", tmp_path, progress=lambda *step: steps.append(step))
    inside = [share for step, share in steps if step == "separating"]
    assert len(set(inside)) > 10
    assert inside == sorted(inside)
    assert inside[-1] == pytest.approx(0.9)


def test_random_weights_are_said_to_be_random():
    with pytest.warns(UserWarning, match=r"fla-sepreformer-t has random weights"):
        Separator.from_pretrained("fla-sepreformer-t", "cpu")
