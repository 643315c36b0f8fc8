"""Let a pipe be read like a file, and keep a file of nothing but holes from being read at all."""

import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from flasepformer.audio import AudioError
from flasepformer.inference.outputs import explain_write_failure
from flasepformer.temporary import temporary_folder

MAX_PIPE_BYTES = 4 << 30
"""Most that is taken from a pipe: six hours of stereo at CD quality."""

MAX_HOLLOW_BYTES = 1 << 30
"""Largest file that may consist of holes; the zeros of a bigger one would fill the memory."""

PIPE_PATIENCE_SECONDS = 60.0
"""How long a named pipe may stay without a first byte."""

_PIECE = 1 << 20


@contextmanager
def as_regular_file(source: str | Path | BinaryIO, *, limit: int = MAX_PIPE_BYTES) -> Iterator[Path]:
    """Yield a file that can be read more than once: the source itself, or a temporary copy of a pipe.

    Args:
        source: A path, or a binary stream.
        limit: Bytes at which copying stops.

    Raises:
        AudioError: More came than the limit, or the file is huge and hollow.
        OSError: The source cannot be opened.
        OutputError: There is no room for the copy.
    """
    if not isinstance(source, (str, Path)):
        with _copied(source, limit) as path:
            yield path
        return
    path, status = Path(source), os.stat(source)
    if not stat.S_ISFIFO(status.st_mode):
        n_allocated = 512 * getattr(
            status, "st_blocks", status.st_size
        )  # where blocks are not counted, all are
        if status.st_size > MAX_HOLLOW_BYTES and n_allocated < status.st_size / 100:
            raise AudioError(
                f"{path}: sparse file, of {status.st_size / 1e9:.1f} GB nearly all were never written"
            )
        yield path
        return
    with _opened_pipe(path) as stream, _copied(stream, limit) as copied:
        yield copied


def _opened_pipe(path: Path) -> BinaryIO:
    """Open a named pipe once somebody writes into it; without end nobody would ever know."""
    stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    try:
        if not select.select([stream], [], [], PIPE_PATIENCE_SECONDS)[0]:
            raise AudioError(
                f"{path}: is a pipe, and nobody wrote into it for {PIPE_PATIENCE_SECONDS:g} s; "
                "start its writer first"
            )
        os.set_blocking(stream.fileno(), True)
    except BaseException:
        stream.close()
        raise
    return stream


@contextmanager
def _copied(stream: BinaryIO, limit: int) -> Iterator[Path]:
    name = str(getattr(stream, "name", "stream"))
    with temporary_folder() as folder:
        path, n_bytes = folder / "stream", 0
        try:
            with path.open("wb") as copy:
                while piece := stream.read(_PIECE):
                    n_bytes += len(piece)
                    if n_bytes > limit:
                        raise AudioError(f"{name}: more than {limit / 1e9:g} GB; save it to a file first")
                    copy.write(piece)
        except OSError as error:
            raise explain_write_failure(error, folder, n_bytes) from error
        try:
            yield path
        except AudioError as error:
            raise AudioError(str(error).replace(str(path), name)) from error
