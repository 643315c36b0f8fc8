import math

import pytest
import torch

from flasepformer.metrics import leakage_db, talker_confusion, wrong_turns

RATE = 1000


def talk(*turns):
    """White noise where a talker speaks: turns of (start, end) in seconds, of 60 s."""
    signal = torch.zeros(60 * RATE)
    generator = torch.Generator().manual_seed(len(turns))
    for start, end in turns:
        signal[start * RATE : end * RATE] = torch.randn((end - start) * RATE, generator=generator)
    return signal


def swapped(sources, *spans):
    """The sources, with their tracks swapped in some spans of seconds."""
    estimates = sources.clone()
    for start, end in spans:
        estimates[:, start * RATE : end * RATE] = sources[:, start * RATE : end * RATE].flip(0)
    return estimates


def confusion(estimates, sources):
    return talker_confusion(estimates, sources, RATE, window_seconds=1, hop_seconds=1).item()


TURNS = torch.stack([talk((0, 10), (20, 40)), talk((10, 20), (40, 60))])  # one after the other


@pytest.mark.parametrize(
    ("spans", "expected"),
    [((), 0), ([(30, 60)], 0.5), ([(0, 60)], 0), ([(45, 60)], 0.25), ([(5, 8), (50, 53)], 0.1)],
)
def test_the_share_of_swapped_time_is_read_back(spans, expected):
    assert confusion(swapped(TURNS, *spans), TURNS) == pytest.approx(expected)


def test_pauses_do_not_count_and_overlap_counts_for_each_talker():
    sources = torch.stack([talk((0, 10), (25, 40)), talk((20, 30), (45, 50))])  # overlap 25-30
    assert confusion(swapped(sources, (10, 20), (40, 45)), sources) == 0
    # of 25 s and 15 s of talking, 5 s of one talker, then 5 s of both, are in the wrong track
    assert confusion(swapped(sources, (45, 50)), sources) == pytest.approx(5 / 40)
    assert confusion(swapped(sources, (25, 30)), sources) == pytest.approx(10 / 40)


def test_a_talker_who_is_never_alone_can_be_in_the_wrong_track():
    """One talks for a minute, the other comes in twice, the second time into the track of the first."""
    sources = torch.stack([talk((0, 60)), talk((10, 20), (30, 40))])
    estimates = sources.clone()
    estimates[:, 30 * RATE :] = torch.stack([sources.sum(0), torch.zeros(60 * RATE)])[:, 30 * RATE :]
    assert confusion(estimates, sources) == pytest.approx(10 / 80)


def test_a_talker_who_changes_tracks_while_the_other_is_silent_for_long():
    sources = torch.stack([talk((2, 57)), talk((0, 2), (57, 60))])  # 55 s without the second talker
    assert confusion(swapped(sources, (20, 35)), sources) == pytest.approx(15 / 60)
    # and never comes back: the assignment that is right for longer counts, for the end of both
    assert confusion(swapped(sources, (20, 60)), sources) == pytest.approx(20 / 60)


def test_all_in_one_track_is_as_wrong_as_the_other_talker_talks_long():
    estimates = torch.stack([TURNS.sum(0), torch.zeros(60 * RATE)])
    assert confusion(estimates, TURNS) == pytest.approx(0.5)
    unlike = torch.stack([talk((0, 45)), talk((45, 60))])
    assert confusion(torch.stack([torch.zeros(60 * RATE), unlike.sum(0)]), unlike) == pytest.approx(15 / 60)


def test_tracks_that_hold_a_talker_alike_share_the_time():
    """The mixture twice separates nobody; it must not look like tracks that nobody ever changes."""
    assert confusion(TURNS.sum(0).expand(2, -1), TURNS) == pytest.approx(0.5)


@pytest.mark.parametrize(("level_db", "expected"), [(-20, 10 / 60), (-30, 0)])
def test_the_room_of_a_recording_is_nobody_talking(level_db, expected):
    """Seconds 10 to 20 hold quiet noise: in which track it is, is no matter, but that of a quiet word is."""
    sources = torch.stack([talk((0, 10), (40, 60)), talk((20, 40))])
    sources[0] += 10 ** (level_db / 20) * talk((10, 20))
    assert confusion(swapped(sources, (10, 20)), sources) == pytest.approx(expected)


@pytest.mark.parametrize(("level_db", "expected"), [(-10, 10 / 80), (-20, 0)])
def test_a_talker_who_is_drowned_by_the_other_is_not_heard(level_db, expected):
    sources = torch.stack([talk((0, 60)), 10 ** (level_db / 20) * talk((10, 20), (30, 40))])
    estimates = sources.clone()
    estimates[:, 30 * RATE :] = torch.stack([sources.sum(0), torch.zeros(60 * RATE)])[:, 30 * RATE :]
    assert confusion(estimates, sources) == pytest.approx(expected)


def test_leaks_confuse_nobody_but_a_silent_track_holds_nobody():
    assert confusion(TURNS + 0.9 * TURNS.flip(0), TURNS) == 0
    assert confusion(TURNS.flip(0) - 0.9 * TURNS, TURNS) == 0
    estimates = TURNS.clone()
    estimates[:, 50 * RATE :] = 0
    assert confusion(estimates, TURNS) == pytest.approx(10 / 60)


def test_three_talkers_and_the_best_single_assignment():
    sources = torch.stack([talk((0, 20)), talk((20, 40)), talk((40, 60))])
    assert confusion(sources.roll(1, 0), sources) == 0
    estimates = sources.roll(1, 0)
    estimates[:, 30 * RATE : 40 * RATE] = sources[:, 30 * RATE : 40 * RATE]
    assert confusion(estimates, sources) == pytest.approx(10 / 60)


def test_windows_overlap_by_default():
    """Windows of 1 s every 0.5 s; one that the swap cuts in two counts by its larger part."""
    value = talker_confusion(swapped(TURNS, (45, 60)), TURNS, RATE).item()
    assert value == pytest.approx(0.25, abs=0.01)


def test_nobody_talking_is_not_applicable():
    assert math.isnan(confusion(torch.zeros(2, 5000), torch.zeros(2, 5000)))
    assert confusion(torch.eye(2)[:, :1], torch.eye(2)[:, :1]) == 0  # one sample, one talker


def test_leakage_is_the_level_of_the_other_tracks_against_the_input():
    mixture = talk((0, 30))
    estimates = torch.stack([0.01 * mixture, -mixture])
    assert leakage_db(estimates, mixture).item() == pytest.approx(-40)
    assert leakage_db(torch.stack([0.1 * mixture] * 2), 0.1 * mixture).item() == pytest.approx(0)
    three = torch.stack([mixture, 0.03 * mixture, 0.04 * mixture])
    assert leakage_db(three, mixture).item() == pytest.approx(20 * math.log10(0.05), abs=1e-4)
    silent = torch.stack([mixture, 0 * mixture])
    assert leakage_db(torch.stack([silent, three[:2]]), mixture.expand(2, -1)).tolist() == pytest.approx(
        [-100, 20 * math.log10(0.03)], abs=1e-4
    )
    assert leakage_db(three, 0 * mixture).isnan()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"same shape \(source, time\)"):
        talker_confusion(torch.rand(2, 80), torch.rand(2, 81), RATE)
    with pytest.raises(ValueError, match="without the axis of the sources"):
        leakage_db(torch.rand(2, 80), torch.rand(2, 80))


@pytest.mark.parametrize(
    ("loudest", "expected"),
    [("0101", 0), ("1010", 0), ("0001", 1), ("0111", 1), ("0000", 2), ("0011", 2)],
)
def test_wrong_turns_are_counted_by_the_one_assignment_that_is_right_for_most(loudest, expected):
    """Four turns of two talkers, one after the other, and the track that is loudest in each."""
    estimates = torch.full((2, 400), 0.1)
    for turn, track in enumerate(loudest):
        estimates[int(track), 100 * turn : 100 * turn + 100] = 1.0
    turns = [(k % 2, 100 * k, 100 * k + 100) for k in range(4)]
    assert wrong_turns(estimates, turns) == expected
