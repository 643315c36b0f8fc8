"""Who works on what: a claim ends with the process that holds it, however that ends, and leaves no file."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except (
    ImportError
):  # Windows has no lock of this kind: there two runs into one folder may do work twice, and publish it once
    fcntl = None  # type: ignore[assignment]

_BITS = 62  # of the offset of a lock; two of a million names share one with a chance of 1e-7


class Claims:
    """Claims of names among all processes, on this machine or another, that have opened the same file.

    Each name is one byte of the file, far behind its end, that is locked: nothing is written.

    Args:
        path: The file; made if missing, in a folder that exists. Open it once in a process: to close it again
            would give all claims of the process up.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.exclude = fcntl is not None
        """Whether they keep anybody out here; on Windows they do not."""

    @contextmanager
    def hold(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a name for a while; yield whether it is ours.

        Args:
            name: Of anything.
            wait: Until nobody else has it, so that it is always ours.
        """
        offset = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()) >> 256 - _BITS
        if fcntl is None:
            yield True
            return
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, offset)
        except (BlockingIOError, PermissionError):  # how systems say that somebody else has it
            yield False
            return
        except OSError:  # a file system without locks: the commit of each result is still whole
            yield True
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, offset)
