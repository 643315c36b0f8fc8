"""Frames of a recording between two sweeps over it: in memory up to a limit, in temporary files beyond it."""

import mmap
import os
import sys
import weakref
from math import prod
from threading import Lock
from typing import BinaryIO

import torch
from torch import Tensor

from flasepformer.files.scratch import scratch_file

APART_BYTES = 1 << 20
"""Frames from this size on get memory of their own."""

PASSING_BYTES = 24 << 20
"""Free memory up to which the C library is made to keep it for the next passing result, twice over."""


class Frames:
    """A sequence of frames; its room is given back when nobody has it any more. See `FrameMemory.allocate`.

    Args:
        shape: (batch, frames, ...).
        like: Gives data type and device.
        file: Keeps them; None keeps them in memory.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, file: BinaryIO | None) -> None:
        self.shape, self.dtype = shape, like.dtype
        self.kept = False
        """Whether two readers need the frames, so that nothing may be written over them."""
        self._device = like.device
        self._file = file
        self._tensor = None if file else _empty(shape, like)
        self._lock = Lock()

    @property
    def tensor(self) -> Tensor | None:
        """All frames, where they are in memory."""
        return self._tensor

    def read(self, first: int, last: int) -> Tensor:
        """Return the frames from `first` up to `last`, not to be changed in place."""
        if self._tensor is not None:
            return self._tensor[:, first:last]
        assert self._file is not None
        stored = torch.empty(last - first, self.shape[0], *self.shape[2:], dtype=self.dtype)
        with self._lock:  # several threads read at a time
            self._file.seek(first * self._frame_bytes)
            n_read = 0
            view = _bytes(stored)
            while n_read < len(view):
                n_read += self._file.readinto(view[n_read:])  # type: ignore[attr-defined]
        # Laid out like a part of frames in memory, so that the same kernels give the same bits.
        beyond = int(last - first < self.shape[1])
        read = torch.empty(self.shape[0], last - first + beyond, *self.shape[2:], dtype=self.dtype)
        read = read[:, : last - first].copy_(stored.transpose(0, 1))
        return read.to(self._device)

    def write(self, first: int, value: Tensor) -> None:
        """Set the frames from `first` on to `value` (batch, some frames, ...)."""
        if self._tensor is not None:
            self._tensor[:, first : first + value.shape[1]] = value
            return
        assert self._file is not None
        view = _bytes(value.transpose(0, 1).cpu().contiguous())
        with self._lock:
            self._file.seek(first * self._frame_bytes)
            n_written = 0
            while n_written < len(view):
                n_written += self._file.write(view[n_written:])

    @property
    def _frame_bytes(self) -> int:
        return self.shape[0] * prod(self.shape[2:]) * self.dtype.itemsize


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor whose memory goes back to the system as soon as nobody has it any more.

    The C library would put it between the passing results of the pieces. Each of both would leave holes that
    the other does not fit into, up to a quarter of all memory.
    """
    size = prod(shape) * like.element_size()
    if sys.platform == "win32" or not like.is_cpu or size < APART_BYTES:
        return like.new_empty(shape)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)


def keep_passing_memory() -> None:
    """Let the C library use the memory of one passing result for the next, not ask the system every time.

    glibc gives blocks back that are larger than any that has been freed before, up to 32 MB, and the end of
    its memory from twice that size on. So a block is freed that nobody has touched: it takes no memory. Every
    page that is given back is filled with zeros when it comes again, which took 7 % of the time.
    """
    torch.empty(PASSING_BYTES, dtype=torch.uint8)


def _bytes(stored: Tensor) -> memoryview:
    return memoryview(stored.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


class FrameMemory:
    """Gives room for frames.

    Args:
        limit_bytes: Memory for frames; None sets no limit.
        folder: Where the temporary files go; None takes the system's folder for them.
    """

    def __init__(self, limit_bytes: int | None = None, folder: str | os.PathLike[str] | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.folder = folder
        self.n_bytes = 0
        """Memory in use."""
        self.peak_bytes = 0
        """Most memory that was in use."""
        self.n_file_bytes = 0
        """Room that was taken in files, over the whole time."""

    def allocate(self, shape: tuple[int, ...], like: Tensor) -> Frames:
        """Return room for frames (batch, frames, ...) with the data type and on the device of `like`.

        On the meta device nothing is allocated, only counted.

        Raises:
            OSError: If the disk has no room for what the memory does not hold.
        """
        size = prod(shape) * like.element_size()
        if self.limit_bytes is not None and self.n_bytes + size > self.limit_bytes:
            self.n_file_bytes += size
            return Frames(shape, like, None if like.is_meta else scratch_file(size, self.folder))
        self.n_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.n_bytes)
        frames = Frames(shape, like, None)
        weakref.finalize(frames, self._give_back, size)
        return frames

    def _give_back(self, size: int) -> None:
        self.n_bytes -= size
