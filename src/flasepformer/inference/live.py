"""Listen to a source, separate it while it comes, and hand on the tracks; keep the time."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio.live_sources import Source
from flasepformer.inference.streaming import StreamingSeparator

SLOTS_PER_DOUBLING = 8
"""Of the histogram of block times: a percentile is right within 9 %."""

_FASTEST = 1e-5  # seconds


class Sink(Protocol):
    """Takes one track, block by block."""

    def write(self, samples: NDArray[np.float32]) -> None:
        """Take samples (time,)."""


@dataclass
class BlockTimes:
    """How long the blocks took, in bounded memory however many they are."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(32 * SLOTS_PER_DOUBLING, np.int64))
    """Blocks by the logarithm of their time."""
    n_late: int = 0
    """Blocks that took longer than they last."""
    longest: float = 0.0
    total: float = 0.0
    worst_factor: float = 0.0
    """Largest time of a block over its length."""

    def add(self, seconds: float, block_seconds: float) -> None:
        """Take in a block that lasts `block_seconds`."""
        slot = int(SLOTS_PER_DOUBLING * np.log2(max(seconds / _FASTEST, 1.0)))
        self.counts[min(slot, len(self.counts) - 1)] += 1
        self.n_late += seconds > block_seconds
        self.longest = max(self.longest, seconds)
        self.total += seconds
        self.worst_factor = max(self.worst_factor, seconds / block_seconds if block_seconds else 0.0)

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return int(self.counts.sum())

    def percentile(self, share: float) -> float:
        """Return the time that this share of the blocks did not exceed, in seconds.

        >>> times = BlockTimes()
        >>> for milliseconds in range(1, 101):
        ...     times.add(milliseconds / 1000, 0.09)
        >>> 0.045 < times.percentile(0.5) < 0.055, times.n_late
        (True, 10)
        """
        slot = int(np.searchsorted(np.cumsum(self.counts), share * self.n_blocks))
        return min(_FASTEST * 2 ** ((slot + 1) / SLOTS_PER_DOUBLING), self.longest)


@dataclass
class LiveReport:
    """How a stream went."""

    seconds: float = 0.0
    """Of the stream."""
    wall_seconds: float = 0.0
    """Since it began."""
    delay_seconds: float = 0.0
    """`StreamingSeparator.delay_seconds`."""
    times: BlockTimes = field(default_factory=BlockTimes)
    n_lost: int = 0
    """Samples that came too fast."""
    n_damaged: int = 0
    """Samples that were NaN or infinite."""
    longest_behind: float = 0.0
    """Most of the stream that waited to be taken, in seconds."""
    problem: str = ""
    """Why the stream ended before its time."""

    @property
    def real_time_factor(self) -> float:
        """Computing time over the length of the stream."""
        return self.times.total / self.seconds if self.seconds else 0.0


Tell = Callable[[LiveReport, NDArray[np.float32]], None]


def listen(
    stream: StreamingSeparator,
    source: Source,
    sinks: Sequence[Sequence[Sink]],
    tell: Tell = lambda report, tracks: None,
    report: LiveReport | None = None,
) -> LiveReport:
    """Separate a source until it ends; what is still to come goes to the sinks whatever ends it.

    Args:
        stream: At the source's rate.
        source: The stream.
        sinks: For every track, where it goes.
        tell: Called after every block with how it goes and the tracks (source, time) that have become ready.
        report: Filled in as the stream goes, for those who need it when it is interrupted.

    Raises:
        OSError: A sink cannot take any more; the others have as many samples, or more by the block.
    """
    report = report or LiveReport()
    report.delay_seconds = stream.delay_seconds
    began = time.monotonic()

    def hand_on(tracks: NDArray[np.float32]) -> None:
        for track, takers in zip(tracks, sinks, strict=True):
            for sink in takers:
                sink.write(track)

    def note() -> None:
        report.n_lost, report.n_damaged, report.problem = source.n_lost, stream.n_damaged, source.problem
        report.longest_behind = max(report.longest_behind, source.behind)
        report.wall_seconds = time.monotonic() - began

    try:
        blocks = source.blocks()
        with closing(blocks):  # type: ignore[type-var]
            for block in blocks:
                started = time.perf_counter()
                tracks = stream.feed(block)
                block_seconds = block.shape[-1] / source.sample_rate
                report.times.add(time.perf_counter() - started, block_seconds)
                report.seconds += block_seconds
                hand_on(tracks)
                note()
                tell(report, tracks)
    except OSError:
        note()
        raise
    except BaseException:
        hand_on(stream.flush())
        note()
        raise
    hand_on(stream.flush())
    note()
    return report
