"""A recording through memory and through temporary files: the same samples (issue 16)."""

import numpy as np
import pytest
import soundfile

from flasepformer.audio import read_audio
from flasepformer.inference import Separator
from flasepformer.inference.estimates import need_beside_frames, signal_bytes

N_SAMPLES = 60_000


@pytest.fixture
def tight(model_folder, separator):
    """Return a maker of separators with no memory for what grows with a recording, but for itself."""

    def make(rate, n_channels):
        least = need_beside_frames(separator.model, round(N_SAMPLES * 8000 / rate))
        return Separator.from_pretrained(model_folder, "cpu", memory=least + 4 * n_channels * N_SAMPLES)

    return make


def recording(folder, voices, rate, n_channels, name="talk.wav"):
    """Voices with a pause of a few seconds in the middle; the channels have all talkers, but not equally."""
    near, far = voices(N_SAMPLES), voices(N_SAMPLES, seed=1)
    near[20_000:50_000] = far[20_000:50_000] = 0
    channels = [near + weight * far for weight in np.linspace(1, 0.5, n_channels)]
    soundfile.write(folder / name, np.stack(channels, 1), rate, subtype="PCM_24")
    return folder / name


@pytest.mark.parametrize(
    ("rate", "n_channels", "options"),
    [
        (8_000, 1, {}),
        (44_100, 2, {"format": "flac"}),
        (11_025, 3, {"format": "mp3"}),
        (48_000, 1, {"format": "opus"}),
        (16_000, 2, {"format": "wav", "subtype": "pcm16"}),
        (8_000, 2, {"channel": 2}),
    ],
)
def test_what_lies_in_files_gives_the_same_tracks(
    separator, tight, voices, tmp_path, rate, n_channels, options
):
    path = recording(tmp_path, voices, rate, n_channels)
    expected = separator.separate_file_with_report(path, tmp_path / "memory", **options)
    report = tight(rate, n_channels).separate_file_with_report(path, tmp_path / "disk", **options)
    assert expected.disk_bytes == 0
    assert report.disk_bytes > signal_bytes(2, round(N_SAMPLES * 8_000 / rate))
    for track, other in zip(report.tracks, expected.tracks, strict=True):
        assert track.read_bytes() == other.read_bytes() or options.get("format") == "opus"
        np.testing.assert_array_equal(read_audio(track).samples, read_audio(other).samples)
    if options.get("format", "wav") == "wav":  # the pause is longer than a second
        samples = read_audio(report.tracks[0]).samples[0]
        assert samples.any()
        assert not samples[25_000:45_000].any()


def test_samples_in_memory_give_the_tracks_of_the_file(separator, tight, voices, tmp_path):
    path = recording(tmp_path, voices, 22_050, 2)
    tracks = [
        read_audio(track).samples[0] for track in tight(22_050, 2).separate_file(path, tmp_path / "out")
    ]
    source = read_audio(path)
    np.testing.assert_array_equal(separator.separate(source.samples, 22_050), np.stack(tracks))


def test_a_talker_on_each_channel_passes_through_block_by_block(tight, voices, tmp_path):
    stereo = np.stack([voices(N_SAMPLES), voices(N_SAMPLES, seed=1)])
    stereo[0, :20_000], stereo[1, -20_000:] = 0, 0  # one talks first, then both, then the other one
    soundfile.write(tmp_path / "call.wav", stereo.T, 8000, subtype="FLOAT")
    report = tight(8000, 2).separate_file_with_report(tmp_path / "call.wav", tmp_path / "out")
    assert (report.mode, report.disk_bytes) == ("channels", 0)
    np.testing.assert_array_equal(np.stack([read_audio(path).samples[0] for path in report.tracks]), stereo)


@pytest.mark.slow
def test_chunks_in_files_are_those_in_memory(model_folder, voices, tmp_path):
    path = recording(tmp_path, voices, 8_000, 1)
    options = {"mode": "chunks", "chunk_seconds": 2, "overlap_seconds": 0.5}
    expected = Separator.from_pretrained(model_folder, "cpu", **options).separate_file_with_report(
        path, tmp_path / "memory"
    )
    memory = expected.memory_bytes - signal_bytes(2, N_SAMPLES)
    tight = Separator.from_pretrained(model_folder, "cpu", memory=memory, **options)
    report = tight.separate_file_with_report(path, tmp_path / "disk")
    assert (report.mode, report.n_joins, expected.disk_bytes) == ("chunks", expected.n_joins, 0)
    assert report.disk_bytes == signal_bytes(2, N_SAMPLES)
    for track, other in zip(report.tracks, expected.tracks, strict=True):
        assert track.read_bytes() == other.read_bytes()


def test_tracks_without_room_are_refused_before_the_model_begins(separator, voices, tmp_path, monkeypatch):
    import shutil

    path = recording(tmp_path, voices, 8_000, 1)
    free = shutil.disk_usage(tmp_path)
    steps = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free._replace(free=479_999))
    with pytest.raises(OSError, match=r"disk full: the tracks need 0\.5 MB and .* has 0\.5 MB free"):
        separator.separate_file(path, tmp_path / "out", progress=lambda step, share: steps.append(step))
    assert "separating" not in steps
