"""What a model needs of a recording, found in two sweeps over it, whatever its length."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flasepformer.audio import (
    BLOCK_LENGTH,
    Channels,
    MixDown,
    StoredSignals,
    Stream,
    resample_blocks,
    resampled_length,
)
from flasepformer.errors import InputError
from flasepformer.inference.levels import MODEL_RMS, SILENCE_PEAK, SilenceFinder, TalkingLevel

MAX_PEAK = 1e30
"""Largest sample taken; beyond it, float32 has no room left for the tracks."""

Tell = Callable[[float], None]
"""Called with the share of the recording that has been gone through."""


class OneChannel:
    """One channel of a recording, as a recording.

    Args:
        stream: All channels.
        channel: Which, from 1.
    """

    n_channels = 1

    def __init__(self, stream: Stream, channel: int) -> None:
        self._stream, self._channel = stream, channel

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self._stream.sample_rate

    @property
    def n_samples(self) -> int:
        """Length."""
        return self._stream.n_samples

    def blocks(self, length: int = BLOCK_LENGTH) -> Iterator[NDArray[np.float32]]:
        """See `Stream`.

        Raises:
            InputError: There is no such channel.
        """
        for block in self._stream.blocks(length):
            if not 1 <= self._channel <= len(block):
                raise InputError(
                    f"the recording has {len(block)} channels, so there is no channel {self._channel}"
                )
            yield block[self._channel - 1 : self._channel]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the first sweep over a recording has found."""

    stream: Stream
    n_samples: int
    sample_rate: int
    n_channels: int
    peak: float
    mix: MixDown
    talkers_have_channels: bool
    """Whether each channel carries a talker of its own."""

    def mixed(self) -> Iterator[NDArray[np.float32]]:
        """Yield the recording mixed down, without its constant offset: (1, some time)."""
        offset = np.float32(self.mix.mean)
        for block in self.stream.blocks():
            mixture = self.mix.apply(block)
            mixture -= offset
            yield mixture[None]

    def model_length(self, sample_rate: int) -> int:
        """Return the length of the recording at another rate."""
        return resampled_length(self.n_samples, self.sample_rate, sample_rate)


def survey(
    stream: Stream, n_promised: Callable[[], int], tell: Tell, *, compare_channels: bool = True
) -> Survey:
    """Go through a recording for the first time.

    Args:
        stream: The recording; its length need not be known yet.
        n_promised: Returns the length as far as it is known, for `tell`.
        tell: Told the share that is done.
        compare_channels: Whether to find out if each channel has a talker of its own; else none has.

    Raises:
        InputError: A sample is too large.
        AudioError: The recording cannot be read.
    """
    channels: Channels | None = None
    for block in stream.blocks():
        if channels is None:
            channels = Channels(len(block), stream.sample_rate if compare_channels else None)
        channels.add(block)
        tell(min(1.0, channels.n_samples / max(n_promised(), 1)))
    assert channels is not None, "a recording has samples"
    if channels.peak > MAX_PEAK:
        raise InputError(
            f"samples must not exceed {MAX_PEAK:g}, got {channels.peak:.3g}; scale the waveform first"
        )
    return Survey(
        stream=stream,
        n_samples=channels.n_samples,
        sample_rate=stream.sample_rate,
        n_channels=channels.n_channels,
        peak=channels.peak,
        mix=channels.mix_down(),
        talkers_have_channels=channels.have_talkers(),
    )


@dataclass(frozen=True)
class Heard:
    """The mixture at a model's sample rate and level; one of the `Signals` that a model separates."""

    stored: StoredSignals = field(repr=False)
    level: float
    """What the recording is divided by."""
    silent: tuple[slice, ...]
    """Where the recording is silent, in its own samples."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def n_samples(self) -> int:
        """Length."""
        return self.stored.n_samples

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return (1, last - first)."""
        return self.stored.read(first, last) / np.float32(self.level)


def hear(found: Survey, sample_rate: int, folder: str | None, tell: Tell) -> Heard:
    """Mix a recording down, bring it to a model's rate, and find its level and its pauses.

    Args:
        found: Of the first sweep.
        sample_rate: The model's, in Hz.
        folder: Where the mixture is stored; None keeps it in memory.
        tell: Told the share that is done.

    Returns:
        What the model needs; its level is 0 where there is nothing to hear.

    Raises:
        OSError: The disk has no room.
    """
    silence = SilenceFinder(found.sample_rate, SILENCE_PEAK)
    loudness = TalkingLevel(sample_rate // 10)
    peak = 0.0

    def mixed() -> Iterator[NDArray[np.float32]]:
        nonlocal peak
        n_done = 0
        for block in found.mixed():
            peak = max(peak, _peak(block))
            silence.add(block[0])
            yield block
            n_done += block.shape[1]
            tell(n_done / found.n_samples)

    stored = StoredSignals(1, found.model_length(sample_rate), folder)
    first, model_peak = 0, 0.0
    for block in resample_blocks(mixed(), found.n_samples, found.sample_rate, sample_rate):
        if block.shape[1]:
            stored.write(first, block)
            loudness.add(block[0])
            model_peak = max(model_peak, _peak(block))
            first += block.shape[1]
    notes, warnings = [], list(found.mix.warnings)
    if found.n_channels > 2:
        notes.append(f"the {found.n_channels} channels were mixed down to one; --channel takes one of them")
    if abs(found.mix.mean) > 0.01 * found.peak:
        notes.append(f"a constant offset of {found.mix.mean:.3g} was removed")
    if min(peak, model_peak) < SILENCE_PEAK:
        notes.append("no speech: the recording is silent, and so are the tracks")
        return Heard(stored, 0.0, (), tuple(notes), tuple(warnings))
    if found.sample_rate > sample_rate:
        notes.append(
            f"the model works at {sample_rate} Hz: the tracks hold nothing above {sample_rate // 2} Hz"
        )
    if found.sample_rate < 0.9 * sample_rate:
        warnings.append(
            f"at {found.sample_rate} Hz the recording holds nothing above {found.sample_rate // 2} Hz, but "
            f"the model learned from speech up to {sample_rate // 2} Hz: expect less of it"
        )
    level = loudness.rms() / MODEL_RMS
    return Heard(stored, level, tuple(silence.spans()), tuple(notes), tuple(warnings))


def _peak(waveform: NDArray[np.float32]) -> float:
    return max(float(waveform.max()), -float(waveform.min()))
