"""`flasepformer live`: separate people while they are talking."""

import json
import math
import signal
import sys
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.inputs import STDIN, describe
from flasepformer.cli.published import AcceptLicence, obtain_published
from flasepformer.cli.words import checked_device

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from flasepformer.audio import RecordingFile
    from flasepformer.audio.live_sources import Source, Speaker
    from flasepformer.inference import StreamingSeparator
    from flasepformer.inference.live import LiveReport

METER_DB = -60.0
"""Level at which a meter is empty."""


def live(
    source: Annotated[
        str | None, typer.Argument(help="- takes raw samples from standard input; without, the microphone.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the tracks, WAV files of 32-bit floats. [default: separated, without --play]",
        ),
    ] = None,
    play: Annotated[
        list[str] | None, typer.Option(help="Sound device for a track: once for each, in their order.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Play a recording as if it were live.")
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, help="With --replay: times real time.")] = 1.0,
    rate: Annotated[
        int | None, typer.Option(min=2000, help="Sample rate in Hz; - needs it, a microphone has its own.")
    ] = None,
    channels: Annotated[int, typer.Option(min=1, help="Of the microphone or of -; they are mixed down.")] = 1,
    samples: Annotated[
        Literal["s16", "s32", "f32"], typer.Option(help="With -: little-endian integers or floats.")
    ] = "s16",
    microphone: Annotated[str | None, typer.Option(help="Name or number of the microphone.")] = None,
    delay: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Seconds that the tracks may lag behind; from 0.2 on, the default model follows with them.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Name or checkpoint; a causal one has a delay of its own. "
            "[default: default-live, or default-fast with a --delay of 0.2 or more]",
        ),
    ] = None,
    accept_licence: AcceptLicence = False,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N, mps: where the model runs.")
    ] = "auto",
    block: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Seconds taken at a time; more while it is late.")
    ] = 0.02,
    seconds: Annotated[float | None, typer.Option(min=0.0, help="End after so long.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tracks that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print how it went as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No meters, no notes; warnings stay.")] = False,
) -> None:
    """Separate two people while they are talking, from the microphone, a stream or a recording.

    The tracks can be played at every moment, also after the program was killed. Ctrl-C ends it; what has been
    said until then is in them. Exit codes: 0 the stream ended, 1 it broke off, 2 wrong usage, 3 no usable
    model, device or disk, 130 interrupted.
    """
    if source not in (None, STDIN) or (source == STDIN and replay is not None):
        raise typer.BadParameter("give - for standard input, or --replay FILE, or neither for the microphone")
    if source == STDIN and rate is None:
        raise typer.BadParameter(
            "raw samples do not say their sample rate: give --rate, such as --rate 48000"
        )
    if replay is not None and rate is not None:
        raise typer.BadParameter("--rate is for - and for the microphone; a recording has its own")
    if out is None and not play:
        out = Path("separated")

    from flasepformer.audio import AudioError
    from flasepformer.errors import InputError
    from flasepformer.inference import DeviceError, OutputError, live_model
    from flasepformer.inference.live import LiveReport
    from flasepformer.models import CheckpointError

    model = live_model(delay) if model is None else model
    report, exit_code = LiveReport(), 0
    heard: Source | None = None
    paths: list[str] = []
    speakers: list[Speaker] = []
    with ExitStack() as stack:
        try:
            obtain_published(model, accept_licence=accept_licence, quiet=quiet)
            recording = stack.enter_context(_opened(replay)) if replay is not None else None
            heard = _open_source(recording, speed, source, rate, channels, samples, microphone, block)
            stream = _open_stream(model, heard.sample_rate, device, delay)
            name = replay.stem if replay is not None else time.strftime("live-%Y%m%d-%H%M%S")
            paths, sinks = _open_sinks(stack, stream, out, name, play or [], overwrite)
            speakers = [sink for takers in sinks for sink in takers if hasattr(sink, "n_dropped")]
            if not quiet:
                print_message(
                    f"listening at {heard.sample_rate} Hz; the tracks of {stream.name} lag "
                    f"{_milliseconds(stream)} behind"
                )
            exit_code = _listen(stream, heard, sinks, report, seconds, quiet)
            if recording is not None and recording.is_known:  # played to its end
                for warning in recording.warnings:
                    print_message(f"warning: {replay}: {warning}")
        except (CheckpointError, DeviceError, OutputError, ModuleNotFoundError) as error:
            print_message(f"error: {error}")
            raise typer.Exit(3) from error
        except AudioError as error:
            print_message(f"error: {error}")
            raise typer.Exit(1 if replay is not None else 3) from error
        except InputError as error:
            raise typer.BadParameter(str(error)) from error
        except OSError as error:
            print_message(f"error: {describe(error)}; the tracks are whole up to there")
            exit_code = 3
    _say_how_it_went(report, heard, speakers, quiet)
    if as_json:
        told = {"exit_code": exit_code, "tracks": paths, **_summary(report, heard, speakers)}
        print_result(json.dumps(told, indent=2))
    else:
        for path in paths:
            print_result(path)
    raise typer.Exit(exit_code)


def _opened(path: Path) -> "RecordingFile":
    from flasepformer.audio import RecordingFile

    return RecordingFile(path, kept_bytes=0)  # it is played once


def _open_source(
    recording: "RecordingFile | None",
    speed: float,
    source: str | None,
    rate: int | None,
    channels: int,
    samples: Literal["s16", "s32", "f32"],
    microphone: str | None,
    block: float,
) -> "Source":
    from flasepformer.audio import AudioError
    from flasepformer.audio.live_sources import Microphone, PcmSource, ReplaySource

    if recording is not None:
        return ReplaySource(recording, speed=speed, block_seconds=block)
    if source == STDIN:
        if sys.stdin is None:
            raise AudioError("standard input is closed")
        assert rate is not None
        return PcmSource(sys.stdin.fileno(), rate, channels, samples)
    return Microphone(_named(microphone), rate, channels, block_seconds=block)


def _open_stream(model: str, rate: int, device: str, delay: float | None) -> "StreamingSeparator":
    from flasepformer.inference import StreamingSeparator
    from flasepformer.models import CheckpointError

    try:
        stream = StreamingSeparator.from_pretrained(model, rate, device, delay=delay)
    except OSError as error:
        raise CheckpointError(f"{model} cannot be read: {describe(error)}") from error
    stream.warm_up()
    return stream


def _open_sinks(
    stack: ExitStack,
    stream: "StreamingSeparator",
    out: Path | None,
    name: str,
    play: list[str],
    overwrite: bool,
) -> tuple[list[str], list[list[Any]]]:
    """Open files and devices, to be closed by `stack`; return paths, and the sinks of each track."""
    from flasepformer.audio.growing_wav import GrowingWav
    from flasepformer.audio.live_sources import Speaker
    from flasepformer.inference import OutputError, portable_name

    if len(play) not in (0, stream.n_sources):
        raise typer.BadParameter(f"give --play {stream.n_sources} times, once for each track, or never")
    sinks: list[list[Any]] = [[] for _ in range(stream.n_sources)]
    paths = []
    for index, takers in enumerate(sinks):
        if out is not None:
            path = out / f"{portable_name(name)}_speaker{index + 1}.wav"
            try:
                out.mkdir(parents=True, exist_ok=True)
                takers.append(stack.enter_context(GrowingWav(path, stream.sample_rate, overwrite=overwrite)))
            except FileExistsError as error:
                raise OutputError(
                    f"{error.filename or path} exists; give --overwrite, or another --out"
                ) from error
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
            paths.append(str(path))
        if play:
            speaker = Speaker(_named(play[index]), stream.sample_rate)
            stack.callback(speaker.close)
            takers.append(speaker)
    return paths, sinks


def _listen(
    stream: "StreamingSeparator",
    source: "Source",
    sinks: list[list[Any]],
    report: "LiveReport",
    seconds: float | None,
    quiet: bool,
) -> int:
    """Listen until the end; return the exit code."""
    from flasepformer.inference.live import listen

    meters = _Meters(stream.n_sources, shown=not quiet and sys.stderr is not None and sys.stderr.isatty())
    losses = _Losses(source, sinks)

    def tell(report: "LiveReport", tracks: "NDArray[np.float32]") -> None:
        for warning in losses.news(report):
            meters.clear()
            print_message(f"warning: {warning}, at {report.seconds:.1f} s")
        meters.tell(report, tracks)
        if losses.nobody_hears:
            raise _Unheard
        if seconds is not None and report.seconds >= seconds:
            raise _Enough

    try:
        with _Patient(source) as patient:
            listen(stream, patient, sinks, tell, report)
    except _Enough:
        return 0
    except _Unheard:
        print_message("error: no device plays the tracks any more, and there are no files")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        meters.clear()
    return 1 if report.problem else 0


class _Enough(Exception):
    pass


class _Unheard(Exception):
    pass


class _Losses:
    """Says what is lost on the way in and on the way out when it is lost, and not for every block."""

    def __init__(self, source: "Source", sinks: list[list[Any]]) -> None:
        self._source = source
        self._devices = [sink for takers in sinks for sink in takers if hasattr(sink, "n_dropped")]
        self._has_files = len(self._devices) < sum(map(len, sinks))
        self._gone: set[str] = set()
        self._told = (0, 0)
        self._when = -math.inf

    @property
    def nobody_hears(self) -> bool:
        """Whether all the tracks went to have failed."""
        return not self._has_files and all(device.problem for device in self._devices)

    def news(self, report: "LiveReport") -> "Iterator[str]":
        """Return what is new: of devices at once, of samples once in a second at most."""
        for problem in {device.problem for device in self._devices if device.problem} - self._gone:
            self._gone.add(problem)
            yield problem
        counts = (report.n_lost, getattr(self._source, "n_overruns", 0))
        if counts == self._told or time.monotonic() - self._when < 1:
            return
        n_lost, n_overruns = (count - told for count, told in zip(counts, self._told, strict=True))
        self._told, self._when = counts, time.monotonic()
        if n_lost:
            yield f"{n_lost} samples came faster than they were separated, and are lost"
        if n_overruns:
            yield f"input overrun: the driver lost samples ({counts[1]} so far)"


class _Patient:
    """A source that can be interrupted while it waits, and only then: blocks are dealt with whole."""

    def __init__(self, source: "Source") -> None:
        self._source = source
        self._waits = self._asked = False
        self._before: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __enter__(self) -> "Source":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._interrupt)
        return cast("Source", self)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked and not self._waits:
            return  # a second one must not cut the first one short
        self._asked = True
        if self._waits:
            self._waits = False
            raise KeyboardInterrupt

    def blocks(self) -> "Iterator[NDArray[np.float32]]":
        blocks = self._source.blocks()
        with closing(cast("Generator[NDArray[np.float32]]", blocks)):
            while True:
                self._waits = True
                if self._asked:
                    self._waits = False
                    raise KeyboardInterrupt
                block = next(blocks, None)
                self._waits = False
                if block is None:
                    return
                yield block


class _Meters:
    """A level meter for every track, delay and real-time factor, on the last line of a terminal."""

    def __init__(self, n_tracks: int, *, shown: bool) -> None:
        self._shown = shown
        self._peaks = [0.0] * n_tracks
        self._drawn = -math.inf

    def tell(self, report: "LiveReport", tracks: "NDArray[np.float32]") -> None:
        """Draw the line anew, ten times in a second at most."""
        if not self._shown:
            return
        if tracks.shape[1]:
            self._peaks = [max(p, float(abs(t).max())) for p, t in zip(self._peaks, tracks, strict=True)]
        now = time.monotonic()
        if now - self._drawn < 0.1:
            return
        meters = "  ".join(f"{index + 1} |{meter(peak)}|" for index, peak in enumerate(self._peaks))
        line = (
            f"{report.seconds:8.1f} s  {meters}  delay {report.delay_seconds * 1000:.0f} ms  "
            f"RTF {report.real_time_factor:.2f}"
        )
        self._write("\r\033[K" + line)
        self._drawn, self._peaks = now, [0.0] * len(self._peaks)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._write("\r\033[K")

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except BrokenPipeError:
            self._shown = False


def meter(peak: float, width: int = 20) -> str:
    """Draw a level.

    >>> meter(1.0, 6), meter(0.0316, 6), meter(0.0, 6)
    ('######', '###   ', '      ')
    """
    level = 20 * math.log10(peak) if peak > 0 else METER_DB
    return ("#" * round(width * min(max(1 - level / METER_DB, 0), 1))).ljust(width)


def _say_how_it_went(
    report: "LiveReport", source: "Source | None", speakers: "list[Speaker]", quiet: bool
) -> None:
    from flasepformer.audio.live_sources import QUEUE_SECONDS

    overruns, dropped = _lost_by_devices(source, speakers)
    for count, what in (
        (report.n_lost, "samples were lost: they came faster than they were separated"),
        (overruns, "input overruns: the driver lost samples, and does not say how many"),
        (report.n_damaged, "samples were NaN or infinite and count as silence"),
        (dropped, "samples were not played: the devices had no room for them, or were gone"),
    ):
        if count:
            print_message(f"warning: {count} {what}")
    if report.longest_behind > QUEUE_SECONDS:
        print_message(
            f"warning: it was {report.longest_behind:.1f} s of the stream behind; of a microphone, what is "
            f"beyond {QUEUE_SECONDS:g} s is lost"
        )
    if report.problem:
        print_message(f"error: {report.problem}")
    if not quiet and report.times.n_blocks:
        times = report.times
        print_message(
            f"{report.seconds:.1f} s separated, real-time factor {report.real_time_factor:.3f}, "
            f"time per block p50 {times.percentile(0.5) * 1000:.1f} ms, "
            f"p99 {times.percentile(0.99) * 1000:.1f} ms, longest {times.longest * 1000:.1f} ms, "
            f"{times.n_late / times.n_blocks:.2%} of {times.n_blocks} late, "
            f"at most {report.longest_behind:.2f} s of the stream behind"
        )


def _lost_by_devices(source: "Source | None", speakers: "list[Speaker]") -> tuple[int, int]:
    """Return how often the driver lost samples on the way in, and how many were not played."""
    return getattr(source, "n_overruns", 0), sum(speaker.n_dropped for speaker in speakers)


def _summary(report: "LiveReport", source: "Source | None", speakers: "list[Speaker]") -> dict[str, Any]:
    times = report.times
    overruns, dropped = _lost_by_devices(source, speakers)
    return {
        "seconds": round(report.seconds, 3), "wall_seconds": round(report.wall_seconds, 3),
        "delay_seconds": report.delay_seconds, "real_time_factor": round(report.real_time_factor, 4),
        "n_blocks": times.n_blocks, "n_late_blocks": times.n_late,
        "block_seconds": {"p50": times.percentile(0.5), "p99": times.percentile(0.99), "max": times.longest},
        "worst_real_time_factor": times.worst_factor, "longest_behind_seconds": report.longest_behind,
        "n_lost_samples": report.n_lost, "n_overruns": overruns, "n_dropped_samples": dropped,
        "n_damaged_samples": report.n_damaged, "problem": report.problem,
    }  # fmt: skip


def _named(device: str | None) -> str | int | None:
    return int(device) if device is not None and device.isdecimal() else device


def _milliseconds(stream: "StreamingSeparator") -> str:
    return f"{stream.delay_seconds * 1000:.0f} ms"
