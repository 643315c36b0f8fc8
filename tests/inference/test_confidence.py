"""What the confidence says of tracks whose quality is known."""

import numpy as np
import pytest

from flasepformer.audio import StoredSignals, read_audio
from flasepformer.inference import Separator
from flasepformer.inference.confidence import (
    MAX_WINDOWS,
    SURE,
    UNSURE,
    again_feature,
    confidence_of,
    examine,
    features_of,
    probability_of,
)

RATE = 8000


@pytest.fixture(scope="module")
def talkers():
    """Eight seconds of two people who read, as they were recorded for the demo: (talker, time)."""
    from pathlib import Path

    demo = Path(__file__).parents[2] / "demo"
    recordings = [read_audio(demo / f"source{n}.flac") for n in (1, 2)]
    return np.stack([recording.samples[0, :128_000] for recording in recordings])


def judge(mixture, tracks, rate):
    return probability_of(examine(mixture, tracks, rate)[0])


def stored(samples):
    signals = StoredSignals(*samples.shape)
    signals.write(0, samples)
    return signals


def test_clean_talkers_are_sure_and_what_mixes_them_is_unsure(talkers):  # issue 16
    mixture = talkers.sum(axis=0)
    sure = judge(mixture, talkers, 16_000)
    assert (sure > SURE).all()
    unseparated = judge(mixture, np.stack([0.5 * mixture, 0.5 * mixture]), 16_000)
    assert (unseparated < 0.05).all()
    halves = np.stack([0.7 * talkers[0] + 0.3 * talkers[1], 0.3 * talkers[0] + 0.7 * talkers[1]])  # 7 dB
    worse = judge(mixture, halves, 16_000)
    assert (worse < UNSURE).all()


def test_neither_level_nor_order_changes_what_is_said(talkers):
    mixture = talkers.sum(axis=0)
    expected = judge(mixture, talkers, 16_000)
    np.testing.assert_allclose(judge(8 * mixture, 8 * talkers, 16_000), expected, atol=1e-3)
    np.testing.assert_allclose(judge(mixture, talkers[::-1], 16_000), expected[::-1], atol=1e-6)


def test_features_of_tracks_in_separate_bands_are_known_beforehand():
    times = np.arange(4 * RATE) / RATE
    tracks = np.stack([np.sin(2 * np.pi * 500 * times), 0.1 * np.sin(2 * np.pi * 3000 * times)]).astype(
        np.float32
    )
    shared, _, _, _, rest, level, difference = features_of(tracks.sum(axis=0), tracks, RATE)[1]
    assert shared == pytest.approx(np.log(1e-3), abs=1.0)
    assert rest == pytest.approx(np.log(0.02))  # they add up to the mixture; less is not told apart
    assert level == pytest.approx(-np.log(101), abs=0.01)
    assert difference == pytest.approx(np.log(100), abs=0.01)


def test_confidence_over_time_shows_where_the_tracks_are_the_same(talkers):
    tracks = np.concatenate(
        [talkers[:, :80_000], 0.5 * np.stack([talkers.sum(axis=0)] * 2)[:, :80_000]], axis=1
    )
    mixture = np.concatenate([talkers.sum(axis=0)[:80_000]] * 2)
    found = confidence_of(stored(mixture[None]), stored(tracks), 16_000)
    assert found.starts == (0.0, 5.0)
    assert min(row[0] for row in found.over_time) > SURE
    assert max(row[1] for row in found.over_time) < 0.05
    assert found.as_dict()["tracks"] == found.tracks
    assert all(0.3 < share < 0.7 for share in found.tracks)


@pytest.mark.slow
def test_silent_tracks_have_none_and_long_recordings_few_pieces(talkers):
    silence = np.zeros((2, 16_000), np.float32)
    found = confidence_of(stored(silence[:1]), stored(silence), RATE)
    assert (found.tracks, found.unsure) == ((None, None), ())
    tracks = np.tile(talkers[:, :16_000], (1, 1300))  # 5 hours, were it at 1150 Hz
    found = confidence_of(stored(tracks.sum(axis=0)[None]), stored(tracks), 1150)
    assert len(found.starts) <= MAX_WINDOWS
    assert found.starts[1] - found.starts[0] > 10


def test_a_track_that_falls_in_two_is_less_sure_also_where_only_a_neighbour_was_asked(talkers):  # issue 16
    mixture, asked = np.tile(talkers.sum(axis=0), 7), []  # 56 s: 11 pieces

    def found(shares):
        def separate_again(track):
            asked.append(len(track))
            return shares[len(asked) % 2 - 1]  # of the first track, then of the second one

        asked.clear()
        return confidence_of(stored(mixture[None]), stored(np.tile(talkers, 7)), 16_000, separate_again)

    whole, torn = found((1e-6, 1e-6)), found((0.4, 1e-6))
    assert asked == [80_000] * 2  # one of eleven pieces, of two tracks
    assert torn.tracks[0] < whole.tracks[0] - 0.02
    assert torn.tracks[1] == whole.tracks[1]
    assert all(now < before for now, before in zip(torn.over_time[0], whole.over_time[0], strict=True))
    assert again_feature(0.0) == pytest.approx(np.log(1e-3))


@pytest.mark.slow
def test_a_track_of_two_talkers_falls_in_two_and_one_of_one_does_not(talkers):  # issue 16
    from flasepformer.audio import resample

    default = Separator.from_pretrained(device="cpu")
    first, second = (resample(talker, 16_000, RATE)[: 5 * RATE] for talker in talkers)
    assert default.share_again(first) < 0.05
    assert default.share_again(first + second) > 0.2
    assert np.isnan(default.share_again(np.zeros(RATE, np.float32)))


@pytest.mark.slow
def test_tracks_are_separated_again_where_the_memory_allows_it_and_the_model_is_known(separator, tmp_path):
    import soundfile

    def asks(separator):
        asked = []
        separator.share_again = lambda track: asked.append(len(track)) or 0.0
        samples = 0.1 * np.random.default_rng(0).standard_normal(6 * RATE)
        soundfile.write(tmp_path / "talk.wav", samples, RATE)
        separator.separate_file(tmp_path / "talk.wav", tmp_path / "out", overwrite=True)
        return asked

    assert asks(Separator.from_pretrained(device="cpu", memory="300M")) == 2 * [5 * RATE]
    assert asks(Separator.from_pretrained(device="cpu", memory="150M")) == []
    assert asks(separator) == []  # of another model


def test_the_report_has_it(separator, voices, tmp_path):
    import soundfile

    soundfile.write(tmp_path / "talk.wav", voices(96_000), RATE)
    report = separator.separate_file_with_report(tmp_path / "talk.wav", tmp_path)
    assert report.confidence["starts"] == (0.0, 5.0, 10.0)[: len(report.confidence["starts"])]
    assert len(report.confidence["tracks"]) == 2
    assert max(report.confidence["tracks"]) < 0.8  # random weights separate nothing
    call = np.stack([voices(16_000), voices(16_000, seed=1)], 1)
    call[:8_000, 1] = call[8_000:, 0] = 0  # each in turn
    soundfile.write(tmp_path / "call.wav", call, RATE)
    assert separator.separate_file_with_report(tmp_path / "call.wav", tmp_path).confidence is None
    assert isinstance(separator, Separator)
