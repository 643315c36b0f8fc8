import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flasepformer.audio import explaining_gains
from flasepformer.inference.levels import SilenceFinder, TalkingLevel


def distance(mixture, estimates, gains):
    return float(np.linalg.norm(mixture - gains @ estimates))


@pytest.mark.parametrize(
    "gains", [(0.5, 2.0), (-0.5, 2.0), (1e-6, 3e5)]
)  # a negative one: polarity is put right
def test_gains_that_made_the_mixture_are_found_again(gains):
    estimates = np.random.default_rng(0).standard_normal((2, 4000)) / np.abs(gains)[:, None]
    assert explaining_gains(gains @ estimates, estimates) == pytest.approx(gains, rel=1e-9)


def test_tracks_that_are_almost_the_same_share_one_gain():
    rng = np.random.default_rng(1)
    voice = rng.standard_normal(4000)
    estimates = np.stack([voice, 0.5 * voice + 1e-3 * rng.standard_normal(4000)])
    assert explaining_gains(3 * voice, estimates) == pytest.approx([2.0, 2.0], rel=1e-3)  # 2 * (1 + 0.5) = 3


def test_tracks_that_only_cancel_each_other_stay_below_twice_the_mixture():
    rng = np.random.default_rng(2)
    voice, noise = rng.standard_normal((2, 4000))
    gains = explaining_gains(voice, np.stack([noise + 0.15 * voice, -noise + 0.15 * voice]))
    assert gains == pytest.approx(
        [2.0, 2.0], rel=0.05
    )  # by least squares alone they would be 3.3, and louder still


def test_a_silent_track_or_mixture_needs_no_gain():
    voice = np.random.default_rng(3).standard_normal(4000)
    silence = np.zeros(4000)
    assert explaining_gains(2 * voice, np.stack([voice, silence])) == pytest.approx([2.0, 0.0])
    assert explaining_gains(silence, np.stack([voice, voice])).tolist() == [0.0, 0.0]
    assert explaining_gains(voice, np.stack([silence, silence])).tolist() == [0.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 9999), alike=st.floats(-1, 1), n_sources=st.integers(2, 4))
def test_the_sum_of_the_tracks_is_never_further_from_the_mixture_than_without_gains(seed, alike, n_sources):
    rng = np.random.default_rng(seed)
    sources = rng.standard_normal((n_sources, 500))
    estimates = sources + alike * sources[::-1]
    mixture = sources.sum(axis=0)
    before = distance(mixture, estimates, np.ones(n_sources))
    assert distance(mixture, estimates, explaining_gains(mixture, estimates)) <= before + 1e-9


@pytest.mark.parametrize("n_at_once", [10**6, 12_345, 799])
def test_the_level_of_talk_does_not_count_the_pauses(n_at_once):
    tone = np.sin(np.arange(8000) * 2 * np.pi / 80)
    level = TalkingLevel(800)
    for part in in_parts(np.concatenate([tone, np.zeros(72_500)]), n_at_once):
        level.add(part)
    assert level.rms() == pytest.approx(0.5**0.5)
    nothing = TalkingLevel(800)
    nothing.add(tone[:1])
    assert nothing.rms() == 0.0


@pytest.mark.parametrize("n_at_once", [10**6, 12_345, 79])
def test_silence_is_found_before_between_and_after_sounds(n_at_once):
    waveform = np.zeros(80_017)
    waveform[[30_000, 34_000, 60_000]] = 0.5  # 0.5 s between the first two is no silence
    silence = SilenceFinder(8000, threshold=1e-4)
    for part in in_parts(waveform, n_at_once):
        silence.add(part)
    blocks = [30_000 - 30_000 % 80, 34_000 - 34_000 % 80, 60_000]
    assert silence.spans() == [
        slice(0, blocks[0] - 400),
        slice(blocks[1] + 80 + 400, blocks[2] - 400),
        slice(blocks[2] + 80 + 400, 80_017),
    ]


def in_parts(waveform, length):
    return [waveform[start : start + length] for start in range(0, len(waveform), length)]
