import numpy as np
import pytest

from flasepformer.audio import talkers_have_channels
from flasepformer.audio.channel_levels import ChannelLevels

RATE = 8000


@pytest.fixture(scope="module")
def interview():
    """Two who take turns for 20 s, (talker, time): noise in syllables of 0.2 s, nobody for a tenth of it."""
    rng = np.random.default_rng(0)
    loudness = np.repeat(rng.random((2, 100)), 1600, axis=1)
    turn = np.repeat(rng.permutation(np.repeat([0, 1], 10)), RATE)
    quiet = np.repeat(rng.random(200) < 0.1, 800)
    talks = (np.stack([turn == 0, turn == 1]) & ~quiet).astype(float)
    return (0.1 * talks * loudness * rng.standard_normal((2, 20 * RATE))).astype(np.float32)


def with_crosstalk(talkers, db):
    return talkers + np.float32(10 ** (-db / 20)) * np.roll(talkers[::-1], 24, axis=1)


@pytest.mark.parametrize("db", [10, 12, 15, 20, 30, 60])
def test_an_interview_with_crosstalk_has_a_channel_for_each(interview, db):
    assert talkers_have_channels(with_crosstalk(interview, db), RATE)


def test_two_microphones_on_one_table_have_not(interview):
    assert not talkers_have_channels(with_crosstalk(interview, 3), RATE)


def test_hum_and_steady_noise_are_no_talker(interview):
    both = interview.sum(0)
    hum = 0.02 * np.sin(2 * np.pi * 50 * np.arange(len(both)) / RATE)
    noise = 0.02 * np.random.default_rng(1).standard_normal(len(both))
    for other in (hum, noise):
        assert not talkers_have_channels(np.stack([both, other]).astype(np.float32), RATE)


@pytest.mark.parametrize("length", [160, 4097])
def test_blocks_of_any_length_measure_the_same(interview, length):
    whole, pieces = ChannelLevels(RATE), ChannelLevels(RATE)
    whole.add(interview)
    for first in range(0, interview.shape[1], length):
        pieces.add(interview[:, first : first + length])
    np.testing.assert_allclose(whole.levels(), pieces.levels(), atol=1e-3)
    assert whole.levels().shape == (2, 20 * 50 - 4)
