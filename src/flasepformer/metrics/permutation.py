"""Which estimate belongs to which source."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

_MAX_BRUTE_FORCE = 4  # speakers: 24 permutations


def pairwise(metric: Callable[[Tensor, Tensor], Tensor], estimates: Tensor, sources: Tensor) -> Tensor:
    """Score every estimate against every source.

    Args:
        metric: Maps two tensors (..., time) to (...), e.g. `si_snr`.
        estimates: (..., source_estimate, time).
        sources: (..., source, time).

    Returns:
        (..., source_estimate, source).

    Raises:
        ValueError: Numbers of samples or leading axes differ.
    """
    if (
        estimates.ndim < 2
        or estimates.shape[:-2] + estimates.shape[-1:] != sources.shape[:-2] + sources.shape[-1:]
    ):
        raise ValueError(
            "estimates and sources must be (..., source, time) and agree in all but the axis of the sources, "
            f"got {tuple(estimates.shape)} and {tuple(sources.shape)}"
        )
    shape = (*estimates.shape[:-1], *sources.shape[-2:])  # (..., source_estimate, source, time)
    return metric(estimates.unsqueeze(-2).expand(shape), sources.unsqueeze(-3).expand(shape))


def best_permutation(scores: Tensor) -> Tensor:
    """Find the assignment of estimates to sources with the highest sum of scores, exactly.

    Args:
        scores: (..., source_estimate, source), higher is better; a nan counts as 0.

    Returns:
        (..., source), the index of the estimate given to each source.

    Raises:
        ValueError: There are not as many estimates as sources.
    """
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(
            "scores must be (..., source_estimate, source) with as many estimates as sources, "
            f"got {tuple(scores.shape)}"
        )
    n_sources = scores.shape[-1]
    scores = scores.detach().nan_to_num(nan=0.0)
    if n_sources <= _MAX_BRUTE_FORCE:
        permutations = torch.tensor(list(itertools.permutations(range(n_sources))), device=scores.device)
        totals = scores[..., permutations, torch.arange(n_sources, device=scores.device)].sum(-1)
        return permutations[totals.argmax(-1)]
    flat = [_assign(matrix) for matrix in scores.reshape(-1, n_sources, n_sources).neg().mT.tolist()]
    return torch.tensor(flat, device=scores.device).reshape(scores.shape[:-1])


def reorder(estimates: Tensor, permutation: Tensor) -> Tensor:
    """Put the estimates (..., source, time) into the order of the sources by a permutation (..., source)."""
    return estimates.gather(-2, permutation.unsqueeze(-1).expand_as(estimates))


def _assign(cost: list[list[float]]) -> list[int]:
    """Give each row a column of its own at the least total cost (Hungarian method, cubic time).

    Rows join one after another; each finds the cheapest chain of re-assignments that ends at a free column
    (Dijkstra on costs reduced by the prices of rows and columns, which keeps them from being negative).
    Our own, because plain separation does without SciPy; `scipy.optimize.linear_sum_assignment` is its peer.
    """
    n = len(cost)
    row_of = [-1] * (n + 1)  # the last column is a virtual one, where the joining row starts
    row_price, column_price = [0.0] * n, [0.0] * (n + 1)
    for joining in range(n):
        row_of[n] = joining
        distance, previous, settled = [float("inf")] * n, [n] * n, [False] * (n + 1)
        column = n
        while row_of[column] != -1:
            settled[column] = True
            row = row_of[column]
            free = [k for k in range(n) if not settled[k]]
            for k in free:
                reduced = cost[row][k] - row_price[row] - column_price[k]
                if reduced < distance[k]:
                    distance[k], previous[k] = reduced, column
            nearest = min(free, key=distance.__getitem__)
            step = distance[nearest]
            for k in range(n + 1):
                if settled[k]:
                    row_price[row_of[k]] += step
                    column_price[k] -= step
                elif k < n:
                    distance[k] -= step
            column = nearest
        while column != n:
            row_of[column], column = row_of[previous[column]], previous[column]
    column_of = [0] * n
    for column, row in enumerate(row_of[:n]):
        column_of[row] = column
    return column_of
