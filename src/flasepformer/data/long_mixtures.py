"""Mixtures too long to be held in memory: they are gone through block by block, with their sources."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import BLOCK_LENGTH, Channels, MixDown, RecordingFile, regular_blocks, resample_blocks
from flasepformer.audio import resampled_length as length_at

LONG_SECONDS = 300.0
"""Mixtures longer than this by their header are gone through block by block where that is offered."""

Blocks = Iterator[NDArray[np.float32]]


class MonoRecording:
    """A recording as one channel at a rate, the samples of `mono`; one of the `Stream`s.

    Args:
        recording: As it lies in its file.
        sample_rate: Wanted, in Hz; None for its own.
    """

    n_channels = 1

    def __init__(self, recording: RecordingFile, sample_rate: int | None = None) -> None:
        self._recording, self._rate = recording, sample_rate
        self._mix: MixDown | None = None

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self._rate or self._recording.sample_rate

    @property
    def n_promised(self) -> int:
        """Length by the header."""
        return self._at_rate(self._recording.n_promised)

    @property
    def n_samples(self) -> int:
        """Length; the recording is gone through for it if it has not been."""
        self._mixed_down()
        return self._at_rate(self._recording.n_samples)

    def blocks(self, length: int = BLOCK_LENGTH) -> Blocks:
        """See `Stream`."""
        mix = self._mixed_down()
        mono = (mix.apply(block)[None] for block in self._recording.blocks())
        rates = self._recording.sample_rate, self.sample_rate
        return regular_blocks(resample_blocks(mono, self._recording.n_samples, *rates), length)

    def _at_rate(self, n_samples: int) -> int:
        return length_at(n_samples, self._recording.sample_rate, self.sample_rate)

    def _mixed_down(self) -> MixDown:
        if self._mix is None:
            channels: Channels | None = None
            for block in self._recording.blocks():
                channels = channels or Channels(len(block), None)
                channels.add(block)
            assert channels is not None, "a recording has samples"
            self._mix = channels.mix_down()
        return self._mix


class LongMixture:
    """A mixture and its sources in files; to be closed, as by a `with` statement.

    Args:
        name: Of the mixture.
        mixture_path: Of the mixture.
        source_paths: Of its sources.
        groups: See `Mixture`.

    Raises:
        ValueError: A file cannot be read.
    """

    turns: Sequence[tuple[int, int, int]] = ()

    def __init__(
        self, name: str, mixture_path: Path, source_paths: Sequence[Path], groups: Mapping[str, str]
    ) -> None:
        self.name, self.groups, self._path = name, groups, mixture_path
        self._opened = ExitStack()
        try:
            first, *others = (
                self._opened.enter_context(RecordingFile(path, kept_bytes=0))
                for path in (mixture_path, *source_paths)
            )
            next(first.blocks())
        except BaseException:
            self._opened.close()
            raise
        self.is_long = first.n_promised > LONG_SECONDS * first.sample_rate
        """Whether it is longer than `LONG_SECONDS`, by its header."""
        self.sample_rate = first.sample_rate
        self.mixture = MonoRecording(first)
        self.sources = tuple(MonoRecording(other, first.sample_rate) for other in others)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    @property
    def n_samples(self) -> int:
        """Length, once it is known that all tracks have it.

        Raises:
            ValueError: They differ.
        """
        lengths = [track.n_samples for track in (self.mixture, *self.sources)]
        if len(set(lengths)) > 1:
            raise ValueError(f"mixture {self._path.name} and its sources differ in length: {lengths} samples")
        return lengths[0]
