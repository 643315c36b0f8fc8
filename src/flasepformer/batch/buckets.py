"""Recordings and tracks in object stores, through fsspec: fetched, and put back with the report last."""

import json
import posixpath
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flasepformer.errors import FlasepformerError, InputError
from flasepformer.inference import read_report
from flasepformer.installing import how_to_install
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    from flasepformer.batch.outcomes import Outcome

_EXTRAS = {"s3": "s3", "gs": "gcs", "az": "azure"}
"""The extra of this package that brings each kind of store."""

PATIENCE_SECONDS = 60.0
"""How long a store that does not answer is asked again, beside what its own package does."""

_OF_THE_OBJECT = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError
)  # fmt: skip
"""What a store says of one object; everything else is of the store."""

_UNKNOWN_CONDITIONS = ("NotImplemented", "InvalidArgument", "InvalidRequest")
"""What stores answer that cannot put on a condition."""

T = TypeVar("T")


class StoreError(FlasepformerError, OSError):
    """An object store does not answer, or takes nothing: no fault of a recording."""


class NoConditions(StoreError):
    """The store cannot put on a condition."""


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

            # Another machine may have put something since a listing was made.
            self._store, self._path = fsspec.core.url_to_fs(address, use_listings_cache=False)
        except ImportError as error:
            extra = how_to_install(_EXTRAS.get(kind, "s3"))
            raise InputError(f"{address}: this needs {error.name or 'a package for it'}: {extra}") from error
        except ValueError as error:
            raise InputError(f"{address}: {error}") from error
        self._kind = kind
        self._address = address

    def _patiently(self, ask: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Ask the store, again and again while it is no longer there or has too much to do.

        Raises:
            StoreError: It still is.
        """
        pause, give_up = 0.5, time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return ask(*arguments, **named)
            except _OF_THE_OBJECT:
                raise
            except (TypeError, AttributeError):  # no answer of any store
                raise
            except Exception as error:  # each package has its own kinds
                if time.monotonic() + pause > give_up:
                    raise StoreError(f"{self._address}: the store does not answer: {_said(error)}") from error
            time.sleep(pause)
            pause *= 2

    def check_writable(self) -> None:
        """Put something here and remove it, before any work is done.

        Raises:
            StoreError: That does not work; it says why.
        """
        probe = posixpath.join(self._path, f".flasepformer-{uuid.uuid4().hex}")
        try:
            self._make_room(probe)
            self._store.pipe_file(probe, b"")
            self._store.rm_file(probe)
        except Exception as error:  # each package has its own kinds
            raise StoreError(f"cannot write in {self._address}: {_said(error)}") from error

    def found(self) -> list[tuple[str, int]]:
        """Return addresses and sizes of what is here: one object, a folder, or a pattern.

        Raises:
            StoreError: The store does not answer.
            OSError: It may not be read.
        """
        try:
            if any(letter in self._path for letter in "*?["):
                entries = self._store.glob(self._path, detail=True)
            elif self._store.isfile(self._path):
                entries = {self._path: self._store.info(self._path)}
            else:
                entries = self._store.find(self._path, detail=True)
        except _OF_THE_OBJECT:
            raise
        except Exception as error:  # each package has its own kinds
            raise StoreError(f"the store does not answer: {_said(error)}") from error
        return [
            (str(self._store.unstrip_protocol(path)), int(entry.get("size") or 0))
            for path, entry in sorted(entries.items())
            if entry.get("type", "file") == "file"
        ]

    def identity(self) -> str:
        """Return what changes when the object does."""
        try:
            return self._mark(self._path)
        except _OF_THE_OBJECT as error:
            return type(error).__name__

    def _mark(self, path: str) -> str:
        """Return what changes when an object does; `FileNotFoundError` if there is none."""
        entry = self._patiently(self._store.info, path)
        marks = (entry.get(name) for name in ("size", "ETag", "etag", "mtime", "LastModified", "created"))
        return " ".join(str(mark) for mark in marks if mark is not None)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Yield a temporary copy of the object."""
        with temporary_folder() as folder:
            path = folder / posixpath.basename(self._path)
            self._patiently(self._store.get_file, self._path, str(path))
            yield path

    def put(self, file: Path, place: str = "") -> str:
        """Put a file here, under a name below; it appears at once or not at all, as object stores have it.

        Returns:
            What changes when the object does.

        Raises:
            StoreError: It cannot be put there.
        """
        target = self._below(place)
        try:
            self._make_room(target)
            self._patiently(self._store.put_file, str(file), target)
            return self._mark(target)
        except _OF_THE_OBJECT as error:
            raise StoreError(f"cannot write in {self._address}: {_said(error)}") from error

    def _make_room(self, target: str) -> None:
        if self._kind not in _EXTRAS:  # these have no folders, and would make a bucket that is missing
            self._store.makedirs(posixpath.dirname(target), exist_ok=True)

    @property
    def takes_conditions(self) -> bool:
        """Whether this kind of store puts on a condition: see `put_new`."""
        return self._kind == "s3"

    def put_new(self, content: bytes, place: str) -> str | None:
        """Put bytes where nothing is; of all who do so at once, one succeeds.

        Returns:
            The mark of what has been put; None if there is something.

        Raises:
            NoConditions: This store cannot do so.
            StoreError: It does not answer.
        """
        try:
            return self._put_on_condition(content, place, mode="create")
        except FileExistsError:
            return None

    def put_over(self, content: bytes, place: str, mark: str) -> str | None:
        """Put bytes where something of that mark is; of all who do so at once, one succeeds.

        Returns:
            The new mark; None if there is something else, or nothing.

        Raises:
            See `put_new`.
        """
        try:
            return self._put_on_condition(content, place, IfMatch=mark)
        except (FileExistsError, FileNotFoundError):
            return None

    def _put_on_condition(self, content: bytes, place: str, **condition: str) -> str:
        def put() -> Any:
            try:
                return self._store.pipe_file(self._below(place), content, **condition)
            except OSError as error:
                code = _code(error)
                if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                    raise FileExistsError(place) from error
                if code in _UNKNOWN_CONDITIONS:
                    raise PermissionError(code) from error  # not to be asked again
                raise

        try:
            return str(self._patiently(put)["ETag"])
        except PermissionError as error:
            raise NoConditions(f"{self._address}: {_said(error)}") from error

    def read(self, place: str) -> tuple[bytes, str] | None:
        """Return what is below here and its mark, which is no newer; None if there is nothing."""
        try:
            mark = self._patiently(self._store.info, self._below(place))["ETag"]
            return self._patiently(self._store.cat_file, self._below(place)), str(mark)
        except FileNotFoundError:
            return None

    def remove(self, place: str) -> None:
        """Remove what is below here."""
        with suppress(FileNotFoundError):
            self._patiently(self._store.rm_file, self._below(place))

    def _below(self, place: str) -> str:
        return posixpath.join(self._path, place) if place else self._path

    @contextmanager
    def mirrored(self, folder: str, report_name: str) -> "Iterator[Mirror]":
        """Yield a temporary folder that looks like one of this place, as far as one separation is concerned.

        Its report is there if it is here, and its tracks are empty files, so that what has been done is known
        without fetching it.
        """
        with temporary_folder() as scratch:
            local = scratch / "tracks"  # not the scratch folder itself: that is locked
            local.mkdir()
            below = self._below(folder)
            mirror = Mirror(self, local, folder)
            report = posixpath.join(below, report_name)
            copy = local / posixpath.basename(report)
            with suppress(FileNotFoundError):
                self._patiently(self._store.get_file, report, str(copy))
                said = read_report(copy)
                for file in (*said.get("tracks", ()), *said.get("files", ())):
                    name = Path(str(file)).name
                    with suppress(FileNotFoundError):
                        mark = self._mark(posixpath.join(below, name))
                        (local / name).touch()
                        put = said.get("put", {}).get(name, {})
                        if put.get("mark") == mark:
                            mirror.digests[name] = put["sha256"]
            yield mirror

    def fetch(self, place: str, file: Path) -> None:
        """Fetch what is below here into a file."""
        self._patiently(self._store.get_file, self._below(place), str(file))

    def address(self, place: str = "") -> str:
        """Return the address of what is below here."""
        return str(self._store.unstrip_protocol(self._below(place)))


def _said(error: Exception) -> str:
    """Return what a store says, in one line."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def _code(error: BaseException) -> str:
    """Return the code that S3 gives with an error."""
    answer = getattr(error.__cause__, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


@dataclass(frozen=True)
class Mirror:
    """A folder here that stands for one in a bucket."""

    bucket: Bucket
    folder: Path
    place: str
    """Of the folder in the bucket."""

    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of tracks that are as an earlier run has put them, by name."""

    def committed(self, outcome: "Outcome") -> "Outcome":
        """Put what has been done into the bucket, the report last: without it, nothing counts as done."""
        base = self.bucket.address(self.place)
        if outcome.state == "done":
            self._put(outcome)
        tracks = tuple(
            replace(
                track, place=posixpath.join(base, Path(track.place).name), sha256=self._digest(outcome, track)
            )
            for track in outcome.tracks
        )
        return replace(outcome, tracks=tracks)

    def _put(self, outcome: "Outcome") -> None:
        """Put all files; the report says of each track what it is, so that nobody has to fetch it."""
        files = {path.name: path for path in sorted(self.folder.iterdir()) if path.is_file()}
        (report,) = (files.pop(name) for name in list(files) if name.endswith("_separation.json"))
        digests = {Path(track.place).name: track.sha256 for track in outcome.tracks}
        put = {}
        for name, path in files.items():
            mark = self.bucket.put(path, posixpath.join(self.place, name))
            put[name] = {"mark": mark, "sha256": digests.get(name, "")}
        content = {**read_report(report), "put": put}
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
        self.bucket.put(report, posixpath.join(self.place, report.name))

    def _digest(self, outcome: "Outcome", track: Any) -> str:
        """Return the digest of a track, fetching one that has changed since a run has put it there."""
        if outcome.state == "done":
            return str(track.sha256)
        name = Path(track.place).name
        if name not in self.digests:
            from flasepformer.inference.identity import file_identity

            self.bucket.fetch(posixpath.join(self.place, name), self.folder / name)
            self.digests[name] = str(file_identity(self.folder / name)["sha256"])
        return self.digests[name]
