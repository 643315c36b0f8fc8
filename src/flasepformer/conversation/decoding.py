"""The likeliest course of a chain of states: who talks in every frame, and whose turn every utterance is."""

import numpy as np
from numpy.typing import NDArray


def likeliest_path(
    scores: NDArray[np.floating], change: NDArray[np.floating], kinds: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """Return the path of states with the largest sum (Viterbi).

    Args:
        scores: (step, state): log probability of what is seen in every state.
        change: (state, state): log probability of the second after the first; or (step, state, state), for
            each step but the first, whose entry is ignored.
        kinds: (step,): with it, change is (kind, state, state), and this says which each step takes.

    >>> likeliest_path(np.array([[0.0, -1], [-1, 0], [0, -1]]), np.array([[0.0, -2], [-2, 0]]))
    array([0, 0, 0])
    """
    n, n_states = scores.shape
    came_from = np.zeros((n, n_states), np.int8)  # of hours there are millions
    best = scores[0].astype(np.float64)
    states = np.arange(n_states)
    for step in range(1, n):
        ways = best[:, None] + _change(change, kinds, step)
        came_from[step] = ways.argmax(0)
        best = ways[came_from[step], states] + scores[step]
    path = np.empty(n, np.intp)
    path[-1] = best.argmax()
    for step in range(n - 1, 0, -1):
        path[step - 1] = came_from[step, path[step]]
    return path


def best_through(
    scores: NDArray[np.floating], change: NDArray[np.floating], kinds: NDArray[np.intp] | None = None
) -> NDArray[np.float64]:
    """Return the largest sum (step, state) of a path that is in a state at a step; see `likeliest_path`.

    >>> best_through(np.array([[0.0, -1], [-1, 0], [0, -1]]), np.array([[0.0, -2], [-2, 0]]))
    array([[-1., -2.],
           [-1., -2.],
           [-1., -2.]])
    """
    best = np.array(scores, np.float64)
    for step in range(1, len(scores)):
        best[step] += (best[step - 1][:, None] + _change(change, kinds, step)).max(0)
    after = np.zeros(scores.shape[-1])
    for step in range(len(scores) - 2, -1, -1):
        after = (_change(change, kinds, step + 1) + (after + scores[step + 1])).max(1)
        best[step] += after
    return best


def _change(change: NDArray[np.floating], kinds: NDArray[np.intp] | None, step: int) -> NDArray[np.floating]:
    if kinds is not None:
        return change[kinds[step]]
    return change if change.ndim == 2 else change[step]
