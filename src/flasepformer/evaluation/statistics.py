"""Means that leave out what is not applicable, and how far they can be trusted."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

N_RESAMPLES = 2000
"""Bootstrap samples: enough for two digits of an interval."""
_MOST_PICKS = 2**20
"""Numbers held at a time."""


def known(values: Iterable[float]) -> list[float]:
    """Return the values that are not nan."""
    return [value for value in values if not math.isnan(value)]


def mean(values: Iterable[float]) -> float:
    """Average the values that are not nan; nan if there is none."""
    there = known(values)
    return sum(there) / len(there) if there else math.nan


def bootstrap_interval(values: Sequence[float], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Estimate where the mean of a larger set like this one lies (percentile bootstrap).

    Args:
        values: One for each mixture; nan is left out.
        level: Probability that the interval is meant to have.
        seed: The same seed gives the same interval.

    Returns:
        Its two ends; nan for fewer than two values, of which nothing can be said.
    """
    there = np.array(known(values))
    if len(there) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    n_at_once = max(1, _MOST_PICKS // len(there))
    means = np.concatenate(
        [
            there[rng.integers(len(there), size=(min(n_at_once, N_RESAMPLES - first), len(there)))].mean(
                axis=1
            )
            for first in range(0, N_RESAMPLES, n_at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
