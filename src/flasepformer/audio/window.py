"""Look into a file of any size as if it were `bytes`, with a small part of it in memory at a time."""

from typing import BinaryIO, Protocol

WINDOW = 1 << 20
"""Bytes that are read at a time."""


class Bytes(Protocol):
    """What `bytes` can do, and a file through a window."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...

    def find(self, wanted: bytes, start: int = 0, /) -> int: ...


class FileBytes:
    """The first bytes of an open file.

    Args:
        file: Nobody else moves in it meanwhile, or only between two calls.
        size: How many bytes count.
        window: How many are read at a time, at least.
    """

    def __init__(self, file: BinaryIO, size: int, window: int = WINDOW) -> None:
        self._file, self._size, self._length = file, size, window
        self._at, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """Return a part, without a step; as short as `bytes` would give it at the end."""
        start, stop, _ = part.indices(self._size)
        if not self._at <= start <= stop <= self._at + len(self._window):
            self._load(start, stop)
        return self._window[start - self._at : max(stop, start) - self._at]

    def find(self, wanted: bytes, start: int = 0) -> int:
        """Return where `wanted` begins, from `start` on; -1 if nowhere."""
        while start + len(wanted) <= self._size:
            if not self._at <= start <= start + len(wanted) <= self._at + len(self._window):
                self._load(start, start + len(wanted))
            found = self._window.find(wanted, start - self._at)
            if found != -1:
                return self._at + found
            if len(self._window) < len(wanted):
                break  # the file has become shorter
            start = self._at + len(self._window) - len(wanted) + 1
        return -1

    def _load(self, start: int, stop: int) -> None:
        self._file.seek(start)
        wanted = min(max(stop - start, self._length), self._size - start)
        parts = []
        while wanted > 0 and (part := self._file.read(wanted)):
            parts.append(part)
            wanted -= len(part)
        self._at, self._window = start, b"".join(parts)
