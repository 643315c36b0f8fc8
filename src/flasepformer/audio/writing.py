"""Write waveforms to audio files: whole or not at all, and never clipped in silence."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import soundfile
from numpy.typing import NDArray

from flasepformer.audio.blocks import regular_blocks

_BLOCK = 2**16  # frames encoded at a time; libsndfile overflows its stack on long blocks of Vorbis
_WAV_LIMIT = 2**32 - 2**16  # bytes of samples that the 32-bit sizes of WAV can hold, with room for its header
_INTEGER_BITS = MappingProxyType({"PCM_16": 16, "PCM_24": 24})


@dataclass(frozen=True)
class AudioFormat:
    """What can be written into one kind of file."""

    container: str
    """As libsndfile calls it."""
    subtypes: tuple[str, ...]
    """As libsndfile calls them; the first is the default."""
    max_channels: int
    rate: Callable[[int], int]
    """The nearest sample rate in Hz that the format allows."""


def _one_of(*rates: int) -> Callable[[int], int]:
    return lambda wanted: min(rates, key=lambda rate: (abs(rate - wanted), -rate))


def _flac_rate(wanted: int) -> int:
    return wanted if wanted < 2**16 else min(round(wanted, -1), 655_350)


WRITABLE_FORMATS = MappingProxyType(
    {
        "wav": AudioFormat("WAV", ("FLOAT", "PCM_16", "PCM_24"), 64, lambda wanted: wanted),
        "flac": AudioFormat("FLAC", ("PCM_24", "PCM_16"), 8, _flac_rate),
        "ogg": AudioFormat(
            "OGG", ("VORBIS",), 8, lambda wanted: min(wanted, 192_000)
        ),  # libsndfile crashes above
        "opus": AudioFormat("OGG", ("OPUS",), 8, _one_of(8_000, 12_000, 16_000, 24_000, 48_000)),
        "mp3": AudioFormat(
            "MP3",
            ("MPEG_LAYER_III",),
            2,
            _one_of(8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
        ),
    }
)
"""By suffix, without the dot."""


def allowed_rate(audio_format: str, sample_rate: int) -> int:
    """Give the sample rate nearest to the wanted one that a format allows; of two equally near, the higher.

    Args:
        audio_format: A key of `WRITABLE_FORMATS`, such as "mp3".
        sample_rate: Wanted rate in Hz.

    >>> allowed_rate("opus", 44100), allowed_rate("mp3", 12345), allowed_rate("wav", 12345)
    (48000, 12000, 12345)
    """
    return _format(audio_format).rate(sample_rate)


def _format(name: str) -> AudioFormat:
    if name not in WRITABLE_FORMATS:
        raise ValueError(f"cannot write '{name}' files; choose one of {', '.join(WRITABLE_FORMATS)}")
    return WRITABLE_FORMATS[name]


def write_audio(
    path: str | os.PathLike[str], waveform: NDArray[np.floating], sample_rate: int, *, subtype: str = "auto"
) -> None:
    """Write a waveform to a file that appears under its name only when it is complete.

    A WAV file too long for its 32-bit sizes is written as RF64. An existing file is replaced.

    Args:
        path: Its suffix chooses the format, one of `WRITABLE_FORMATS`.
        waveform: (time,) or (channel, time), finite. Within -1 and 1, but for WAV in "FLOAT".
        sample_rate: Hz.
        subtype: "FLOAT", "PCM_16" or "PCM_24", where the format has it; "auto" is FLOAT for wav, PCM_24 for
            flac and the codec itself for the others.

    Raises:
        ValueError: When the samples cannot be written as they are; the message says what to change.
        OSError: When the file cannot be written, with the `errno` of the system (`ENOSPC` on a full disk).
            Nothing is left behind then, nor after an interruption.
    """
    channels = np.atleast_2d(np.asarray(waveform))
    if channels.ndim != 2 or channels.size == 0 or not np.issubdtype(channels.dtype, np.floating):
        raise ValueError(
            f"waveform must be floating point, (time,) or (channel, time), with at least one sample; got "
            f"{channels.dtype} {channels.shape}"
        )
    blocks = (channels[:, start : start + _BLOCK] for start in range(0, channels.shape[1], _BLOCK))
    n_channels, n_samples = channels.shape
    target = _Target(path, n_channels, n_samples, sample_rate, subtype)
    target.check(channels)
    target.write(blocks)


def write_blocks(
    path: str | os.PathLike[str],
    blocks: Iterable[NDArray[np.floating]],
    n_channels: int,
    n_samples: int,
    sample_rate: int,
    *,
    subtype: str = "auto",
) -> None:
    """Write blocks (channel, some time), `n_samples` together, as `write_audio` writes them as a whole."""
    _Target(path, n_channels, n_samples, sample_rate, subtype).write(blocks)


class _Target:
    """A file to be, of a format that can hold what is to come."""

    def __init__(
        self, path: str | os.PathLike[str], n_channels: int, n_samples: int, sample_rate: int, subtype: str
    ) -> None:
        self.path = Path(path)
        self.n_channels, self.n_samples, self.sample_rate = n_channels, n_samples, sample_rate
        audio_format = _format(self.path.suffix.lower().lstrip("."))
        self.subtype = audio_format.subtypes[0] if subtype == "auto" else subtype
        if self.subtype not in audio_format.subtypes:
            raise ValueError(
                f"{self.path.suffix} files hold {' or '.join(audio_format.subtypes)}, not {self.subtype}"
            )
        if n_channels > audio_format.max_channels:
            raise ValueError(
                f"{self.path.suffix} files hold at most {audio_format.max_channels} channels, "
                f"got {n_channels}"
            )
        if sample_rate < 1 or (nearest := audio_format.rate(sample_rate)) != sample_rate:
            hint = f"; resample to {nearest} Hz" if sample_rate >= 1 else ""
            raise ValueError(f"{self.path.suffix} files cannot have a sample rate of {sample_rate} Hz{hint}")
        self.container = audio_format.container
        n_bytes = n_channels * n_samples * _INTEGER_BITS.get(self.subtype, 32) // 8
        if self.container == "WAV" and n_bytes > _WAV_LIMIT:
            self.container = "RF64"

    def check(self, block: NDArray[np.floating]) -> None:
        """Raise unless samples can be written as they are."""
        low, high = float(block.min()), float(block.max())  # NaN and infinity show in these two
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("waveform has samples that are not numbers (NaN or infinity)")
        peak = max(-low, high)
        if self.subtype != "FLOAT" and peak > 1:
            raise ValueError(
                f"the peak of {peak:.4g} would be clipped in {self.subtype}; multiply all tracks by one gain "
                f"of at most {1 / peak:.4g}, or write a wav file in FLOAT"
            )

    def write(self, blocks: Iterable[NDArray[np.floating]]) -> None:
        """Write the file under another name, and give it its own when it is complete."""
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path} is a folder, not a file to write to")
        temporary = self.path.parent / f".flasepformer-{uuid4().hex}.part"
        try:
            with temporary.open("x+b", buffering=0) as file:
                self._encode(file, blocks)
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _encode(self, file: BinaryIO, blocks: Iterable[NDArray[np.floating]]) -> None:
        """Encode into an open file, in a thread of its own.

        libsndfile writes by calling back, and what is raised in a call-back is lost. An interruption must not
        come there; it only ever comes in the main thread, which makes the blocks.
        """
        sink = _Sink(file)
        encoder = ThreadPoolExecutor(max_workers=1)
        try:
            sound = encoder.submit(self._open, sink).result()
            for block in regular_blocks(
                blocks, _BLOCK
            ):  # what Vorbis makes of samples depends on their blocks
                self.check(block)
                samples = _in_format(block.T, self.subtype)
                encoder.submit(_write_unless_closed, sound, sink, samples).result()
                if sink.failure is not None:
                    raise sink.failure
            encoder.submit(sound.close).result()
            if sink.failure is not None:  # in the last bytes, where libsndfile does not look
                raise sink.failure
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            if sink.failure is not None:
                raise sink.failure from None
            raise ValueError(
                f"libsndfile cannot write this as {self.container} {self.subtype}: {error}"
            ) from error
        finally:
            sink.close()
            encoder.shutdown(wait=False)
        if self.container in ("WAV", "RF64"):
            _clear_time_stamp(file)

    def _open(self, sink: "_Sink") -> soundfile.SoundFile:
        return soundfile.SoundFile(
            sink, "w", samplerate=self.sample_rate, channels=self.n_channels, format=self.container,
            subtype=self.subtype,
        )  # fmt: skip


def _write_unless_closed(sound: soundfile.SoundFile, sink: "_Sink", block: NDArray[np.generic]) -> None:
    if not sink.closed:
        sound.write(block)


class _Sink:
    """The file that libsndfile writes to; it keeps the error that libsndfile only calls "System error".

    Once closed it does nothing any more, as an encoder that is left behind may still call it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.failure: OSError | None = None
        self.closed = False

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        with self._lock:
            try:
                while view and not self.closed:
                    view = view[self._file.write(view) :]
            except OSError as error:
                self.failure, self.closed = error, True
            return 0 if self.closed else len(data)

    def read(self, n_bytes: int) -> bytes:
        with self._lock:
            return b"" if self.closed else self._file.read(n_bytes)

    def seek(self, offset: int, whence: int) -> int:
        with self._lock:
            return 0 if self.closed else self._file.seek(offset, whence)

    def tell(self) -> int:
        with self._lock:
            return 0 if self.closed else self._file.tell()

    def close(self) -> None:
        with self._lock:
            self.closed = True


def _in_format(block: NDArray[np.floating], subtype: str) -> NDArray[np.generic]:
    """Round to the integers of a subtype; libsndfile would cut off what is behind the point."""
    bits = _INTEGER_BITS.get(subtype)
    if bits is None:
        return np.ascontiguousarray(block, dtype=np.float32)
    scale = 2.0 ** (bits - 1)
    rounded = np.clip(np.rint(block * np.float64(scale)), -scale, scale - 1)
    if bits == 16:
        return np.ascontiguousarray(rounded, dtype=np.int16)
    return np.ascontiguousarray(rounded, dtype=np.int32) << (32 - bits)


def _clear_time_stamp(file: BinaryIO) -> None:
    """Take the time of writing out of the PEAK chunk: the same samples give the same bytes."""
    file.seek(0)
    at = file.read(256).find(b"PEAK")
    if at != -1:
        file.seek(at + 12)  # behind name, size and version
        file.write(bytes(4))
