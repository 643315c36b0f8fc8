"""Mixtures as a live listener would have heard them, and how long each block of them took."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flasepformer.data import Mixture
from flasepformer.evaluation.rows import EvaluationRow
from flasepformer.evaluation.separating import Separated
from flasepformer.inference import StreamingSeparator
from flasepformer.inference.live import BlockTimes
from flasepformer.models import SeparationNetwork


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How mixtures are played as streams."""

    block_seconds: float = 0.02
    """Length of the blocks in which they come."""
    delay: float | None = None
    """See `StreamingSeparator`."""

    def __post_init__(self) -> None:
        if not 0 < self.block_seconds <= 10:
            raise ValueError(f"block_seconds must be above 0 and at most 10, got {self.block_seconds}")

    def describe(self) -> dict[str, Any]:
        """Return what the scores depend on, as plain values."""
        return {"mode": "stream", "block_seconds": self.block_seconds, "delay": self.delay}


@dataclass(frozen=True)
class StreamedSeparation:
    """Separates mixtures as streams that begin anew with each; fit to be pickled."""

    network: SeparationNetwork
    options: StreamOptions

    def __call__(self, item: Mixture) -> Separated:
        device = next(self.network.parameters()).device
        stream = StreamingSeparator(self.network, item.sample_rate, device, delay=self.options.delay)
        mixture = item.mixture.numpy()
        length = max(round(self.options.block_seconds * item.sample_rate), 1)
        times, tracks = BlockTimes(), []
        for first in range(0, len(mixture), length):
            block = mixture[first : first + length]
            began = time.perf_counter()
            tracks.append(stream.feed(block))
            times.add(time.perf_counter() - began, len(block) / item.sample_rate)
        delay = stream.delay_seconds
        tracks.append(stream.flush())  # so track and mixture are compared at the same time: no delay
        slots = np.flatnonzero(times.counts)
        live = {
            "delay_seconds": delay, "n_late": times.n_late, "longest": times.longest, "total": times.total,
            "worst_factor": times.worst_factor,
            "slots": slots.tolist(), "counts": times.counts[slots].tolist(),
        }  # fmt: skip
        return Separated(torch.from_numpy(np.concatenate(tracks, axis=1)), (), live)


def summarise_blocks(rows: Iterable[EvaluationRow]) -> dict[str, float]:
    """Return delay and times of all blocks of the streams, in seconds; nothing if there were no streams."""
    streams = [row.live for row in rows if row.live]
    if not streams:
        return {}
    times = BlockTimes()
    for live in streams:
        times.counts[live["slots"]] += live["counts"]
        times.n_late += live["n_late"]
        times.longest = max(times.longest, live["longest"])
        times.worst_factor = max(times.worst_factor, live["worst_factor"])
    return {
        "delay_seconds": max(live["delay_seconds"] for live in streams),
        "p50_seconds": times.percentile(0.5),
        "p99_seconds": times.percentile(0.99),
        "longest_seconds": times.longest,
        "worst_real_time_factor": times.worst_factor,
        "late_share": times.n_late / times.n_blocks,
        "n_blocks": times.n_blocks,
    }
