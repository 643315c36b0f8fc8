"""What all networks are: a score between an analysis of samples and a synthesis of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import Carry, Layer, Moments, widest
from flasepformer.ops import overlap_add
from flasepformer.running import (
    FrameMemory,
    Live,
    Made,
    OverlapAdd,
    Performer,
    Pieces,
    Samples,
    TensorSamples,
    Whole,
    read_with_zeros,
)

X = TypeVar("X")
Part = TypeVar("Part", bound=nn.Module)

SAMPLES_AT_ONCE = 1 << 20
"""Samples that are read at a time to measure the level of a recording."""


@dataclass(frozen=True)
class Rehearsal:
    """What a recording takes in pieces, counted without computing anything."""

    peak_bytes: int
    """Most memory for frames between two sweeps."""
    file_bytes: int
    """Room in temporary files."""
    work: int
    """Frames gone through."""


class Block(nn.ModuleDict):
    """Layers by name, one after the other."""

    def layers(self) -> Iterator[Layer]:
        """Return the layers in order."""
        for layer in self.values():
            assert isinstance(layer, Layer)
            yield layer


class Modules(nn.ModuleList, Generic[Part]):
    """Modules of one type."""

    def __iter__(self) -> Iterator[Part]:
        return cast("Iterator[Part]", super().__iter__())


class SeparationNetwork(nn.Module, ABC):
    """Separate the talkers of a mixture.

    A frame of the analysis is made of one window of samples, and a window of every talker's samples comes
    back for it. In between, `flow` is the score: the order of the layers, for any performer.

    Shape: mixture (batch, time) to estimates (batch, source, time), of any length from one sample on.

    Raises:
        ValueError: If the mixture is not a floating-point tensor of two axes with at least one sample.
    """

    sample_rate: int
    """Sample rate of mixture and estimates in Hz."""
    n_sources: int
    """Number of estimates for each mixture."""
    hop_length: int
    """Samples from one window to the next."""
    window_length: int
    """Samples in a window."""
    features: tuple[int, ...]
    """Shape of a frame of the analysis."""
    lead: int = 0
    """Samples of the first window that lie before the recording."""
    look_ahead: int = 0
    """Frames of the future that a causal network hears before it answers."""
    frames_per_step: int = 1
    """Frames that the score takes a multiple of."""
    causal: bool = False
    """Whether no frame depends on later ones, so that the network can be played live."""
    in_pieces: bool = True
    """Whether time and memory grow linearly with the recording when it is played in pieces."""
    normalizes: bool = False
    """Whether every mixture is brought to a level of the network's own."""
    recompute: bool = False
    """Whether training keeps the inputs of layers only, and computes the rest again."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.n_sources = config.sample_rate, config.n_sources
        self.hop_length, self.causal = config.hop_length, config.causal
        self.normalizes = config.normalize_variance

    @property
    def lag(self) -> int:
        """Samples that the estimates come later than the recording; live, the delay beside that of a step."""
        return self.lead + self.look_ahead * self.hop_length

    @abstractmethod
    def n_frames(self, n_samples: int) -> int:
        """Return the frames of a recording."""

    @abstractmethod
    def analyse(self, windows: Tensor) -> Tensor:
        """Turn samples (batch, time), whole windows, into frames (batch, frames, ...)."""

    @abstractmethod
    def flow(self, run: Performer[X], frames: X) -> X:
        """Play the score: from frames to windows of the talkers (batch * source, frames, window_length)."""

    @abstractmethod
    def piece_length(self, device: torch.device) -> int:
        """Return the frames in a piece that suit the device."""

    @abstractmethod
    def numbers_at_a_time(self, n_frames: int) -> int:
        """Return how many numbers of passing results exist at a time, at most, for a piece of so many frames.

        A formula with a constant that was measured on a CPU, in float32, as the peak above the loaded model.
        """

    @abstractmethod
    def level_of(self, moments: Moments, peak: Tensor) -> Tensor:
        """Return the level (batch,) of recordings by the moments of their samples and the peak (batch,)."""

    def read_windows(self, samples: Samples, first: int, last: int) -> Tensor:
        """Read the samples (batch, time) under the windows of some frames, also beyond the recording."""
        begin = first * self.hop_length - self.lead
        return read_with_zeros(
            samples, begin, begin + (last - first - 1) * self.hop_length + self.window_length
        )

    def squared_window(self, like: Tensor) -> Tensor | None:
        """Return what overlapping windows weigh (window,), or None where they need no weighting."""
        return None

    def forward(self, mixture: Tensor) -> Tensor:
        frames, close = self.open(mixture)
        return close(self.flow(Whole(recompute=self.recompute), frames))

    def forward_with_auxiliary(self, mixture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Separate, and let the auxiliary heads separate too, for the multi-stage loss.

        Args:
            mixture: (batch, time).

        Returns:
            The estimates (batch, source, time), and those of every auxiliary head, coarsest stage first; a
            network without such heads has none.
        """
        return self(mixture), []

    def core(self, samples: Tensor, run: Whole | None = None) -> Tensor:
        """Separate whole steps, without any padding or levelling, for export.

        Args:
            samples: (batch, time): `lead` samples before the recording, then a multiple of `frames_per_step`
                hops, then what the last window has beyond its hop and lead.
            run: Who plays the score; `Whole` by default.

        Returns:
            (batch, source, time), of the same samples.
        """
        windows = self.flow(run or Whole(), self.analyse(samples))
        overlapped = overlap_add(windows, self.hop_length)
        adder = OverlapAdd(self.hop_length, self.squared_window(windows))
        return adder.push(overlapped, windows.shape[1], last=True).unflatten(0, (-1, self.n_sources))

    def separate_in_pieces(
        self,
        mixture: Tensor,
        memory: FrameMemory | None = None,
        progress: Callable[[float], None] | None = None,
        *,
        piece_length: int | None = None,
    ) -> Tensor:
        """Separate a recording of any length in pieces of time, with the numbers of the whole.

        Args:
            mixture: (batch, time).
            memory: Room for what is kept of the recording between two sweeps over it; by default without
                limit.
            progress: Told the share that is done, from 0 to 1, after every piece.
            piece_length: Frames in a piece; by default what suits the device.

        Returns:
            The estimates (batch, source, time), as `forward` gives them in eval mode.
        """
        _check(mixture)
        estimates = mixture.new_empty(len(mixture), self.n_sources, mixture.shape[-1])
        first = 0
        samples = TensorSamples(mixture)
        for piece in self.estimates_in_pieces(samples, memory, progress, piece_length=piece_length):
            estimates[..., first : first + piece.shape[-1]] = piece
            first += piece.shape[-1]
        return estimates

    @torch.no_grad()
    def estimates_in_pieces(
        self,
        samples: Samples,
        memory: FrameMemory | None = None,
        progress: Callable[[float], None] | None = None,
        *,
        piece_length: int | None = None,
    ) -> Iterator[Tensor]:
        """Separate a recording that is read when it is needed, several times over.

        Args:
            samples: The recording.
            memory: See `separate_in_pieces`.
            progress: See `separate_in_pieces`.
            piece_length: See `separate_in_pieces`.

        Yields:
            The next estimates (batch, source, some time), one after the other.
        """
        if self.causal:
            yield from self._played_live(samples, progress, piece_length)
            return
        level = self._level(samples)
        normalized = _Levelled(samples, level)
        like = samples.read(0, 1)
        run = self._pieces(like.device, memory, piece_length)
        if progress is not None:
            work = self.rehearse(samples.n_samples, len(like), piece_length=piece_length).work
            run.progress = lambda done: progress(done / work)
        n_frames, n_left, n_lead = self.n_frames(samples.n_samples), samples.n_samples, self.lag
        adder: OverlapAdd | None = None

        def overlapped(windows: Tensor) -> tuple[Tensor, int]:
            return overlap_add(windows, self.hop_length), windows.shape[1]

        with run.threads:
            shape = (len(like), n_frames, *self.features)
            frames = Made(shape, lambda first, last: self._analyse(normalized, first, last))
            for first, (added, n_windows) in run.sink(self.flow(run, frames), overlapped):
                adder = adder or OverlapAdd(self.hop_length, self.squared_window(added))
                done = adder.push(added, n_windows, last=first + n_windows >= n_frames)
                n_skipped, n_lead = min(n_lead, done.shape[-1]), max(n_lead - done.shape[-1], 0)
                done = done[:, n_skipped : n_skipped + n_left]
                n_left -= done.shape[-1]
                yield self._with_level(done, level, like)
        if n_left:
            yield like.new_zeros(len(like), self.n_sources, n_left)

    def _played_live(
        self, samples: Samples, progress: Callable[[float], None] | None, piece_length: int | None
    ) -> Iterator[Tensor]:
        """Do as `estimates_in_pieces` with a causal network: in one sweep, in memory that does not grow."""
        n_frames = piece_length or self.piece_length(samples.read(0, 1).device)
        length = (n_frames + -n_frames % self.frames_per_step) * self.hop_length
        n_samples, state = samples.n_samples, dict[str, Tensor]()
        for first in range(0, n_samples + self.lag, length):
            estimates, state = self.step(read_with_zeros(samples, first, first + length), state)
            begin = first - self.lag  # the sample that the first of them is the estimate of
            yield estimates[..., max(-begin, 0) : max(n_samples - begin, 0)]
            if progress is not None:
                progress(min((first + length) / (n_samples + self.lag), 1.0))

    def step(
        self, samples: Tensor, state: dict[str, Tensor], layers: dict[str, Layer] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Separate the next samples of a live recording, at the level they have.

        Args:
            samples: (batch, time), a multiple of `frames_per_step` hops.
            state: What the step before returned; empty at the beginning. The first axis of every tensor in it
                is the batch, or a multiple of it.
            layers: Keeps what the weights alone come to, for all steps that follow; empty at first. Without
                gradients, and as long as the weights stay as they are.

        Returns:
            Estimates (batch, source, time) of the samples `lag` samples earlier, and the state.

        Raises:
            ValueError: If the network is not causal, or the samples are no whole step.
        """
        step_length = self.hop_length * self.frames_per_step
        if not self.causal:
            raise ValueError("only a causal network can be played live; set causal in its config")
        _check(samples)
        if samples.shape[-1] % step_length:
            raise ValueError(f"a step takes a multiple of {step_length} samples, got {samples.shape[-1]}")
        run = Live(state, layers)
        heard = Carry(run.state, "input").before("samples", samples, self.window_length - self.hop_length)
        windows = self.flow(run, self.analyse(heard))
        tails = {
            name: run.state[f"output.{name}"] for name in ("samples", "weights") if f"output.{name}" in state
        }
        adder = OverlapAdd(self.hop_length, self.squared_window(windows), tails)
        done = adder.push(overlap_add(windows, self.hop_length), windows.shape[1])
        run.state.update({f"output.{name}": tail for name, tail in adder.tails.items()})
        return done.unflatten(0, (-1, self.n_sources)), run.state

    def rehearse(
        self,
        n_samples: int,
        batch: int = 1,
        limit_bytes: int | None = None,
        *,
        piece_length: int | None = None,
    ) -> Rehearsal:
        """Count what `separate_in_pieces` will take, by the score, without computing anything.

        Args:
            n_samples: Length of the recording.
            batch: Recordings at a time.
            limit_bytes: Memory for frames; the rest goes to files.
            piece_length: Frames in a piece.
        """
        memory = FrameMemory(limit_bytes)
        run = self._pieces(next(self.parameters()).device, memory, piece_length, rehearsal=True)
        if self.causal:
            return Rehearsal(0, 0, batch * self.n_frames(n_samples))
        windows = self.flow(run, Made((batch, self.n_frames(n_samples), *self.features), _never))
        for _ in run.sink(windows, lambda y: None):
            pass
        return Rehearsal(memory.peak_bytes, memory.n_file_bytes, run.work)

    def _pieces(
        self, device: torch.device, memory: FrameMemory | None, length: int | None, rehearsal: bool = False
    ) -> Pieces:
        return Pieces(
            length or self.piece_length(device),
            multiple=self.frames_per_step,
            device=device,
            memory=memory,
            rehearsal=rehearsal,
        )

    def open(self, mixture: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Return the frames of a mixture, and what turns the windows that `flow` makes into estimates."""
        _check(mixture)
        samples = TensorSamples(mixture)
        level = self._level(samples)
        frames = self._analyse(_Levelled(samples, level), 0, self.n_frames(samples.n_samples))
        return frames, lambda windows: self._with_level(
            self._trimmed(windows, samples.n_samples), level, mixture
        )

    def _trimmed(self, windows: Tensor, n_samples: int) -> Tensor:
        """Add up all windows, and cut them to the recording: (batch * source, n_samples)."""
        adder = OverlapAdd(self.hop_length, self.squared_window(windows))
        waveforms = adder.push(overlap_add(windows, self.hop_length), windows.shape[1], last=True)
        waveforms = waveforms[:, self.lag : self.lag + n_samples]
        return F.pad(waveforms, (0, n_samples - waveforms.shape[-1]))

    def _analyse(self, samples: Samples, first: int, last: int) -> Tensor:
        return self.analyse(self.read_windows(samples, first, last))

    def _level(self, samples: Samples) -> Tensor | None:
        """Return the level (batch, 1) of a recording, zero for silence; None if the network takes any."""
        if not self.normalizes:
            return None
        moments: Moments | None = None
        peak = samples.read(0, 1)[:, 0].abs()
        for first in range(0, samples.n_samples, SAMPLES_AT_ONCE):
            some = samples.read(first, min(first + SAMPLES_AT_ONCE, samples.n_samples))
            part = Moments.of(widest(some))
            moments = part if moments is None else moments + part
            peak = torch.maximum(peak, some.abs().amax(-1))
        assert moments is not None
        return self.level_of(moments, widest(peak)).unsqueeze(-1)

    def _with_level(self, waveforms: Tensor, level: Tensor | None, like: Tensor) -> Tensor:
        """Turn (batch * source, time) into estimates of the recording's level and type."""
        estimates = waveforms.unflatten(0, (-1, self.n_sources))
        if level is not None:
            estimates = estimates * level.unsqueeze(-1).to(torch.promote_types(like.dtype, torch.float32))
        return estimates.to(like.dtype)


class _Levelled:
    """A recording divided by its level."""

    def __init__(self, samples: Samples, level: Tensor | None) -> None:
        self.samples, self.n_samples = samples, samples.n_samples
        self.level = None if level is None else torch.where(level > 0, level, 1)

    def read(self, first: int, last: int) -> Tensor:
        read = self.samples.read(first, last)
        if self.level is None:
            return read
        wide = read.to(torch.promote_types(read.dtype, torch.float32))
        return (wide / self.level.to(wide.dtype)).to(read.dtype)


def separate(model: nn.Module, mixture: Tensor) -> Tensor:
    """Separate a mixture (batch, time) without gradients: with a network of ours in exact pieces of time."""
    return model.separate_in_pieces(mixture) if isinstance(model, SeparationNetwork) else model(mixture)


def check_fields(
    config: Any,
    bounds: Mapping[str, tuple[int, int]],
    flags: Iterable[str],
    choices: Mapping[str, Sequence[str]],
) -> None:
    """Hold the fields of a config against whole numbers from low to high, true or false, and names.

    Raises:
        ValueError: If one is something else.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
    for name in flags:
        if type(getattr(config, name)) is not bool:
            raise ValueError(f"{name} must be true or false, got {getattr(config, name)!r}")
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}")


def check_causal(config: Any) -> None:
    """Hold what only a causal network can do against whether it is one.

    Raises:
        ValueError: It looks ahead or forgets without being causal, or the time is none.
    """
    seconds = config.forget_seconds
    if type(seconds) not in (int, float) or not 0 <= seconds < float("inf"):
        raise ValueError(f"forget_seconds must be a time, or 0 for never, got {seconds!r}")
    if (seconds or config.look_ahead) and not config.causal:
        raise ValueError("look_ahead and forget_seconds are of causal networks; set causal to true")


def decay(seconds: float, frame_seconds: float) -> float:
    """Return what is left after a frame of what is forgotten with a time constant; 0 seconds: all."""
    return exp(-frame_seconds / seconds) if seconds else 1.0


def _never(first: int, last: int) -> Tensor:
    raise AssertionError("a rehearsal reads nothing")


def _check(mixture: Tensor) -> None:
    if mixture.ndim != 2 or mixture.shape[-1] == 0 or not mixture.is_floating_point():
        raise ValueError(
            "mixture must be floating point (batch, time) with at least one sample, "
            f"got {tuple(mixture.shape)} of {mixture.dtype}; add a batch axis with mixture[None]"
        )
