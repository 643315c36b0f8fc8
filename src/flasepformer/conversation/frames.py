"""What is remembered of a recording to decide who speaks: a few numbers for every 20 ms."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.inference.finishing import Passed

FRAMES_PER_SECOND = 50
FRAME_SECONDS = 1 / FRAMES_PER_SECOND

_FRAMES_AT_ONCE = 1000


@dataclass(frozen=True, eq=False)
class Frames:
    """Powers of a recording and of its estimates; a day of two talkers is 70 MB."""

    mixture: NDArray[np.float32]
    """(frame,): mean square of what the model heard."""
    estimates: NDArray[np.float32]
    """(source, frame)."""
    upper: NDArray[np.float32]
    """(source, frame): the same of the upper half of the model's band only."""

    def __len__(self) -> int:
        return len(self.mixture)


def frame_edges(first: int, last: int, sample_rate: int) -> NDArray[np.int64]:
    """Return the first sample of frames `first` to `last`, so one more than there are frames between them."""
    return np.arange(first, last + 1, dtype=np.int64) * sample_rate // FRAMES_PER_SECOND


def n_frames(n_samples: int, sample_rate: int) -> int:
    """Return how many frames are begun."""
    return -(-n_samples * FRAMES_PER_SECOND // sample_rate)


def sweep(passed: Passed) -> Frames:
    """Read a recording and its estimates once, from beginning to end."""
    rate, n = passed.estimate_rate, n_frames(passed.n_estimate_samples, passed.estimate_rate)
    mixture = np.zeros(n, np.float32)
    estimates, upper = (np.zeros((passed.n_sources, n), np.float32) for _ in range(2))
    for begin in range(0, n, _FRAMES_AT_ONCE):
        end = min(begin + _FRAMES_AT_ONCE, n)
        edges = frame_edges(begin, end, rate)
        first, last = int(edges[0]), min(int(edges[-1]), passed.n_estimate_samples)
        starts, lengths = edges[:-1] - first, np.diff(np.minimum(edges, last))
        tracks = passed.estimates(first, last)
        mixture[begin:end] = _powers(passed.mixture(first, last), starts, lengths)
        estimates[:, begin:end] = _powers(tracks, starts, lengths)
        # The difference of neighbours is a high-pass of 3 dB at a quarter of the rate: no state, no filter.
        upper[:, begin:end] = _powers(np.diff(tracks, prepend=tracks[:, :1]) / 2, starts, lengths)
    return Frames(mixture, estimates, upper)


def _powers(
    samples: NDArray[np.floating[Any]], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    sums = np.add.reduceat(np.square(samples, dtype=np.float64), starts, axis=-1)
    return sums / np.maximum(lengths, 1)


def smoothed(values: NDArray[np.floating[Any] | np.bool_], n: int) -> NDArray[np.float64]:
    """Return the means (..., frame) over `n` frames, an odd number, around each; fewer at the ends.

    >>> smoothed(np.array([0.0, 3.0, 0.0, 0.0]), 3)
    array([1.5, 1. , 1. , 0. ])
    """
    half, length = n // 2, values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, -1, dtype=np.float64)], -1)
    at = np.arange(length)
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, length)
    means = sums[..., high]
    means -= sums[..., low]
    means /= high - low
    return means


def in_db(power: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return powers in dB, -120 dB for silence."""
    return 10 * np.log10(np.maximum(power, 1e-12))
