"""How loud a track must be: the scale of a network's estimate means nothing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.floating[Any]]

MAX_CONDITION = 100.0
"""Estimates more alike than this (two of them: correlation 0.98) leave their single gains undetermined."""

MAX_TRACK_LEVEL = 2.0
"""A track this many times as loud as the mixture can only be cancelled by another one."""

_BLOCK = 1 << 17  # samples widened to float64 at once, so that a long recording is never copied whole


class Products:
    """Adds up the products of estimates and mixture with one another, block by block.

    Args:
        n_sources: Number of estimates.
    """

    def __init__(self, n_sources: int) -> None:
        self.gram = np.zeros((n_sources + 1, n_sources + 1))
        """Of the estimates, and the mixture in the last row and column."""

    def add(self, mixture: Samples, estimates: Samples) -> None:
        """Take the next samples of the mixture (time,) and of the estimates (source, time)."""
        block = np.vstack([estimates, mixture]).astype(np.float64)
        self.gram += block @ block.T

    def gains(self) -> NDArray[np.float64]:
        """Return the gains of `explaining_gains`."""
        return gains_of(self.gram)


def gains_of(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the gains of `explaining_gains` for the products of estimates and mixture, the last one."""
    norms = np.sqrt(gram.diagonal())
    heard = np.flatnonzero(norms[:-1] > 0)
    gains = np.zeros(len(gram) - 1)
    if heard.size == 0 or norms[-1] == 0:
        return gains
    correlation = gram[np.ix_(heard, heard)] / np.outer(norms[heard], norms[heard])
    if np.linalg.cond(correlation) <= MAX_CONDITION:
        levels = np.linalg.solve(correlation, gram[heard, -1] / (norms[heard] * norms[-1]))
        if np.abs(levels).max() <= MAX_TRACK_LEVEL:
            gains[heard] = levels * norms[-1] / norms[heard]
            return gains
    limit = MAX_TRACK_LEVEL * norms[-1] / norms[heard].max()
    energy_of_sum = max(gram[:-1, :-1].sum(), np.finfo(np.float64).tiny)
    gains[heard] = np.clip(gram[:-1, -1].sum() / energy_of_sum, -limit, limit)
    return gains


def explaining_gains(mixture: Samples, estimates: Samples) -> NDArray[np.float64]:
    """Return the gains with which the sum of the estimates explains the mixture best, by least squares.

    The scale of an estimate means nothing to a model trained for SI-SNR, nor does its polarity: a negative
    gain puts it right. Where the estimates are too alike for single gains (`MAX_CONDITION`), or would cancel
    each other (`MAX_TRACK_LEVEL`), all get one common gain, the best that keeps them below that level.

    Args:
        mixture: (time,).
        estimates: (source, time), zero-mean or nearly so.

    Returns:
        (source,). The sum of the estimates times these gains is never further from the mixture than without
        them, unless `MAX_TRACK_LEVEL` had to cut the common gain.
    """
    products = Products(len(estimates))
    for start in range(0, len(mixture), _BLOCK):
        products.add(mixture[start : start + _BLOCK], estimates[:, start : start + _BLOCK])
    return products.gains()
