"""The likeliest course of a chain of states: who talks in every frame, and whose turn every utterance is."""

import numpy as np
from numpy.typing import NDArray


def likeliest_path(scores: NDArray[np.floating], change: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the path of states with the largest sum (Viterbi).

    Args:
        scores: (step, state): log probability of what is seen in every state.
        change: (state, state): log probability of the second after the first; or (step, state, state), for
            each step but the first, whose entry is ignored.

    >>> likeliest_path(np.array([[0.0, -1], [-1, 0], [0, -1]]), np.array([[0.0, -2], [-2, 0]]))
    array([0, 0, 0])
    """
    n, n_states = scores.shape
    came_from = np.zeros((n, n_states), np.int8)  # of hours there are millions
    best = scores[0].astype(np.float64)
    states = np.arange(n_states)
    for step in range(1, n):
        ways = best[:, None] + (change if change.ndim == 2 else change[step])
        came_from[step] = ways.argmax(0)
        best = ways[came_from[step], states] + scores[step]
    path = np.empty(n, np.intp)
    path[-1] = best.argmax()
    for step in range(n - 1, 0, -1):
        path[step - 1] = came_from[step, path[step]]
    return path
