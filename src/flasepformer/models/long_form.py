"""Evaluate a network on a long recording in pieces of time, with the numbers of the whole.

A residual block with a convolution sees a few neighbouring frames, its halo; linear attention sees a few
means over all frames. So the blocks up to the next attention can be applied to one piece after another, each
read with a halo, in one sweep that also adds up the means for that attention. Intermediate results exist for
one piece only, small enough for the processor's cache; what lies between two sweeps is kept in memory, or in
a temporary file once a limit is reached.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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


def read_pieces(source: Source, piece_length: int, halo: int = 0) -> Iterator[Piece]:
    """Read all frames, piece by piece, each with up to `halo` neighbours on either side."""
    for start in range(0, source.n_frames, piece_length):
        stop = min(start + piece_length, source.n_frames)
        first = max(start - halo, 0)
        yield Piece(start, stop, first, source.read(first, min(stop + halo, source.n_frames)))


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
        self._pending: tuple[int, Tensor] | None = None

    def read(self, first: int, last: int) -> Tensor:
        """Return the frames from `first` up to `last`, not to be changed in place."""
        if self._file is None:
            assert self._tensor is not None
            return self._tensor[:, first:last]
        batch, _, channels = self._shape
        stored = torch.empty(last - first, batch, channels, dtype=self._like.dtype)
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

    def write_behind(self, start: int, value: Tensor) -> None:
        """Write like `write`, but one piece later, so that the next one still reads what was there before."""
        self.flush()
        self._pending = (start, value)

    def flush(self) -> None:
        """Write the piece that `write_behind` has held back."""
        if self._pending is not None:
            self.write(*self._pending)
            self._pending = None

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


class Moments:
    """Mean and variance of each recording's features over all frames, added up piece by piece."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Count the features (batch, some frames, channels) in."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=(1, 2), correction=0)
        n = x[0].numel()
        self.count += n
        difference = mean.double() - self.mean.to(x.device)
        # Chan et al. (1979): no large sums are subtracted from each other.
        self.squares = self.squares.to(x.device) + n * (variance + difference**2 * (1 - n / self.count))
        self.mean = self.mean.to(x.device) + difference * (n / self.count)

    def normalize(self, x: Tensor, norm: torch.nn.GroupNorm | GlobalNorm) -> Tensor:
        """Apply a normalisation with one group to features (batch, some frames, channels)."""
        scale = torch.rsqrt(self.squares / self.count + norm.eps)[:, None, None]
        shift = -self.mean[:, None, None] * scale
        wide = torch.promote_types(x.dtype, torch.float32)
        return ((x * scale.to(wide) + shift.to(wide)) * norm.weight + norm.bias).to(x.dtype)
