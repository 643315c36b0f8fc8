import math

import numpy as np
import pytest

from flasepformer.evaluation import bootstrap_interval


def test_the_interval_of_many_values_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(7, 2, 1000).tolist()
    low, high = bootstrap_interval(values)
    half = 1.96 * np.std(values) / 1000**0.5
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.02)


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = [
        low <= 0 <= high for low, high in (bootstrap_interval(rng.normal(0, 1, 40)) for _ in range(50))
    ]
    assert 42 <= sum(covered) <= 50


def test_it_is_the_same_every_time_and_leaves_out_what_is_not_applicable():
    values = [1.0, 5.0, 2.0, 8.0]
    assert bootstrap_interval(values) == bootstrap_interval([math.nan, *values, math.nan])
    assert bootstrap_interval([3.0, 3.0]) == (3, 3)
    assert all(map(math.isnan, bootstrap_interval([3.0])))
    assert all(map(math.isnan, bootstrap_interval([math.nan, math.nan])))
