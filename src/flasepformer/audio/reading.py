"""Read any recording: by its content, as far as it goes, with a sentence for everything that is wrong.

A recording of any length is gone through block by block, again for every purpose: to decode twice costs less
than to keep a day of samples.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from flasepformer.audio.blocks import BLOCK_LENGTH, regular_blocks, silent_blocks
from flasepformer.audio.content import WavHeader, audio_kind, looks_like, read_wav_header
from flasepformer.audio.defects import Checkup, replace_non_finite
from flasepformer.audio.media import (
    MediaDecoder,
    MediaMissingError,
    UndecodableError,
    cut_short,
    damage_warning,
)
from flasepformer.audio.mp3 import Mp3Stream, repair
from flasepformer.audio.ogg import LostSpan, walk_pages
from flasepformer.audio.recording import (
    AudioError,
    Recording,
    SampleBuffer,
    check_header,
)
from flasepformer.audio.window import FileBytes

_AUDIO = "wav wave flac ogg oga opus mp3 aif aiff aifc au caf w64 rf64 amr ac3 wma aac m4a m4b"
_VIDEO = "3gp mp4 m4v mov mkv mka webm avi wmv flv mpg mpeg mts m2ts"

AUDIO_EXTENSIONS = frozenset(f".{name}" for name in (_AUDIO + " " + _VIDEO).split())
"""Suffixes, in lower case, that a scan of a folder picks up. A file given by name may have any."""

_BLOCK = 2**13  # frames decoded at a time
_STEP = 2**8  # frames, as finely as damage is told apart
_EVER_FEWER = (128, 64, 32, 16, 8, 4, 2, 1)
KEPT_BYTES = 1 << 25
"""Recordings up to this size once decoded are kept, and so decoded once."""

_HEAD = 4096  # bytes that tell what a file is
_UNKNOWN_FRAMES = 2**62  # libsndfile promises more than this when the header does not say
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def read_audio(path: str | os.PathLike[str], *, stream: int | None = None) -> Recording:
    """Read a whole recording; see `RecordingFile` for one that may be too long for the memory.

    Args:
        path: Audio or video file, whatever its name.
        stream: Which audio stream of a video file to take, from 0 on; None takes the first, notes the others.

    Returns:
        The samples (channel, time), finite, at the file's own sample rate, with the warnings.

    Raises:
        AudioError: When the file cannot be read at all. The message names the path and says why.
    """
    with RecordingFile(path, stream=stream, kept_bytes=0) as recording:
        buffer: SampleBuffer | None = None
        for block in recording.blocks():
            if buffer is None:
                with _named(path):
                    buffer = SampleBuffer(len(block), recording.sample_rate, recording.n_promised)
            buffer.append(block)
        assert buffer is not None
        return Recording(buffer.samples(), recording.sample_rate, recording.warnings)


class RecordingFile:
    """A recording in a file, gone through block by block; see `Stream`.

    How long it is, and what is wrong with it, is known once it has been gone through for the first time. It
    is to be closed, as by a `with` statement.

    Args:
        path: Audio or video file, whatever its name.
        stream: Which audio stream of a video file to take, from 0 on; None takes the first, notes the others.
        kept_bytes: Decoded samples up to this size are kept in memory for the next time.

    Raises:
        AudioError: When the file cannot be opened, or turns out to be unreadable, also in `blocks`. The
            message names the path and says why.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, stream: int | None = None, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.path, self.n_promised = path, 0
        """Length by the header, known from the first block on; 0 if it does not say."""
        self._kept_bytes = kept_bytes
        self._kept: list[NDArray[np.float32]] | None = None
        self._facts: tuple[int, int, int, tuple[str, ...]] | None = None
        self.sample_rate = self.n_channels = 0
        """Known from the first block on."""
        with _named(path):
            mode = Path(path).stat().st_mode  # before opening: a pipe would wait for its other end
            if not stat.S_ISREG(mode):
                raise AudioError(f"is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a recording")
            # without a buffer, as libsndfile moves the same descriptor
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115
            try:
                self._size = os.fstat(self._file.fileno()).st_size
                self._source = _Source(self._file, self._size, stream)
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def is_known(self) -> bool:
        """Whether it has been gone through, so that its length and its warnings are known."""
        return self._facts is not None

    @property
    def n_samples(self) -> int:
        """Length of every channel."""
        return self._known()[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the recording, one sentence each; empty when nothing is."""
        return self._known()[3]

    @property
    def n_kept_bytes(self) -> int:
        """Memory that the decoded samples take."""
        return sum(block.nbytes for block in self._kept or ())

    def _known(self) -> tuple[int, int, int, tuple[str, ...]]:
        assert self._facts is not None, "has to be gone through first"
        return self._facts

    def blocks(self, length: int = BLOCK_LENGTH) -> Iterator[NDArray[np.float32]]:
        """Yield (channel, length) one after the other, finite; only the last one may be shorter."""
        if self._kept is not None:
            return regular_blocks(self._kept, length)
        return regular_blocks(self._decoded_first() if self._facts is None else self._decoded_again(), length)

    def _decoded_first(self) -> Iterator[NDArray[np.float32]]:
        checkup: Checkup | None = None
        kept: list[NDArray[np.float32]] | None = []
        n_bytes = 0
        with _named(self.path):
            for block in self._source.blocks():
                if checkup is None:
                    checkup = Checkup(len(block))
                    self.n_channels, self.sample_rate = len(block), self._source.sample_rate
                    self.n_promised = self._source.n_promised
                block = checkup.add(block)
                n_bytes += block.nbytes
                if kept is not None:
                    kept.append(block)
                    kept = kept if n_bytes <= self._kept_bytes else None
                yield block
            if checkup is None:
                raise AudioError("recording has no samples")
            grown = "the file grew while it was read; only what was there at the start is used"
            has_grown = os.fstat(self._file.fileno()).st_size > self._size
            warnings = (
                *self._source.warnings, *((grown,) if has_grown else ()), *checkup.warnings(self.sample_rate)
            )  # fmt: skip
            self._facts = checkup.n_samples, self.n_channels, self.sample_rate, warnings
            self._kept = kept

    def _decoded_again(self) -> Iterator[NDArray[np.float32]]:
        n_samples, n_channels, sample_rate, _ = self._known()
        n_left = n_samples
        with _named(self.path):
            for block in self._source.blocks():
                if (len(block), self._source.sample_rate) != (n_channels, sample_rate):
                    break
                yield replace_non_finite(block[:, :n_left])[0]
                n_left -= min(block.shape[1], n_left)
                if not n_left:
                    return
            raise AudioError("the file changed while it was read")


@contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in what goes wrong with it."""
    try:
        yield
    except AudioError as error:
        raise AudioError(f"{_printable(path)}: {error}") from error
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise AudioError(f"{_printable(path)}: cannot be read: {reason}") from error


def _printable(path: str | os.PathLike[str]) -> str:
    """Show a path on one line, whatever bytes its name has."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in os.fspath(path))


class _Decoder(Protocol):
    """Decodes a file from its beginning; what it says of it is complete once `blocks` has ended."""

    sample_rate: int
    n_promised: int
    warnings: tuple[str, ...]

    def blocks(self) -> Iterator[NDArray[np.float32]]: ...


class _Source:
    """The content of an open file, by the decoder that suits it."""

    def __init__(self, file: BinaryIO, size: int, stream: int | None) -> None:
        self._file, self._size, self._stream = file, size, stream
        self.sample_rate = self.n_promised = 0
        self.warnings: tuple[str, ...] = ()
        if size == 0:
            raise AudioError("empty file")
        self._head = file.read(_HEAD)
        if (foreign := looks_like(self._head)) is not None:
            raise AudioError(f"not audio: looks like {foreign}")
        self._wav = read_wav_header(file, size)
        if self._wav is not None:
            check_header(self._wav.n_channels, self._wav.sample_rate)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        decoder, abandoned = self._decoder()
        try:
            for block in decoder.blocks():
                self.sample_rate, self.n_promised = decoder.sample_rate, decoder.n_promised
                yield block
        except (UndecodableError, MediaMissingError) as error:
            raise AudioError(_why_undecodable(self._head, error)) from error
        self.warnings = decoder.warnings
        if abandoned:
            note = (
                "the recorder never wrote the length of this recording, as after a crash; all of it is used"
            )
            self.warnings = (note, *self.warnings)

    def _decoder(self) -> tuple[_Decoder, bool]:
        """Return what decodes the file, and whether its recorder died."""
        abandoned = self._wav is not None and self._wav.abandoned
        if self._stream in (None, 0) and not abandoned:
            try:
                return _SoundDecoder(self._file, self._size, self._wav), False
            except soundfile.LibsndfileError:
                pass  # not for libsndfile, but perhaps for PyAV
        return MediaDecoder(self._file, self._size, self._stream), abandoned


def _why_undecodable(head: bytes, error: AudioError) -> str:
    kind = audio_kind(head)
    if kind is None:
        return f"not audio: unknown content, it begins with {head[:8].hex(' ')}"
    if isinstance(error, MediaMissingError):
        return f"{kind} {error}"
    if head[4:8] == b"ftyp":
        return f"the index (moov) of this {kind} file is missing or damaged, as when a download breaks off"
    return f"bad header: the file begins like {kind}, but {error}"


class _SoundDecoder:
    """Decodes with libsndfile, around what is damaged.

    Raises:
        soundfile.LibsndfileError: When libsndfile cannot open the file.
    """

    def __init__(self, file: BinaryIO, size: int, wav: WavHeader | None) -> None:
        self._file, self._size, self._wav = file, size, wav
        self.warnings: tuple[str, ...] = ()
        with _open_sound(file) as sound:
            self._container = sound.format
            self.sample_rate, self._n_channels = sound.samplerate, sound.channels
            self.n_promised = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
        check_header(self._n_channels, self.sample_rate)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        if self._container == "MP3":
            yield from self._mp3_blocks()
        elif self._container == "OGG":
            yield from self._ogg_blocks()
        else:
            reader = _AroundDamage(self._file)
            yield from reader.blocks()
            missing = (reader.n_promised - reader.length) / self.sample_rate
            if self._wav is not None:
                missing = self._wav.missing_seconds(self._size)
            self._say(reader.damaged, missing, reader.length)

    def _say(self, damaged: list[int], missing: float, n_samples: int, *warnings: str) -> None:
        rate = self.sample_rate
        if damaged:
            warnings += (damage_warning([at / rate for at in damaged]),)
        if missing > 0:
            warnings += (cut_short(missing, missing + n_samples / rate),)
        self.warnings = warnings

    def _ogg_blocks(self) -> Iterator[NDArray[np.float32]]:
        """Decode, and put silence where the decoder leaves samples out."""
        pages = walk_pages(FileBytes(self._file, self._size), self.sample_rate)
        lost: tuple[LostSpan, ...] = ()
        if pages.spans:
            lost = pages.lost(sum(block.shape[1] for block in _AroundDamage(self._file).blocks()))
        reader = _AroundDamage(self._file)
        yield from _with_silence(reader.blocks(), lost)
        cut = () if pages.ended else ("the recording has no end mark: it may be cut short",)
        n_samples = reader.length + sum(span.n_samples for span in lost)
        self._say([span.start for span in lost], -n_samples / self.sample_rate, n_samples, *cut)

    def _mp3_blocks(self) -> Iterator[NDArray[np.float32]]:
        data = FileBytes(self._file, self._size)
        stream = repair(data)
        with _repaired(self._file, data, stream) as file:
            reader = _AroundDamage(file)
            yield from reader.blocks()
        promised = reader.n_promised if stream.tells_length else 0
        missing = (promised - reader.length) / self.sample_rate
        self._say(sorted([*reader.damaged, *stream.lost]), missing, reader.length)


def _with_silence(
    blocks: Iterator[NDArray[np.float32]], lost: tuple[LostSpan, ...]
) -> Iterator[NDArray[np.float32]]:
    """Put silence where samples were left out, so that each is at its time again."""
    at, waiting = 0, list(lost)
    for block in blocks:
        while waiting and waiting[0].start <= at + block.shape[1]:
            span = waiting.pop(0)
            yield block[:, : span.start - at]
            yield from silent_blocks(len(block), span.n_samples)
            block = block[:, span.start - at :]
            at = span.start + span.n_samples
        yield block
        at += block.shape[1]
    for span in waiting:
        yield from silent_blocks(len(block), span.n_samples)


@contextmanager
def _repaired(file: BinaryIO, data: FileBytes, stream: Mp3Stream) -> Iterator[BinaryIO]:
    """Give the file as it is, or a copy in which silence stands for what is lost."""
    if not stream.lost:
        yield file
        return
    with tempfile.TemporaryFile(buffering=0) as copy:  # libsndfile needs a descriptor
        for piece in stream.repaired(data):
            copy.write(piece)
        yield copy


class _AroundDamage:
    """Reads all samples of a file, with silence for those that cannot be read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.length = 0
        """Frames given so far."""
        self.damaged: list[int] = []
        """Where some are lost."""
        with _open_sound(file) as sound:
            self.n_promised = sound.frames if sound.frames < _UNKNOWN_FRAMES else 0
            """Frames by the header; 0 if it does not say."""
            self._n_channels = sound.channels

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        while not (yield from self._read_on()):
            for n_frames in _EVER_FEWER:  # up to the very edge
                edge = _read_block(self._file, self.length, n_frames)
                if edge is not None:
                    yield self._counted(edge)
            if edge is not None:
                continue  # not there yet: the failed block was longer than all these
            readable = _next_readable(self._file, self.length, self.n_promised)
            if readable is None:
                return
            self.damaged.append(self.length)
            for silence in silent_blocks(self._n_channels, readable - self.length):
                yield self._counted(silence)

    def _counted(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        self.length += block.shape[1]
        return block

    def _read_on(self) -> Generator[NDArray[np.float32], None, bool]:
        """Read from where we are; return False when an error came before the end."""
        n_frames = _STEP if self.length > 0 else _BLOCK
        try:
            with _open_sound(self._file) as sound:
                if self.length > 0:
                    sound.seek(self.length)
                block = np.empty((n_frames, sound.channels), np.float32)
                while len(decoded := sound.read(out=block)) > 0:
                    yield self._counted(np.array(decoded.T, order="C"))
        except soundfile.LibsndfileError:
            return False
        return True


def _open_sound(file: BinaryIO) -> soundfile.SoundFile:
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    # The descriptor, as libsndfile would trust a name such as x.raw; Windows shares no descriptors.
    return soundfile.SoundFile(file.name if sys.platform == "win32" else file.fileno(), closefd=False)


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
