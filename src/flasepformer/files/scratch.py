"""Room on the disk for what is needed while a process lives, and by it alone."""

import os
import tempfile
from typing import BinaryIO


def spill_folder() -> str:
    """Return where large temporary files go: TMPDIR if it is set, else a folder that is not in memory."""
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")):
        return tempfile.gettempdir()
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()  # /tmp often is memory


def scratch_file(n_bytes: int, folder: str | os.PathLike[str] | None) -> BinaryIO:
    """Open a file without a name, for reading and writing unbuffered, which goes with its process.

    Args:
        n_bytes: Of room, taken at once where the system can: a full disk shows now, not in the middle.
        folder: Where it lies; None where the system has its temporary files.

    Raises:
        OSError: The disk has no room.
    """
    file = tempfile.TemporaryFile(prefix="flasepformer-", dir=folder, buffering=0)  # noqa: SIM115
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        else:
            file.truncate(n_bytes)
    except OSError:
        file.close()
        raise
    return file
