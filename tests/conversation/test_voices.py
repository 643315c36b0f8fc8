"""What the small networks of the package hear in the real speech of the demo."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from flasepformer.audio import resample
from flasepformer.conversation import Conversation
from flasepformer.conversation.activity import counted_activity, runs
from flasepformer.conversation.conversation import is_one_person
from flasepformer.conversation.counting import talker_chances
from flasepformer.conversation.frames import sweep
from flasepformer.conversation.mels import HOP, log_mel, read_mels
from flasepformer.conversation.turns import mend
from flasepformer.conversation.voice import SAMPLE_RATE, voice_of
from flasepformer.conversation.voice import log_mel as voice_mel
from flasepformer.inference.finishing import array_reader

RATE = 8000
DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="module")
def voices():
    """Two people who read, (talker, time) at 8 kHz, of equal loudness."""
    read = [soundfile.read(DEMO / f"source{number}.flac", dtype="float32") for number in (1, 2)]
    speech = [resample(samples, rate, RATE) for samples, rate in read]
    n = min(map(len, speech))
    return np.stack([0.05 * samples[:n] / samples[:n].std() for samples in speech])


def turns_of(voices, plan, seconds=1.5, pause=0.0):
    """Return sources of turns one after the other: who speaks in each, or both; pauses end them."""
    n = round(seconds * RATE)
    sources = np.zeros((2, len(plan) * n), np.float32)
    for turn, who in enumerate(plan):
        for talker in who:
            at = turn * n % (voices.shape[1] - n)
            sources[talker, turn * n : (turn + 1) * n] = voices[talker, at : at + n]
        sources[:, (turn + 1) * n - round(pause * RATE) : (turn + 1) * n] = 0
    return sources


def leaking(sources):
    return (0.97 * sources + 0.03 * sources[::-1]).astype(np.float32)


@pytest.mark.slow
def test_a_voice_is_itself_again_and_not_another():
    (one, again), (other, _) = (
        [voice_of(part) for part in np.array_split(soundfile.read(path, dtype="float32")[0], 2)]
        for path in (DEMO / "source1.flac", DEMO / "source2.flac")
    )
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    assert one @ again > one @ other + 0.4


def test_a_voice_is_that_of_the_published_network_from_near_and_from_far():
    samples, rate = soundfile.read(DEMO / "source1.flac", dtype="float32")
    assert rate == SAMPLE_RATE
    # By the code and the weights that 3D-Speaker has published and the features of kaldi-native-fbank 1.23.0.
    published = [-0.0509, -0.0528, -0.0169, -0.0590, 0.0432, -0.0031, -0.0138, -0.0728]
    np.testing.assert_allclose(voice_of(samples[:32000])[:8], published, atol=2e-3)
    np.testing.assert_allclose(voice_of(1e-3 * samples[:32000])[:8], published, atol=2e-3)


def test_mels_of_voices_are_those_of_kaldi():
    seconds = np.arange(800) / SAMPLE_RATE
    tones = 0.1 * np.sin(2 * np.pi * 440 * seconds) + 0.01 * np.sin(2 * np.pi * 5000 * seconds)
    found = voice_mel(torch.from_numpy(tones.astype(np.float32)))
    assert found.shape == (3, 80)
    by_kaldi = [-14.089, -7.788, -10.580, -15.942]  # kaldi-native-fbank 1.23.0, without dither
    np.testing.assert_allclose(found[1, [0, 10, 20, 40]], by_kaldi, atol=2e-3)


def test_mels_read_in_pieces_are_those_of_the_whole(voices):
    whole = log_mel(voices)
    pieces = read_mels(array_reader(voices), voices.shape[1], RATE, 50, 80)
    np.testing.assert_allclose(pieces.numpy(), whole[:, 50:80].numpy(), atol=1e-4)
    assert whole.shape[1] == -(-voices.shape[1] // HOP)


def test_it_is_counted_how_many_talk(voices, passed_of):
    plan = [(), (0,), (0, 1), (1,), (), (0, 1), (0,), ()]
    sources = turns_of(voices, plan)
    passed = passed_of(sources.sum(0), RATE, leaking(sources))
    frames = sweep(passed)
    chances = talker_chances(passed, frames)
    np.testing.assert_allclose(chances.sum(0), 1, atol=1e-5)
    talks = counted_activity(frames, chances)
    wanted = np.repeat([[talker in who for who in plan] for talker in (0, 1)], 75, axis=1)
    assert (talks == wanted).mean() > 0.85  # their own pauses count as errors
    assert talks.all(0)[(wanted.sum(0) < 2)].mean() < 0.08


@pytest.mark.slow
def test_a_turn_on_the_wrong_track_is_mended(voices, passed_of):
    plan = [(0,), (1,), (0,), (1,), (0,), (1,), (0,), (1,)]
    sources = turns_of(voices, plan, seconds=2.5, pause=0.3)
    estimates = leaking(sources)
    wrong = slice(3 * 20000, 4 * 20000)
    estimates[:, wrong] = estimates[::-1, wrong]
    passed = passed_of(sources.sum(0), RATE, estimates)
    frames = sweep(passed)
    found = mend(passed, counted_activity(frames, talker_chances(passed, frames)))
    assert found.n_mended >= 1
    (first, last), *others = runs(found.swapped)
    assert not others
    assert (first, last) == pytest.approx((375, 500), abs=25)
    finished = Conversation().finish(passed)
    tracks = finished.tracks(0, passed.n_samples)
    for track, source in zip(tracks, sources, strict=True):
        assert np.corrcoef(track, source)[0, 1] > 0.97
    assert finished.facts["n_mended"] == found.n_mended


@pytest.mark.slow
@pytest.mark.parametrize("is_one", [True, False])
def test_who_never_talks_alone_is_somebody_else_only_with_another_voice(voices, passed_of, is_one):
    sources = turns_of(voices, [(0,), (0, 1), (0,), (0,), (0, 1), (0,)], seconds=2.5)
    if is_one:
        sources[1] = 0
    estimates = sources if not is_one else np.stack([0.6 * sources[0], 0.4 * sources[0]])
    passed = passed_of(sources.sum(0), RATE, estimates)
    activity = np.ones((2, 750), bool)
    activity[1, :125] = activity[1, 250:500] = activity[1, 625:] = False
    turns = mend(passed, activity)
    assert (turns.likeness > 0.5) if is_one else (turns.likeness < 0.3)
    assert is_one_person(activity, turns) == is_one
    assert is_one or (turns.n_mended == 0 and len(turns.doubts) == 0)


@pytest.mark.slow
def test_one_voice_cut_into_two_tracks_is_one_person(voices, passed_of):
    sources = turns_of(voices, [(0,)] * 6)
    halves = np.repeat([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], 12000, axis=1)
    passed = passed_of(sources[0], RATE, leaking((sources[:1] * halves).astype(np.float32)))
    finished = Conversation(speakers="auto").finish(passed)
    assert finished.labels == ("speaker1",)
    assert "one person talks" in finished.notes[0]
