"""Voices drawn from the model of two covariances, divided among people whose number is not told."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from flasepformer.audio import resample
from flasepformer.conversation import Conversation
from flasepformer.conversation.meeting import agreement, cut_at_pauses, meet, people_of
from flasepformer.conversation.people import (
    VoiceSpace,
    best_count,
    divide,
    join_people,
    join_turns,
    load_voice_space,
)
from flasepformer.conversation.turns import Stretch

RATE = 16_000
DEMO = Path(__file__).parents[2] / "demo"


def estimate(signals):
    """Return signals (source, time) as a model of 8 kHz has them."""
    return resample(signals, RATE, 8000).astype(np.float32)


def space_of(n=16, between=8.0):
    return VoiceSpace(np.zeros(n), np.eye(n), np.full(n, between))


def said(space, plan, seconds=2.0, seed=0):
    """Return what stretches say of their talkers (stretch, n + 1), each with a weight of 1 or so."""
    rng = np.random.default_rng(seed)
    n = len(space.between)
    people = rng.standard_normal((max(plan) + 1, n)) * np.sqrt(space.between)
    voices = people[list(plan)] + rng.standard_normal((len(plan), n))
    return space.observed(voices, seconds, counts=1.0)


def far(n):
    """Return what is told about `n` stretches far from each other: nothing."""
    return np.zeros(n), np.zeros(n, bool)


def test_evidence_is_the_density_of_a_gaussian_whose_mean_is_drawn_from_another():
    space, rng = space_of(1, between=3.0), np.random.default_rng(0)
    weights, places = rng.uniform(0.5, 2, 4), rng.standard_normal(4) * 2
    observed = np.stack([weights * places, weights], -1)
    covariance = np.diag(1 / weights) + 3.0
    log_density = -0.5 * (places @ np.linalg.inv(covariance) @ places + np.linalg.slogdet(covariance)[1])
    of_stretches = -0.5 * (weights * places**2 - np.log(weights)).sum()  # whoever says them
    assert space.evidence(observed.sum(0)) == pytest.approx(log_density - of_stretches)
    assert space.evidence(np.zeros(2)) == 0


@pytest.mark.parametrize("n_people", [1, 2, 3, 5])
def test_people_are_counted_and_told_apart(n_people):
    space = space_of()
    plan = np.random.default_rng(n_people).integers(n_people, size=40)
    plan[:n_people] = range(n_people)
    who = divide(space, said(space, plan), *far(40))
    assert who.tolist() == plan.tolist()  # numbered by their first words
    assert divide(space, said(space, plan), *far(40), n_people=4).max() == 3


def test_a_long_recording_is_joined_part_by_part_as_a_short_one_is(monkeypatch):
    space = space_of()
    plan = np.arange(90) // 3 % 3
    observed = said(space, plan)
    monkeypatch.setattr("flasepformer.conversation.people.AT_ONCE", 24)
    monkeypatch.setattr("flasepformer.conversation.people.MAX_PEOPLE", 4)
    assert divide(space, observed, *far(90)).tolist() == plan.tolist()


def test_neighbours_that_go_on_are_one_turn_until_the_voice_changes():
    space = space_of()
    plan = [0, 0, 0, 1, 1, 0]
    observed, odds, near = said(space, plan), np.full(6, 2.0), np.ones(6, bool)
    assert join_turns(space, observed, odds, near).tolist() == [0, 0, 0, 1, 1, 2]
    assert join_turns(space, observed, odds + 500, near).tolist() == [0] * 6
    assert join_turns(space, observed, odds, ~near).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_likeliest_are_joined_first_and_a_join_of_two_people_is_unlikely():
    space = space_of()
    observed, links = said(space, [0, 1, 0, 1]), np.zeros((4, 4))
    joins, odds = join_people(space, observed, links)
    assert joins[-1].tolist() == [0, 1]
    assert (odds[:2] > 0).all()
    assert odds[2] < -10
    assert best_count(odds) == 2
    links[0, 1] = links[1, 0] = 3.0  # something else than the voices speaks for it
    assert join_people(space, observed, links)[1][2] == pytest.approx(odds[2] + 3)


def test_of_many_turns_another_person_has_to_be_likelier():
    joins = np.full(9, 5.0)
    assert best_count(np.append(joins, -4.0)) == 2
    assert best_count(np.append(np.full(99, 5.0), -4.0)) == 1  # 100 turns: -7.6 is asked for
    assert best_count(np.append(np.full(99, 5.0), -8.0)) == 2


def test_speech_is_cut_at_its_pauses_or_where_it_is_quietest():
    level = np.zeros(500)
    level[140:150] = -40.0
    level[280] = -3.0
    assert cut_at_pauses(level, 0, 400) == [(0, 140), (140, 280), (280, 400)]  # 5.2 s are too long
    assert cut_at_pauses(level, 220, 350) == [(220, 350)]  # and 3 dB are no pause


def test_of_three_people_two_at_a_time_each_estimate_is_whose_voice_it_has():
    """Random points as voices: three alone, then the first and the third on the wrong estimates together."""
    space, rng = load_voice_space(), np.random.default_rng(0)
    drawn = rng.standard_normal((3, len(space.between))) * np.sqrt(space.between)
    people = space.mean + drawn @ np.linalg.inv(space.transform)

    def voice(person):
        return (people[person] + 0.01 * rng.standard_normal(people.shape[-1])).astype(np.float32)

    alone = [Stretch(200 * at, 200 * at + 150, at % 2, voice(at % 3)) for at in range(9)]
    both = Stretch(1800, 1900, None, np.stack([voice(2), voice(0)]))
    stretches = [*alone, both, Stretch(2000, 2100, 1, voice(1))]
    who = people_of(stretches)
    assert who.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, -1, 1]
    found = meet(stretches, who, 3, 2200)
    assert found.activity[:, 1850].tolist() == [True, False, True]
    assert found.order[:, 1850].tolist() == [1, -1, 0]
    assert found.activity[:, 2050].tolist() == [False, True, False]
    assert found.order[:, 2050].tolist() == [0, 1, 0]
    assert not found.activity[:, 2100:].any()
    assert found.turns.doubts == ()


@pytest.fixture(scope="module")
def three():
    """Two who read, and one of them lower and slower: (talker, time) in turns of 3 s, 42 s in all."""
    read = [soundfile.read(DEMO / f"source{number}.flac", dtype="float32") for number in (1, 2)]
    speech = [resample(samples, rate, RATE) for samples, rate in read]
    speech.append(resample(speech[1], 0.7 * RATE, RATE))
    sources = np.zeros((3, 42 * RATE), np.float32)
    for turn, talker in enumerate([0, 1, 2, 1, 0, 2, 0, 2, 1, 2, 0, 1, 2, 0]):
        said = speech[talker][(turn // 3 % 3) * 3 * RATE :][: round(2.8 * RATE)]
        sources[talker, 3 * turn * RATE :][: len(said)] = 0.05 * said / said.std()
    return sources


@pytest.mark.slow
def test_three_people_in_turns_on_two_tracks_get_a_track_each(three, passed_of):
    odd = np.arange(three.shape[1]) // (3 * RATE) % 2
    low = three.sum(0)
    estimates = np.stack([np.where(odd, 0.02, 0.98), np.where(odd, 0.98, 0.02)]) * low  # whoever talks
    passed = passed_of(low, RATE, estimate(estimates))
    conversation = Conversation(speakers="auto", residual=True, floor_db=-20.0)
    finished = conversation.finish(passed)
    assert finished.labels == ("speaker1", "speaker2", "speaker3", "residual")
    assert finished.notes[0].startswith("3 people were counted")
    assert finished.facts["talkers"]["speaker3"] == pytest.approx(12, abs=2.1)  # 14 s with pauses
    assert set(finished.labels) <= set(conversation.labels(2))
    tracks = finished.tracks(0, passed.n_samples)
    np.testing.assert_allclose(tracks.sum(0), low, atol=1e-6)
    for track, source in zip(tracks[:3], three, strict=True):
        assert np.corrcoef(track, source)[0, 1] > 0.95
    pieces = [
        finished.tracks(at, min(at + 7777, passed.n_samples)) for at in range(0, passed.n_samples, 7777)
    ]
    np.testing.assert_allclose(np.concatenate(pieces, -1), tracks, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("speakers", ["2", "auto"])
def test_two_people_whom_the_network_leaves_on_one_track_are_told_apart_by_voice(three, passed_of, speakers):
    two = three[:2]
    low = two.sum(0)
    passed = passed_of(low, RATE, estimate(np.stack([0.98 * low, 0.02 * low])))
    finished = Conversation(speakers=speakers).finish(passed)
    assert finished.labels == ("speaker1", "speaker2")
    assert finished.facts["n_mended"] == 0  # it is no matter of single stretches
    tracks = finished.tracks(0, passed.n_samples)
    for source in two:
        assert max(np.corrcoef(track, source)[0, 1] for track in tracks) > 0.95


def test_agreement_is_the_share_of_the_time_in_the_better_order():
    stretches = [
        Stretch(0, 30, 0, None),
        Stretch(30, 40, 1, None),
        Stretch(40, 50, 0, None),
        Stretch(50, 90, None, None),
    ]
    assert agreement(stretches, np.array([1, 0, 1, -1])) == 1
    assert agreement(stretches, np.array([0, 0, 1, -1])) == pytest.approx(0.6)
    assert agreement(stretches, np.full(4, -1)) == 1


@pytest.mark.slow
def test_as_many_tracks_as_are_asked_for(three, passed_of):
    low = three.sum(0)[: 12 * RATE]
    passed = passed_of(low, RATE, estimate(np.stack([0.98 * low, 0.02 * low])))
    for speakers in ("1", "2", "3", "5"):
        finished = Conversation(speakers=speakers).finish(passed)
        assert finished.labels == tuple(f"speaker{n + 1}" for n in range(int(speakers)))
        assert finished.tracks(0, passed.n_samples).shape == (int(speakers), len(low))


def test_of_silence_all_tracks_are_silent(passed_of):
    silence = np.zeros(RATE, np.float32)
    finished = Conversation(speakers="3").finish(passed_of(silence, RATE, np.zeros((2, 8000), np.float32)))
    assert not finished.tracks(0, RATE).any()
    assert finished.labels == ("speaker1", "speaker2", "speaker3")


def test_numbers_that_make_no_sense_are_refused():
    for speakers in ("0", "11", "two", "-1", ""):
        with pytest.raises(ValueError, match="1 to 10 or auto"):
            Conversation(speakers=speakers)
    with pytest.raises(ValueError, match="by their voices"):
        Conversation(speakers="3", activity="levels")
