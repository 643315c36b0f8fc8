"""Decode with PyAV (FFmpeg) what libsndfile does not read: m4a, video, what a recorder left unfinished.

PyAV is the extra `media`; it is imported when the first such file comes.
"""

import io
import re
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, cast

from flasepformer.audio.blocks import silent_blocks
from flasepformer.audio.recording import AudioError, check_header
from flasepformer.installing import how_to_install

if TYPE_CHECKING:
    import av
    import numpy as np
    from av.container import InputContainer
    from numpy.typing import NDArray

INSTALL_MEDIA = f"{how_to_install('media')}"

_JITTER_SECONDS = 0.1  # time stamps of live recordings wander by less; what is more is a gap
_LONGEST_GAP_SECONDS = (
    3600.0  # where the file does not say how long it is, a longer one is a broken time stamp
)
_MAX_PADDING = 4096  # samples that an encoder adds to fill its last frame, at most
_HONEST_DURATIONS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "asf",
    "avi",
    "flac",
)  # told, not guessed by bit rate


class MediaMissingError(AudioError):
    """The file may need PyAV, which is not installed."""


class UndecodableError(AudioError):
    """FFmpeg makes nothing of the file."""


class _Window:
    """The first `size` bytes of a file, as a recorder may go on writing behind them."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        file.seek(0)

    def read(self, n_bytes: int) -> bytes:
        return self._file.read(max(min(n_bytes, self._size - self._file.tell()), 0))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._size}[whence]
        return self._file.seek(start + offset)

    def tell(self) -> int:
        return self._file.tell()


class MediaDecoder:
    """Decodes one audio stream of a media file.

    The track starts with the file: sound that begins later than the picture is preceded by silence. Gaps in
    the time stamps become silence too.

    Args:
        file: The open file.
        file_size: Bytes to look at.
        stream: Which audio stream, from 0 on; None takes the first and notes the others.
    """

    def __init__(self, file: BinaryIO, file_size: int, stream: int | None) -> None:
        self._file, self._size, self._chosen = file, file_size, stream
        self.sample_rate = 0
        self.n_channels = 0
        self.n_promised = 0
        self.warnings: tuple[str, ...] = ()

    def blocks(self) -> Iterator["NDArray[np.float32]"]:
        """Yield (channel, some time).

        Raises:
            MediaMissingError: When PyAV is not installed.
            AudioError: When nothing can be decoded.
        """
        try:
            import av
        except ImportError:
            raise MediaMissingError(f"needs PyAV to be read: {INSTALL_MEDIA}") from None
        try:
            # No protocol is allowed, so that no file can make the decoder open another file or address.
            options = {"protocol_whitelist": ""}
            with av.open(
                _Window(self._file, self._size), mode="r", options=options, metadata_errors="replace"
            ) as container:
                yield from self._decode(container)
        except av.FFmpegError as error:
            raise UndecodableError(
                f"cannot be decoded: {(error.strerror or 'unknown error').lower()}"
            ) from error

    def _decode(self, container: "InputContainer") -> Iterator["NDArray[np.float32]"]:
        chosen, streams = self._chosen, container.streams.audio
        if not streams:
            raise AudioError("no audio stream")
        listing = "; ".join(f"{n}: {_describe(stream)}" for n, stream in enumerate(streams))
        if not 0 <= (chosen or 0) < len(streams):
            number = "1 audio stream" if len(streams) == 1 else f"{len(streams)} audio streams"
            raise AudioError(
                f"there is no audio stream {chosen}; the file has {number}, counted from 0 ({listing})"
            )
        stream = streams[chosen or 0]
        if stream.codec_context is None:
            raise AudioError(f"unsupported audio codec ({_codec_names(self._file)})")
        tag = stream.codec_context.codec_tag
        if tag in ("drms", "enca"):
            raise AudioError(f"protected audio (DRM): '{tag}', codec {stream.codec_context.name}")
        track = _Track(container, stream)
        for packet in _packets(container, stream, track):
            track.decode(packet)
            if track.samples is not None:
                self.sample_rate, self.n_channels = track.rate, track.samples.n_channels
                self.n_promised = round((track.seconds or 0.0) * track.rate)
                yield from track.samples.take()
        yield from track.finish()
        note = (
            f"the file has {len(streams)} audio streams ({listing}); stream 0 is used, another can be chosen"
        )
        self.warnings = (*((note,) if len(streams) > 1 and chosen is None else ()), *track.warnings)


def _packets(
    container: "InputContainer", stream: "av.AudioStream", track: "_Track"
) -> Iterator["av.Packet[av.AudioStream]"]:
    """Give the packets of a stream up to its end, or to where the file can be followed no further."""
    import av

    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        track.broke_off = True


def _describe(stream: "av.AudioStream") -> str:
    context = stream.codec_context
    if context is None:
        return "unknown codec"
    language = f", {stream.language}" if stream.language not in (None, "und") else ""
    return f"{context.name} {context.sample_rate} Hz {context.layout.name}{language}"


def _codec_names(file: BinaryIO) -> str:
    """Find the names by which a Matroska or MP4 file calls its codecs."""
    file.seek(0)
    data = file.read(2**24)
    matroska = re.findall(rb"\x86([\x80-\xff])(A_[!-~]+)", data)
    mp4 = re.findall(rb"stsd.{12}([ -~]{4})", data, re.DOTALL)
    names = [name[: length[0] & 0x7F] for length, name in matroska] or mp4
    return ", ".join(sorted({name.decode("ascii") for name in names})) or "unknown"


class _Queue:
    """Samples between the decoder and the reader; the last ones wait, as they may turn out to be padding."""

    def __init__(self, n_channels: int, sample_rate: int) -> None:
        check_header(n_channels, sample_rate)
        self.n_channels = n_channels
        self.length = 0
        """Of all that was added."""
        self._waiting: deque[NDArray[np.float32]] = deque()
        self._n_waiting = 0

    def append(self, block: "NDArray[np.float32]") -> None:
        """Add a block (channel, time)."""
        self._waiting.append(block)
        self.length += block.shape[1]
        self._n_waiting += block.shape[1]

    def append_silence(self, n_frames: int) -> None:
        """Add silence where samples are missing, so that everything after it keeps its time."""
        for block in silent_blocks(self.n_channels, n_frames):
            self.append(block)

    def take(self, n_kept: int = _MAX_PADDING) -> "Iterator[NDArray[np.float32]]":
        """Yield blocks as long as so many samples stay behind."""
        while self._waiting and self._n_waiting - self._waiting[0].shape[1] >= n_kept:
            block = self._waiting.popleft()
            self._n_waiting -= block.shape[1]
            yield block

    def cut(self, n_frames: int) -> None:
        """Take away samples at the end, of those that wait."""
        self.length -= n_frames
        self._n_waiting -= n_frames
        while n_frames:
            last = self._waiting.pop()
            if last.shape[1] > n_frames:
                self._waiting.append(last[:, : last.shape[1] - n_frames])
            n_frames -= min(n_frames, last.shape[1])


class _Track:
    """Decodes the packets of one stream, each sample at its time."""

    def __init__(self, container: "InputContainer", stream: "av.AudioStream") -> None:
        context = stream.codec_context
        self.format = container.format.name
        self.stream = stream
        self.zero = None if container.start_time is None else container.start_time / 1e6
        self.seconds = self._promised_seconds(container)
        self.rate = context.sample_rate
        self.samples: _Queue | None = None
        self.resampler: av.AudioResampler | None = None
        self.input_format: tuple[str, str, int] | None = None
        self.packets_end: float | None = None
        self.after_error = False
        self.broke_off = False
        self.damaged: list[float] = []
        self.gaps: list[float] = []
        self.ignored_stamps = 0
        self.warnings: tuple[str, ...] = ()

    def _promised_seconds(self, container: "InputContainer") -> float | None:
        """Seconds from the start of the file to the end of the stream; None where it would be a guess."""
        if self.format not in _HONEST_DURATIONS:
            return None
        stream, zero = self.stream, self.zero or 0.0
        if stream.duration is not None and stream.time_base is not None:
            return float(((stream.start_time or 0) + stream.duration) * stream.time_base) - zero
        told = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if told:
            hours, minutes, seconds = told.groups()
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - zero
        alone = len(container.streams) == 1
        return container.duration / 1e6 if alone and container.duration is not None else None

    def decode(self, packet: "av.Packet[av.AudioStream]") -> None:
        import av

        if packet.pts is not None and packet.duration is not None:
            self.packets_end = float((packet.pts + packet.duration) * packet.time_base)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            self.after_error = True
            self.damaged.append(self._now())
            return
        for frame in frames:
            self._place(frame)
            self._append(frame)
            self.after_error = False

    def _now(self) -> float:
        return self.samples.length / self.rate if self.samples is not None else 0.0

    def _place(self, frame: "av.AudioFrame") -> None:
        """Fill the time between the last sample and this frame with silence."""
        if self.samples is None:
            self.rate = frame.sample_rate
            self.samples = _Queue(frame.layout.nb_channels, self.rate)
        if frame.pts is None or frame.time_base is None:
            return
        start = float(frame.pts * frame.time_base)
        if self.zero is None:
            self.zero = start
        gap = round((start - self.zero) * self.rate) - self.samples.length
        tolerance = frame.samples // 2 if self.after_error else round(_JITTER_SECONDS * self.rate)
        if abs(gap) <= tolerance:
            return
        latest = (
            self._now() + _LONGEST_GAP_SECONDS if self.seconds is None else self.seconds + _JITTER_SECONDS
        )
        if gap < 0 or start - self.zero > latest:
            self.ignored_stamps += 1
            return
        if (
            not self.after_error and self.samples.length > 0
        ):  # sound that sets in after the picture is no fault
            self.gaps.append(self._now())
        self.samples.append_silence(gap)

    def _append(self, frame: "av.AudioFrame") -> None:
        """Add the samples of a frame as float32, in the rate and layout of the first one."""
        import av

        assert self.samples is not None
        input_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if input_format != self.input_format or self.resampler is None:
            layout = frame.layout.name if self.resampler is None else self.resampler.layout.name
            self._flush()
            self.input_format = input_format
            self.resampler = av.AudioResampler(format="fltp", layout=layout, rate=self.rate)
        for converted in self.resampler.resample(frame):
            self.samples.append(cast("NDArray[np.float32]", converted.to_ndarray()))

    def _flush(self) -> None:
        if self.resampler is not None and self.samples is not None:
            for converted in self.resampler.resample(None):
                self.samples.append(cast("NDArray[np.float32]", converted.to_ndarray()))

    def _exact_end(self) -> int | None:
        """Samples without those that fill the last frame; None where the file does not count them."""
        stream = self.stream
        if self.seconds is None or stream.duration is None or stream.time_base is None:
            return None
        if stream.time_base * self.rate > 1:
            return None
        ends = [self.seconds]  # of an edit list, in milliseconds
        if self.packets_end is not None:
            ends.append(self.packets_end - (self.zero or 0.0))
        return round(min(ends) * self.rate)

    def finish(self) -> Iterator["NDArray[np.float32]"]:
        """Yield what is left, without what the encoder added at the end, and say what went wrong."""
        self._flush()
        if self.samples is None:
            why = "; it may be protected (DRM)" if self.damaged else ""
            raise AudioError(f"not one sample could be decoded (codec {self.stream.codec_context.name}){why}")
        warnings = []
        if self.seconds is not None:
            promised = self._exact_end()
            if promised is not None and 0 < self.samples.length - promised <= _MAX_PADDING:
                self.samples.cut(self.samples.length - promised)
            missing = self.seconds - self.samples.length / self.rate
            if missing > _JITTER_SECONDS or (missing > 0 and self.broke_off):
                warnings.append(cut_short(missing, self.seconds))
        if self.broke_off and not warnings:
            warnings.append("the file breaks off: what came before is used")
        if self.damaged:
            warnings.append(damage_warning(self.damaged))
        if self.gaps:
            warnings.append(f"the time stamps leave gaps, filled with silence, {at_times(self.gaps)}")
        if self.ignored_stamps:
            warnings.append(f"{self.ignored_stamps} time stamps make no sense and were ignored")
        self.warnings = tuple(warnings)
        yield from self.samples.take(0)


def cut_short(missing: float, promised: float) -> str:
    """Say how many seconds are missing of those that a header promises."""
    return f"the recording is cut short: the last {missing:.2f} s of {promised:.2f} s are missing"


def damage_warning(times: list[float]) -> str:
    """Say where, in seconds from the start, a recording is damaged."""
    return f"the recording is damaged {at_times(times)}; what could not be read there is silent"


def at_times(times: list[float]) -> str:
    """List times in seconds, the first ten of them, near ones once.

    >>> at_times([0.5, 0.501, 2.0])
    'at 0.50 s, 2.00 s'
    """
    named = list(dict.fromkeys(f"{time:.2f} s" for time in times))
    more = f" and {len(named) - 10} more places" if len(named) > 10 else ""
    return "at " + ", ".join(named[:10]) + more
