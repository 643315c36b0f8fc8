"""Where tracks go: names for every system, a hidden folder while they grow, then all in place at once."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flasepformer.errors import FlasepformerError
from flasepformer.inference.identity import read_report
from flasepformer.temporary import temporary_folder

try:
    import fcntl
except (
    ImportError
):  # Windows has no lock of this kind: there two runs into one folder are the user's to avoid
    fcntl = None  # type: ignore[assignment]

MAX_NAME_BYTES = 255
"""Longest file name that common file systems hold."""

_UNPORTABLE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class OutputError(FlasepformerError, OSError):
    """The tracks cannot be written: the folder, its permissions or the disk; the message says what to do."""


@dataclass(frozen=True)
class Outputs:
    """The files that one separation leaves: one track per talker, and the report, put in place last."""

    tracks: tuple[Path, ...]
    report: Path
    files: tuple[Path, ...] = ()
    """Others beside them, such as labels."""

    def check_absent(self, difference: Callable[[Path], str | None]) -> None:
        """Raise unless none of the files exists.

        Args:
            difference: Says of the report that is there what it was made of that is not the same now; None if
                it is all the same.

        Raises:
            AlreadySeparated: All exist, and are what would be made.
            OutputExists: They are of another separation; or only some exist: an earlier run was cut off
                just then, or they are somebody else's.
        """
        there = [path for path in (*self.tracks, *self.files, self.report) if os.path.lexists(path)]
        if not there:
            return
        ways = "overwrite them, add a suffix, or choose another folder"
        made = self._made()
        if made is None or not all(os.path.lexists(path) for path in (*made.tracks, *made.files)):
            raise OutputExists(f"{there[0]} exists, but not all of {self.report.name} and its tracks; {ways}")
        if reason := difference(self.report):
            raise OutputExists(f"{self.report} and its tracks exist, but {reason}; {ways}")
        raise AlreadySeparated(made)

    def _made(self) -> "Outputs | None":
        """Return what the report that is there says was made; it may be fewer tracks than were possible."""
        report = read_report(self.report)
        if not report:
            return None if not os.path.lexists(self.report) else self
        folder = self.report.parent
        tracks, files = report.get("tracks", [path.name for path in self.tracks]), report.get("files", [])
        return Outputs(
            tuple(folder / Path(str(name)).name for name in tracks),
            self.report,
            tuple(folder / Path(str(name)).name for name in files),
        )


class OutputExists(FlasepformerError, FileExistsError):
    """There are files of that name, and nobody asked to replace them."""


class AlreadySeparated(OutputExists):
    """The same recording has been separated already, by the same model with the same options.

    Args:
        outputs: What that run left.
    """

    def __init__(self, outputs: Outputs) -> None:
        super().__init__(f"{outputs.report} and its tracks exist")
        self.tracks = outputs.tracks
        self.files = outputs.files
        self.report = outputs.report


def portable_name(name: str) -> str:
    """Return a file or folder name that every common file system takes, the same if it already is one.

    >>> portable_name("talk: part 1?"), portable_name("aux"), portable_name("..")
    ('talk_ part 1_', '_aux', '__')
    """
    name = _UNPORTABLE.sub("_", name)
    if stripped := len(name) - len(name.rstrip(". ")):
        name = name[:-stripped] + "_" * stripped
    return f"_{name}" if _RESERVED.fullmatch(name) else name


def plan_outputs(
    folder: Path, name: str, labels: Sequence[str], extension: str, endings: Sequence[str] = ()
) -> Outputs:
    """Name the files of one separation: `talk_speaker1.wav`, `talk_speaker2.wav`, `talk_separation.json`.

    A name too long for the file system is cut, and told from others by eight digits of its hash.

    Args:
        folder: Where they go.
        name: How their names begin.
        labels: Of the tracks.
        extension: Of the tracks, without the dot.
        endings: Of other files beside them.
    """
    name = portable_name(name)
    labels = [portable_name(label) for label in labels]
    ends = [f"_{label}.{extension}" for label in labels] + ["_separation.json", *endings]
    longest = max(len(os.fsencode(end)) for end in ends)
    raw = os.fsencode(name)
    if len(raw) + longest > MAX_NAME_BYTES:
        kept = raw[: MAX_NAME_BYTES - longest - 9].decode(errors="ignore")
        name = f"{kept}~{hashlib.sha256(raw).hexdigest()[:8]}"
    tracks = tuple(folder / f"{name}_{label}.{extension}" for label in labels)
    files = tuple(folder / f"{name}{ending}" for ending in endings)
    return Outputs(tracks, folder / f"{name}_separation.json", files)


@contextmanager
def growing_folder(folder: Path) -> Iterator[Path]:
    """Make the output folder and, in it, a hidden folder of our own that is removed at the end.

    Those of earlier runs that were killed are removed, too.

    Raises:
        OutputError: The folder cannot be made or written in.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            growing = stack.enter_context(temporary_folder(".flasepformer-", folder))
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise OutputError(
                f"cannot write in {folder}: {reason}; choose another folder with --out"
            ) from error
        yield growing


def publish(
    grown: Sequence[Path],
    outputs: Outputs,
    *,
    overwrite: bool,
    difference: Callable[[Path], str | None] = lambda report: None,
    obsolete: Sequence[Path] = (),
) -> None:
    """Give the finished files their final names, report last; other runs into the same folder wait meanwhile.

    An interrupt takes effect when all are in place: a thread moves them, and signals reach the main one.

    Args:
        grown: The finished tracks, the other files, and then the report, on the same file system as their
            final names.
        outputs: Their final names.
        overwrite: Replace what is there; otherwise raise as `Outputs.check_absent` does.
        difference: See there.
        obsolete: Files of an earlier run that go when their place is taken, unless they are made anew; and so
            do the tracks of this format that the report of an earlier run lists.
    """
    kinds = {path.suffix for path in outputs.tracks}

    def move() -> None:
        with _locked(outputs.report.parent):
            if not overwrite:
                outputs.check_absent(difference)
            earlier = outputs._made()  # perhaps of more people
            more = [path for path in earlier.tracks if path.suffix in kinds] if earlier else []
            outputs.report.unlink(missing_ok=True)  # no report, no complete separation
            for source, target in zip(grown, (*outputs.tracks, *outputs.files, outputs.report), strict=True):
                source.replace(target)
            for path in {*obsolete, *more} - {*outputs.tracks, *outputs.files} if overwrite else ():
                path.unlink(missing_ok=True)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(move).result()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which leaves no file and ends with its process."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks: each file is still whole
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)  # the names, too, survive a power cut
    finally:
        os.close(descriptor)


def explain_write_failure(error: OSError, folder: Path, n_bytes: int) -> OutputError:
    """Say why tracks of `n_bytes` could not be written; libraries often only say "system error"."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        return OutputError(
            f"disk full: the tracks need {n_bytes / 1e6:.1f} MB and {folder} has {free / 1e6:.1f} MB free; "
            "make room, or choose another folder with --out, then run the same command again"
        )
    return OutputError(f"cannot write in {folder}: {error.strerror or error}")
