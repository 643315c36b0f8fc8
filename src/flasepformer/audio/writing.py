"""Write waveforms to audio files: whole or not at all, and never clipped in silence."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import soundfile
from numpy.typing import NDArray

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
        flac and
            the codec itself for the others.

    Raises:
        ValueError: When the samples cannot be written as they are; the message says what to change.
        OSError: When the file cannot be written, with the `errno` of the system (`ENOSPC` on a full disk).
        Nothing
            is left behind then, nor after an interruption.
    """
    path = Path(path)
    audio_format = _format(path.suffix.lower().lstrip("."))
    channels = np.atleast_2d(np.asarray(waveform))
    subtype = audio_format.subtypes[0] if subtype == "auto" else subtype
    _check(path, channels, sample_rate, audio_format, subtype)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write to")
    temporary = path.parent / f".flasepformer-{uuid4().hex}.part"
    try:
        with temporary.open("x+b", buffering=0) as file:
            _encode(file, channels, sample_rate, audio_format, subtype)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check(
    path: Path, channels: NDArray[np.floating], sample_rate: int, audio_format: AudioFormat, subtype: str
) -> None:
    if channels.ndim != 2 or channels.size == 0 or not np.issubdtype(channels.dtype, np.floating):
        raise ValueError(
            f"waveform must be floating point, (time,) or (channel, time), with at least one sample; got "
            f"{channels.dtype} {channels.shape}"
        )
    if subtype not in audio_format.subtypes:
        raise ValueError(f"{path.suffix} files hold {' or '.join(audio_format.subtypes)}, not {subtype}")
    if channels.shape[0] > audio_format.max_channels:
        raise ValueError(
            f"{path.suffix} files hold at most {audio_format.max_channels} channels, got {len(channels)}"
        )
    if sample_rate < 1 or (nearest := audio_format.rate(sample_rate)) != sample_rate:
        hint = f"; resample to {nearest} Hz" if sample_rate >= 1 else ""
        raise ValueError(f"{path.suffix} files cannot have a sample rate of {sample_rate} Hz{hint}")
    low, high = float(channels.min()), float(channels.max())  # NaN and infinity show in these two
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("waveform has samples that are not numbers (NaN or infinity)")
    peak = max(-low, high)
    if subtype != "FLOAT" and peak > 1:
        raise ValueError(
            f"the peak of {peak:.4g} would be clipped in {subtype}; multiply all tracks by one gain of at "
            f"most {1 / peak:.4g}, or write a wav file in FLOAT"
        )


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


def _encode(
    file: BinaryIO,
    channels: NDArray[np.floating],
    sample_rate: int,
    audio_format: AudioFormat,
    subtype: str,
) -> None:
    """Encode into an open file, in a thread of its own.

    libsndfile writes by calling back, and what is raised in a call-back is lost. An interruption must not
    come there; it only ever comes in the main thread.
    """
    container = audio_format.container
    if container == "WAV" and channels.size * _INTEGER_BITS.get(subtype, 32) // 8 > _WAV_LIMIT:
        container = "RF64"
    sink = _Sink(file)
    encoder = ThreadPoolExecutor(max_workers=1)
    try:
        encoder.submit(_feed, sink, channels, sample_rate, container, subtype).result()
        if sink.failure is not None:  # in the last bytes, where libsndfile does not look
            raise sink.failure
    except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        if sink.failure is not None:
            raise sink.failure from None
        raise ValueError(f"libsndfile cannot write this as {container} {subtype}: {error}") from error
    finally:
        sink.close()
        encoder.shutdown(wait=False)
    if container in ("WAV", "RF64"):
        _clear_time_stamp(file)


def _feed(
    sink: _Sink, channels: NDArray[np.floating], sample_rate: int, container: str, subtype: str
) -> None:
    with soundfile.SoundFile(
        sink, "w", samplerate=sample_rate, channels=len(channels), format=container, subtype=subtype
    ) as sound:
        for start in range(0, channels.shape[1], _BLOCK):
            if sink.closed:
                return
            sound.write(_in_format(channels[:, start : start + _BLOCK].T, subtype))


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
