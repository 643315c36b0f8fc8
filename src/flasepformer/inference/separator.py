"""Separate a recording, as an array or as a file, into one track per talker."""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypedDict, TypeVar, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import flasepformer
from flasepformer.audio import (
    WRITABLE_FORMATS,
    allowed_rate,
    mix_down,
    read_audio,
    resample,
    talkers_have_channels,
    write_audio,
)
from flasepformer.errors import InputError
from flasepformer.inference.chunks import Join
from flasepformer.inference.estimates import SAMPLE_BYTES
from flasepformer.inference.execution import ModelRunner, RunOptions
from flasepformer.inference.identity import difference, file_identity, read_report, weights_digest
from flasepformer.inference.inputs import as_regular_file
from flasepformer.inference.levels import SILENCE_PEAK, explaining_gains, silent_spans, talking_rms
from flasepformer.inference.memory import format_size
from flasepformer.inference.outputs import explain_write_failure, growing_folder, plan_outputs, publish
from flasepformer.inference.plans import Plan, SeparationError
from flasepformer.inference.precisions import pick_precision
from flasepformer.models import DEFAULT_MODEL, ModelInfo, SeparationNetwork, load_described_model

MODEL_RMS = 10 ** (-23 / 20)
"""Level of every mixture that a model gets: that of two talkers at -26 dBFS each, as in training."""

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

MAX_PEAK = 1e30
"""Largest sample taken; beyond it, float32 has no room left for the tracks."""

NOTABLE_BYTES = 500_000_000
"""From this much memory on, a note says how much is needed."""

MAX_TIMES = 10
"""Times that a warning lists; the report has all."""

INTEGER_PEAK = 0.999
"""Peak of tracks that had to be turned down for a format that clips at 1."""

_SUBTYPES = {"auto": "auto", "float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}

Format = Literal["wav", "flac", "mp3", "ogg", "opus"]
Subtype = Literal["auto", "float", "pcm16", "pcm24"]
Progress = Callable[[str, float], None]
"""Called with what begins now, and the share of the work that is done, from 0 to 1."""

Waveform = TypeVar("Waveform", NDArray[Any], Tensor)


@dataclass(frozen=True, kw_only=True)
class SeparationReport:
    """What was done to one file; written as JSON beside its tracks."""

    input: str
    """The recording, as it was named."""
    content: dict[str, Any]
    """Of the recording: its size in "bytes" and its "sha256"."""
    tracks: tuple[Path, ...]
    """One file per talker."""
    seconds: float
    """Length of the recording and of every track."""
    sample_rate: int
    """Of the tracks, in Hz."""
    model: dict[str, Any]
    """Name, licence, sample rate and talkers of the model, and "weights_sha256", a digest of its weights."""
    options: dict[str, Any]
    """What decides the tracks, of `RunOptions` and `FileOptions`."""
    device: str
    """Where the model ran."""
    real_time_factor: float
    """Time of the separation over the length of the recording; reading and writing files not counted."""
    total_real_time_factor: float
    """The same with reading, resampling and writing."""
    mode: str
    """"whole": the model heard all of the recording at once; "chunks"; "channels": it was not needed, as each
    channel had its talker; "silence": nor here."""
    memory_bytes: int | None
    """Estimate of the most memory at a time, beside the program and the model; None where nobody knows."""
    disk_bytes: int
    """Estimate of the room in temporary files."""
    n_joins: int
    """Joins of two chunks."""
    doubtful_joins: tuple[dict[str, float], ...]
    """Those at which two talkers may have changed tracks: "seconds" into the recording, and the "margin" with
    which their tracks agree better than with two of them swapped."""
    gain: float
    """Gain of all tracks against the mixture: 1, or less where a format would have clipped."""
    warnings: tuple[str, ...]
    """What may have gone wrong, in sentences."""
    notes: tuple[str, ...]
    """What was done that nobody asked for, in sentences."""

    def write(self, path: Path) -> None:
        """Write the report as JSON, safely on disk when this returns; tracks appear by their names alone."""
        content = {
            "flasepformer": flasepformer.__version__,
            **asdict(self),
            "tracks": [track.name for track in self.tracks],
        }
        with path.open("w", encoding="ascii") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """What a model needs of a recording, and what is left to do with its answer."""

    n_samples: int
    sample_rate: int
    channels: NDArray[np.float32] | None = None
    """The recording itself (channel, time), if each channel has its talker."""
    mixture: NDArray[np.float32] | None = None
    """(time,) at the model's sample rate and level; None if there is nothing to hear."""
    level: float = 1.0
    """What the mixture was divided by."""
    silent: tuple[slice, ...] = ()
    """Where the recording is silent."""
    n_bytes: int = 0
    """Most memory that it took to come to this."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Separation:
    """Tracks of one recording, and how they came to be.

    The tracks are made one at a time: those of hours at a high sample rate would fill the memory.
    """

    heard: _Heard
    estimates: NDArray[np.float32]
    """(source, time) at the sample rate `estimate_rate`."""
    estimate_rate: int
    mode: str
    memory_bytes: int | None
    disk_bytes: int = 0
    device: str = "cpu"
    joins: tuple[Join, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def track(self, index: int) -> NDArray[np.float32]:
        """Return one track (time,) as long as the recording and at its rate."""
        heard = self.heard
        track = resample(self.estimates[index], self.estimate_rate, heard.sample_rate)[: heard.n_samples]
        if len(track) < heard.n_samples:
            track = np.pad(track, (0, heard.n_samples - len(track)))
        for span in heard.silent:
            track[span] = 0
        return track


@dataclass(frozen=True)
class _Fit:
    """How tracks are changed to what a format can hold."""

    sample_rate: int
    gain: float = 1.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def track(self, separation: _Separation, index: int) -> NDArray[np.float32]:
        """Return one track (time,) as the format can hold it."""
        track = resample(separation.track(index), separation.heard.sample_rate, self.sample_rate)
        return track if self.gain == 1 else track * np.float32(self.gain)


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
    progress: Progress
    """Called at every step, and again and again while the model works. What it raises, such as
    `flasepformer.Cancelled`, ends the work, and nothing half written is left."""
    notify: Callable[[str], None]
    """Called with notes that a person should read before the model begins its work, such as the memory that
    it needs; they stand among the notes of the report, too."""


_RUN_DEFAULTS: dict[str, Any] = {
    "mode": "auto", "memory": None, "chunk_seconds": 30.0, "overlap_seconds": 5.0, "precision": "float32",
}  # fmt: skip
_FILE_DEFAULTS: dict[str, Any] = {
    "format": "wav", "subtype": "auto", "stream": None, "channel": None, "mix_channels": False
}  # fmt: skip
"""Of the options that decide what the tracks are."""


def _tell_nobody(step: str, share: float) -> None:
    pass


def best_weights(name_or_path: str | Path) -> str | Path:
    """Return the best weights of a training run whose folder is named; anything else as it is."""
    best = Path(name_or_path) / "best"
    is_run = (best / "config.json").is_file() and not (best.parent / "config.json").is_file()
    return best if is_run else name_or_path


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
        self._runner = ModelRunner(model, device, **options)
        self._run_options = {**_RUN_DEFAULTS, **options}
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
        name_or_path = best_weights(DEFAULT_MODEL if name_or_path is None else name_or_path)
        model, info = load_described_model(name_or_path, accept_licence=accept_licence)
        separator = cls(model, device, info=info, **options)
        for caution in separator._cautions:
            warnings.warn(caution, stacklevel=2)
        return separator

    def alike(self, options: RunOptions) -> "Separator":
        """Return a separator with the same model and device and other options, for another process."""
        other = Separator(self.model, self.device, **options)
        other.description, other._cautions = self.description, self._cautions
        other._run_options = {**other._run_options, "memory": self._run_options["memory"]}
        return other

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
        heard = self._listen(samples, rate, tell)
        separation = self._separate(heard, tell)
        for message in heard.warnings + separation.warnings:
            hint = "; if they are two recordings, use separate_batch" if message == SEPARATE_CHANNELS else ""
            warnings.warn(message + hint, stacklevel=3)
        tracks = np.stack([separation.track(index) for index in range(self.n_sources)])
        tell("done", 1.0)
        return torch.from_numpy(tracks).to(waveform.device) if isinstance(waveform, Tensor) else tracks

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
        outputs = plan_outputs(Path(out_folder), name, self.n_sources, form)
        chosen = {
            **self._run_options,
            **{key: options.get(key, default) for key, default in _FILE_DEFAULTS.items()},
        }
        with growing_folder(outputs.report.parent) as growing:
            tell("reading", 0.0)
            with as_regular_file(source) as path:
                content = file_identity(path) if path.is_file() else {}  # else reading says what it is

                def differs(report: Path) -> str | None:
                    return difference(read_report(report), content, self._weights_sha256, chosen)

                if not overwrite:
                    outputs.check_absent(differs)
                recording = read_audio(path, stream=options.get("stream"))
            started = time.perf_counter()
            heard = self._listen(
                _one_channel(recording.samples, options.get("channel")),
                _checked_rate(recording.sample_rate),
                tell,
                options.get("mix_channels", False),
            )
            cautions = recording.warnings + heard.warnings
            del recording  # hours of it would stand in the model's way
            separation = self._separate(heard, tell, options.get("notify", _hear_nothing))
            seconds_taken = time.perf_counter() - started
            tell("writing", 0.95)
            fit = _fit_format(separation, form, subtype)
            seconds = heard.n_samples / heard.sample_rate
            doubtful = [join for join in separation.joins if join.doubtful]
            report = SeparationReport(
                input=label,
                content=content,
                tracks=outputs.tracks,
                seconds=seconds,
                sample_rate=fit.sample_rate,
                model={**self.description, "weights_sha256": self._weights_sha256},
                options=chosen,
                device=separation.device,
                real_time_factor=seconds_taken / seconds,
                total_real_time_factor=math.nan,  # until the tracks are written
                mode=separation.mode,
                memory_bytes=separation.memory_bytes,
                disk_bytes=separation.disk_bytes,
                n_joins=len(separation.joins),
                doubtful_joins=tuple(
                    {"seconds": join.sample / self.sample_rate, "margin": join.margin} for join in doubtful
                ),
                gain=fit.gain,
                warnings=self._cautions + cautions + separation.warnings + fit.warnings,
                notes=heard.notes + separation.notes + fit.notes,
            )
            grown = [growing / f"{index}.{form}" for index in range(self.n_sources)] + [
                growing / "report.json"
            ]
            try:
                for index, target in enumerate(grown[:-1]):
                    track = fit.track(separation, index)
                    write_audio(target, track, fit.sample_rate, subtype=_SUBTYPES[subtype])
                report = replace(report, total_real_time_factor=(time.perf_counter() - began) / seconds)
                report.write(grown[-1])
                publish(grown, outputs, overwrite=overwrite, difference=differs)
            except FileExistsError:
                raise
            except OSError as error:
                shutil.rmtree(growing, ignore_errors=True)  # so that the free space counts without our files
                raise explain_write_failure(
                    error, outputs.report.parent, self.n_sources * track.nbytes
                ) from error
        tell("done", 1.0)
        return report

    @cached_property
    def _weights_sha256(self) -> str:
        return weights_digest(self.model)

    def _listen(
        self,
        samples: NDArray[np.float32],
        sample_rate: int,
        tell: Progress = _tell_nobody,
        mix_channels: bool = False,
    ) -> _Heard:
        """Make of (channel, time) of finite samples what the model needs."""
        n_samples = samples.shape[-1]
        peak = _peak(samples)
        if peak > MAX_PEAK:
            raise InputError(
                f"samples must not exceed {MAX_PEAK:g}, got {peak:.3g}; scale the waveform first"
            )
        tell("preparing", 0.05)
        known: dict[str, Any] = {"n_samples": n_samples, "sample_rate": sample_rate}
        if self.n_sources == 2 and not mix_channels and talkers_have_channels(samples, sample_rate):
            return _Heard(**known, channels=samples, warnings=(SEPARATE_CHANNELS,))
        mixture, known["warnings"] = mix_down(samples)  # an array of our own
        offset = float(mixture.mean(dtype=np.float64))
        mixture -= np.float32(offset)
        notes = []
        if len(samples) > 2:
            notes.append(f"the {len(samples)} channels were mixed down to one; --channel takes one of them")
        if abs(offset) > 0.01 * peak:
            notes.append(f"a constant offset of {offset:.3g} was removed")
        model_mixture = resample(mixture, sample_rate, self.sample_rate)
        known["n_bytes"] = samples.nbytes + 2 * mixture.nbytes
        if min(_peak(mixture), _peak(model_mixture)) < SILENCE_PEAK:
            notes.append("no speech: the recording is silent, and so are the tracks")
            return _Heard(**known, notes=tuple(notes))
        if sample_rate > self.sample_rate:
            top = self.sample_rate // 2
            notes.append(f"the model works at {self.sample_rate} Hz: the tracks hold nothing above {top} Hz")
        if sample_rate < 0.9 * self.sample_rate:
            known["warnings"] += (
                f"at {sample_rate} Hz the recording holds nothing above {sample_rate // 2} Hz, but the model "
                f"learned from speech up to {self.sample_rate // 2} Hz: expect less of it",
            )
        silent = tuple(silent_spans(mixture, sample_rate, threshold=SILENCE_PEAK))
        level = talking_rms(model_mixture, self.sample_rate // 10) / MODEL_RMS
        model_mixture /= np.float32(level)
        return _Heard(**known, mixture=model_mixture, level=level, silent=silent, notes=tuple(notes))

    def _separate(
        self, heard: _Heard, tell: Progress = _tell_nobody, notify: Callable[[str], None] = _hear_nothing
    ) -> _Separation:
        """Let the model separate what was heard, if there is something to separate."""
        if heard.channels is not None:
            return _Separation(heard, heard.channels, heard.sample_rate, "channels", heard.n_bytes)
        mixture = heard.mixture
        if mixture is None:
            silence = np.zeros((self.n_sources, heard.n_samples), np.float32)
            return _Separation(heard, silence, heard.sample_rate, "silence", heard.n_bytes)
        after_bytes = (
            self.n_sources * mixture.nbytes + 3 * heard.n_samples * SAMPLE_BYTES
        )  # a track at a time
        plan = self._runner.plan(len(mixture), held_bytes=mixture.nbytes, after_bytes=after_bytes)
        memory_bytes, disk_bytes = None, 0
        if plan.need is not None:
            memory_bytes = max(heard.n_bytes, mixture.nbytes + max(plan.need.memory_bytes, after_bytes))
            disk_bytes = plan.need.disk_bytes
        notes = _plan_notes(plan, memory_bytes, self.sample_rate)
        for note in notes:
            notify(note)
        passage = self._runner.run(
            mixture,
            plan,
            silence=SILENCE_PEAK / heard.level,
            progress=lambda share: tell("separating", 0.1 + 0.8 * share),
        )
        tell("finishing", 0.9)
        estimates, cautions = passage.estimates, list(passage.warnings)
        if not math.isfinite(_peak(estimates)):
            raise SeparationError(
                "the model's answer is not finite; its weights are damaged or do not suit it"
            )
        if doubtful := [join.sample / self.sample_rate for join in passage.joins if join.doubtful]:
            cautions.append(
                f"two talkers may have changed tracks at {len(doubtful)} of {len(passage.joins)} joins: "
                f"{_times(doubtful)}"
            )
        estimates -= estimates.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        gains = explaining_gains(mixture, estimates) * heard.level
        estimates *= gains.astype(np.float32)[:, None]
        mode: Literal["whole", "chunks"] = "chunks" if passage.plan.way == "chunks" else "whole"
        return _Separation(
            heard,
            estimates,
            self.sample_rate,
            mode,
            memory_bytes,
            disk_bytes,
            str(passage.device),
            tuple(passage.joins),
            tuple(cautions),
            notes,
        )


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


def _peak(waveform: NDArray[Any]) -> float:
    return max(float(waveform.max()), -float(waveform.min()))


def _one_channel(samples: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    if channel is None:
        return samples
    if not 1 <= channel <= len(samples):
        raise InputError(f"the recording has {len(samples)} channels, so there is no channel {channel}")
    return samples[channel - 1 : channel]


def _fit_format(separation: _Separation, form: Format, subtype: Subtype) -> _Fit:
    """Choose the nearest rate that a format has, and a gain for all tracks alike where it would clip."""
    sample_rate = separation.heard.sample_rate
    fit = _Fit(allowed_rate(form, sample_rate))
    if fit.sample_rate != sample_rate:
        note = f"{form} files have no {sample_rate} Hz: the tracks are at {fit.sample_rate} Hz"
        fit = replace(fit, notes=(note,))
    if form == "wav" and subtype in ("auto", "float"):
        return fit
    peak = max(_peak(fit.track(separation, index)) for index in range(len(separation.estimates)))
    if peak > 1:
        gain = INTEGER_PEAK / peak
        warning = (
            f"all tracks were turned down by {-20 * math.log10(gain):.1f} dB, else {form} would clip them"
        )
        fit = replace(fit, gain=gain, warnings=(warning,))
    return fit
