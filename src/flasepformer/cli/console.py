"""Print for people on stderr and for programs on stdout, whatever has become of either."""

import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

_WIPE = "\r\033[K"


def print_result(line: str) -> None:
    """Print one line on stdout, file names byte for byte; a reader that has left (`| head`) is no error."""
    if sys.stdout is not None:  # None: started with its standard output closed
        _write(sys.stdout, line)


def print_message(line: str) -> None:
    """Print one line on stderr, for a person."""
    if sys.stderr is not None:
        _write(sys.stderr, line)


class Bar:
    """How far the work has come, on the last line of a terminal, with the time that is left.

    Args:
        shown: Nothing is drawn without.
    """

    on_screen = False
    """Whether the last line of the terminal is a bar."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._began = time.monotonic()
        self._drawn = -math.inf

    def tell(self, label: str, share: float) -> None:
        """Draw the bar anew, ten times in a second at most, and when all is done."""
        now = time.monotonic()
        if not self._shown or (now - self._drawn < 0.1 and share < 1):
            return
        self._drawn, passed = now, now - self._began
        left = _clock(passed / share - passed) if share > 0 else "?"
        blocks = ("#" * round(30 * share)).ljust(30)
        line = f"{label} {share:4.0%}|{blocks}| {_clock(passed)} passed, {left} left"
        try:
            sys.stderr.write(_WIPE + line)
            sys.stderr.flush()
        except BrokenPipeError:
            self._shown = False
        Bar.on_screen = self._shown

    def close(self) -> None:
        """Leave the last state on the screen, and go on below it."""
        if Bar.on_screen:
            Bar.on_screen = False
            sys.stderr.write("\n")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    """Write a duration.

    >>> _clock(59.6), _clock(3723)
    ('1:00', '1:02:03')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


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
    try:
        if Bar.on_screen:  # the line of the bar; it comes again with the next step
            sys.stderr.write(_WIPE)
            sys.stderr.flush()
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
