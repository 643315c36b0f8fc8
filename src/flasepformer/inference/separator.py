"""Separate a recording, as an array or as a file, into one track per talker."""

import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flasepformer.audio import (
    KEPT_BYTES,
    WRITABLE_FORMATS,
    ArrayStream,
    AudioError,
    RecordingFile,
    Stream,
    explaining_gains,
    talkers_have_channels,
    write_blocks,
)
from flasepformer.errors import InputError
from flasepformer.files.scratch import spill_folder
from flasepformer.inference.chunks import Join
from flasepformer.inference.confidence import WINDOW_SECONDS
from flasepformer.inference.estimates import SAMPLE_BYTES, WORK_BYTES, need_as_a_whole
from flasepformer.inference.execution import ModelRunner, RunOptions
from flasepformer.inference.finishing import Finished, Finisher
from flasepformer.inference.hearing import OneChannel, Survey, hear, survey
from flasepformer.inference.identity import difference, file_identity, read_report, weights_digest
from flasepformer.inference.inputs import as_regular_file
from flasepformer.inference.levels import MODEL_RMS, SILENCE_PEAK, TalkingLevel
from flasepformer.inference.memory import format_size
from flasepformer.inference.outputs import (
    OutputError,
    Outputs,
    explain_write_failure,
    growing_folder,
    plan_outputs,
    publish,
)
from flasepformer.inference.plans import NotEnoughMemory, Plan, full_disk
from flasepformer.inference.precisions import pick_precision
from flasepformer.inference.reports import SeparationReport
from flasepformer.inference.tracks import (
    ChannelTracks,
    FinishedTracks,
    SeparatedTracks,
    SilentTracks,
    Tracks,
    fit_format,
)
from flasepformer.models import (
    DEFAULT_MODEL,
    ModelInfo,
    SeparationNetwork,
    load_described_model,
    load_filter,
    separate,
)
from flasepformer.models.filter_network import FilterNetwork

MIN_SAMPLE_RATE = 2000
"""In Hz; a recording below it holds nothing above 1 kHz, so no speech to tell apart."""

MAX_CHANNELS = 64
"""More than this are samples, not channels: the axes have been swapped."""

SEPARATE_CHANNELS = (
    "each channel carries a talker of its own, so the tracks are the channels as they are; "
    "mix the channels down (--mix-channels) to separate their mixture instead"
)

RANDOM_WEIGHTS = (
    "has random weights, so its tracks hold nothing but noise; train it first, or name a checkpoint"
)

NOTABLE_BYTES = 500_000_000
"""From this much memory on, a note says how much is needed."""

MAX_TIMES = 10
"""Times that a warning lists; the report has all."""

READING_SHARE = 0.05
"""Of the work, each of the two sweeps over the recording that come before the model."""

MODEL_SHARE = 0.8

_MOST_KEPT_RATIO = 12
"""Samples of a recording to those that the model hears, at most as a rule: 48 kHz in stereo to 8 kHz."""

FINISHING_FROM = 0.92
"""Share of the work that is done when a finisher begins."""

WRITING_FROM = 0.95
"""Share of the work that is done when the tracks are written."""

_SUBTYPES = {"auto": "auto", "float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}

Format = Literal["wav", "flac", "mp3", "ogg", "opus"]
Subtype = Literal["auto", "float", "pcm16", "pcm24"]
Progress = Callable[[str, float], None]
"""Called with what begins now, and the share of the work that is done, from 0 to 1."""

Waveform = TypeVar("Waveform", NDArray[Any], Tensor)


class FileOptions(TypedDict, total=False):
    """How `Separator.separate_file` reads and writes; every option may be left out."""

    name: str
    """Begins the names of the tracks; the recording's own name by default."""
    suffix: str
    """Added to that name."""
    overwrite: bool
    """Replace files that exist."""
    format: Format
    """Of the tracks: "wav" (default), "flac", "mp3", "ogg" (Vorbis) or "opus"."""
    subtype: Subtype
    """Samples of wav and flac tracks: "float" (wav only), "pcm16", "pcm24"; "auto" (default) for the best."""
    stream: int | None
    """Audio stream of a file with several; the first by default."""
    channel: int | None
    """The one channel to separate, from 1; by default all are mixed down."""
    mix_channels: bool
    """Mix the channels down even where each of two carries a talker of its own."""
    finisher: Finisher
    """Makes the tracks of the model's estimates, such as `flasepformer.conversation.Conversation`; by default
    the estimates are the tracks."""
    origin: dict[str, str]
    """Where a recording was fetched from, for the report; see `Separator.check_absent`."""
    progress: Progress
    """Called at every step, and again and again while the model works. What it raises, such as
    `flasepformer.Cancelled`, ends the work, and nothing half written is left."""
    notify: Callable[[str], None]
    """Called with notes that a person should read before the model begins its work, such as the memory that
    it needs; they stand among the notes of the report, too."""


_RUN_DEFAULTS: dict[str, Any] = {
    "mode": "auto", "memory": None, "chunk_seconds": 30.0, "overlap_seconds": 5.0, "precision": "float32",
    "passes": 1, "also": None, "post_filter": 0.0,
}  # fmt: skip
_FILE_DEFAULTS: dict[str, Any] = {
    "format": "wav", "subtype": "auto", "stream": None, "channel": None, "mix_channels": False
}  # fmt: skip
"""Of the options that decide what the tracks are."""


@dataclass(frozen=True)
class _Separation:
    """Tracks of one recording, and how they came to be."""

    tracks: Tracks
    mode: str
    memory_bytes: int | None
    disk_bytes: int = 0
    device: str = "cpu"
    joins: tuple[Join, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds_taken: float = 0.0
    """Of the model."""
    finished: Finished | None = None


def _tell_nobody(step: str, share: float) -> None:
    pass


def _told_of_all(tell: Progress, index: int, n_recordings: int) -> Progress:
    """Return what tells the share of all recordings, given that of one of them."""
    return lambda step, share: tell(step, (index + share) / n_recordings)


def _hear_nothing(note: str) -> None:
    pass


class Separator:
    """A model on a device, with all that a recording needs around it.

    Args:
        model: A network of `flasepformer.models`; it is put in eval mode, and copied if it has to move.
        device: "auto", "cpu", "cuda", "mps" or any name of PyTorch; see `pick_device`.
        info: What is known of the model, for the reports.
        **options: How long recordings go through the model; see `RunOptions`, and `pick_precision` for what
            is measured of a precision.

    Raises:
        DeviceError: The device cannot be used, or that precision is too slow on it.
        ValueError: An option makes no sense.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        device: str | torch.device = "auto",
        *,
        info: ModelInfo | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "sample_rate"):
            raise InputError(
                f"model must be a network of flasepformer.models, got {type(model).__name__}; "
                "Separator.from_pretrained takes a name or a folder"
            )
        options["precision"], slow = pick_precision(options.get("precision", "float32"), device)
        for_runner: dict[str, Any] = {**options}
        share, known = for_runner.pop("post_filter", None), info.post_filter if info else 0.0
        self.post_filter: float = known if share is None else share
        """Share of the filter in the tracks; see `RunOptions`."""
        if not 0 <= self.post_filter <= 1:
            raise InputError(f"post_filter must be from 0 to 1, got {self.post_filter}")
        self.filter_network: FilterNetwork | None = load_filter(info.filter) if info else None
        """Filters instead of Wiener's gains."""
        self._runner = ModelRunner(model, device, **for_runner)
        if self.filter_network is not None and self._runner.device.type == "cuda":
            self.filter_network.to(self._runner.device)
        self._run_options = {**_RUN_DEFAULTS, **options, "post_filter": self.post_filter}
        self.device = self._runner.device
        self.model: SeparationNetwork = self._runner.model
        self.sample_rate = self._runner.sample_rate
        self.n_sources = self._runner.n_sources
        random = (f"{info.name} {RANDOM_WEIGHTS}",) if info and not info.trained else ()
        self._cautions: tuple[str, ...] = (*random, *slow)
        self.description: dict[str, Any] = {
            "name": info.name if info else type(model).__name__,
            "licence": info.licence if info else "",
            **{key: value for key in ("data", "citation", "source") if (value := getattr(info, key, ""))},
            "sample_rate": self.sample_rate,
            "n_sources": self.n_sources,
        }

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        device: str | torch.device = "auto",
        *,
        accept_licence: bool = False,
        **options: Unpack[RunOptions],
    ) -> "Separator":
        """Load a model: the trained one of the package, or another by name or path as in `load_model`.

        Args:
            name_or_path: Of the model; the folder of a training run means its best weights.
            device: See `pick_device`.
            accept_licence: Whether a licence that forbids commercial use is accepted, where published weights
                have to be fetched.
            **options: How long recordings go through the model; see `RunOptions`.

        Raises:
            CheckpointError: There is no such model, or its checkpoint is refused.
            DeviceError: The device cannot be used.
            ValueError: An option makes no sense.
        """
        name_or_path = DEFAULT_MODEL if name_or_path is None else name_or_path
        model, info = load_described_model(name_or_path, accept_licence=accept_licence)
        separator = cls(model, device, info=info, **options)
        for caution in separator._cautions:
            warnings.warn(caution, stacklevel=2)
        return separator

    def alike(self, options: RunOptions) -> "Separator":
        """Return a separator with the same model and device and other options, for another process."""
        given: dict[str, Any] = {**options}
        if given.get("post_filter") is None:
            given["post_filter"] = self.post_filter
        also, second = options.get("also"), self._runner.also
        if second is not None and also == self._run_options["also"]:
            given["also"] = second.model
        other = Separator(self.model, self.device, **given)
        other.filter_network = self.filter_network
        other.description, other._cautions = self.description, self._cautions
        other._run_options = {**other._run_options, "memory": self._run_options["memory"], "also": also}
        if known := self.__dict__.get("_weights_sha256"):  # once is enough
            other.__dict__["_weights_sha256"] = known
        return other

    def within(self, memory: int) -> "Separator":
        """Return the same with a limit of so many bytes, which its reports do not show."""
        options: Any = {**self._run_options, "memory": memory}
        return self.alike(options)

    def need_bytes(self, seconds: float, *, finisher: Finisher | None = None) -> int | None:
        """Return about how much memory a recording takes, in the best way that the limit allows.

        Args:
            seconds: Length of the recording.
            finisher: What comes after the model.

        Returns:
            All that may be taken, where it is not enough; None where nobody knows.
        """
        kept_bytes, memory = KEPT_BYTES, self._runner.memory
        if memory is not None:
            kept_bytes = min(kept_bytes, memory // 20)
        n_samples = max(1, round(seconds * self.sample_rate))
        kept_bytes = min(kept_bytes, _MOST_KEPT_RATIO * n_samples * SAMPLE_BYTES)
        later_bytes = finisher.need_bytes(self.n_sources, seconds) if finisher else 0
        try:
            need = self._runner.plan(n_samples, held_bytes=kept_bytes, later_bytes=later_bytes).need
        except (NotEnoughMemory, OutputError):
            return memory
        return None if need is None else kept_bytes + need.memory_bytes

    def __repr__(self) -> str:
        return (
            f"Separator(model={self.description['name']!r}, device={str(self.device)!r}, "
            f"sample_rate={self.sample_rate}, n_sources={self.n_sources})"
        )

    def separate(self, waveform: Waveform, sample_rate: int, *, progress: Progress | None = None) -> Waveform:
        """Separate one recording held in memory; see `separate_batch` for several.

        Args:
            waveform: (time,) or (channel, time). Channels are mixed down, unless each of two carries a talker
                of its own: then they are the tracks. Floating point, or integers, which count as PCM of
                their full scale.
            sample_rate: In Hz.
            progress: Called at every step, and again and again while the model works. What it raises, such as
                `flasepformer.Cancelled`, ends the work.

        Returns:
            (source, time) at the same rate and of the same length, float32, of the kind of `waveform` and
            on its device. They sum to the mixture as well as they can, and are silent where it is silent.

        Raises:
            InputError: The waveform has another shape or kind, no samples, or some that are NaN or infinite.
            SeparationError: The model gave no usable answer, or (`NotEnoughMemory`) could not give one.
            OutputError: The disk has no room for what the memory does not hold.
        """
        rate, samples = _checked_rate(sample_rate), _as_samples(waveform)
        if _looks_like_a_batch(samples, rate):
            warnings.warn(
                f"the {len(samples)} rows of the waveform have nothing in common, as if they were recordings "
                "and not channels of one; separate_batch separates recordings one by one",
                stacklevel=2,
            )
        return self._separate_array(waveform, samples, rate, progress or _tell_nobody)

    def separate_batch(
        self, waveforms: Waveform, sample_rate: int, *, progress: Progress | None = None
    ) -> Waveform:
        """Separate recordings of one length, each by itself, as if `separate` were called for each.

        Args:
            waveforms: (batch, time), or (batch, channel, time); see `separate` for the samples.
            sample_rate: In Hz, of all.
            progress: See `separate`; the share is that of the whole batch.

        Returns:
            (batch, source, time), of the kind of `waveforms` and on its device.

        Raises:
            InputError: As `separate` does, or the batch is empty.
            SeparationError: See `separate`.
            OutputError: See `separate`.
        """
        rate = _checked_rate(sample_rate)
        if (
            not isinstance(waveforms, (np.ndarray, Tensor))
            or waveforms.ndim not in (2, 3)
            or not len(waveforms)
        ):
            shape = getattr(waveforms, "shape", None)
            came = type(waveforms).__name__ if shape is None else tuple(shape)
            raise InputError(f"waveforms must be (batch, time) or (batch, channel, time), got {came}")
        tell, n_waveforms = progress or _tell_nobody, len(waveforms)
        tracks: list[Any] = []
        for index in range(n_waveforms):
            waveform = waveforms[index]
            tell_one = _told_of_all(tell, index, n_waveforms)
            tracks.append(self._separate_array(waveform, _as_samples(waveform), rate, tell_one))
        return torch.stack(tracks) if isinstance(waveforms, Tensor) else np.stack(tracks)

    def _separate_array(
        self, waveform: Waveform, samples: NDArray[np.float32], rate: int, tell: Progress
    ) -> Waveform:
        tell("preparing", 0.0)
        found = survey(ArrayStream(samples, rate), lambda: samples.shape[1], lambda share: None)
        held_bytes = self.n_sources * found.n_samples * SAMPLE_BYTES
        separation = self._separate(found, tell, held_bytes=held_bytes)
        for message in separation.warnings:
            hint = "; if they are two recordings, use separate_batch" if message == SEPARATE_CHANNELS else ""
            warnings.warn(message + hint, stacklevel=3)
        tell("finishing", 0.9)
        tracks = np.empty((self.n_sources, found.n_samples), np.float32)
        for index, track in enumerate(tracks):
            first = 0
            for block in separation.tracks.blocks(index):
                track[first : first + block.shape[1]] = block[0]
                first += block.shape[1]
        tell("done", 1.0)
        return torch.from_numpy(tracks).to(waveform.device) if isinstance(waveform, Tensor) else tracks

    def separate_stream(
        self, recording: Stream, *, kept_bytes: int = 0, progress: Progress | None = None
    ) -> tuple[Tracks, tuple[str, ...]]:
        """Separate a recording that comes in blocks and need not fit into the memory, nor need its tracks.

        Args:
            recording: Gone through twice now, and again by tracks that are its channels.
            kept_bytes: What it holds in memory.
            progress: See `separate`.

        Returns:
            The tracks, made block by block when they are asked for, the same samples as those of `separate`;
            and the warnings.

        Raises:
            AudioError: The recording cannot be read.
            InputError: See `separate`.
            SeparationError: See `separate`.
            OutputError: See `separate`.
        """
        tell = progress or _tell_nobody
        tell("reading", 0.0)
        found = survey(
            recording,
            lambda: getattr(recording, "n_promised", 0) or recording.n_samples,
            lambda share: tell("reading", READING_SHARE * share),
        )
        _checked_rate(found.sample_rate)
        separation = self._separate(found, tell, held_bytes=kept_bytes)
        return separation.tracks, self._cautions + separation.warnings

    def separate_file(
        self, source: str | Path | BinaryIO, out_folder: str | Path, **options: Unpack[FileOptions]
    ) -> list[Path]:
        """Separate a file into `talk_speaker1.wav`, `talk_speaker2.wav` and a report, `talk_separation.json`.

        All of them appear at once, when they are complete. Files that exist are never passed over unless
        their report says that they are the same: by size and digest of the recording, the weights and the
        options.

        Args:
            source: The recording: any audio or video file, also a pipe or a binary stream.
            out_folder: Where the tracks go; made if missing.
            **options: See `FileOptions`.

        Returns:
            The tracks, in the order of the model's estimates.

        Raises:
            AudioError: The recording cannot be read.
            AlreadySeparated: The same has been done already; `tracks` has what is there.
            OutputExists: There are outputs of that name of something else, or not all of them.
            OutputError: The tracks cannot be written, or the disk has no room for temporary files.
            OSError: The recording is missing or may not be opened.
            ValueError: An option does not suit the recording or another option.
            SeparationError: The model gave no usable answer, or (`NotEnoughMemory`) could not give one.
        """
        return list(self.separate_file_with_report(source, out_folder, **options).tracks)

    def outputs(self, name: str, out_folder: str | Path, options: FileOptions) -> Outputs:
        """Return the files, as many as can be, that `separate_file` leaves of that name, suffix and all."""
        finisher = options.get("finisher")
        labels = finisher.labels(self.n_sources) if finisher else _speakers(self.n_sources)
        endings = finisher.endings() if finisher else ()
        return plan_outputs(Path(out_folder), name, labels, options.get("format", "wav"), endings)

    def check_absent(self, outputs: Outputs, content: Mapping[str, Any], options: FileOptions) -> None:
        """Raise what `separate_file` raises where these files are there, without the recording itself.

        Args:
            outputs: See `outputs`.
            content: Size and SHA-256 of the recording, as a report has them.
            options: How it would be separated.

        Raises:
            AlreadySeparated: See `separate_file`.
            OutputExists: Likewise.
        """
        outputs.check_absent(self._differs(content, self._chosen(options)))

    def _chosen(self, options: FileOptions) -> dict[str, Any]:
        """Return what decides the tracks."""
        finisher = options.get("finisher")
        return {
            **self._run_options,
            **{key: options.get(key, default) for key, default in _FILE_DEFAULTS.items()},
            "finisher": dict(finisher.options) if finisher else None,
        }

    def _differs(self, content: Mapping[str, Any], chosen: dict[str, Any]) -> Callable[[Path], str | None]:
        """Return what says of a report what it was made of that is not the same now."""
        return lambda report: difference(read_report(report), content, self._weights_sha256, chosen)

    def separate_file_with_report(
        self, source: str | Path | BinaryIO, out_folder: str | Path, **options: Unpack[FileOptions]
    ) -> SeparationReport:
        """Do as `separate_file` does, and return what was done."""
        if not isinstance(source, (str, os.PathLike)) and not hasattr(source, "read"):
            raise InputError(
                f"source must be a path or a binary stream, got {type(source).__name__}; "
                "Separator.separate takes samples"
            )
        if not isinstance(out_folder, (str, os.PathLike)) or not str(out_folder):
            raise InputError(f"out_folder must be the path of a folder, got {out_folder!r}")
        began = time.perf_counter()
        tell = options.get("progress", _tell_nobody)
        overwrite = options.get("overwrite", False)
        form, subtype = options.get("format", "wav"), options.get("subtype", "auto")
        if form not in WRITABLE_FORMATS or _SUBTYPES.get(subtype) not in (
            "auto",
            *WRITABLE_FORMATS[form].subtypes,
        ):
            raise InputError(
                f"cannot write {form} files with {subtype} samples; see flasepformer.inference.FileOptions"
            )
        label = str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "stream"))
        name = options.get("name", Path(label).stem) + options.get("suffix", "")
        finisher = options.get("finisher")
        planned = self.outputs(name, out_folder, options)
        outputs = planned
        chosen = self._chosen(options)
        with growing_folder(outputs.report.parent) as growing, ExitStack() as opened:
            tell("reading", 0.0)
            path = opened.enter_context(as_regular_file(source))
            content = file_identity(path) if path.is_file() else {}  # else reading says what it is
            differs = self._differs(content, chosen)
            if not overwrite:
                planned.check_absent(differs)
            recording = opened.enter_context(self._open(path, options))
            channel = options.get("channel")
            found = survey(
                recording if channel is None else OneChannel(recording, channel),
                lambda: recording.n_promised,
                lambda share: tell("reading", READING_SHARE * share),
                compare_channels=self.n_sources == 2 and not options.get("mix_channels", False),
            )
            _checked_rate(found.sample_rate)
            n_planned = min(len(planned.tracks), self.n_sources)  # a finisher may make fewer than it can
            self._check_room(outputs.report.parent, found, n_planned, form, _SUBTYPES[subtype])
            separation = self._separate(
                found,
                tell,
                options.get("notify", _hear_nothing),
                held_bytes=recording.n_kept_bytes,
                finisher=finisher,
                mix_channels=options.get("mix_channels", False),
            )
            confidence = self._confidence(separation)
            if finisher:
                tell("finishing", FINISHING_FROM)
                separation, outputs = _finished(separation, found, finisher, name, planned)
            finished = separation.finished
            tell("writing", WRITING_FROM)
            fit = fit_format(separation.tracks, form, form == "wav" and subtype in ("auto", "float"))
            seconds = found.n_samples / found.sample_rate
            doubtful = [join for join in separation.joins if join.doubtful]
            report = SeparationReport(
                input=label,
                content=content,
                origin=options.get("origin", {}),
                tracks=outputs.tracks,
                files=outputs.files,
                seconds=seconds,
                sample_rate=fit.sample_rate,
                model={**self.description, "weights_sha256": self._weights_sha256},
                options=chosen,
                device=separation.device,
                real_time_factor=separation.seconds_taken / seconds,
                total_real_time_factor=math.nan,  # until the tracks are written
                mode=separation.mode,
                memory_bytes=separation.memory_bytes,
                disk_bytes=separation.disk_bytes,
                n_joins=len(separation.joins),
                doubtful_joins=tuple(
                    {"seconds": join.sample / self.sample_rate, "margin": join.margin} for join in doubtful
                ),
                confidence=confidence,
                conversation=dict(finished.facts) if finished else {},
                gain=fit.gain,
                warnings=self._cautions + recording.warnings + separation.warnings + fit.warnings,
                notes=separation.notes + fit.notes,
            )
            n_tracks = separation.tracks.n_tracks
            grown = [growing / f"{index}.{form}" for index in range(n_tracks)]
            try:
                for index, target in enumerate(grown):
                    tell_one = partial(_tell_writing, tell, index, n_tracks)
                    blocks = _told(fit.blocks(index), fit.n_samples, tell_one)
                    write_blocks(
                        target, blocks, 1, fit.n_samples, fit.sample_rate, subtype=_SUBTYPES[subtype]
                    )
                for ending, write in finished.files.items() if finished else ():
                    grown.append(growing / f"file{ending}")
                    write(grown[-1])
                grown.append(growing / "report.json")
                report = replace(report, total_real_time_factor=(time.perf_counter() - began) / seconds)
                report.write(grown[-1])
                publish(
                    grown,
                    outputs,
                    overwrite=overwrite,
                    difference=differs,
                    obsolete=(*planned.tracks, *planned.files),
                )
            except FileExistsError:
                raise
            except OSError as error:
                shutil.rmtree(growing, ignore_errors=True)  # so that the free space counts without our files
                n_bytes = n_tracks * fit.n_samples * SAMPLE_BYTES
                raise explain_write_failure(error, outputs.report.parent, n_bytes) from error
        tell("done", 1.0)
        return report

    def _open(self, path: Path, options: FileOptions) -> RecordingFile:
        """Open a recording; a small part of the memory that it may take keeps a short one decoded."""
        kept_bytes, memory = KEPT_BYTES, self._runner.memory
        if memory is not None:
            kept_bytes = min(kept_bytes, memory // 20)
        return RecordingFile(path, stream=options.get("stream"), kept_bytes=kept_bytes)

    def _confidence(self, separation: _Separation) -> dict[str, Any] | None:
        """Judge tracks that a model has made of several talkers."""
        if not isinstance(separation.tracks, SeparatedTracks) or self.n_sources < 2:
            return None
        again = self.share_again if self._may_separate_again() else None
        return separation.tracks.confidence(again).as_dict()

    def _may_separate_again(self) -> bool:
        """Tell whether what a track does in the model again is known, and fits beside all else."""
        if self.description["name"] != DEFAULT_MODEL:
            return False
        need = need_as_a_whole(self.model, round(WINDOW_SECONDS * self.sample_rate))
        memory = self._runner.memory
        return need is not None and (memory is None or 2 * need.memory_bytes <= memory)

    def share_again(self, track: NDArray[np.float32]) -> float:
        """Separate a track once more.

        Args:
            track: (time,), some seconds at the model's rate.

        Returns:
            The share of its energy that does not come out on the loudest track; nan if nobody can say.
        """
        loudness = TalkingLevel(self.sample_rate // 10)
        loudness.add(track)
        level = np.float32(max(loudness.rms() / MODEL_RMS, 1e-30))
        with torch.inference_mode():
            estimates = separate(self.model, torch.from_numpy(track / level)[None].to(self.device))[0]
        parts = estimates.float().cpu().numpy()
        parts = parts - parts.mean(axis=1, keepdims=True)
        energies = explaining_gains(track / level, parts) ** 2 * np.square(parts).sum(axis=1)
        return float(1 - energies.max() / energies.sum()) if energies.sum() > 0 else math.nan

    def _check_room(self, folder: Path, found: Survey, n_tracks: int, form: str, subtype: str) -> None:
        """Raise before the work if there is no room for tracks whose size is known."""
        if form == "wav":
            sample_bytes = {"PCM_16": 2, "PCM_24": 3}.get(subtype, SAMPLE_BYTES)
            n_bytes = n_tracks * found.n_samples * sample_bytes
            if shutil.disk_usage(folder).free < n_bytes:
                raise explain_write_failure(OSError("disk full"), folder, n_bytes)

    @cached_property
    def _weights_sha256(self) -> str:
        second = self._runner.also
        networks: list[nn.Module] = [self.model]
        if second is not None:
            networks.append(second.model)
        if self.filter_network is not None:
            networks.append(self.filter_network)
        return weights_digest(*networks)

    def _separate(
        self,
        found: Survey,
        tell: Progress,
        notify: Callable[[str], None] = _hear_nothing,
        *,
        held_bytes: int = 0,
        finisher: Finisher | None = None,
        mix_channels: bool = False,
    ) -> _Separation:
        """Let the model separate a recording, if there is something to separate.

        Args:
            found: In the first sweep over it.
            tell: See `separate`.
            notify: Told what a person should know before the work begins.
            held_bytes: What recording and tracks take in memory beside what is planned here.
            finisher: What comes after, which needs memory, too.
            mix_channels: Mix the channels down even where each has its talker.
        """
        shape = self.n_sources, found.n_samples, found.sample_rate
        seconds = found.n_samples / found.sample_rate
        later_bytes = finisher.need_bytes(self.n_sources, seconds) if finisher else 0
        if self.n_sources == 2 and found.talkers_have_channels and not mix_channels:
            channels = ChannelTracks(found.stream, *shape)
            taken = held_bytes + max(WORK_BYTES, later_bytes)
            return _Separation(channels, "channels", taken, warnings=(SEPARATE_CHANNELS,))
        plan = self._runner.plan(
            found.model_length(self.sample_rate), held_bytes=held_bytes, later_bytes=later_bytes
        )
        memory_bytes, disk_bytes = None, 0
        if plan.need is not None:
            memory_bytes, disk_bytes = held_bytes + plan.need.memory_bytes, plan.need.disk_bytes
        plan_notes = _plan_notes(plan, memory_bytes, self.sample_rate)
        for note in plan_notes:
            notify(note)
        spill = spill_folder()
        try:
            heard = hear(
                found,
                self.sample_rate,
                spill if plan.signals_on_disk else None,
                lambda share: tell("preparing", READING_SHARE * (1 + share)),
            )
        except (OSError, MemoryError) as error:
            if isinstance(error, AudioError):
                raise
            raise full_disk(disk_bytes, spill) from error
        if heard.level == 0:
            return _Separation(
                SilentTracks(*shape), "silence", memory_bytes, warnings=heard.warnings, notes=heard.notes
            )
        started = time.perf_counter()
        passage = self._runner.run(
            heard,
            plan,
            silence=SILENCE_PEAK / heard.level,
            progress=lambda share: tell("separating", 2 * READING_SHARE + MODEL_SHARE * share),
        )
        tell("finishing", 2 * READING_SHARE + MODEL_SHARE)
        tracks = SeparatedTracks(
            passage.estimates,
            heard,
            heard.level,
            self.sample_rate,
            *shape[1:],
            heard.silent,
            self.post_filter,
            self.filter_network,
        )
        cautions = [*heard.warnings, *passage.warnings]
        if doubtful := [join.sample / self.sample_rate for join in passage.joins if join.doubtful]:
            cautions.append(
                f"two talkers may have changed tracks at {len(doubtful)} of {len(passage.joins)} joins: "
                f"{_times(doubtful)}"
            )
        return _Separation(
            tracks,
            "chunks" if passage.plan.way == "chunks" else "whole",
            memory_bytes,
            disk_bytes,
            str(passage.device),
            tuple(passage.joins),
            tuple(cautions),
            heard.notes + plan_notes,
            time.perf_counter() - started,
        )


def _tell_writing(tell: Progress, index: int, n_tracks: int, share: float) -> None:
    tell("writing", WRITING_FROM + (1 - WRITING_FROM) * (index + share) / n_tracks)


def _told(
    blocks: Iterator[NDArray[np.float32]], n_samples: int, tell: Callable[[float], None]
) -> Iterator[NDArray[np.float32]]:
    """Yield blocks (channel, time), and tell the share that has been taken."""
    n_done = 0
    for block in blocks:
        yield block
        n_done += block.shape[1]
        tell(n_done / n_samples)


def _speakers(n_sources: int) -> tuple[str, ...]:
    return tuple(f"speaker{number}" for number in range(1, n_sources + 1))


def _finished(
    separation: _Separation, found: Survey, finisher: Finisher, name: str, planned: Outputs
) -> tuple[_Separation, Outputs]:
    """Let a finisher make the tracks, and choose the names of those that there are."""
    tracks = separation.tracks
    finished = finisher.finish(tracks.passed(found, name))
    labels = finisher.labels(tracks.n_tracks)
    outputs = Outputs(
        tuple(planned.tracks[labels.index(label)] for label in finished.labels),
        planned.report,
        tuple(planned.files[finisher.endings().index(ending)] for ending in finished.files),
    )
    separation = replace(
        separation,
        tracks=FinishedTracks(finished, tracks),
        finished=finished,
        warnings=separation.warnings + finished.warnings,
        notes=separation.notes + finished.notes,
    )
    return separation, outputs


def _plan_notes(plan: Plan, memory_bytes: int | None, sample_rate: int) -> tuple[str, ...]:
    """Say what a person should know before the work begins."""
    notes = []
    if plan.reason:
        chunk = plan.chunk_length / sample_rate
        notes.append(f"{plan.reason}: the recording is separated in chunks of {chunk:g} s")
    disk_bytes = plan.need.disk_bytes if plan.need else 0
    if memory_bytes is not None and (memory_bytes > NOTABLE_BYTES or disk_bytes):
        on_disk = f" and {format_size(disk_bytes)} of temporary files" if disk_bytes else ""
        notes.append(f"about {format_size(memory_bytes)} of memory{on_disk} are needed")
    return tuple(notes)


def _times(seconds: list[float]) -> str:
    """List times, not too many of them.

    >>> _times([61.0, 3599.6])
    '0:01:01, 1:00:00'
    """
    times = [str(timedelta(seconds=round(at))) for at in seconds[:MAX_TIMES]]
    return ", ".join(times) + (", ..." if len(seconds) > MAX_TIMES else "")


def _checked_rate(sample_rate: float) -> int:
    if not isinstance(sample_rate, (int, float, np.integer, np.floating)):
        raise InputError(f"sample_rate must be a number of Hz, got {sample_rate!r}")
    if not MIN_SAMPLE_RATE <= sample_rate < math.inf or sample_rate != int(sample_rate):
        raise InputError(
            f"sample_rate must be a whole number of at least {MIN_SAMPLE_RATE} Hz, got {sample_rate}: "
            "below it there is too little of a voice to tell two apart"
        )
    return int(sample_rate)


def _as_samples(waveform: NDArray[Any] | Tensor) -> NDArray[np.float32]:
    """Return any accepted waveform as finite float32 (channel, time); integers of full scale become 1."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        array: NDArray[Any] = (waveform.float() if waveform.dtype == torch.bfloat16 else waveform).numpy()
    elif isinstance(waveform, np.ndarray):
        array = waveform
    else:
        raise InputError(f"waveform must be a numpy array or a torch tensor, got {type(waveform).__name__}")
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(
            f"waveform must be (time,) or (channel, time) with at least one sample, got {array.shape}"
            + ("; separate_batch takes (batch, channel, time)" if array.ndim == 3 else "")
        )
    array = np.atleast_2d(array)
    if len(array) > MAX_CHANNELS:
        raise InputError(
            f"waveform must be (channel, time) with at most {MAX_CHANNELS} channels, got {array.shape}; "
            "transpose it"
        )
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype.kind == "u":
        half = (np.iinfo(array.dtype).max + 1) / 2
        return ((array - half) / half).astype(np.float32)
    if array.dtype.kind != "f":
        raise InputError(f"waveform must be real numbers, floating point or integer, got {array.dtype}")
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32, copy=False)
    if n_bad := samples.size - int(np.isfinite(samples).sum()):
        raise InputError(
            f"waveform has {n_bad} samples that are NaN, infinite or too large for float32; "
            "replace them first, e.g. with numpy.nan_to_num"
        )
    return samples


def _looks_like_a_batch(samples: NDArray[np.float32], sample_rate: int) -> bool:
    """Tell whether no row (row, time) has anything of the next one: channels of one recording do."""
    pairs = [samples[index : index + 2] for index in range(len(samples) - 1)]
    return len(pairs) > 1 and all(talkers_have_channels(pair, sample_rate) for pair in pairs)
