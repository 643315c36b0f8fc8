"""Recordings that come in blocks of time, whatever they are made of."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Sample = TypeVar("Sample", bound=np.floating[Any])

BLOCK_LENGTH = 1 << 15
"""Frames that are worked on at a time: enough for numpy, little for the memory."""


class Stream(Protocol):
    """A recording that can be gone through from its beginning, as often as is needed."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def n_channels(self) -> int: ...

    @property
    def n_samples(self) -> int:
        """Length of every channel."""

    def blocks(self, length: int = BLOCK_LENGTH) -> Iterator[NDArray[np.float32]]:
        """Yield (channel, length) one after the other, finite; only the last one may be shorter."""


class ArrayStream:
    """A recording in memory.

    Args:
        samples: (channel, time), finite.
        sample_rate: In Hz.
    """

    def __init__(self, samples: NDArray[np.float32], sample_rate: int) -> None:
        self.samples, self.sample_rate = samples, sample_rate
        self.n_channels, self.n_samples = samples.shape

    def blocks(self, length: int = BLOCK_LENGTH) -> Iterator[NDArray[np.float32]]:
        """See `Stream`."""
        for start in range(0, self.n_samples, length):
            yield self.samples[:, start : start + length]


def regular_blocks(
    blocks: Iterable[NDArray[Sample]], length: int = BLOCK_LENGTH
) -> Iterator[NDArray[Sample]]:
    """Cut and join blocks (channel, any time) to blocks of one length; only the last one may be shorter.

    >>> tuple(block.shape[1] for block in regular_blocks([np.zeros((1, n)) for n in (3, 1, 8, 2)], 4))
    (4, 4, 4, 2)
    """
    waiting: list[NDArray[Sample]] = []
    missing = length
    for block in blocks:
        while block.shape[1]:
            waiting.append(block[:, :missing])
            missing -= waiting[-1].shape[1]
            block = block[:, waiting[-1].shape[1] :]
            if not missing:
                yield _joined(waiting)
                waiting, missing = [], length
    if waiting:
        yield _joined(waiting)


def silent_blocks(n_channels: int, n_samples: int) -> Iterator[NDArray[np.float32]]:
    """Yield silence (channel, some time)."""
    for start in range(0, n_samples, BLOCK_LENGTH):
        yield np.zeros((n_channels, min(BLOCK_LENGTH, n_samples - start)), np.float32)


def first_samples(blocks: Iterable[NDArray[np.float32]], n_samples: int) -> Iterator[NDArray[np.float32]]:
    """Yield blocks (channel, time) up to so many samples; silence where there are fewer."""
    n_channels = 1
    for block in blocks:
        n_channels = block.shape[0]
        if block.shape[1] >= n_samples:
            if n_samples:
                yield block[:, :n_samples]
            return
        n_samples -= block.shape[1]
        yield block
    yield from silent_blocks(n_channels, n_samples)


def _joined(parts: list[NDArray[Sample]]) -> NDArray[Sample]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
