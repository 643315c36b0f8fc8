import math

import pytest
import torch

from flasepformer.metrics import leakage_db, talker_confusion

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


def test_pauses_and_overlap_do_not_count():
    sources = torch.stack([talk((0, 10), (25, 40)), talk((20, 30), (45, 50))])  # overlap 25-30
    estimates = swapped(sources, (25, 30), (40, 45))  # overlap and pause only
    assert confusion(estimates, sources) == 0
    # of 30 s with one talker alone, 5 are swapped
    assert confusion(swapped(sources, (45, 50)), sources) == pytest.approx(5 / 30)


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


def test_nobody_alone_is_not_applicable():
    assert math.isnan(confusion(TURNS[:1].expand(2, -1), TURNS[:1].expand(2, -1)))
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
