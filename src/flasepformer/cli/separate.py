"""`flasepformer separate`: recordings in, one track per talker out."""

import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, cast

import typer

from flasepformer.cli.console import Bar, hushed_libraries, print_message, print_result, write_bytes
from flasepformer.cli.inputs import STDIN, Job, describe, find_conflict, plan_jobs
from flasepformer.cli.published import AcceptLicence, obtain_published
from flasepformer.cli.words import checked_device
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    from flasepformer.inference import FileOptions, RunOptions, Separator

STDOUT = "-"
MOST_SPEAKERS = 10
"""As in `flasepformer.conversation`, which would load torch for a word that is wrong."""


def _checked_speakers(text: str | None) -> str | None:
    if text in (None, "auto", *map(str, range(1, MOST_SPEAKERS + 1))):
        return text
    raise typer.BadParameter(f"must be auto, or a number from 1 to {MOST_SPEAKERS}, got {text!r}")


def separate(
    paths: Annotated[
        list[str], typer.Argument(help="Recordings, folders of recordings, or - for standard input.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder for the tracks; - sends one track to standard output.")
    ] = "separated",
    model: Annotated[
        str, typer.Option("--model", "-m", help="Name or checkpoint of the model; see `flasepformer models`.")
    ] = "default",
    accept_licence: AcceptLicence = False,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N, mps: where the model runs.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tracks that exist.")] = False,
    suffix: Annotated[str, typer.Option(help="Added to the names of the tracks.")] = "",
    format: Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus"], typer.Option(help="Of the tracks.")
    ] = "wav",
    subtype: Annotated[
        Literal["auto", "float", "pcm16", "pcm24"], typer.Option(help="Samples of wav and flac tracks.")
    ] = "auto",
    stream: Annotated[int | None, typer.Option(min=0, help="Audio stream of a video, from 0.")] = None,
    channel: Annotated[int | None, typer.Option(min=1, help="The only channel to separate, from 1.")] = None,
    mix_channels: Annotated[
        bool,
        typer.Option("--mix-channels", help="Mix a stereo recording even if each channel has its talker."),
    ] = False,
    speakers: Annotated[
        str | None,
        typer.Option(
            metavar="[1|2|3|...|auto]",
            callback=_checked_speakers,
            help="How many people talk; auto finds out. Silence where a talker is silent.",
        ),
    ] = None,
    segments: Annotated[
        bool,
        typer.Option(
            "--segments", help="Write who spoke when: RTTM, JSON, WebVTT, Audacity labels, picture."
        ),
    ] = False,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="NAME=FILE: a voice that is known, with 5 s or more of it alone."),
    ] = None,
    activity: Annotated[
        Literal["voices", "levels"],
        typer.Option(help="Who speaks is told by the voices, or by the levels of the tracks alone."),
    ] = "voices",
    residual: Annotated[
        bool, typer.Option("--residual", help="One more track: what belongs to nobody.")
    ] = False,
    floor_db: Annotated[
        float | None,
        typer.Option("--floor", max=0.0, help="What a silent track keeps, in dB; by default nothing."),
    ] = None,
    mode: Annotated[
        Literal["auto", "whole", "chunks"],
        typer.Option(help="The whole recording at once, or overlapping chunks; auto: what fits."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory for a recording of any length, such as 800M; by default half of what is free."
        ),
    ] = None,
    chunk_seconds: Annotated[float, typer.Option(min=1.0, help="Length of a chunk.")] = 30.0,
    overlap_seconds: Annotated[float, typer.Option(help="What two chunks have in common.")] = 5.0,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="Of the model's arithmetic; auto: bfloat16 where it is faster."),
    ] = "float32",
    passes: Annotated[
        int,
        typer.Option(
            min=1,
            max=8,
            help="Separate each recording so many times, a little changed, and take the mean: "
            "better tracks, and so many times as long.",
        ),
    ] = 1,
    also: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Separate with this model, too, and take the mean, in which it has a quarter: "
            "better tracks with default-fast beside default, for a quarter more time.",
        ),
    ] = None,
    post_filter: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of a filter in the tracks; by default what is best for the model, 0 for none.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Recordings at a time, in processes that share cores and memory."
        ),
    ] = 1,
    track: Annotated[int | None, typer.Option(min=1, help="The track for standard output, from 1.")] = None,
    recursive: Annotated[bool, typer.Option(help="Look into folders of folders.")] = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 after any warning.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the tracks' names.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, no notes; warnings stay.")] = False,
) -> None:
    """Separate each recording into one file per talker, with a JSON report beside them.

    Tracks that exist are kept, so the same command does what is missing; a recording that was interrupted
    starts again from its beginning. Recordings of any length need little memory: what does not fit goes to
    temporary files (in TMPDIR) or is separated in chunks. Exit codes: 0 all done, 1 some inputs failed,
    2 wrong usage, 3 no usable model, device, memory or disk, 130 interrupted.
    """
    if not out:
        raise typer.BadParameter("--out must name a folder, or be - for standard output")
    if (out == STDOUT) != (track is not None):
        raise typer.BadParameter("standard output takes one track: give --out - and --track together")
    if out == STDOUT and as_json:
        raise typer.BadParameter("--json and --out - both want standard output")
    if subtype != "auto" and (format not in ("wav", "flac") or (format, subtype) == ("flac", "float")):
        raise typer.BadParameter(f"{format} files have no {subtype} samples")
    if any(separator in suffix for separator in "/\\"):
        raise typer.BadParameter("--suffix is part of a file name and cannot lead to another folder")
    if not 0 < overlap_seconds <= chunk_seconds / 2:
        half = f"half a chunk, {chunk_seconds / 2:g} s"
        raise typer.BadParameter(f"--overlap-seconds must be above 0 and at most {half}")
    if activity == "levels" and speakers not in (None, "1", "2", "auto"):
        raise typer.BadParameter(f"{speakers} speakers are told apart by voices: leave out --activity levels")
    run_options: RunOptions = {
        "mode": mode, "memory": _checked_size(memory), "chunk_seconds": chunk_seconds,
        "overlap_seconds": overlap_seconds, "precision": cast(Any, precision), "passes": passes,
        "also": also, "post_filter": post_filter,
    }  # fmt: skip
    options: FileOptions = {
        "overwrite": overwrite, "format": format, "subtype": subtype, "stream": stream, "channel": channel,
        "mix_channels": mix_channels,
    }  # fmt: skip
    if speakers or segments or residual or floor_db is not None or names:
        from flasepformer.conversation import Conversation, can_draw

        options["finisher"] = Conversation(
            speakers=speakers or "auto", segments=segments, timeline=segments and can_draw(),
            residual=residual, floor_db=floor_db, activity=activity,
            names=tuple(map(_named_file, names or ())),
        )  # fmt: skip
    with temporary_folder() as scratch:
        # Not the scratch folder itself: that is locked, and publishing locks the folder of the tracks.
        folder = scratch / "tracks" if out == STDOUT else Path(out)
        recordings, failures = plan_jobs(paths, folder, recursive=recursive, suffix=suffix)
        if conflict := find_conflict(recordings, folder, format):
            raise typer.BadParameter(
                f"{conflict} would be written over by tracks of this run; choose another --out"
            )
        if out == STDOUT and len(recordings) + len(failures) != 1:
            raise typer.BadParameter("standard output takes one track, so give one recording")
        run = _Run(
            options, run_options, quiet=quiet, prints_tracks=out != STDOUT and not as_json, track=track
        )
        run.accept_licence = accept_licence
        for path, reason in failures:
            run.fail(path, reason)
        with hushed_libraries() if quiet else nullcontext():
            run.separate(recordings, folder, model, device, jobs)
        if track is not None and run.counts()["done"]:
            write_bytes(run.results[0]["tracks"][track - 1])
    run.finish(strict=strict)
    if as_json:
        print_result(json.dumps(run.summary(), indent=2))
    raise typer.Exit(run.exit_code)


def _named_file(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name.strip() or not Path(path).is_file():
        raise typer.BadParameter(f"--name takes NAME=FILE, as in Ann=ann.wav, got {text}")
    return name.strip(), path


def _checked_size(text: str | None) -> int | None:
    if text is None:
        return None
    from flasepformer.inference import parse_size  # here, so that --help does not load torch

    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from error


class _Run:
    """One run of the command: what became of each recording, and the exit code.

    Args:
        options: For every recording.
        run_options: How they go through the model.
        quiet: Show no progress and no notes.
        prints_tracks: Print the path of each track when it is there.
        track: The only one that is wanted, from 1.
    """

    def __init__(
        self,
        options: "FileOptions",
        run_options: "RunOptions",
        *,
        quiet: bool,
        prints_tracks: bool,
        track: int | None,
    ) -> None:
        self.track = track
        self.options = options
        self.run_options = run_options
        self.quiet = quiet
        self.prints_tracks = prints_tracks
        self.accept_licence = False
        self.results: list[dict[str, Any]] = []
        self.error: str | None = None
        self.told: set[str] = set()
        self.current: str | None = None
        self.exit_code = 0

    def separate(self, jobs: Sequence[Job], folder: Path, model: str, device: str, n_processes: int) -> None:
        """Separate all recordings, unless the model, the device or the disk fails, or somebody interrupts."""
        try:
            if jobs:
                self._separate(jobs, folder, model, device, n_processes)
        except KeyboardInterrupt:
            self.exit_code, self.error = 130, "interrupted; the same command does what is missing"
            if self.current:
                self.error += f", {self.current} from its beginning"
            print_message(self.error)

    def _separate(self, jobs: Sequence[Job], folder: Path, model: str, device: str, n_processes: int) -> None:
        from flasepformer.inference import DeviceError, OutputError, Separator, growing_folder
        from flasepformer.inference.workers import map_in_processes
        from flasepformer.models import CheckpointError

        try:
            with growing_folder(folder):  # before the model is loaded: can anything be written there?
                pass
            for name in filter(None, (model, self.run_options.get("also"))):
                obtain_published(name, accept_licence=self.accept_licence, quiet=self.quiet)
            with warnings.catch_warnings(record=True) as cautions:
                warnings.simplefilter("always")
                try:
                    separator = Separator.from_pretrained(model, device, **self.run_options)
                except OSError as error:
                    raise CheckpointError(f"{model} cannot be read: {describe(error)}") from error
            for caution in cautions:
                self.told.add(str(caution.message))
                print_message(f"warning: {caution.message}")
            if self.track is not None and self.track > separator.n_sources:
                raise typer.BadParameter(
                    f"there is no track {self.track}; the model gives {separator.n_sources}"
                )
            shows_bar = not self.quiet and sys.stderr is not None and sys.stderr.isatty()
            with closing(Bar(shows_bar)) as bar:

                def tell(step: str, share: float, index: int = 0) -> None:
                    bar.tell(f"{index + 1}/{len(jobs)} {step}", (index + share) / len(jobs))

                n_processes = 1 if any(job.source == STDIN for job in jobs) else min(n_processes, len(jobs))
                if n_processes > 1:
                    work = partial(separate_one, separator.alike(self._shared(n_processes)), self.options)
                    outcomes = map_in_processes(work, jobs, n_processes)
                    for index, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True)):
                        self._take(job, outcome)
                        tell(f"done with {job.source}", 1.0, index)
                    return
                for index, job in enumerate(jobs):
                    self.current = job.source
                    options: FileOptions = {
                        **self.options, "progress": partial(tell, index=index), "notify": self._notifier(job),
                    }  # fmt: skip
                    self._take(job, separate_one(separator, options, job))
                    self.current = None
        except (CheckpointError, DeviceError, OutputError) as error:
            self.exit_code, self.error = 3, str(error)
            print_message(f"error: {error}")

    def _shared(self, n_processes: int) -> "RunOptions":
        from flasepformer.evaluation.separating import share_memory

        return share_memory(self.run_options, n_processes) or self.run_options

    def _notifier(self, job: Job) -> Callable[[str], None]:
        def notify(note: str) -> None:
            self.told.add(f"{job.source}: {note}")
            self._note(f"note: {job.source}: {note}")

        return notify

    def _take(self, job: Job, outcome: dict[str, Any] | Exception) -> None:
        """Note what became of a recording, and say it."""
        if isinstance(outcome, Exception):
            self.fail(job.source, "its process died, perhaps for want of memory; try fewer --jobs")
            return
        if outcome["status"] == "failed":
            self.fail(job.source, outcome["reason"])
            if outcome.pop("lacks_memory"):  # a shorter recording may still have enough
                self.exit_code = 3
            return
        self.results.append(outcome)
        if outcome["status"] == "skipped":
            self._note(f"skipped: {job.source}: {outcome['reason']}")
        else:
            for caution in outcome["warnings"]:
                if caution not in self.told:
                    print_message(f"warning: {job.source}: {caution}")
            for note in outcome["notes"]:
                if f"{job.source}: {note}" not in self.told:
                    self._note(f"note: {job.source}: {note}")
        if doubt := _doubt(outcome.get("confidence")):
            self._note(f"unsure: {job.source}: {doubt}")
        for track in outcome["tracks"] if self.prints_tracks else ():
            print_result(track)

    def fail(self, path: str, reason: str) -> None:
        """Note an input that cannot be separated; the others go on."""
        self.results.append({"input": path, "status": "failed", "reason": reason})
        print_message(f"error: {path}: {reason}")

    def finish(self, *, strict: bool) -> None:
        """Settle the exit code, and after several recordings say what became of them."""
        counts = self.counts()
        if self.exit_code == 0 and (
            counts["failed"] or (strict and any(result.get("warnings") for result in self.results))
        ):
            self.exit_code = 1
        if len(self.results) > 1 and not self.quiet:
            print_message(", ".join(f"{count} {status}" for status, count in counts.items()))
            for result in self.results:
                if result["status"] == "failed":
                    print_message(f"  failed  {result['input']}: {result['reason']}")

    def counts(self) -> dict[str, int]:
        """Return how many recordings were done, skipped and failed."""
        counted = Counter(result["status"] for result in self.results)
        return {status: counted[status] for status in ("done", "skipped", "failed")}

    def summary(self) -> dict[str, Any]:
        """Return everything about the run, for a program."""
        return {"exit_code": self.exit_code, "error": self.error, **self.counts(), "results": self.results}

    def _note(self, line: str) -> None:
        if not self.quiet:
            print_message(line)


def _doubt(confidence: dict[str, Any] | None) -> str:
    """Name the tracks that are probably not one talker, by the report; nothing if there are none."""
    from flasepformer.inference.confidence import UNSURE

    shares = confidence["tracks"] if confidence else ()
    low = [(n, share) for n, share in enumerate(shares, 1) if share is not None and share < UNSURE]
    named = " and ".join(f"{n} ({share:.0%})" for n, share in low)
    return f"track {named} may not be one talker alone" if low else ""


def separate_one(separator: "Separator", options: "FileOptions", job: Job) -> dict[str, Any]:
    """Separate one recording; return what became of it, as it stands in `--json`.

    Raises:
        OutputError: Nothing can be written any more.
    """
    from flasepformer.inference import (
        AlreadySeparated,
        NotEnoughMemory,
        OutputError,
        SeparationError,
        read_report,
    )

    source: str | BinaryIO = job.source
    if source == STDIN:
        if sys.stdin is None:
            return _failure(job, "standard input is closed")
        source = sys.stdin.buffer
    try:
        named_options: FileOptions = {**options, "name": job.name}
        report = separator.separate_file_with_report(source, job.folder, **named_options)
    except AlreadySeparated as error:
        known = {**read_report(error.report), **_named_paths(job, error.tracks, error.files)}
        return {**known, "status": "skipped", "reason": str(error)}
    except OutputError:
        raise
    except (OSError, ValueError, SeparationError) as error:
        named = Path(source) if isinstance(source, str) else getattr(source, "name", "stream")
        reason = describe(error).removeprefix(f"{named}: ")
        return _failure(job, reason, lacks_memory=isinstance(error, NotEnoughMemory))
    return {**asdict(report), **_named_paths(job, report.tracks, report.files), "status": "done"}


def _named_paths(job: Job, tracks: Sequence[Path], files: Sequence[Path]) -> dict[str, Any]:
    return {"input": job.source, "tracks": list(map(str, tracks)), "files": list(map(str, files))}


def _failure(job: Job, reason: str, *, lacks_memory: bool = False) -> dict[str, Any]:
    return {"input": job.source, "status": "failed", "reason": reason, "lacks_memory": lacks_memory}
