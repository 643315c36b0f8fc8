"""How voices differ within and between people is measured, and told apart by it."""

import numpy as np
import pytest

from flasepformer.training.people import odds_error_rate, space_of


def drawn(seed=0, n_people=400, n_each=7):
    """Return voices (voice, 3) of people, who differ in the first dimension only, and who each is of."""
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((n_people, 3)) * [6.0, 0.0, 0.0] + [1.0, 2.0, 3.0]
    voices = np.repeat(people, n_each, 0) + rng.standard_normal((n_people * n_each, 3)) * [2.0, 0.5, 1.0]
    return voices, np.repeat(np.arange(n_people).astype(str), n_each)


def test_the_space_is_white_within_people_and_ordered_by_what_tells_them_apart():
    voices, talkers = drawn()
    space = space_of(voices, talkers)
    np.testing.assert_allclose(space.mean, voices.mean(0))
    assert space.between[0] == pytest.approx((6 / 2) ** 2, rel=0.15)
    assert np.abs(space.between[1:]).max() < 0.05
    places = (voices - space.mean) @ space.transform
    who = talkers.astype(int)
    means = np.stack([places[who == one].mean(0) for one in range(who.max() + 1)])
    within = np.cov((places - means[who]).T) * 7 / 6  # a seventh is in the means
    np.testing.assert_allclose(within, np.eye(3), atol=0.05)


def test_odds_tell_people_apart_better_than_chance_and_pairs_of_one_recording_do_not_count():
    voices, talkers = drawn(n_people=30)
    space = space_of(*drawn())
    rate = odds_error_rate(space, voices, talkers, np.arange(len(voices)), 2.0)
    assert 0.05 < rate < 0.25
    mixed = np.random.default_rng(1).permutation(talkers)
    assert odds_error_rate(space, voices, mixed, np.arange(len(voices)), 2.0) == pytest.approx(0.5, abs=0.05)
