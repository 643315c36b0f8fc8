import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flasepformer.audio import mix_down, talkers_have_channels


@pytest.fixture
def voices():
    return np.random.default_rng(1).standard_normal((64, 4000)).astype(np.float32)


def test_mean_of_the_channels(voices):
    mono, warnings = mix_down(voices[:3])
    np.testing.assert_allclose(mono, voices[:3].mean(axis=0), atol=1e-6)
    assert mono.dtype == np.float32
    assert warnings == ()


@pytest.mark.parametrize("n_channels", [1, 2, 3])
def test_identical_channels_come_back_bit_for_bit(voices, n_channels):
    mono, warnings = mix_down(np.repeat(voices[:1], n_channels, axis=0))
    np.testing.assert_array_equal(mono, voices[0])
    assert warnings == ()


def test_channels_in_antiphase_give_the_stronger_one(voices):
    mono, warnings = mix_down(np.stack([voices[0], -1.05 * voices[0]]))
    np.testing.assert_array_equal(mono, np.float32(-1.05) * voices[0])
    assert warnings == ("the channels cancel one another (they are in antiphase); channel 2 alone is used",)


def test_unrelated_channels_of_an_array_do_not_count_as_cancelling(voices):
    assert mix_down(voices)[1] == ()


def test_silence_stays_silence():
    mono, warnings = mix_down(np.zeros((2, 100), np.float32))
    np.testing.assert_array_equal(mono, np.zeros(100))
    assert warnings == ()


@settings(deadline=None)
@given(gain=st.floats(1e-6, 1e30))
def test_level_does_not_change_the_decision(gain):
    left = np.random.default_rng(1).standard_normal(100)
    for right in (-left, np.roll(left, 7)):
        quiet, warnings = mix_down(np.stack([left, right]))
        loud, same_warnings = mix_down(gain * np.stack([left, right]))
        np.testing.assert_allclose(loud, gain * quiet, rtol=1e-9)
        assert warnings == same_warnings


def test_callers_samples_are_not_changed(voices):
    before = voices.copy()
    mix_down(voices[:1])[0][:] = 0
    np.testing.assert_array_equal(voices, before)


def test_one_axis_is_refused():
    with pytest.raises(ValueError, match=r"must be \(channel, time\)"):
        mix_down(np.zeros(100, np.float32))


def two_seconds(seed):
    """Return two seconds of noise that comes and goes like speech, 8 kHz."""
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.random(20) ** 3, 800)  # 15 dB and more between loud and quiet
    return (loudness * rng.standard_normal(16_000)).astype(np.float32)


def test_a_talker_on_each_channel_is_noticed():
    assert talkers_have_channels(np.stack([two_seconds(0), 0.3 * two_seconds(1)]), 8000)


@pytest.mark.parametrize("delay", [-300, 0, 7, 380])  # within 50 ms
def test_one_talker_at_two_microphones_is_no_talker_for_each(delay):
    speech, noise = two_seconds(0), two_seconds(1)
    assert not talkers_have_channels(np.stack([speech, np.roll(speech, delay) + 0.5 * noise]), 8000)


@pytest.mark.parametrize(
    "samples",
    [
        np.stack([two_seconds(0), np.zeros(16_000, np.float32)]),  # the other channel is silent
        np.stack([two_seconds(i) for i in range(3)]),  # an array
        np.stack([two_seconds(0), two_seconds(1)])[:, :7999],  # too short to tell
    ],
)
def test_other_recordings_have_no_channel_for_each_talker(samples):
    assert not talkers_have_channels(samples, 8000)
