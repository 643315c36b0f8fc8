"""Find the recordings that a command line names, and give each a name of its own among the outputs."""

import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"


@dataclass(frozen=True)
class Job:
    """One recording to separate."""

    source: str
    """Its path, or "-" for standard input."""
    folder: Path
    """Where its tracks go."""
    name: str
    """How their names begin."""


def plan_jobs(
    paths: Sequence[str], out: Path, *, recursive: bool, suffix: str
) -> tuple[list[Job], list[tuple[str, str]]]:
    """Find every recording once, with outputs that no other recording shares.

    Args:
        paths: Files, folders, "-".
        out: Folder for the tracks; those of a folder's files keep their place below it.
        recursive: Look into the folders of a folder, too.
        suffix: Added to every name.

    Returns:
        What to separate, and (path, reason) of what cannot be.
    """
    from flasepformer.inference import portable_name

    jobs: list[Job] = []
    failures: list[tuple[str, str]] = []
    seen: set[str] = set()
    taken: set[tuple[Path, str]] = set()
    for path in paths:
        found = 0
        for source, place in _recordings(path, out, recursive, failures):
            found += 1
            if os.path.abspath(source) in seen:
                continue
            seen.add(os.path.abspath(source))
            stem = "stdin" if source == STDIN else Path(source).stem
            folder = out.joinpath(*(portable_name(part) for part in place.parts))
            name, count = f"{stem}{suffix}", 1
            while (key := (folder, unicodedata.normalize("NFC", portable_name(name)).casefold())) in taken:
                count += 1
                name = f"{stem}{suffix}_{count}"
            taken.add(key)
            jobs.append(Job(source, folder, name))
        if not found and not any(failed == path for failed, _ in failures):
            failures.append((path, "there is no audio in this folder"))
    return jobs, failures


def find_conflict(jobs: Sequence[Job], out: Path, extension: str) -> str | None:
    """Return the first recording that the run would write over, if there is one."""
    planned = {(os.path.realpath(job.folder), job.name) for job in jobs}
    for job in jobs:
        if job.source == STDIN:
            continue
        folder, file_name = os.path.split(os.path.realpath(job.source))
        track = re.fullmatch(rf"(.+)_speaker\d+\.{extension}", file_name, re.DOTALL)
        if os.path.realpath(out) == os.path.realpath(job.source) or (track and (folder, track[1]) in planned):
            return job.source
    return None


def _recordings(
    path: str, out: Path, recursive: bool, failures: list[tuple[str, str]]
) -> Iterator[tuple[str, Path]]:
    """Yield every recording under a path, and the folder that holds it, relative to that path."""
    from flasepformer.audio import AUDIO_EXTENSIONS

    if path == STDIN:
        yield path, Path()
        return
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        failures.append((path, describe(error)))
        return
    if not is_folder:
        yield path, Path()
        return

    def note(error: OSError) -> None:
        failures.append((str(error.filename), describe(error)))

    for folder, folders, files in os.walk(path, onerror=note):  # does not follow links, so no loop holds it
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        folders[:] = [name for name in folders if not _same(Path(folder, name), out)]
        for name in sorted(files):
            source = Path(folder, name)
            if (
                source.suffix.lower() in AUDIO_EXTENSIONS
                and not name.startswith(".")
                and not _is_track(source)
            ):
                yield os.path.join(folder, name), source.parent.relative_to(path)


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_track(path: Path) -> bool:
    """Tell whether a file is a track of an earlier run, by the report beside it."""
    from flasepformer.inference import read_report

    for at in (place.start() for place in re.finditer("_", path.stem)):
        report = path.with_name(f"{path.stem[:at]}_separation.json")
        if report.exists() and (
            re.fullmatch(r"speaker\d+", path.stem[at + 1 :])
            or path.name in read_report(report).get("tracks", ())
        ):
            return True
    return False


def describe(error: Exception) -> str:
    """Return an error as a sentence for a person, without numbers and names they have already seen."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error)
