"""The tracks of a recording, made one at a time, block by block, as they are written."""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import (
    BLOCK_LENGTH,
    Products,
    StoredSignals,
    Stream,
    allowed_rate,
    resample_blocks,
    resampled_length,
    silent_blocks,
)
from flasepformer.inference.chunks import Signals
from flasepformer.inference.confidence import Confidence, SeparateAgain, confidence_of
from flasepformer.inference.finishing import Finished, Passed, Read
from flasepformer.inference.hearing import Survey
from flasepformer.inference.levels import MODEL_RMS
from flasepformer.inference.post_filter import PostFiltered
from flasepformer.models.filter_network import FilterNetwork

INTEGER_PEAK = 0.999
"""Peak of tracks that had to be turned down for a format that clips at 1."""

PIECE_LENGTH = 1 << 17
"""Samples of the pieces in which a finisher makes tracks, of which each takes some 110 bytes meanwhile."""

Block = NDArray[np.float32]


class Tracks(Protocol):
    """One signal for each talker, as long as the recording and at its rate."""

    @property
    def n_tracks(self) -> int: ...

    @property
    def n_samples(self) -> int: ...

    @property
    def sample_rate(self) -> int: ...

    def blocks(self, index: int) -> Iterator[Block]:
        """Yield one track from its beginning: (1, some time)."""

    def passed(self, found: Survey, name: str) -> Passed:
        """Return what a finisher makes other tracks of.

        Args:
            found: Of the recording.
            name: What the names of the tracks begin with.
        """


@dataclass(frozen=True)
class SilentTracks:
    """Nobody speaks."""

    n_tracks: int
    n_samples: int
    sample_rate: int

    def blocks(self, index: int) -> Iterator[Block]:
        """See `Tracks`."""
        return silent_blocks(1, self.n_samples)

    def passed(self, found: Survey, name: str) -> Passed:
        """See `Tracks`."""
        return _of_recording(
            self, name, lambda first, last: np.zeros((self.n_tracks, last - first), np.float32)
        )


@dataclass(frozen=True)
class ChannelTracks:
    """Each channel of the recording has its talker."""

    stream: Stream
    n_tracks: int
    n_samples: int
    sample_rate: int

    def blocks(self, index: int) -> Iterator[Block]:
        """See `Tracks`."""
        return (block[index : index + 1] for block in self.stream.blocks())

    def passed(self, found: Survey, name: str) -> Passed:
        """See `Tracks`."""
        return replace(_of_recording(self, name, InOrder(self.stream.blocks)), channels=True)


class SeparatedTracks:
    """The estimates of a model, brought to the level and the rate of the recording.

    Args:
        estimates: At the model's rate.
        mixture: What the model heard.
        level: What that had been divided by.
        rate: The model's, in Hz.
        n_samples: Of the recording.
        sample_rate: Of the recording, in Hz.
        silent: Where the recording is silent, in order.
        post_filter: Share of the filter in the tracks; see `PostFiltered`.
        network: Of the filter, if any.
    """

    def __init__(
        self,
        estimates: StoredSignals,
        mixture: Signals,
        level: float,
        rate: int,
        n_samples: int,
        sample_rate: int,
        silent: tuple[slice, ...],
        post_filter: float = 0.0,
        network: FilterNetwork | None = None,
    ) -> None:
        self.n_tracks, self.n_samples, self.sample_rate = estimates.n_signals, n_samples, sample_rate
        self._estimates, self._rate, self._silent = estimates, rate, silent
        self._mixture, self._level = mixture, level
        sums = sum(block.sum(axis=1, dtype=np.float64) for _, block in _read(estimates))
        self._means = (sums / estimates.n_samples).astype(np.float32)[:, None]
        products = Products(self.n_tracks)
        for first, block in _read(estimates):
            products.add(mixture.read(first, first + block.shape[1])[0], block - self._means)
        self._gains = (products.gains() * level).astype(np.float32)[:, None]
        self._filtered = PostFiltered(
            self._read_mixture,
            self._read_levelled,
            estimates.n_samples,
            rate,
            post_filter,
            network,
            level * MODEL_RMS,
        )

    def confidence(self, separate_again: SeparateAgain | None = None) -> Confidence:
        """Say how sure it is that each track is one talker; see `confidence_of`."""
        n = self._estimates.n_samples
        mixture = _Signals(n, lambda first, last: self._read_mixture(first, last)[None])
        return confidence_of(mixture, _Signals(n, self._read_levelled), self._rate, separate_again)

    def blocks(self, index: int) -> Iterator[Block]:
        """See `Tracks`."""
        n = self._estimates.n_samples
        filtered = (
            self._filtered.of(slice(index, index + 1), first, min(first + BLOCK_LENGTH, n))
            for first in range(0, n, BLOCK_LENGTH)
        )
        # Its length may differ from the recording's by what was rounded twice.
        track = resample_blocks(filtered, n, self._rate, self.sample_rate)
        return _silenced(track, self.n_samples, self._silent)

    def passed(self, found: Survey, name: str) -> Passed:
        """See `Tracks`."""
        return Passed(
            n_samples=self.n_samples,
            sample_rate=self.sample_rate,
            recording=_one(InOrder(found.mixed)),
            n_estimate_samples=self._estimates.n_samples,
            estimate_rate=self._rate,
            n_sources=self.n_tracks,
            mixture=self._read_mixture,
            estimates=self._read_levelled,
            offset=found.mix.mean,
            name=name,
            filtered=self._filtered,
        )

    def _read_mixture(self, first: int, last: int) -> Block:
        return self._mixture.read(first, last)[0] * np.float32(self._level)

    def _read_levelled(self, first: int, last: int) -> Block:
        return (self._estimates.read(first, last) - self._means) * self._gains


class FinishedTracks:
    """What a finisher has made of the tracks of a model.

    Args:
        finished: The answer of the finisher.
        tracks: Of the model.
    """

    def __init__(self, finished: Finished, tracks: Tracks) -> None:
        self.finished, self._model_tracks = finished, tracks
        self.n_tracks = len(finished.labels)
        self.n_samples, self.sample_rate = tracks.n_samples, tracks.sample_rate

    def blocks(self, index: int) -> Iterator[Block]:
        """See `Tracks`."""
        for first in range(0, self.n_samples, PIECE_LENGTH):
            piece = self.finished.tracks(first, min(first + PIECE_LENGTH, self.n_samples))
            yield np.asarray(piece[index : index + 1], np.float32)

    def passed(self, found: Survey, name: str) -> Passed:
        """See `Tracks`; a finisher does not hear what another one has made."""
        return self._model_tracks.passed(found, name)


class InOrder:
    """Reads signals that are made block by block; to go back is to begin anew.

    Args:
        blocks: Returns the blocks (signal, some time) from the beginning.
    """

    def __init__(self, blocks: Callable[[], Iterator[Block]]) -> None:
        self._make = blocks
        self._blocks: Iterator[Block] = iter(())
        self._first, self._kept = 0, np.zeros((0, 0), np.float32)
        self._begun = False

    def __call__(self, first: int, last: int) -> Block:
        """Return samples (signal, last - first)."""
        if not self._begun or first < self._first:
            self._blocks, self._begun, self._first = self._make(), True, 0
            self._kept = next(self._blocks)
        while self._first + self._kept.shape[1] < last:
            if first >= self._first + self._kept.shape[1]:  # nothing of it is wanted
                self._first += self._kept.shape[1]
                self._kept = next(self._blocks)
            else:
                self._kept = np.concatenate(
                    [self._kept[:, first - self._first :], next(self._blocks)], axis=1
                )
                self._first = first
        return self._kept[:, first - self._first : last - self._first].copy()


def _of_recording(tracks: Tracks, name: str, signals: Read) -> Passed:
    """Return what has passed without a model: signals (source, time) whose sum is the recording."""

    def total(first: int, last: int) -> Block:
        return np.asarray(signals(first, last).sum(0))

    return Passed(
        n_samples=tracks.n_samples,
        sample_rate=tracks.sample_rate,
        recording=total,
        n_estimate_samples=tracks.n_samples,
        estimate_rate=tracks.sample_rate,
        n_sources=tracks.n_tracks,
        mixture=total,
        estimates=signals,
        name=name,
    )


def _one(read: Read) -> Read:
    """Return what reads the only signal (time,)."""
    return lambda first, last: np.asarray(read(first, last)[0])


@dataclass(frozen=True)
class _Signals:
    """Signals that are made whenever they are read."""

    n_samples: int
    read: Read


def _read(signals: StoredSignals) -> Iterator[tuple[int, Block]]:
    for first in range(0, signals.n_samples, BLOCK_LENGTH):
        yield first, signals.read(first, min(first + BLOCK_LENGTH, signals.n_samples))


def _silenced(blocks: Iterator[Block], n_samples: int, silent: tuple[slice, ...]) -> Iterator[Block]:
    """Yield blocks up to so many samples, filled with zeros to that length, and silent in the given spans."""
    ends, first = [span.stop for span in silent], 0
    for block in blocks:
        block = block[:, : n_samples - first]
        last = first + block.shape[1]
        if not block.shape[1]:
            continue
        at = bisect_right(ends, first)
        if at < len(silent) and silent[at].start < last:
            block = block.copy()
            while at < len(silent) and silent[at].start < last:
                block[:, max(silent[at].start - first, 0) : silent[at].stop - first] = 0
                at += 1
        yield block
        first = last
    yield from silent_blocks(1, n_samples - first)


@dataclass(frozen=True)
class Fit:
    """How tracks are changed to what a format can hold."""

    tracks: Tracks
    sample_rate: int
    gain: float = 1.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def n_samples(self) -> int:
        """Length of every track in the file."""
        return resampled_length(self.tracks.n_samples, self.tracks.sample_rate, self.sample_rate)

    def blocks(self, index: int) -> Iterator[Block]:
        """Yield one track as the format can hold it: (1, some time)."""
        resampled = resample_blocks(
            self.tracks.blocks(index), self.tracks.n_samples, self.tracks.sample_rate, self.sample_rate
        )
        return resampled if self.gain == 1 else (block * np.float32(self.gain) for block in resampled)


def fit_format(tracks: Tracks, form: str, holds_any_peak: bool) -> Fit:
    """Choose the nearest rate that a format has, and a gain for all tracks alike where it would clip.

    Args:
        tracks: What is to be written.
        form: One of `WRITABLE_FORMATS`.
        holds_any_peak: Whether its samples go beyond full scale.
    """
    rate, notes = allowed_rate(form, tracks.sample_rate), tuple[str, ...]()
    if rate != tracks.sample_rate:
        notes = (f"{form} files have no {tracks.sample_rate} Hz: the tracks are at {rate} Hz",)
    fit = Fit(tracks, rate, notes=notes)
    if holds_any_peak:
        return fit
    peak = max(
        (float(np.abs(block).max()) for index in range(tracks.n_tracks) for block in fit.blocks(index)
         if block.size), default=0.0
    )  # fmt: skip
    if peak <= 1:
        return fit
    gain = INTEGER_PEAK / peak
    warning = f"all tracks were turned down by {-20 * math.log10(gain):.1f} dB, else {form} would clip them"
    return Fit(tracks, rate, gain, (warning,), notes)
