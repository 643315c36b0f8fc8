"""Separate a recording, as an array or as a file, into one track per talker."""

import copy
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from flasepformer.inference.devices import pick_device
from flasepformer.inference.inputs import as_regular_file
from flasepformer.inference.levels import SILENCE_PEAK, explaining_gains, silent_spans, talking_rms
from flasepformer.inference.outputs import explain_write_failure, growing_folder, plan_outputs, publish
from flasepformer.models import DEFAULT_MODEL, ModelInfo, load_described_model

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

MAX_PEAK = 1e30
"""Largest sample taken; beyond it, float32 has no room left for the tracks."""

INTEGER_PEAK = 0.999
"""Peak of tracks that had to be turned down for a format that clips at 1."""

_SUBTYPES = {"auto": "auto", "float": "FLOAT", "pcm16": "PCM_16", "pcm24": "PCM_24"}

Format = Literal["wav", "flac", "mp3", "ogg", "opus"]
Subtype = Literal["auto", "float", "pcm16", "pcm24"]
Progress = Callable[[str, float], None]
"""Called with what begins now, and the share of the work that is done, from 0 to 1."""

Waveform = TypeVar("Waveform", NDArray[Any], Tensor)


class SeparationError(RuntimeError):
    """The model gave no usable answer."""


@dataclass(frozen=True, kw_only=True)
class SeparationReport:
    """What was done to one file; written as JSON beside its tracks."""

    input: str
    """The recording, as it was named."""
    tracks: tuple[Path, ...]
    """One file per talker."""
    seconds: float
    """Length of the recording and of every track."""
    sample_rate: int
    """Of the tracks, in Hz."""
    model: dict[str, Any]
    """Name, licence, sample rate and talkers of the model."""
    device: str
    """Where the model ran."""
    real_time_factor: float
    """Time of the separation over the length of the recording; reading and writing files not counted."""
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


@dataclass(frozen=True)
class _Separation:
    """Tracks of one recording (source, time), and how they came to be."""

    tracks: NDArray[np.float32]
    device: torch.device
    seconds_taken: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Fitted:
    """Tracks (source, time) that a format can hold as they are."""

    tracks: NDArray[np.float32]
    sample_rate: int
    gain: float = 1.0
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    """Called at every step."""


def _tell_nobody(step: str, share: float) -> None:
    pass


class Separator:
    """A model on a device, with all that a recording needs around it.

    Args:
        model: A network of `flasepformer.models`; it is put in eval mode, and copied if it has to move.
        device: "auto", "cpu", "cuda", "mps" or any name of PyTorch; see `pick_device`.
        info: What is known of the model, for the reports.

    Raises:
        DeviceError: The device cannot be used.
    """

    def __init__(
        self, model: nn.Module, device: str | torch.device = "auto", *, info: ModelInfo | None = None
    ) -> None:
        self.device = pick_device(device)
        self._original = model.eval()
        self.model = _on(self.device, model)
        self.sample_rate: int = model.sample_rate  # type: ignore[assignment]
        self.n_sources: int = model.n_sources  # type: ignore[assignment]
        self.description: dict[str, Any] = {
            "name": info.name if info else type(model).__name__,
            "licence": info.licence if info else "",
            "sample_rate": self.sample_rate,
            "n_sources": self.n_sources,
        }

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, device: str | torch.device = "auto"
    ) -> "Separator":
        """Load a model: the trained one of the package, or another by name or path as in `load_model`.

        Raises:
            CheckpointError: There is no such model, or its checkpoint is refused.
            DeviceError: The device cannot be used.
        """
        name_or_path = DEFAULT_MODEL if name_or_path is None else name_or_path
        model, info = load_described_model(name_or_path)
        return cls(model, device, info=info)

    def separate(self, waveform: Waveform, sample_rate: int) -> Waveform:
        """Separate a recording held in memory.

        Args:
            waveform: (time,) or (channel, time). Channels are mixed down, unless each of two carries a talker
                of its own: then they are the tracks. Floating point, or integers, which count as PCM of
                their full scale.
            sample_rate: In Hz.

        Returns:
            (source, time) at the same rate and of the same length, float32, of the kind of `waveform` and
            on its device. They sum to the mixture as well as they can, and are silent where it is silent.

        Raises:
            ValueError: The waveform has another shape or kind, no samples, or some that are NaN or infinite.
            SeparationError: The model gave no usable answer.
        """
        separation = self._separate(_as_samples(waveform), _checked_rate(sample_rate))
        for message in separation.warnings:
            warnings.warn(message, stacklevel=2)
        if isinstance(waveform, Tensor):
            return torch.from_numpy(separation.tracks).to(waveform.device)
        return separation.tracks

    def separate_file(
        self, source: str | Path | BinaryIO, out_folder: str | Path, **options: Unpack[FileOptions]
    ) -> list[Path]:
        """Separate a file into `talk_speaker1.wav`, `talk_speaker2.wav` and a report, `talk_separation.json`.

        All of them appear at once, when they are complete.

        Args:
            source: The recording: any audio or video file, also a pipe or a binary stream.
            out_folder: Where the tracks go; made if missing.
            **options: See `FileOptions`.

        Returns:
            The tracks, in the order of the model's estimates.

        Raises:
            AudioError: The recording cannot be read.
            AlreadySeparated: All outputs exist (a `FileExistsError`, as is raised when only some exist).
            OutputError: The tracks cannot be written.
            OSError: The recording is missing or may not be opened.
            ValueError: An option does not suit the recording or another option.
            SeparationError: The model gave no usable answer.
        """
        return list(self.separate_file_with_report(source, out_folder, **options).tracks)

    def separate_file_with_report(
        self, source: str | Path | BinaryIO, out_folder: str | Path, **options: Unpack[FileOptions]
    ) -> SeparationReport:
        """Do as `separate_file` does, and return what was done."""
        tell = options.get("progress", _tell_nobody)
        overwrite = options.get("overwrite", False)
        form, subtype = options.get("format", "wav"), options.get("subtype", "auto")
        if form not in WRITABLE_FORMATS or _SUBTYPES.get(subtype) not in (
            "auto",
            *WRITABLE_FORMATS[form].subtypes,
        ):
            raise ValueError(
                f"cannot write {form} files with {subtype} samples; see flasepformer.inference.FileOptions"
            )
        label = str(source) if isinstance(source, (str, Path)) else str(getattr(source, "name", "stream"))
        name = options.get("name", Path(label).stem) + options.get("suffix", "")
        outputs = plan_outputs(Path(out_folder), name, self.n_sources, form)
        if not overwrite:
            outputs.check_absent()
        with growing_folder(outputs.report.parent) as growing:
            tell("reading", 0.0)
            with as_regular_file(source) as path:
                recording = read_audio(path, stream=options.get("stream"))
            samples = _one_channel(recording.samples, options.get("channel"))
            mix_channels = options.get("mix_channels", False)
            separation = self._separate(samples, _checked_rate(recording.sample_rate), tell, mix_channels)
            tell("writing", 0.95)
            fitted = _fit_format(separation.tracks, recording.sample_rate, form, subtype)
            seconds = samples.shape[-1] / recording.sample_rate
            report = SeparationReport(
                input=label,
                tracks=outputs.tracks,
                seconds=seconds,
                sample_rate=fitted.sample_rate,
                model=self.description,
                device=str(separation.device),
                real_time_factor=separation.seconds_taken / seconds,
                gain=fitted.gain,
                warnings=recording.warnings + separation.warnings + fitted.warnings,
                notes=separation.notes + fitted.notes,
            )
            grown = [growing / f"{index}.{form}" for index in range(self.n_sources)] + [
                growing / "report.json"
            ]
            try:
                for target, track in zip(grown, fitted.tracks, strict=False):
                    write_audio(target, track, fitted.sample_rate, subtype=_SUBTYPES[subtype])
                report.write(grown[-1])
                publish(grown, outputs, overwrite=overwrite)
            except FileExistsError:
                raise
            except OSError as error:
                shutil.rmtree(growing, ignore_errors=True)  # so that the free space counts without our files
                raise explain_write_failure(error, outputs.report.parent, fitted.tracks.nbytes) from error
        tell("done", 1.0)
        return report

    def _separate(
        self,
        samples: NDArray[np.float32],
        sample_rate: int,
        tell: Progress = _tell_nobody,
        mix_channels: bool = False,
    ) -> _Separation:
        """Separate (channel, time) of finite samples."""
        started = time.perf_counter()
        n_samples = samples.shape[-1]
        peak = _peak(samples)
        if peak > MAX_PEAK:
            raise ValueError(
                f"samples must not exceed {MAX_PEAK:g}, got {peak:.3g}; scale the waveform first"
            )
        tell("preparing", 0.05)
        if self.n_sources == 2 and not mix_channels and talkers_have_channels(samples, sample_rate):
            taken = time.perf_counter() - started
            return _Separation(samples.copy(), torch.device("cpu"), taken, (SEPARATE_CHANNELS,), ())
        mixture, cautions = mix_down(samples)
        offset = float(mixture.mean(dtype=np.float64))
        mixture = mixture - np.float32(offset)
        notes = []
        if abs(offset) > 0.01 * peak:
            notes.append(f"a constant offset of {offset:.3g} was removed")
        model_mixture = resample(mixture, sample_rate, self.sample_rate)
        if min(_peak(mixture), _peak(model_mixture)) < SILENCE_PEAK:
            notes.append("no speech: the recording is silent, and so are the tracks")
            tracks = np.zeros((self.n_sources, n_samples), np.float32)
            return _Separation(tracks, self.device, time.perf_counter() - started, cautions, tuple(notes))
        if sample_rate > self.sample_rate:
            top = self.sample_rate // 2
            notes.append(f"the model works at {self.sample_rate} Hz: the tracks hold nothing above {top} Hz")
        level = talking_rms(model_mixture, self.sample_rate // 10) / MODEL_RMS
        model_mixture = model_mixture / np.float32(level)
        tell("separating", 0.1)
        estimates, device, fallbacks = self._run_model(model_mixture)
        tell("finishing", 0.9)
        if not np.isfinite(estimates).all():
            raise SeparationError(
                "the model's answer is not finite; its weights are damaged or do not suit it"
            )
        estimates -= estimates.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
        gains = explaining_gains(model_mixture, estimates) * level
        estimates *= gains.astype(np.float32)[:, None]
        tracks = np.zeros((self.n_sources, n_samples), np.float32)
        restored = resample(estimates, self.sample_rate, sample_rate)[:, :n_samples]
        tracks[:, : restored.shape[-1]] = restored
        for span in silent_spans(mixture, sample_rate, threshold=SILENCE_PEAK):
            tracks[:, span] = 0
        return _Separation(tracks, device, time.perf_counter() - started, cautions + fallbacks, tuple(notes))

    def _run_model(
        self, mixture: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], torch.device, tuple[str, ...]]:
        """Return the estimates (source, time) of a mixture (time,), where the model ran, and what failed.

        The whole recording goes through at once. What the device cannot take is done on the CPU.
        """
        batch = torch.from_numpy(mixture)[None]
        fallbacks: tuple[str, ...] = ()
        with torch.inference_mode():
            try:
                device, estimates = self.device, self.model(batch.to(self.device))[0].float().cpu()
            except RuntimeError as error:  # out of memory, an operation or the device itself is missing
                if self.device.type == "cpu":
                    raise self._explained(error, len(mixture)) from error
                reason = str(error).split("\n")[0]
                fallbacks = (f"{self.device} failed ({reason}); this recording was separated on the CPU",)
                device = torch.device("cpu")
                try:
                    estimates = _on(device, self._original)(batch)[0].float()
                except RuntimeError as second:
                    raise self._explained(second, len(mixture)) from second
        return estimates.numpy(), device, fallbacks

    def _explained(self, error: RuntimeError, n_samples: int) -> RuntimeError:
        """Return a failure on the CPU in words, if it is for want of memory; else the failure itself."""
        if "allocate memory" not in str(error):
            return error
        minutes = n_samples / self.sample_rate / 60
        return SeparationError(
            f"{minutes:.1f} minutes at once need more memory than there is; "
            "cut the recording into shorter ones, or use a smaller model"
        )


def _on(device: torch.device, model: nn.Module) -> nn.Module:
    """Return the model on the device: itself if it is there, else a copy."""
    if all(parameter.device == device for parameter in model.parameters()):
        return model
    return copy.deepcopy(model).to(device)


def _checked_rate(sample_rate: float) -> int:
    if not MIN_SAMPLE_RATE <= sample_rate < math.inf or sample_rate != int(sample_rate):
        raise ValueError(
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
        raise ValueError(f"waveform must be a numpy array or a torch tensor, got {type(waveform).__name__}")
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(
            f"waveform must be (time,) or (channel, time) with at least one sample, got {array.shape}"
        )
    array = np.atleast_2d(array)
    if len(array) > MAX_CHANNELS:
        raise ValueError(
            f"waveform must be (channel, time) with at most {MAX_CHANNELS} channels, got {array.shape}; "
            "transpose it"
        )
    if array.dtype.kind == "i":
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    if array.dtype.kind == "u":
        half = (np.iinfo(array.dtype).max + 1) / 2
        return ((array - half) / half).astype(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"waveform must be real numbers, floating point or integer, got {array.dtype}")
    with np.errstate(over="ignore"):
        samples = array.astype(np.float32)
    if n_bad := samples.size - int(np.isfinite(samples).sum()):
        raise ValueError(
            f"waveform has {n_bad} samples that are NaN, infinite or too large for float32; "
            "replace them first, e.g. with numpy.nan_to_num"
        )
    return samples


def _peak(waveform: NDArray[Any]) -> float:
    return max(float(waveform.max()), -float(waveform.min()))


def _one_channel(samples: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    if channel is None:
        return samples
    if not 1 <= channel <= len(samples):
        raise ValueError(f"the recording has {len(samples)} channels, so there is no channel {channel}")
    return samples[channel - 1 : channel]


def _fit_format(tracks: NDArray[np.float32], sample_rate: int, form: Format, subtype: Subtype) -> _Fitted:
    """Resample tracks to the nearest rate that a format has, and turn all down alike where it would clip."""
    fitted = _Fitted(tracks, allowed_rate(form, sample_rate))
    if fitted.sample_rate != sample_rate:
        note = f"{form} files have no {sample_rate} Hz: the tracks are at {fitted.sample_rate} Hz"
        fitted = replace(fitted, tracks=resample(tracks, sample_rate, fitted.sample_rate), notes=(note,))
    peak = _peak(fitted.tracks)
    if peak > 1 and (form != "wav" or subtype in ("pcm16", "pcm24")):
        gain = INTEGER_PEAK / peak
        warning = (
            f"all tracks were turned down by {-20 * math.log10(gain):.1f} dB, else {form} would clip them"
        )
        fitted = replace(fitted, tracks=fitted.tracks * gain, gain=gain, warnings=(warning,))
    return fitted
