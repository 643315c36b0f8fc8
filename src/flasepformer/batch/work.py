"""One recording in, its tracks committed with their report, what became of it out: the same on any engine."""

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flasepformer.batch.buckets import Bucket, StoreError, is_address
from flasepformer.batch.claims import Claims
from flasepformer.batch.leases import Leases
from flasepformer.batch.outcomes import Outcome, Track
from flasepformer.batch.recordings import Recording
from flasepformer.batch.tries import Tries, TryBook
from flasepformer.inference import (
    AlreadySeparated,
    FileOptions,
    NotEnoughMemory,
    OutputError,
    OutputExists,
    Separator,
    read_report,
    weights_digest,
)
from flasepformer.inference.identity import file_identity
from flasepformer.inference.outputs import Outputs

STATE_FOLDER = ".batch"
"""Beside the tracks: claims, and what has failed. It may be removed when no run is under way."""


@dataclass(frozen=True)
class Work:
    """What is done to every recording; can be pickled, and begins in a process with `worker`."""

    separator: Separator
    options: FileOptions
    out: str
    """Folder or bucket of all tracks."""
    state: str
    """Folder of claims and tries, which every process reaches."""
    run: str
    """Name of the run."""
    again: bool = False
    """Whether recordings that earlier runs gave up are tried anew."""
    memory: int | None = None
    """Most bytes for all that is separated at a time, beside programs and models; None asks the separator's
    own options for each."""
    n_shares: int = 1
    """Into which that is divided, one for each worker of an engine, which sees to it."""

    def shares_of(self, recording: Recording) -> int:
        """Return how many shares a recording needs to go through the model in the best way that there is."""
        if self.memory is None or self.n_shares == 1:
            return 1
        need = self._within_all.need_bytes(recording.seconds, finisher=self.options.get("finisher"))
        return 1 if need is None else math.ceil(need * self.n_shares / self.memory)

    @cached_property
    def _within_all(self) -> Separator:
        assert self.memory is not None, "asked only where there is a limit"
        return self.separator.within(self.memory)

    def worker(self) -> "Worker":
        """Return what works in this process."""
        return Worker(self)


class Worker:
    """Separates one recording after the other.

    Args:
        work: What is done to each.
    """

    def __init__(self, work: Work) -> None:
        state = Path(work.state)
        state.mkdir(parents=True, exist_ok=True)
        self._work = work
        self._separators: dict[int, Separator] = {}
        self._claims: Claims | Leases = Claims(state / "claims")
        if is_address(work.out) and (bucket := Bucket(work.out)).takes_conditions:
            self._claims = Leases(bucket, f"{STATE_FOLDER}/claims", self._claims, state / "machine")
        self._tries = TryBook(state / "tries", work.run, again=work.again)

    def __call__(self, recording: Recording, *, wait: bool = False, n_shares: int | None = None) -> Outcome:
        """Separate a recording, unless that has been done.

        Args:
            recording: Which.
            wait: For another run that works on it; otherwise the outcome says "elsewhere".
            n_shares: Of the memory that it may take; all by default. With fewer, the outcome of what needs
                more is "cramped".
        """
        try:
            with self._claims.hold(recording.key, wait=wait) as ours:
                if not ours:
                    return Outcome(recording, "elsewhere", error="another run works on it")
                return self._try(recording, n_shares or self._work.n_shares)
        except (OutputError, StoreError) as error:  # no fault of the recording: the disk is full, say
            return Outcome(recording, "stopped", error=str(error))

    def _try(self, recording: Recording, n_shares: int) -> Outcome:
        tries, was_cut_off = self.begin(recording)
        lacks_memory = False
        while not tries.over:
            try:
                outcome = self._separate(recording, was_cut_off, n_shares)
            except (OutputError, StoreError):
                self._tries.end(recording.key)
                raise
            except OutputExists as error:
                self._tries.end(recording.key)
                return Outcome(recording, "failed", error=str(error))
            except Exception as error:  # whatever it is, the others go on
                lacks_memory = isinstance(error, NotEnoughMemory)
                if lacks_memory and n_shares < self._work.n_shares:
                    self._tries.end(recording.key)
                    return Outcome(recording, "cramped", error=str(error))
                tries = tries.failed(_sentence(error, recording.source))
                self._tries.write(recording.key, tries)
            else:
                self._tries.end(recording.key)
                return outcome
        return Outcome(recording, "quarantined", error=tries.error, lacks_memory=lacks_memory)

    def begin(self, recording: Recording) -> tuple[Tries, bool]:
        """Note that a recording is under way; return its tries, and whether an earlier one was cut off."""
        identity = f"{_identity(recording.source)} {self._weights}"
        return self._tries.begin(recording.key, recording.source, identity)

    def _separate(self, recording: Recording, was_cut_off: bool, n_shares: int) -> Outcome:
        """Separate a recording, to and from buckets where it or its tracks are there."""
        if not is_address(self._work.out):
            folder = Path(self._work.out, recording.folder)
            return self._separate_into(recording, folder, n_shares, was_cut_off)
        report = self._outputs(recording, Path()).report.name
        with Bucket(self._work.out).mirrored(recording.folder, report) as mirror:
            return mirror.committed(self._separate_into(recording, mirror.folder, n_shares))

    def _separate_into(
        self, recording: Recording, folder: Path, n_shares: int, was_cut_off: bool = False
    ) -> Outcome:
        options: FileOptions = {**self._work.options, "name": recording.name}
        outputs, separator = self._outputs(recording, folder), self._separator(n_shares)
        if was_cut_off and not outputs.report.exists():
            options["overwrite"] = True  # perhaps between the name of its first track and that of its report
        source: AbstractContextManager[str | Path] = nullcontext(recording.source)
        try:
            if is_address(recording.source):
                bucket = Bucket(recording.source)
                options["origin"] = {"address": recording.source, "mark": bucket.identity()}
                earlier = read_report(outputs.report)
                if earlier.get("origin") == options["origin"] and not options.get("overwrite"):
                    separator.check_absent(outputs, earlier["content"], options)
                source = bucket.fetched()
            with source as path:
                report = separator.separate_file_with_report(path, folder, **options)
        except AlreadySeparated as error:
            return _outcome(recording, "skipped", error.tracks, read_report(error.report))
        facts = {"seconds": report.seconds, "confidence": report.confidence, "warnings": report.warnings}
        return _outcome(recording, "done", report.tracks, facts)

    def _separator(self, n_shares: int) -> Separator:
        """Return one that takes no more memory than that."""
        work = self._work
        if work.memory is None:
            return work.separator
        if n_shares not in self._separators:
            self._separators[n_shares] = work.separator.within(work.memory * n_shares // work.n_shares)
        return self._separators[n_shares]

    def _outputs(self, recording: Recording, folder: Path) -> Outputs:
        options = self._work.options
        return self._work.separator.outputs(recording.name + options.get("suffix", ""), folder, options)

    @cached_property
    def _weights(self) -> str:
        return weights_digest(self._work.separator.model)


def _outcome(
    recording: Recording, state: Any, tracks: tuple[Path, ...], report: Mapping[str, Any]
) -> Outcome:
    shares = (report.get("confidence") or {}).get("tracks") or [None] * len(tracks)
    return Outcome(
        recording,
        state,
        tuple(
            Track(str(track), file_identity(track)["sha256"] if track.stat().st_size else "", share)
            for track, share in zip(tracks, shares, strict=False)
        ),
        report.get("seconds"),
        warnings=tuple(report.get("warnings", ())) if state == "done" else (),
    )


def _identity(source: str) -> str:
    """Return what changes when a recording does, as far as can be told without reading it."""
    if is_address(source):
        return Bucket(source).identity()
    try:
        status = os.stat(source)
    except (OSError, ValueError):
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns}"


def _sentence(error: Exception, source: str) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error).removeprefix(f"{source}: ") or type(error).__name__
