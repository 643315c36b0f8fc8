"""Print for people on stderr and for programs on stdout, whatever has become of either."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any


def print_result(line: str) -> None:
    """Print one line on stdout, file names byte for byte; a reader that has left (`| head`) is no error."""
    if sys.stdout is not None:  # None: started with its standard output closed
        _write(sys.stdout, line)


def print_message(line: str) -> None:
    """Print one line on stderr, for a person."""
    if sys.stderr is not None:
        _write(sys.stderr, line)


@contextmanager
def hushed_libraries() -> Iterator[None]:
    """Keep what libraries of C write to standard error from a person; what is printed here still comes."""
    try:
        fits = sys.stderr is not None and sys.stderr.fileno() == 2
    except (OSError, ValueError):  # not a file
        fits = False
    if not fits:
        yield
        return
    before, kept = sys.stderr, os.dup(2)
    void = os.open(os.devnull, os.O_WRONLY)
    with open(kept, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as ours:
        sys.stderr = ours
        os.dup2(void, 2)
        os.close(void)
        try:
            yield
        finally:
            ours.flush()
            os.dup2(kept, 2)
            sys.stderr = before


def write_bytes(path: str | os.PathLike[str]) -> None:
    """Copy a file to stdout."""
    import shutil

    if sys.stdout is not None:
        with open(path, "rb") as file:
            try:
                shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                _discard(sys.stdout)


def _write(stream: IO[Any], line: str) -> None:
    from tqdm import tqdm

    try:
        with tqdm.external_write_mode(file=stream):
            stream.flush()
            stream.buffer.write(os.fsencode(line) + b"\n")  # type: ignore[attr-defined]
            stream.flush()
    except BrokenPipeError:
        _discard(stream)


def _discard(stream: IO[Any]) -> None:
    """Send what is still to come into the void, the interpreter's own flush at exit included."""
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, stream.fileno())
    os.close(void)
