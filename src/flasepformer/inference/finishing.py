"""What may come between a model's estimates and the tracks that are written, in pieces of time.

A finisher (`flasepformer.conversation.Conversation` is one) hears the recording and the estimates as often as
it wants, and says what the tracks are. Nothing here holds a recording as a whole: whoever reads says from
where to where.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import resample

Samples = NDArray[np.float32]
Read = Callable[[int, int], Samples]
"""Returns samples (..., last - first), without the last one; all are within the recording."""

CONTEXT_SECONDS = 0.25
"""Read on either side of a piece that is resampled, more than the filter is long."""


@dataclass(frozen=True)
class Passed:
    """A recording that has passed a model."""

    n_samples: int
    """Of the recording at its own rate."""
    sample_rate: int
    """Of the recording in Hz."""
    recording: Read
    """(time,), mixed down and without a constant offset, at that rate."""
    n_estimate_samples: int
    """Of the estimates at the model's rate."""
    estimate_rate: int
    """Of the model in Hz."""
    n_sources: int
    """Estimates."""
    mixture: Read
    """(time,): what the model heard, at its rate and the recording's level."""
    estimates: Read
    """(source, time) at the model's rate, of levels that explain the mixture: to hear who talks."""
    channels: bool = False
    """Whether the estimates are channels of the recording, each with a talker; it is their sum then."""
    offset: float = 0.0
    """What was taken from every sample of the recording."""
    name: str = ""
    """What the names of the tracks begin with."""
    filtered: Read | None = None
    """The estimates as tracks have them, where that differs; see `flasepformer.inference.post_filter`."""

    def filtered_at_rate(self, first: int, last: int) -> Samples:
        """Return the filtered estimates (source, last - first) at the rate of the recording."""
        return self._resampled(self.filtered or self.estimates, first, last)

    def mixture_at_rate(self, first: int, last: int) -> Samples:
        """Return what the model heard of the recording (last - first,) at the rate of the recording."""
        return self._resampled(self.mixture, first, last)

    def _resampled(self, read: Read, first: int, last: int) -> Samples:
        return read_resampled(
            read, self.n_estimate_samples, self.estimate_rate, self.sample_rate, first, last
        )


def read_resampled(
    read: Read, n_samples: int, from_rate: int, to_rate: int, first: int, last: int
) -> Samples:
    """Read samples at another rate, the same ones whatever the pieces are.

    Args:
        read: Of the samples as they are.
        n_samples: How many they are.
        from_rate: Of them, in Hz.
        to_rate: Wanted, in Hz.
        first: Of the samples wanted; zeros are returned beyond the end.
        last: The one after the last.
    """
    if from_rate == to_rate:
        return _fit(read(min(first, n_samples), min(last, n_samples)), last - first)
    common = math.gcd(from_rate, to_rate)
    n_from, n_to = from_rate // common, to_rate // common  # so many samples there last as long as these here
    n_context = math.ceil(CONTEXT_SECONDS * common)
    begin = max(first // n_to - n_context, 0)
    end = -(-last // n_to) + n_context
    piece = read(min(begin * n_from, n_samples), min(end * n_from, n_samples))
    if piece.shape[-1] == 0:
        return np.zeros((*piece.shape[:-1], last - first), np.float32)
    resampled = resample(piece, from_rate, to_rate)[..., first - begin * n_to :]
    return _fit(resampled, last - first)


def _fit(samples: Samples, n: int) -> Samples:
    samples = samples[..., :n]
    missing = n - samples.shape[-1]
    return np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, missing)]) if missing else samples


@dataclass(frozen=True)
class Finished:
    """What becomes of a recording."""

    labels: tuple[str, ...]
    """One for each track, such as "speaker1": the ends of the tracks' names."""
    tracks: Read
    """(track, time) at the rate of the recording."""
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Written beside the tracks: by the ends of their names, such as ".rttm", what writes each."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """For the report, as plain values."""
    warnings: tuple[str, ...] = ()
    """What may have gone wrong, in sentences."""
    notes: tuple[str, ...] = ()
    """What was done that nobody asked for, in sentences."""


class Finisher(Protocol):
    """Makes tracks of what has passed a model."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What decides the tracks, as plain values, for the report."""

    def labels(self, n_sources: int) -> tuple[str, ...]:
        """Return the labels of all tracks that there may be."""

    def endings(self) -> tuple[str, ...]:
        """Return the ends of the names of all files that there may be beside them."""

    def need_bytes(self, n_sources: int, seconds: float) -> int:
        """Estimate the memory that a recording takes from `finish` on, beside its samples and estimates."""

    def finish(self, passed: Passed) -> Finished:
        """Decide what the tracks are."""


def array_reader(samples: Samples) -> Read:
    """Return what reads an array (..., time)."""
    return partial(_slice, samples)


def _slice(samples: Samples, first: int, last: int) -> Samples:
    return samples[..., first:last]
