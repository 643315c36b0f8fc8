"""Recordings and tracks in object stores, through fsspec: fetched, and put back with the report last."""

import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flasepformer.errors import InputError
from flasepformer.files import write_whole
from flasepformer.inference import read_report
from flasepformer.installing import how_to_install
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    from flasepformer.batch.outcomes import Outcome

_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
"""The extra of this package that brings each kind of store."""


def is_address(place: str) -> bool:
    """Tell an address such as `s3://bucket/talks` from a path."""
    return "://" in place


class Bucket:
    """A place in an object store.

    Args:
        address: Of a bucket, or of something in it.

    Raises:
        InputError: There is no such kind of store, or what reads it is not installed.
    """

    def __init__(self, address: str) -> None:
        kind = address.partition("://")[0]
        try:
            import fsspec

            self._store, self._path = fsspec.core.url_to_fs(address)
        except ImportError as error:
            extra = how_to_install(_EXTRAS.get(kind, "s3"))
            raise InputError(f"{address}: this needs {error.name or 'a package for it'}: {extra}") from error
        except ValueError as error:
            raise InputError(f"{address}: {error}") from error
        self._kind = kind

    def found(self) -> list[tuple[str, int]]:
        """Return addresses and sizes of what is here: one object, a folder, or a pattern."""
        if any(letter in self._path for letter in "*?["):
            entries = self._store.glob(self._path, detail=True)
        elif self._store.isfile(self._path):
            entries = {self._path: self._store.info(self._path)}
        else:
            entries = self._store.find(self._path, detail=True)
        return [
            (str(self._store.unstrip_protocol(path)), int(entry.get("size") or 0))
            for path, entry in sorted(entries.items())
            if entry.get("type", "file") == "file"
        ]

    def identity(self) -> str:
        """Return what changes when the object does."""
        try:
            entry = self._store.info(self._path)
        except FileNotFoundError:
            return "missing"
        marks = (entry.get(name) for name in ("size", "ETag", "etag", "mtime", "LastModified", "created"))
        return " ".join(str(mark) for mark in marks if mark is not None)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield a temporary copy of the object."""
        with temporary_folder() as folder:
            path = folder / posixpath.basename(self._path)
            self._store.get_file(self._path, str(path))
            yield path

    def put(self, file: Path, place: str = "") -> None:
        """Put a file here, under a name below; it appears at once or not at all, as object stores have it."""
        target = posixpath.join(self._path, place) if place else self._path
        self._store.makedirs(posixpath.dirname(target), exist_ok=True)
        self._store.put_file(str(file), target)

    def write(self, content: bytes, place: str) -> None:
        """Put bytes here."""
        with temporary_folder() as folder:
            write_whole(folder / "content", content)
            self.put(folder / "content", place)

    @contextmanager
    def mirrored(self, folder: str, report_name: str) -> "Iterator[Mirror]":
        """Yield a temporary folder that looks like one of this place, as far as one separation is concerned.

        Its report is there if it is here, and its tracks are empty files, so that what has been done is known
        without fetching it.
        """
        with temporary_folder() as scratch:
            local = scratch / "tracks"  # not the scratch folder itself: that is locked
            local.mkdir()
            below = posixpath.join(self._path, folder) if folder else self._path
            mirror = Mirror(self, local, folder)
            report = posixpath.join(below, report_name)
            if self._store.exists(report):
                copy = local / posixpath.basename(report)
                self._store.get_file(report, str(copy))
                for part in ("tracks", "files"):
                    for file in read_report(copy).get(part, ()):
                        if self._store.exists(posixpath.join(below, Path(str(file)).name)):
                            (local / Path(str(file)).name).touch()
            yield mirror

    def fetch(self, place: str, file: Path) -> None:
        """Fetch what is below here into a file."""
        self._store.get_file(posixpath.join(self._path, place), str(file))

    def address(self, place: str = "") -> str:
        """Return the address of what is below here."""
        return str(self._store.unstrip_protocol(posixpath.join(self._path, place) if place else self._path))


@dataclass(frozen=True)
class Mirror:
    """A folder here that stands for one in a bucket."""

    bucket: Bucket
    folder: Path
    place: str
    """Of the folder in the bucket."""

    def committed(self, outcome: "Outcome") -> "Outcome":
        """Put what has been done into the bucket, the report last: without it, nothing counts as done."""
        base = self.bucket.address(self.place)
        if outcome.state == "done":
            files = sorted(path for path in self.folder.iterdir() if path.is_file())
            for path in sorted(files, key=lambda path: path.name.endswith("_separation.json")):
                self.bucket.put(path, posixpath.join(self.place, path.name))
        tracks = tuple(
            replace(
                track, place=posixpath.join(base, Path(track.place).name), sha256=self._digest(outcome, track)
            )
            for track in outcome.tracks
        )
        return replace(outcome, tracks=tracks)

    def _digest(self, outcome: "Outcome", track: Any) -> str:
        """Return the digest of a track, fetching one that an earlier run has put there."""
        if outcome.state == "done":
            return str(track.sha256)
        from flasepformer.inference.identity import file_identity

        fetched = self.folder / Path(track.place).name
        self.bucket.fetch(posixpath.join(self.place, fetched.name), fetched)
        return str(file_identity(fetched)["sha256"])
