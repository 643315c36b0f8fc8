"""Temporary folders that a killed process cannot leave for ever: the next one clears what nobody owns."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except (
    ImportError
):  # Windows has no lock of this kind: there, what a killed process left is the user's to clear
    fcntl = None  # type: ignore[assignment]

SCRATCH_PREFIX = "flasepformer-scratch-"
"""How our folders in the system's folder for temporary files are named."""

CLEARING_SECONDS = 600.0
"""A process looks for what others have left at most so often in a folder, which may hold very many files."""

_last_clearing: dict[tuple[str, Path], float] = {}


@contextmanager
def temporary_folder(prefix: str = SCRATCH_PREFIX, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that is removed at the end, and now and then remove those that killed processes left.

    Its owner holds a lock on it, which ends with the process however that ends.

    Args:
        prefix: Of its name. Every folder in `parent` whose name begins so is taken for one of these.
        parent: Where it is made; by default where the system has its temporary files.

    Raises:
        OSError: It cannot be made there.
    """
    where = Path(tempfile.gettempdir()) if parent is None else parent
    _clear_now_and_then(prefix, where)
    path, lock = _made(prefix, where)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _clear_now_and_then(prefix: str, parent: Path) -> None:
    key, now = (prefix, parent.absolute()), time.monotonic()
    if now - _last_clearing.get(key, -CLEARING_SECONDS) >= CLEARING_SECONDS:
        clear_abandoned(prefix, parent)
        _last_clearing[key] = now


def clear_abandoned(prefix: str, parent: Path) -> None:
    """Remove the folders of that prefix that no living process owns."""
    if fcntl is None:
        return
    with suppress(OSError):  # what cannot be listed, locked or removed stays
        for entry in [entry for entry in os.scandir(parent) if entry.name.startswith(prefix)]:
            with suppress(OSError):
                _clear_unowned(entry)


def _clear_unowned(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(entry.path, ignore_errors=True)  # with the lock held: see `_made`
    finally:
        os.close(descriptor)


def _made(prefix: str, parent: Path) -> tuple[Path, int | None]:
    """Make a folder and lock it, again if another process took it for abandoned in between."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        if fcntl is None:
            return path, None
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a network file system without locks: nobody can clear there, either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)
