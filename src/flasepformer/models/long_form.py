"""Evaluate a network on a long recording in pieces of time, with the numbers of the whole.

A residual block with a convolution sees a few neighbouring frames, its halo; linear attention sees a few
means over all frames. So the blocks up to the next attention can be applied to one piece after another, each
read with a halo, in one sweep that also adds up the means for that attention. Intermediate results exist for
one piece only, small enough for the processor's cache; what lies between two sweeps is kept in memory, or in
a temporary file once a limit is reached.
"""

import os
import tempfile
from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from flasepformer.layers import GlobalNorm


class Source(Protocol):
    """A sequence of frames that can be read, kept or made anew."""

    n_frames: int

    def read(self, first: int, last: int) -> Tensor:
        """Return (batch, last - first, channels), not to be changed in place."""

    def room(self, like: Tensor) -> "Frames":
        """Return room for what is made of these frames, which may be their own; `like` is a piece of it."""

    def release(self, keep: "Frames | None" = None) -> None:
        """Give back all room that these frames take, but for `keep`."""


@dataclass(frozen=True)
class Piece:
    """Some frames of a recording, and their neighbours."""

    start: int
    """First frame of the piece itself."""
    stop: int
    """The frame after its last one."""
    first: int
    """First frame that was read."""
    frames: Tensor
    """(batch, frames read, channels)."""

    def core(self, x: Tensor) -> Tensor:
        """Cut what was made of the frames (batch, frames read, channels) to the piece itself."""
        return x[:, self.start - self.first : self.stop - self.first]


def read_piece(source: Source, start: int, stop: int, halo: int = 0) -> Piece:
    """Read the frames from `start` up to `stop` with up to `halo` neighbours on either side."""
    first = max(start - halo, 0)
    return Piece(start, stop, first, source.read(first, min(stop + halo, source.n_frames)))


class Frames:
    """A sequence of frames between two sweeps, in memory or in a file; see `FrameMemory.allocate`.

    Args:
        memory: Whose room it is.
        shape: (batch, frames, channels).
        like: Gives data type and device.
        file: Keeps them; None keeps them in memory.
    """

    def __init__(
        self, memory: "FrameMemory", shape: tuple[int, int, int], like: Tensor, file: BinaryIO | None
    ) -> None:
        self.n_frames = shape[1]
        self.n_bytes = 0 if file else shape[0] * shape[1] * shape[2] * like.element_size()
        self._memory = memory
        self._shape = shape
        self._like = like.new_empty(0)
        self._file = file
        self._tensor = None if file else like.new_empty(shape)
        self._lock = Lock()
        self._pending: deque[tuple[int, Tensor]] = deque()

    def read(self, first: int, last: int) -> Tensor:
        """Return the frames from `first` up to `last`, not to be changed in place."""
        if self._file is None:
            assert self._tensor is not None
            return self._tensor[:, first:last]
        batch, _, channels = self._shape
        stored = torch.empty(last - first, batch, channels, dtype=self._like.dtype)
        with self._lock:  # several threads read at a time
            self._file.seek(first * stored[0].nbytes if len(stored) else 0)
            self._file.readinto(_bytes(stored))  # type: ignore[attr-defined]
        return stored.transpose(0, 1).to(self._like.device)

    def write(self, start: int, value: Tensor) -> None:
        """Set the frames from `start` on to `value` (batch, some frames, channels)."""
        if self._file is None:
            assert self._tensor is not None
            self._tensor[:, start : start + value.shape[1]] = value
        else:
            stored = value.transpose(0, 1).cpu().contiguous()
            self._file.seek(start * stored[0].nbytes)
            self._file.write(_bytes(stored))

    def write_behind(self, start: int, value: Tensor, depth: int = 1) -> None:
        """Write like `write`, but `depth` pieces later, which so still read what was there before."""
        self._pending.append((start, value))
        while len(self._pending) > depth:
            self.write(*self._pending.popleft())

    def flush(self) -> None:
        """Write the pieces that `write_behind` has held back."""
        while self._pending:
            self.write(*self._pending.popleft())

    def room(self, like: Tensor) -> "Frames":
        """Return these frames if what is made of them can take their place, else new ones."""
        if (like.dtype, like.shape[2]) == (self._like.dtype, self._shape[2]):
            return self
        return self._memory.allocate((like.shape[0], self.n_frames, like.shape[2]), like)

    def release(self, keep: "Frames | None" = None) -> None:
        """Give the room back; the frames cannot be used any more."""
        if keep is self:
            return
        self._memory.n_bytes -= self.n_bytes
        self.n_bytes = 0
        self._tensor = None
        if self._file is not None:
            self._file.close()


def _bytes(stored: Tensor) -> memoryview:
    return memoryview(stored.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


class FrameMemory:
    """Gives room for frames: in memory up to a limit, in temporary files beyond it.

    Args:
        limit_bytes: Memory for frames; None sets no limit.
        folder: Where the temporary files go; None takes the system's folder for them.
    """

    def __init__(self, limit_bytes: int | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.folder = folder
        self.n_bytes = 0
        """Memory in use."""
        self.n_file_bytes = 0
        """Room that was taken in files, over the whole time."""

    def allocate(self, shape: tuple[int, int, int], like: Tensor) -> Frames:
        """Return room for frames (batch, frames, channels) with the data type and on the device of `like`.

        Raises:
            OSError: If the disk has no room for what the memory does not hold.
        """
        size = shape[0] * shape[1] * shape[2] * like.element_size()
        if self.limit_bytes is not None and self.n_bytes + size > self.limit_bytes:
            file = tempfile.TemporaryFile(prefix="flasepformer-", dir=self.folder, buffering=0)  # noqa: SIM115
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not in the middle
                os.posix_fallocate(file.fileno(), 0, size)
            self.n_file_bytes += size
            return Frames(self, shape, like, file)
        self.n_bytes += size
        return Frames(self, shape, like, None)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each recording's features over some frames; those of all add up."""

    count: int
    """Numbers in each recording."""
    mean: Tensor
    """(batch,), float64."""
    squares: Tensor
    """(batch,), sum of the squared distances from the mean, float64."""

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Measure features (batch, some frames, channels)."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=(1, 2), correction=0)
        count = x[0].numel()
        return cls(count, mean.double(), variance.double() * count)

    def __add__(self, other: "Moments") -> "Moments":
        # Chan et al. (1979): no large sums are subtracted from each other.
        count = self.count + other.count
        difference, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + difference**2 * (self.count * share)
        return Moments(count, self.mean + difference * share, squares)

    def line(self, eps: float) -> tuple[Tensor, Tensor]:
        """Return scale and shift, (batch, 1, 1) each, that make mean 0 and variance 1."""
        scale = torch.rsqrt(self.squares / self.count + eps)
        return scale[:, None, None], (-self.mean * scale)[:, None, None]

    def normalize(self, x: Tensor, norm: torch.nn.GroupNorm | GlobalNorm) -> Tensor:
        """Apply a normalisation with one group to features (batch, some frames, channels)."""
        scale, shift = self.line(norm.eps)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale, shift = (norm.weight * scale).to(wide), (norm.weight * shift + norm.bias).to(wide)
        return torch.addcmul(shift, x.to(wide), scale).to(x.dtype)
