"""Files that appear under their name whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a name beside a file to write to, which takes the file's place once all of it is on the disk.

    What stood there before stays until then; after an error it stays for good, and nothing is left beside it.
    One process at a time may write a file.

    Args:
        path: The file; its folder exists.

    Raises:
        OSError: As writing does, such as on a full disk.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file at once; text in UTF-8, its lines ended as they are."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
