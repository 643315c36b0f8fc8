"""Read any recording: by its content, as far as it goes, with a sentence for everything that is wrong."""

import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from flasepformer.audio.content import WavHeader, audio_kind, looks_like, read_wav_header
from flasepformer.audio.defects import clipping_warnings, offset_warnings, replace_non_finite
from flasepformer.audio.media import (
    MediaMissingError,
    UndecodableError,
    cut_short,
    damage_warning,
    decode_media,
)
from flasepformer.audio.mp3 import repair
from flasepformer.audio.ogg import restore_time, walk_pages
from flasepformer.audio.recording import (
    AudioError,
    Recording,
    SampleBuffer,
    check_header,
)

_AUDIO = "wav wave flac ogg oga opus mp3 aif aiff aifc au caf w64 rf64 amr ac3 wma aac m4a m4b"
_VIDEO = "3gp mp4 m4v mov mkv mka webm avi wmv flv mpg mpeg mts m2ts"

AUDIO_EXTENSIONS = frozenset(f".{name}" for name in (_AUDIO + " " + _VIDEO).split())
"""Suffixes, in lower case, that a scan of a folder picks up. A file given by name may have any."""

_BLOCK = 2**13  # frames decoded at a time
_STEP = 2**8  # frames, as finely as damage is told apart
_EVER_FEWER = (128, 64, 32, 16, 8, 4, 2, 1)
_HEAD = 4096  # bytes that tell what a file is
_UNKNOWN_FRAMES = 2**62  # libsndfile promises more than this when the header does not say
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def read_audio(path: str | os.PathLike[str], *, stream: int | None = None) -> Recording:
    """Read a whole recording.

    Args:
        path: Audio or video file, whatever its name.
        stream: Which audio stream of a video file to take, from 0 on; None takes the first, notes the others.

    Returns:
        The samples (channel, time), finite, at the file's own sample rate, with the warnings.

    Raises:
        AudioError: When the file cannot be read at all. The message names the path and says why.
    """
    try:
        recording = _read(Path(path), stream)
    except AudioError as error:
        raise AudioError(f"{_printable(path)}: {error}") from error
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise AudioError(f"{_printable(path)}: cannot be read: {reason}") from error
    return recording


def _printable(path: str | os.PathLike[str]) -> str:
    """Show a path on one line, whatever bytes its name has."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in os.fspath(path))


def _read(path: Path, stream: int | None) -> Recording:
    mode = path.stat().st_mode  # before opening: a pipe would wait for its other end
    if not stat.S_ISREG(mode):
        raise AudioError(f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a recording")
    with path.open("rb", buffering=0) as file:  # libsndfile moves the same descriptor
        size = os.fstat(file.fileno()).st_size
        recording = _decode(file, size, stream)
        grown = os.fstat(file.fileno()).st_size > size
    if recording.samples.shape[1] == 0:
        raise AudioError("recording has no samples")
    samples, warnings = replace_non_finite(recording.samples)
    warnings = (*recording.warnings, *warnings)
    if grown:
        warnings += ("the file grew while it was read; only what was there at the start is used",)
    warnings += (*clipping_warnings(samples), *offset_warnings(samples, recording.sample_rate))
    return Recording(samples, recording.sample_rate, warnings)


def _decode(file: BinaryIO, size: int, stream: int | None) -> Recording:
    if size == 0:
        raise AudioError("empty file")
    head = file.read(_HEAD)
    if (foreign := looks_like(head)) is not None:
        raise AudioError(f"not audio: looks like {foreign}")
    wav = read_wav_header(file, size)
    if wav is not None:
        check_header(wav.n_channels, wav.sample_rate)
    abandoned = wav is not None and wav.abandoned
    if stream in (None, 0) and not abandoned:
        try:
            return _decode_sound(file, size, wav)
        except soundfile.LibsndfileError:
            pass  # not for libsndfile, but perhaps for PyAV
    try:
        recording = decode_media(file, size, stream)
    except (UndecodableError, MediaMissingError) as error:
        raise AudioError(_why_undecodable(head, error)) from error
    if abandoned:
        note = "the recorder never wrote the length of this recording, as after a crash; all of it is used"
        return Recording(recording.samples, recording.sample_rate, (note, *recording.warnings))
    return recording


def _why_undecodable(head: bytes, error: AudioError) -> str:
    kind = audio_kind(head)
    if kind is None:
        return f"not audio: unknown content, it begins with {head[:8].hex(' ')}"
    if isinstance(error, MediaMissingError):
        return f"{kind} {error}"
    if head[4:8] == b"ftyp":
        return f"the index (moov) of this {kind} file is missing or damaged, as when a download breaks off"
    return f"bad header: the file begins like {kind}, but {error}"


def _decode_sound(file: BinaryIO, size: int, wav: WavHeader | None) -> Recording:
    """Decode with libsndfile, around what is damaged.

    Raises:
        soundfile.LibsndfileError: When libsndfile cannot open the file.
    """
    with _open_sound(file) as sound:
        container = sound.format
    if container == "MP3":
        return _decode_mp3(file, size)
    buffer, promised, damaged = _read_around_damage(file)
    rate, samples = buffer.sample_rate, buffer.samples()
    warnings = []
    if container == "OGG":
        lost, ended = walk_pages(_content(file, size), rate, samples.shape[1])
        samples, damaged, promised = restore_time(samples, lost), [span.start for span in lost], 0
        if not ended:
            warnings.append("the recording has no end mark: it may be cut short")
    if damaged:
        warnings.append(damage_warning([at / rate for at in damaged]))
    missing = (promised - samples.shape[1]) / rate if wav is None else wav.missing_seconds(size)
    if missing > 0:
        warnings.append(cut_short(missing, missing + samples.shape[1] / rate))
    return Recording(samples, rate, tuple(warnings))


def _decode_mp3(file: BinaryIO, size: int) -> Recording:
    stream = repair(_content(file, size))
    if stream.lost:
        with tempfile.TemporaryFile(buffering=0) as repaired:  # libsndfile needs a descriptor
            repaired.write(stream.data)
            buffer, promised, damaged = _read_around_damage(repaired)
    else:
        buffer, promised, damaged = _read_around_damage(file)
    rate, samples = buffer.sample_rate, buffer.samples()
    damaged = sorted([*damaged, *stream.lost])
    warnings = [damage_warning([at / rate for at in damaged])] if damaged else []
    missing = (promised - samples.shape[1]) / rate if stream.tells_length else 0.0
    if missing > 0:
        warnings.append(cut_short(missing, promised / rate))
    return Recording(samples, rate, tuple(warnings))


def _content(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    return file.read(size)


def _read_around_damage(file: BinaryIO) -> tuple[SampleBuffer, int, list[int]]:
    """Read the samples; tell how many the header promises (0: it does not say) and where some are lost."""
    with _open_sound(file) as sound:
        promised = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
        buffer = SampleBuffer(sound.channels, sound.samplerate, promised)
    damaged: list[int] = []
    while not _read_on(file, buffer):
        for n_frames in _EVER_FEWER:  # up to the very edge
            edge = _read_block(file, buffer.length, n_frames)
            if edge is not None:
                buffer.append(edge)
        if edge is not None:
            continue  # not there yet: the failed block was longer than all these
        readable = _next_readable(file, buffer.length, promised)
        if readable is None:
            break
        damaged.append(buffer.length)
        buffer.append_silence(readable - buffer.length)
    return buffer, promised, damaged


def _open_sound(file: BinaryIO) -> soundfile.SoundFile:
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    # The descriptor, as libsndfile would trust a name such as x.raw; Windows shares no descriptors.
    return soundfile.SoundFile(file.name if sys.platform == "win32" else file.fileno(), closefd=False)


def _read_on(file: BinaryIO, buffer: SampleBuffer) -> bool:
    """Read from where the buffer ends; False when an error came before the end."""
    n_frames = _STEP if buffer.length > 0 else _BLOCK
    try:
        with _open_sound(file) as sound:
            if buffer.length > 0:
                sound.seek(buffer.length)
            block = np.empty((n_frames, sound.channels), np.float32)
            while len(decoded := sound.read(out=block)) > 0:
                buffer.append(decoded.T)
    except soundfile.LibsndfileError:
        return False
    return True


def _read_block(file: BinaryIO, start: int, n_frames: int = _STEP) -> NDArray[np.float32] | None:
    """Read (channel, time) from a frame on, None when that cannot be done without an error."""
    try:
        with _open_sound(file) as sound:
            sound.seek(start)
            block: NDArray[np.float32] = sound.read(n_frames, dtype="float32", always_2d=True).T
    except soundfile.LibsndfileError:
        return None
    return block if block.shape[1] > 0 else None


def _next_readable(file: BinaryIO, start: int, end: int) -> int | None:
    """Find the first frame behind `start` from which the file can be read again, by ever longer strides."""
    unreadable, stride = start, _STEP
    while unreadable < end - _STEP:
        readable = min(unreadable + stride, end - _STEP)
        if _read_block(file, readable) is not None:
            while readable - unreadable > 1:
                middle = (readable + unreadable) // 2
                if _read_block(file, middle) is not None:
                    readable = middle
                else:
                    unreadable = middle
            return readable
        unreadable, stride = readable, 2 * stride
    return None
