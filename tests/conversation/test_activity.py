import numpy as np
import pytest

from flasepformer.conversation.activity import (
    ActivityRule,
    activity_of,
    filled,
    rule_for_channels,
    runs,
    widened,
    without_short,
)
from flasepformer.conversation.frames import Frames, frame_edges, n_frames, sweep


def frames_of(*levels_db):
    """Return frames in which every track has one level for a second each; the recording is their sum."""
    powers = np.repeat(10 ** (np.array(levels_db) / 10), 50, axis=1).astype(np.float32)
    return Frames(powers.sum(0), powers, powers)


def seconds_of(active):
    return [(first / 50, last / 50) for first, last in runs(active)]


def test_who_speaks_is_found_to_20_ms():
    one, other = activity_of(frames_of([-80, -26, -26, -60, -80], [-80, -70, -26, -26, -80]))
    assert seconds_of(one) == [pytest.approx((1, 3), abs=0.021)]
    assert seconds_of(other) == [pytest.approx((2, 4), abs=0.021)]


def test_a_remainder_20_db_below_the_talker_is_nobody():
    one, other = activity_of(frames_of([-80, -26, -26, -80], [-90, -46, -46, -90]))
    assert one.sum() == pytest.approx(100, abs=10)
    assert not other.any()


def test_crosstalk_of_10_db_is_nobody_on_a_channel():
    frames = frames_of([-80, -20, -30, -20, -21, -80], [-80, -30, -20, -30, -21, -80])
    one, other = activity_of(frames)
    assert seconds_of(one) == [pytest.approx((1, 5), abs=0.021)]  # goes on through the other's second
    rule = rule_for_channels(frames, ActivityRule())
    assert rule.ratio_on_db == pytest.approx(-5, abs=0.1)
    one, other = activity_of(frames, rule)
    assert seconds_of(one) == [pytest.approx(span, abs=0.15) for span in ((1, 2), (3, 5))]
    assert seconds_of(other) == [pytest.approx(span, abs=0.15) for span in ((2, 3), (4, 5))]
    quiet = frames_of([-80, -20, -60, -80], [-80, -60, -20, -80])
    assert rule_for_channels(quiet, ActivityRule()) == ActivityRule()


def test_nobody_speaks_in_silence_and_in_noise_below_80_db():
    assert not activity_of(frames_of([-120] * 3, [-120] * 3)).any()
    assert not activity_of(frames_of([-90] * 3, [-85] * 3)).any()


def test_the_level_of_a_recording_does_not_matter():
    levels = np.array([[-60, -20, -25, -60], [-60, -60, -22, -20]])
    assert (activity_of(frames_of(*levels)) == activity_of(frames_of(*(levels - 15)))).all()


def test_short_pauses_are_filled_and_short_sounds_dropped():
    active = np.zeros(100, bool)
    active[10:30] = active[40:50] = active[90:94] = True
    assert runs(filled(active, 0.2)) == [(10, 50), (90, 94)]
    assert runs(without_short(active, 0.1)) == [(10, 30), (40, 50)]
    assert runs(widened(active, 0.1, 0.2)) == [(5, 60), (85, 100)]


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_frames_last_20_ms_at_any_rate(rate):
    edges = frame_edges(0, 500, rate)
    assert edges[-1] == 10 * rate
    assert np.abs(edges - np.arange(501) * rate / 50).max() < 1
    assert n_frames(10 * rate, rate) == 500
    assert n_frames(10 * rate + 1, rate) == 501


def test_a_sweep_in_pieces_measures_every_frame(talk):
    passed, _, _ = talk
    frames = sweep(passed)
    estimates = passed.estimates(0, passed.n_estimate_samples)
    expected = np.square(estimates).reshape(2, -1, 160).mean(-1)
    np.testing.assert_allclose(frames.estimates, expected, rtol=1e-4, atol=1e-12)
    assert len(frames) == 400
