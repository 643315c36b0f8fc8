"""`flasepformer batch`: ten thousand recordings and more, here or on a cluster, each exactly once."""

import glob
import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from flasepformer.cli.console import Bar, print_message, print_result
from flasepformer.cli.cores import n_cores
from flasepformer.cli.inputs import describe, find_conflict, plan_jobs
from flasepformer.cli.published import AcceptLicence, obtain_published
from flasepformer.cli.words import checked_device

if TYPE_CHECKING:
    from flasepformer.batch import Outcome, Recording
    from flasepformer.inference import FileOptions, RunOptions


def batch(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Recordings, folders, patterns such as 'talks/**/*.wav', lists (CSV, Parquet), s3://, gs://, az://."
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or bucket for all tracks.")],
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Processes of this machine, or a Ray cluster.")
    ] = "local",
    address: Annotated[
        str,
        typer.Option(help="Of the Ray cluster: auto for the one of this machine, local for a new one here."),
    ] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Workers; by default as many as there are cores."),
    ] = None,
    gpus: Annotated[float, typer.Option(min=0.0, help="Share of a GPU for each worker on a cluster.")] = 0.0,
    model: Annotated[
        str, typer.Option("--model", "-m", help="Name or checkpoint of the model; see `flasepformer models`.")
    ] = "default",
    accept_licence: AcceptLicence = False,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N, mps: where the model runs.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make all tracks anew.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try recordings once more that an earlier run gave up.")
    ] = False,
    format: Annotated[
        Literal["wav", "flac", "mp3", "ogg", "opus"], typer.Option(help="Of the tracks.")
    ] = "wav",
    mode: Annotated[
        Literal["auto", "whole", "chunks"],
        typer.Option(help="The whole recording at once, or overlapping chunks; auto: what fits."),
    ] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most for all recordings that are worked on, such as 8G; by default half of what is free. "
            "On a cluster: for each worker."
        ),
    ] = None,
    passes: Annotated[
        int, typer.Option(min=1, max=8, help="As `separate`: the mean of so many, better and slower.")
    ] = 1,
    also: Annotated[
        str | None, typer.Option(metavar="MODEL", help="As `separate`: a second model in the mean.")
    ] = None,
    post_filter: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="As `separate`: share of a filter in the tracks.")
    ] = None,
    recursive: Annotated[bool, typer.Option(help="Look into folders of folders.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no warnings of recordings.")] = False,
) -> None:
    """Separate many recordings, each exactly once, however often this is started, stopped or killed.

    The longest begin first. The same command does what is missing; two at once share the work. A recording
    that fails twice, or kills its process twice, is left alone until it changes, or --again. At the end
    manifest.csv (with pyarrow manifest.parquet, too) lists all tracks. Exit codes: 0 all done, 1 some inputs
    failed, 2 wrong usage, 3 no usable model, device, cluster, memory or disk, 130 interrupted.
    """
    from flasepformer.batch import is_address
    from flasepformer.errors import InputError

    if not out:
        raise typer.BadParameter("--out must name a folder or a bucket")
    if engine == "ray" and address == "local" and gpus:
        raise typer.BadParameter("--gpus is for a cluster that has some; --engine local takes --device cuda")
    from flasepformer.inference import parse_size

    try:
        size = None if memory is None else parse_size(memory)
    except ValueError as error:
        raise typer.BadParameter(f"--memory: {error}") from error
    run_options: RunOptions = {
        "mode": mode,
        "memory": size,
        "passes": passes,
        "also": also,
        "post_filter": post_filter,
    }
    options: FileOptions = {"overwrite": overwrite, "format": format}
    run = _Run(quiet=quiet)
    try:
        recordings = _find(inputs, out, recursive, format, run)
        if recordings:
            run.separate(
                recordings, out, (model, device, accept_licence), options, run_options,
                n_workers=jobs or n_cores(), address=address if engine == "ray" else None, gpus=gpus,
                again=again,
            )  # fmt: skip
    except InputError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        run.exit_code = 130
        print_message("interrupted; the same command does what is missing")
    if run.outcomes and run.exit_code != 3:
        run.write_manifest(out, is_bucket=is_address(out))
    run.finish()
    raise typer.Exit(run.exit_code)


def _find(inputs: Sequence[str], out: str, recursive: bool, extension: str, run: "_Run") -> "list[Recording]":
    """Find the recordings, each once, with outputs that no other shares; longest first."""
    from flasepformer.batch import Recording, estimate_seconds, is_address, is_list, longest_first, read_list

    paths: list[str] = []
    for named in inputs:
        if is_list(named) and not is_address(named) and os.path.isfile(named):
            try:
                paths += read_list(named)
            except OSError as error:
                run.fail(named, describe(error))
        elif not os.path.lexists(named) and not is_address(named) and glob.has_magic(named):
            matches = sorted(glob.glob(named, recursive=True))
            paths += matches
            if not matches:
                run.fail(named, "no file is named like that")
        else:
            paths.append(named)
    here = Path(tempfile.gettempdir(), "none") if is_address(out) else Path(out)
    jobs, failures = plan_jobs(
        [path for path in paths if not is_address(path)], here, recursive=recursive, suffix=""
    )
    if conflict := find_conflict(jobs, here, extension):
        raise typer.BadParameter(
            f"{conflict} would be written over by tracks of this run; choose another --out"
        )
    for path, reason in failures:
        run.fail(path, reason)
    recordings = [
        Recording(
            job.source,
            "" if job.folder == here else job.folder.relative_to(here).as_posix(),
            job.name,
            estimate_seconds(job.source),
        )
        for job in jobs
    ]
    taken = {recording.key.casefold() for recording in recordings}
    for address in dict.fromkeys(path for path in paths if is_address(path)):
        recordings += _in_bucket(address, taken, run)
    return longest_first(recordings)


def _in_bucket(address: str, taken: set[str], run: "_Run") -> "Iterator[Recording]":
    from flasepformer.audio import AUDIO_EXTENSIONS
    from flasepformer.batch import Bucket, Recording

    try:
        found = Bucket(address).found()
    except OSError as error:
        run.fail(address, describe(error))
        return
    alone = len(found) == 1 and found[0][0].rstrip("/") == address.rstrip("/")
    base = os.path.dirname(address.split("*")[0] if "*" in address else address.rstrip("/") + "/")
    n_found = 0
    reports = {place for place, _ in found if place.endswith("_separation.json")}
    for place, n_bytes in found:
        stem, extension = os.path.splitext(os.path.basename(place))
        is_track = f"{place.rpartition('_')[0]}_separation.json" in reports
        if not alone and (extension.lower() not in AUDIO_EXTENSIONS or is_track):
            continue
        n_found += 1
        folder = "" if alone else os.path.dirname(place.removeprefix(base).lstrip("/"))
        name, count = stem, 1
        while f"{folder}/{name}".casefold() in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(f"{folder}/{name}".casefold())
        yield Recording(place, folder, name, n_bytes / 32000)
    if not n_found:
        run.fail(address, "there is no audio in this place")


class _Run:
    """One run of the command: what became of each recording, and the exit code.

    Args:
        quiet: Show no progress and no warnings of recordings.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.outcomes: list[Outcome] = []
        self.exit_code = 0
        self._counts: Counter[str] = Counter()

    def separate(
        self,
        recordings: "Sequence[Recording]",
        out: str,
        model: tuple[str, str, bool],
        options: "FileOptions",
        run_options: "RunOptions",
        *,
        n_workers: int,
        address: str | None,
        gpus: float,
        again: bool,
    ) -> None:
        """Separate all recordings, unless the model, the device or the disk fails."""
        from flasepformer.batch import (
            STATE_FOLDER,
            Bucket,
            ClusterError,
            StoreError,
            Work,
            is_address,
            run_locally,
            run_on_ray,
        )
        from flasepformer.inference import DeviceError, OutputError, Separator, growing_folder
        from flasepformer.inference.memory import USABLE_SHARE, free_memory
        from flasepformer.models import CheckpointError

        name, device, accept_licence = model
        n_workers = min(n_workers, len(recordings))
        if is_address(out):
            mark = hashlib.sha256(out.encode()).hexdigest()[:16]
            state = Path(tempfile.gettempdir(), f"flasepformer-batch-{mark}")
        else:
            state = Path(out).absolute() / STATE_FOLDER
        try:
            if is_address(out):  # before the model is loaded: can anything be written there?
                Bucket(out).check_writable()
            else:
                with growing_folder(Path(out)):
                    pass
            for one in filter(None, (name, run_options.get("also"))):
                obtain_published(one, accept_licence=accept_licence, quiet=self.quiet)
            try:
                separator = Separator.from_pretrained(name, device, **run_options)
            except OSError as error:
                raise CheckpointError(f"{name} cannot be read: {describe(error)}") from error
            place = out if is_address(out) else os.path.abspath(out)
            memory = cast("int | None", run_options.get("memory"))
            if memory is None and not address and (free := free_memory()):
                memory = int(USABLE_SHARE * free)  # a cluster has memory of its own
            work = Work(separator, options, place, str(state), uuid.uuid4().hex, again, memory)
            outcomes = (
                run_on_ray(work, recordings, n_workers, address=address, n_gpus=gpus)
                if address
                else run_locally(work, recordings, n_workers)
            )
            with closing(cast(Any, outcomes)):
                self._follow(outcomes, recordings)
        except (CheckpointError, DeviceError, OutputError, ClusterError, StoreError) as error:
            self.exit_code = 3
            print_message(f"error: {error}")

    def _follow(self, outcomes: "Iterator[Outcome]", recordings: "Sequence[Recording]") -> None:
        from flasepformer.inference import OutputError

        total = sum(recording.seconds for recording in recordings) or 1.0
        done, began = 0.0, time.monotonic()
        shows_bar = not self.quiet and sys.stderr is not None and sys.stderr.isatty()
        with closing(Bar(shows_bar)) as bar:
            for n_done, outcome in enumerate(outcomes, 1):
                if outcome.state == "stopped":
                    raise OutputError(outcome.error)
                self._take(outcome)
                done += outcome.recording.seconds
                rate = n_done / max(time.monotonic() - began, 1e-9)
                bar.tell(f"{n_done}/{len(recordings)}, {rate:.3g} per second", min(done / total, 1.0))

    def _take(self, outcome: "Outcome") -> None:
        self.outcomes.append(outcome)
        self._counts["failed" if outcome.state == "quarantined" else outcome.state] += 1
        if outcome.state in ("failed", "quarantined"):
            print_message(f"error: {outcome.recording.source}: {outcome.error}")
            self.exit_code = 3 if outcome.lacks_memory else self.exit_code or 1
        elif not self.quiet:
            for caution in outcome.warnings:
                print_message(f"warning: {outcome.recording.source}: {caution}")

    def fail(self, path: str, reason: str) -> None:
        """Note an input that cannot be separated; the others go on."""
        from flasepformer.batch import Outcome, Recording

        self._take(Outcome(Recording(path, "", path), "failed", error=reason))

    def write_manifest(self, out: str, *, is_bucket: bool) -> None:
        """List all tracks beside them, and say where."""
        from flasepformer.batch import STATE_FOLDER, Bucket, Claims, write_manifest
        from flasepformer.temporary import temporary_folder

        folder = Path(out)
        try:
            if is_bucket:
                with temporary_folder() as scratch:
                    for path in write_manifest(self.outcomes, scratch):
                        Bucket(out).put(path, path.name)
                        print_result(f"{out.rstrip('/')}/{path.name}")
                return
            (folder / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
            with Claims(folder / STATE_FOLDER / "claims").hold("manifest", wait=True):
                for path in write_manifest(self.outcomes, folder):
                    print_result(str(path))
        except OSError as error:
            self.exit_code = 3
            print_message(f"error: the manifest cannot be written in {out}: {describe(error)}")

    def finish(self) -> None:
        """Say what became of the recordings."""
        counts = ", ".join(f"{self._counts[state]} {state}" for state in ("done", "skipped", "failed"))
        print_message(counts)
