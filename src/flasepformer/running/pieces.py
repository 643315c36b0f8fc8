"""Play a score on a recording of any length in pieces of time, with the numbers of the whole.

A layer with a convolution sees a few neighbouring frames, its halo; a global layer needs a summary of all
frames. So the layers up to the next global one can be applied to one piece after another, each read with a
halo, in one sweep that also adds up the summary. Intermediate results exist for one piece only; what lies
between two sweeps is kept in a `FrameMemory`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from math import ceil
from operator import add
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from flasepformer.layers import GlobalLayer, Join, Layer, WholeLayer
from flasepformer.running.frames import FrameMemory, Frames, keep_passing_memory
from flasepformer.running.threads import Threads

CACHE_BYTES = 1 << 21
"""Size that an intermediate result may have to stay in the cache of one core."""

WHOLE_ROWS = 2048
"""Frames times entries that a `WholeLayer` gets at a time, on a CPU."""

ACCELERATOR_ROWS = 2**17
"""The same on other devices: enough to keep one busy."""

SPARE_SHARE = 128
"""One in so many frames: when more of a piece than this is needed no longer, it is cut off."""

_Result = TypeVar("_Result")
_Apply = Callable[[Tensor, int], Tensor]


class Readable(Protocol):
    """A sequence of frames that are kept, or made whenever they are read."""

    shape: tuple[int, ...]
    """(batch, frames, ...) of all of them."""

    def read(self, first: int, last: int) -> Tensor:
        """Return (batch, last - first, ...), not to be changed in place."""

    def room(self) -> Frames | None:
        """Return what may be overwritten by what is made of these frames."""


class Made:
    """Frames that a function makes: of its first and its last frame."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[int, int], Tensor]) -> None:
        self.shape, self.read = shape, make

    def room(self) -> Frames | None:
        return None


class _Kept:
    """Frames in memory or in a file."""

    def __init__(self, frames: Frames) -> None:
        self.frames, self.shape, self.read = frames, frames.shape, frames.read

    def room(self) -> Frames | None:
        return None if self.frames.kept else self.frames


class _Pending:
    """Layers that are applied whenever frames are read."""

    def __init__(self, base: Readable, steps: list[tuple[_Apply, int]], shape: tuple[int, ...]) -> None:
        self.base, self.steps, self.shape, self.room = base, steps, shape, base.room
        self.halo = sum(halo for _, halo in steps)

    def read(self, first: int, last: int) -> Tensor:
        begin, end = max(first - self.halo, 0), min(last + self.halo, self.shape[1])
        y = self.base.read(begin, end)
        left = self.halo
        for apply, halo in self.steps:
            y = apply(y, begin)
            left -= halo
            start, stop = (
                max(first - left, 0),
                min(last + left, self.shape[1]),
            )  # what is still right, or needed
            spare = y.shape[1] - (stop - start)
            if spare * SPARE_SHARE > y.shape[1] or not left:
                y, begin = y[:, start - begin : stop - begin], start
        return y


class _Strided:
    """A layer that lets fewer frames through, applied whenever they are read."""

    def __init__(self, base: Readable, layer: Layer) -> None:
        self.base, self.layer = base, layer
        batch, n_frames, *rest = layer.shape(base.shape)
        self.shape = (batch, n_frames // layer.stride, *rest)

    def read(self, first: int, last: int) -> Tensor:
        stride = self.layer.stride
        halo = self.layer.halo + -self.layer.halo % stride
        begin = max(stride * first - halo, 0)
        y = self.layer(self.base.read(begin, min(stride * last + halo, self.base.shape[1])))
        return y[:, first - begin // stride : last - begin // stride]

    def room(self) -> Frames | None:
        return None


class _Joined:
    """Two sequences that are joined whenever they are read."""

    def __init__(self, layer: Join, below: Readable, x: Readable) -> None:
        self.layer, self.below, self.x, self.shape, self.room = layer, below, x, x.shape, x.room

    def read(self, first: int, last: int) -> Tensor:
        below = self.below.read(first // self.layer.rate, ceil(last / self.layer.rate))
        return self.layer.join(below, self.x.read(first, last), first)


class _Filled:
    """Frames with zeros after them."""

    def __init__(self, base: Readable, n_frames: int) -> None:
        batch, _, *rest = base.shape
        self.base, self.shape, self.room = base, (batch, n_frames, *rest), base.room

    def read(self, first: int, last: int) -> Tensor:
        stop = min(last, self.base.shape[1])
        begin = min(first, max(stop - 1, 0))  # at least one frame, which tells the type
        y = self.base.read(begin, stop)[:, first - begin :]
        return F.pad(y, (*(0, 0) * (y.ndim - 2), 0, last - first - y.shape[1]))


class Pieces:
    """Plays a score piece by piece: a sweep over the recording for every global layer.

    Args:
        length: Frames in a piece, at most.
        multiple: Pieces begin at multiples of so many frames.
        shortest: Frames to which pieces are cut so that every core has one.
        device: Where the frames are.
        memory: Room for what is kept between two sweeps; by default without limit.
        progress: Told how many frames have been gone through, after every piece.
        rehearsal: Compute nothing, and only count the memory and the work.
    """

    def __init__(
        self,
        length: int,
        *,
        multiple: int = 1,
        shortest: int = 512,
        device: torch.device | None = None,
        memory: FrameMemory | None = None,
        progress: Callable[[int], None] | None = None,
        rehearsal: bool = False,
    ) -> None:
        self.length, self.multiple, self.shortest = length, multiple, shortest
        self.device = torch.device("cpu") if device is None else device
        self.threads = Threads(self.device)
        self.memory = FrameMemory() if memory is None else memory
        self.progress = progress
        self.rehearsal = rehearsal
        if self.device.type == "cpu" and not rehearsal:
            keep_passing_memory()
        self.work = 0
        """Frames gone through, those of every sequence in the batch."""

    def through(self, x: Readable, *layers: Layer) -> Readable:
        plain = self.rehearsal or torch.is_grad_enabled()
        for layer in layers if plain else [layer.prepared() for layer in layers]:
            if isinstance(layer, GlobalLayer) and layer.causal:
                raise ValueError("a causal global layer has no summary of all frames; play it live")
            if isinstance(layer, GlobalLayer):
                x, summary = self._sweep(x, layer.summarize)
                x = _then(x, layer, _unchanged if self.rehearsal else layer.given(summary))
            elif isinstance(layer, WholeLayer):
                x = self._apply_whole(x, layer)
            elif layer.stride > 1:
                x = _Strided(x, layer)
            else:
                x = _then(x, layer, _unchanged if self.rehearsal else _tiled(layer))
        return x

    def keep(self, x: Readable) -> Readable:
        frames = self._store(x, None)[0]
        frames.kept = True
        return _Kept(frames)

    def join(self, layer: Join, below: Readable, x: Readable) -> Readable:
        return _Joined(layer, below, x)

    def fill(self, x: Readable, multiple: int) -> Readable:
        return _Filled(x, x.shape[1] + -x.shape[1] % multiple)

    def cut(self, x: Readable, like: Readable) -> Readable:
        batch, _, *rest = x.shape
        return Made((batch, like.shape[1], *rest), x.read)

    def tap(self, x: Readable) -> None:
        pass

    def sink(self, x: Readable, consume: Callable[[Tensor], _Result]) -> Iterator[tuple[int, _Result]]:
        """Give every piece away, in order.

        Args:
            x: Frames.
            consume: Makes what is wanted of each piece, several at a time on several cores.

        Yields:
            The first frame of the piece, and what was made of it.
        """
        n_sequences, n_frames, *_ = x.shape
        length = self.piece_length(n_frames)
        if self.rehearsal:
            self.work += n_sequences * n_frames
            return

        def read(first: int) -> tuple[int, int, _Result]:
            last = min(first + length, n_frames)
            return first, last, consume(x.read(first, last))

        for first, last, result in self.threads.map(read, range(0, n_frames, length)):
            self.work += n_sequences * (last - first)
            yield first, result
            if self.progress is not None:
                self.progress(self.work)

    def piece_length(self, n_frames: int) -> int:
        """Return the frames in a piece, such that no core has nothing to do."""
        n_threads = self.threads.n_threads
        n_pieces = ceil(n_frames / self.length)
        shared = ceil(n_pieces / n_threads) * n_threads
        length = ceil(n_frames / (shared if n_frames >= shared * self.shortest else n_pieces))
        return length + -length % self.multiple

    def _sweep(self, x: Readable, summarize: Callable[[Tensor], Any]) -> tuple[Readable, Any]:
        """Add up a summary of all frames, and store what is pending before it."""
        if isinstance(x, (Made, _Kept)):
            return x, _sum(part for _, part in self.sink(x, summarize))
        frames, summary = self._store(x, summarize)
        return _Kept(frames), summary

    def _store(self, x: Readable, summarize: Callable[[Tensor], Any] | None) -> tuple[Frames, Any]:
        """Make all frames, where it can be in the room of those that they are made of; and their summary."""
        if isinstance(x, _Kept) and summarize is None:
            return x.frames, None
        frames = self._room(x, torch.empty(0, device="meta")) if self.rehearsal else None
        summary: Any = None
        waiting: deque[tuple[int, Tensor]] = deque()
        halo = x.halo if isinstance(x, _Pending) else 0
        n_waiting = 1 + halo // self.piece_length(x.shape[1])  # whose neighbours are still to be read

        def both(y: Tensor) -> tuple[Tensor, Any]:
            return y, None if summarize is None else summarize(y)

        for first, (y, part) in self.sink(x, both):
            frames = frames or self._room(x, y)
            waiting.append((first, y))
            summary = part if summary is None else summary + part  # not kept: a day has thousands of pieces
            if len(waiting) > n_waiting:
                frames.write(*waiting.popleft())
        assert frames is not None
        for piece in waiting:
            frames.write(*piece)
        return frames, summary

    def _room(self, x: Readable, like: Tensor) -> Frames:
        own = x.room()
        if own is not None and (own.shape, own.dtype) == (x.shape, like.dtype):
            return own
        return self.memory.allocate(x.shape, like)

    def _apply_whole(self, x: Readable, layer: WholeLayer) -> Readable:
        """Apply a layer that needs all frames, to a few entries of axis 2 at a time."""
        frames = self._store(x, None)[0]
        tensor = frames.tensor
        if self.rehearsal:
            return _Kept(frames)
        if tensor is None or frames.kept:
            raise ValueError("softmax attention over all frames needs them in memory; set no limit to it")
        n_rows = WHOLE_ROWS if tensor.is_cpu else ACCELERATOR_ROWS
        for recording in tensor.split(1):
            for group in recording.split(max(1, n_rows // frames.shape[1]), dim=2):
                group.copy_(layer(group))
        return _Kept(frames)


def _then(x: Readable, layer: Layer, apply: _Apply) -> Readable:
    step = (apply, layer.halo)
    if isinstance(x, _Pending):
        return _Pending(x.base, [*x.steps, step], layer.shape(x.shape))
    return _Pending(x, [step], layer.shape(x.shape))


def _unchanged(x: Tensor, first: int) -> Tensor:
    return x


def _sum(parts: Iterable[Any]) -> Any:
    """Add up summaries; None if there are none, as in a rehearsal."""
    parts = iter(parts)
    return reduce(add, parts, next(parts, None))


def _tiled(layer: Layer) -> _Apply:
    """Return a layer that is applied to as many frames at a time as the cache holds, where that is faster."""

    def apply(x: Tensor, first: int) -> Tensor:
        n_frames = x.shape[1]
        if not layer.width or not x.is_cpu:
            return layer(x)
        length = max(CACHE_BYTES // (x.shape[0] * layer.width * x.element_size()), 16 * layer.halo, 1)
        if n_frames <= length:
            return layer(x)
        result: Tensor | None = None
        for start in range(0, n_frames, length):
            stop = min(start + length, n_frames)
            begin = max(start - layer.halo, 0)
            y = layer(x[:, begin : min(stop + layer.halo, n_frames)])[:, start - begin : stop - begin]
            if result is None:
                result = y.new_empty(y.shape[0], n_frames, *y.shape[2:])
            result[:, start:stop] = y
        assert result is not None
        return result

    return apply
