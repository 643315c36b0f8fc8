from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from flasepformer.data import Utterance
from flasepformer.data.conversations import plan_conversation


def chatter(rng, talker, shortest=2, longest=12):
    while True:
        duration = round(float(rng.uniform(shortest, longest)), 3)
        yield Utterance(Path(f"{talker}.wav"), str(talker), duration)


def plan(seconds, overlap, n_talkers=2, seed=0):
    rng = np.random.default_rng(seed)
    return plan_conversation([chatter(rng, k) for k in range(n_talkers)], seconds, overlap, rng)


def activity(turns, n_talkers, seconds):
    """Return (talker, hundredth of a second): speaks or not."""
    active = np.zeros((n_talkers, round(100 * seconds)), int)
    for turn in turns:
        active[turn.talker, round(100 * turn.start_seconds) : round(100 * turn.end_seconds)] += 1
    return active


@pytest.mark.parametrize(
    ("n_talkers", "overlap"), [(2, 0.0), (2, 0.15), (2, 0.3), (2, 0.5), (3, 0.3), (4, 0.5)]
)
def test_the_share_of_overlap_is_that_asked_for(n_talkers, overlap):
    for seed in range(5):
        active = activity(plan(600, overlap, n_talkers, seed), n_talkers, 600)
        speakers = active.sum(0)
        assert (speakers > 1).sum() / (speakers > 0).sum() == pytest.approx(overlap, abs=0.02)
        assert active.max() == 1  # nobody speaks over themselves


@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.5])
def test_one_who_says_little_at_a_time_overlaps_as_much_with_one_who_says_much(overlap):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        active = activity(
            plan_conversation([chatter(rng, 0, 1, 3), chatter(rng, 1, 10, 16)], 600, overlap, rng), 2, 600
        )
        speakers = active.sum(0)
        assert (speakers > 1).sum() / (speakers > 0).sum() == pytest.approx(overlap, abs=0.04)
        assert active.max() == 1


def test_there_are_pauses_and_everyone_speaks():
    active = activity(plan(600, 0.3), 2, 600)
    silent = active.sum(0) == 0
    assert 0.01 < silent.mean() < 0.15
    shares = active.mean(1)
    assert shares.min() > 0.4


def test_turns_stay_within_the_conversation_and_their_utterances():
    turns = plan(60, 0.3)
    assert turns[0].start_seconds > 0
    assert max(turn.end_seconds for turn in turns) <= 60
    assert [t.start_seconds for t in turns] == sorted(t.start_seconds for t in turns)
    for turn in turns:
        length = turn.end_seconds - turn.start_seconds
        assert 0 < length <= turn.utterance.duration_seconds + 1e-9
    assert turns == plan(60, 0.3)
    assert turns != plan(60, 0.3, seed=1)


@pytest.mark.parametrize("overlap", [-0.1, 0.6])
def test_a_share_out_of_reach_is_refused(overlap):
    with pytest.raises(ValueError, match=r"overlap must be from 0 to 0.5, got"):
        plan(60, overlap)


def test_one_talker_alone_goes_on_after_pauses():
    turns = plan(120, 0.0, n_talkers=1)
    assert {turn.talker for turn in turns} == {0}
    pauses = [after.start_seconds - before.end_seconds for before, after in pairwise(turns)]
    assert 0.09 < min(pauses) <= max(pauses) < 1.51
