"""What reading a file gives: the samples, their rate and what a person should know about them."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flasepformer.errors import FlasepformerError

MIN_SAMPLE_RATE = 2_000
"""Hz. Below this nothing of speech is left to separate."""
MAX_SAMPLE_RATE = 768_000
"""Hz. The fastest converters on sale; a header that says more is damaged."""
MAX_CHANNELS = 64


class AudioError(FlasepformerError, ValueError):
    """A recording cannot be read at all; the message is the sentence a person sees."""


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples of one recording."""

    samples: NDArray[np.float32]
    """(channel, time), finite. Full scale is 1; float recordings may go beyond it."""
    sample_rate: int
    """Hz."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the recording, one sentence each; empty when nothing is."""

    @property
    def seconds(self) -> float:
        """Length of the recording in seconds."""
        return float(self.samples.shape[1] / self.sample_rate)


class SampleBuffer:
    """Collects decoded blocks in one array, so that a long recording is held in memory once.

    Args:
        n_channels: Channels of every block.
        sample_rate: Hz.
        capacity: Frames expected. Memory is only taken when blocks arrive, so a header may promise too much.

    Raises:
        AudioError: When the header makes no sense, or the recording is larger than the memory here.
    """

    def __init__(self, n_channels: int, sample_rate: int, capacity: int) -> None:
        check_header(n_channels, sample_rate)
        self.n_channels = n_channels
        self.sample_rate = sample_rate
        self.length = 0
        self._samples = self._allocate(max(capacity, 1))

    def append(self, block: NDArray[np.float32]) -> None:
        """Add a block (channel, time)."""
        end = self._reserve(block.shape[1])
        self._samples[:, self.length : end] = block
        self.length = end

    def append_silence(self, n_frames: int) -> None:
        """Add silence where samples are missing, so that everything after it keeps its time."""
        end = self._reserve(n_frames)
        self._samples[:, self.length : end] = 0
        self.length = end

    def samples(self) -> NDArray[np.float32]:
        """(channel, time), a view of everything added so far."""
        return self._samples[:, : self.length]

    def _reserve(self, n_frames: int) -> int:
        end = self.length + n_frames
        if end > self._samples.shape[1]:
            grown = self._allocate(max(end, 2 * self.length))
            grown[:, : self.length] = self.samples()
            self._samples = grown
        return end

    def _allocate(self, n_frames: int) -> NDArray[np.float32]:
        n_bytes = 4 * self.n_channels * n_frames
        if n_bytes <= _memory_bytes():
            try:
                return np.empty((self.n_channels, n_frames), np.float32)
            except MemoryError:
                pass
        hours = n_frames / self.sample_rate / 3600
        raise AudioError(
            f"holds {hours:,.1f} hours by its header, {n_bytes / 2**30:,.0f} GiB once decoded, more than the "
            "memory of this machine; cut it into parts, unless its header is damaged"
        )


def check_header(n_channels: int, sample_rate: int) -> None:
    """Raise `AudioError` unless a person could have made a recording with such a header."""
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise AudioError(f"has {n_channels} channels by its header; 1 to {MAX_CHANNELS} can be read")
    if not 1 <= sample_rate <= MAX_SAMPLE_RATE:
        raise AudioError(f"bad header: the sample rate is {sample_rate} Hz")
    if sample_rate < MIN_SAMPLE_RATE:
        raise AudioError(
            f"has a sample rate of {sample_rate} Hz; below {MIN_SAMPLE_RATE} Hz nothing of speech is left"
        )


def _memory_bytes() -> float:
    """Memory of this machine, infinite where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not on Windows
        return float("inf")
