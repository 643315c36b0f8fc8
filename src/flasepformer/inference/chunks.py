"""Separate a long recording in overlapping chunks, each talker in one track from beginning to end.

A model may give the talkers of every chunk in another order. Where two chunks overlap both have separated the
same sound, so the order that makes them agree best is taken. When that leaves a doubt, mostly because too
little was said just there, the model is given one chunk more, across the join: it has half a chunk in common
with either side, the longest stretch that the model can have seen together with both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flasepformer.audio import StoredSignals, explaining_gains
from flasepformer.metrics import best_permutation

DOUBTFUL_MARGIN = 0.2
"""Joins whose margin is smaller may have swapped two talkers."""

Samples = NDArray[np.float32]


class Signals(Protocol):
    """Samples that are read where they are needed."""

    @property
    def n_samples(self) -> int: ...

    def read(self, first: int, last: int) -> Samples:
        """Return (signal, last - first), not to be changed in place."""


@dataclass(frozen=True)
class Join:
    """Where two chunks meet, and how sure it is that every talker has stayed in one track."""

    sample: int
    """The middle of the fade from one chunk to the next."""
    margin: float
    """By how much the correlation of both chunks exceeds that with two of the talkers swapped: 1 when equal
    chunks share two talkers, 0 when nothing tells the talkers apart."""

    @property
    def doubtful(self) -> bool:
        """Whether two talkers may be swapped here."""
        return self.margin < DOUBTFUL_MARGIN


def plan_chunks(n_samples: int, chunk_length: int, overlap: int) -> list[int]:
    """Return where each chunk starts: as few as possible, evenly spaced, the last one ending at the end.

    >>> plan_chunks(100, 40, 10), plan_chunks(101, 40, 10), plan_chunks(40, 40, 10)
    ([0, 30, 60], [0, 20, 40, 61], [0])
    """
    beyond = max(0, n_samples - chunk_length)
    n_joins = -(-beyond // (chunk_length - overlap))
    return [index * beyond // max(1, n_joins) for index in range(n_joins + 1)]


def separate_in_chunks(
    separate: Callable[[Samples], Samples],
    mixture: Signals,
    tracks: StoredSignals,
    chunk_length: int,
    overlap: int,
    *,
    silence: float = 0.0,
    progress: Callable[[float], None] = lambda share: None,
) -> list[Join]:
    """Separate chunk by chunk and fade from each to the next.

    Args:
        separate: The model: mixture (time,) to estimates (source, time).
        mixture: One signal.
        tracks: Receives the estimates, each of a level that explains the mixture best.
        chunk_length: Samples in a chunk; a mixture that is not longer is separated as a whole.
        overlap: Samples that two chunks have in common, at least, and over which they are faded; at most half
            a chunk.
        silence: Peak up to which sound is no speech: it needs no model, and tells no talkers apart.
        progress: Told the share that is done after every chunk.

    Returns:
        The joins between chunks that are not silent.
    """
    n_samples, n_sources = tracks.n_samples, tracks.n_signals
    starts = plan_chunks(n_samples, chunk_length, overlap)
    if len(starts) == 1:
        tracks.write(0, separate(mixture.read(0, n_samples)[0]))
        return []

    def separate_from(start: int) -> Samples | None:
        chunk = mixture.read(start, start + chunk_length)[0]
        if _peak(chunk) <= silence:
            return None
        estimates = separate(chunk)
        # The scale of an estimate means nothing, but chunks of different scales cannot be joined.
        return estimates * explaining_gains(chunk, estimates).astype(np.float32)[:, None]

    def match(tracks: Samples, estimates: Samples) -> tuple[list[int], float]:
        if min(_peak(tracks), _peak(estimates)) <= silence:
            return list(range(n_sources)), 0.0
        return match_tracks(tracks, estimates)

    def match_across(estimates: Samples, start: int, stop: int) -> tuple[list[int], float]:
        """Match estimates from `start` on with the tracks, which end at `stop`, by a chunk across both."""
        first = min(max((start + stop - chunk_length) // 2, 0), n_samples - chunk_length)
        bridge = separate_from(first)
        if bridge is None:
            return list(range(n_sources)), 0.0
        order, margin = match(tracks.read(first, stop), bridge[:, : stop - first])
        common = bridge[order, start - first :]
        order, other_margin = match(common, estimates[:, : common.shape[1]])
        return order, min(margin, other_margin)

    joins: list[Join] = []
    stop, anybody_heard = 0, False
    for index, start in enumerate(starts):
        estimates = separate_from(start)
        if estimates is not None and anybody_heard:
            order, margin = match(tracks.read(start, stop), estimates[:, : stop - start])
            if margin < DOUBTFUL_MARGIN:
                across = match_across(estimates, start, stop)
                order, margin = max((order, margin), across, key=lambda matched: matched[1])
            estimates = estimates[order]
            joins.append(Join((start + stop) // 2, margin))
        anybody_heard |= estimates is not None
        _fade_in(tracks, estimates, start, stop, overlap)
        stop = start + chunk_length
        progress((index + 1) / len(starts))
    return joins


def match_tracks(tracks: Samples, estimates: Samples) -> tuple[list[int], float]:
    """Order estimates as the tracks of the same time, all (source, time); return the order and its margin."""
    scale = np.sqrt(_energy(tracks) * _energy(estimates))
    scores = estimates.astype(np.float64) @ tracks.T.astype(np.float64) / scale  # (estimate, track)
    order = best_permutation(torch.from_numpy(scores)).tolist()
    matched = scores[order]
    own = matched.diagonal()
    lost = own[:, None] + own[None, :] - matched - matched.T  # if two were swapped
    return order, float(lost[np.triu_indices(len(lost), 1)].min())


def _fade_in(tracks: StoredSignals, estimates: Samples | None, start: int, stop: int, overlap: int) -> None:
    """Go over from the tracks, which end at `stop`, to estimates that begin at `start`; None is silence."""
    first = max(start, (start + stop - overlap) // 2)
    last = min(stop, first + overlap)
    if last > first:
        weights = np.sin(np.linspace(0, np.pi / 2, last - first + 2)[1:-1]).astype(np.float32) ** 2
        before = tracks.read(first, last)
        following = 0 if estimates is None else estimates[:, first - start : last - start]
        # Not a (1 - w) + b w: this way samples that are equal stay as they are, to the last bit.
        tracks.write(first, before + weights * (following - before))
    if estimates is not None:
        tracks.write(last, estimates[:, last - start :])
    elif stop > last:
        tracks.write(last, np.zeros((tracks.n_signals, stop - last), np.float32))


def _peak(samples: Samples) -> float:
    return max(float(samples.max()), -float(samples.min()))


def _energy(samples: Samples) -> float:
    return float(np.einsum("st,st->", samples, samples, dtype=np.float64))
