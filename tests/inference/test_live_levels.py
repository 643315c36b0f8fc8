"""Levels of a stream: what was loud so far, and the gain at which the tracks explain it."""

import numpy as np
import pytest

from flasepformer.inference.live_levels import PastGain, PastLevel


def test_the_level_is_that_of_the_talking_and_pauses_do_not_lower_it():
    level, talking = PastLevel(0.1), np.full(100, 0.2, np.float32)
    assert level.take(np.zeros(100, np.float32)) == 0
    assert level.take(talking) == pytest.approx(0.2)
    assert level.take(0.001 * talking) == pytest.approx(0.2)  # 60 dB below
    assert level.take(2 * talking) == pytest.approx((0.2**2 / 2 + 0.4**2 / 2) ** 0.5, rel=1e-2)


def test_after_a_minute_what_was_loud_hardly_counts():
    level = PastLevel(0.1)
    level.take(np.full(100, 0.5, np.float32))
    for _ in range(600):
        last = level.take(np.full(100, 0.1, np.float32))
    assert last == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    ("loudness", "first", "settled"),
    [
        (1.0, 1, 1),
        (0.5, 1, 1),
        (4.0, 1, 1),
        (0.01, 1, 0.01 ** (30 / 31) / 0.35),
        (100, 1, 100 ** (30 / 31) / 5.6),
    ],
)
def test_a_network_is_given_what_it_takes_as_it_is_and_more_or_less_of_the_rest(loudness, first, settled):
    level, block = PastLevel(0.05), np.full(100, 0.07 * loudness, np.float32)
    excesses = [level.take_excess(block, 0.07) for _ in range(6000)]  # 5 minutes, of which 30 s count
    assert excesses[0] == pytest.approx(first)  # talking may begin softly
    assert excesses[-1] == pytest.approx(settled, rel=0.01)
    assert PastLevel(0.05).take_excess(np.zeros(100, np.float32), 0.07) == 1


@pytest.mark.parametrize("scale", [1.0, 700.0, 1e-3])
def test_tracks_of_any_scale_explain_the_mixture_from_the_first_block_on(scale):
    mixture = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    tracks = np.float32(scale) * np.stack([0.2 * mixture, 0.3 * mixture])
    gain = PastGain(0.1)
    blocks = [gain.apply(tracks[:, i : i + 100], mixture[i : i + 100]).sum(0) for i in (0, 100, 200)]
    assert np.allclose(np.concatenate(blocks), mixture, rtol=1e-5)


def test_tracks_that_become_quieter_are_raised_without_a_jump():
    mixture = np.ones(200, np.float32)
    gain = PastGain(1e-6)
    assert gain.apply(np.ones((1, 100), np.float32), mixture[:100]) == pytest.approx(1)
    raised = gain.apply(0.5 * np.ones((1, 100), np.float32), mixture[100:])[0]
    # 100 x 1 x 1 + 100 x 1 x 0.5 over 100 x 1 + 100 x 0.25 is a gain of 1.2
    assert (raised[0], raised[-1]) == pytest.approx((0.5 * 1.002, 0.5 * 1.2), rel=1e-5)


def test_tracks_that_have_nothing_of_the_mixture_are_a_quarter_as_loud():
    mixture, other = np.array([1, 1] * 50, np.float32), np.array([[300, -300] * 50], np.float32)
    assert np.abs(PastGain(0.1).apply(other, mixture)) == pytest.approx(0.25)
