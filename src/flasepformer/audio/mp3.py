"""Walk over the frames of an MP3 file and find where some are missing.

The decoder of libsndfile leaves out what it cannot read, so that everything behind it comes too early, or it
gives up. Only the headers of the frames tell; damage inside a frame cannot be seen.

Reference: ISO/IEC 11172-3, section 2.4.1 (frame header); ISO/IEC 13818-3 for the lower sample rates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flasepformer.audio.window import WINDOW, Bytes

_KBITS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44_100, 48_000, 32_000)
_RATE_DIVISOR = {3: 1, 2: 2, 0: 4}  # by version bits: MPEG 1, 2 and 2.5


@dataclass(frozen=True)
class Mp3Stream:
    """What the headers of an MP3 file tell."""

    parts: tuple[slice | bytes, ...]
    """Of the file, with silent frames in place of the lost ones, so that what follows keeps its time; nothing
    if none are lost."""
    lost: tuple[int, ...]
    """Samples, in the time of the decoded recording, at which frames are lost."""
    tells_length: bool
    """Whether the file says how many frames it has (Xing or Info header)."""

    def repaired(self, data: Bytes) -> Iterator[bytes]:
        """Yield the repaired file piece by piece, given what was looked at."""
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
                continue
            for start in range(part.start, part.stop, WINDOW):
                yield data[start : min(start + WINDOW, part.stop)]


@dataclass
class _Hole:
    start: int
    """In bytes."""
    end: int
    n_frames_before: int
    """Frames found before it."""


def repair(data: Bytes) -> Mp3Stream:
    """Find the places at which the frames break off and go on later, and bridge them with silence."""
    at = _find_frame(data, _end_of_tag(data, 0), None)
    if at is None:
        return Mp3Stream((), (), False)
    first = data[at : at + 4]
    xing = _read_xing(data[at : at + 192].ljust(192, b"\0"), first)
    n_frames, n_bytes = 0, 0
    holes: list[_Hole] = []
    while at < len(data):
        length = _frame_length(data[at : at + 4], first)
        if length is not None:
            n_frames, n_bytes, at = n_frames + 1, n_bytes + length, at + length
        elif (after_tag := _end_of_tag(data, at)) > at:
            at = after_tag
        elif (found := _find_frame(data, at + 1, first)) is not None:
            holes.append(_Hole(at, found, n_frames))
            at = found
        else:
            break  # tags at the end, or the rest of a frame that was cut
    if not holes:
        return Mp3Stream((), (), xing is not None)
    hole_bytes = sum(hole.end - hole.start for hole in holes)
    n_missing = hole_bytes * n_frames / n_bytes  # by the mean length of a frame
    if xing is not None and len(holes) <= xing.n_frames - n_frames <= 2 * n_missing + 1:
        n_missing = xing.n_frames - n_frames  # else the end is missing too
    n_leading = 0 if xing is None else xing.n_leading
    parts: list[slice | bytes] = []
    lost, n_copied, n_added = [], 0, 0
    for hole in holes:
        n_lost = max(1, round(n_missing * (hole.end - hole.start) / hole_bytes))
        parts += [slice(n_copied, hole.start), n_lost * _silent_frame(first)]
        lost.append(max((hole.n_frames_before + n_added) * _frame_samples(first) - n_leading, 0))
        n_copied, n_added = hole.end, n_added + n_lost
    return Mp3Stream((*parts, slice(n_copied, len(data))), tuple(lost), xing is not None)


def _silent_frame(header: bytes) -> bytes:
    """Give a frame like that of the header, less its checksum, with nothing in it."""
    length = _frame_length(header, None)
    assert length is not None
    return bytes([header[0], header[1] | 1, *header[2:]]).ljust(length, b"\0")


@dataclass(frozen=True)
class _Xing:
    n_frames: int
    """In the file, with the one that holds this header."""
    n_leading: int
    """Samples that the decoder leaves out from this frame on: the frame itself, the encoder's delay that LAME
    wrote into it, and the 529 samples by which the decoder is late."""


def _read_xing(frame: bytes, header: bytes) -> _Xing | None:
    """Read the Xing or Info header with the number of frames, None when this frame has none."""
    at = max(frame.find(b"Xing", 0, 64), frame.find(b"Info", 0, 64))
    if at == -1 or not frame[at + 7] & 1:
        return None
    n_frames = int.from_bytes(frame[at + 8 : at + 12], "big") + 1
    at += 8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if frame[at + 7] & bit)
    delay = int.from_bytes(frame[at + 21 : at + 23], "big") >> 4
    return _Xing(n_frames, _frame_samples(header) + (delay + 529 if delay else 0))


def _find_frame(data: Bytes, start: int, first: bytes | None) -> int | None:
    """Position of the next header that another one follows, as chance alone would not have it."""
    at = data.find(b"\xff", start)
    while at != -1:
        header = data[at : at + 4]
        length = _frame_length(header, first)
        if length is not None:
            following = data[at + length : at + length + 4]
            if len(following) < 4 or _frame_length(following, header) is not None:
                return at
        at = data.find(b"\xff", at + 1)
    return None


def _frame_length(header: bytes, first: bytes | None) -> int | None:
    """Bytes from this header of a layer III frame to the next one, None when it is no such header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    if first is not None and ((header[1] ^ first[1]) & 0xFE or (header[2] ^ first[2]) & 0x0C):
        return None  # version, layer and sample rate never change within a stream
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return None
    bits_per_second = 1000 * (_KBITS_MPEG1 if version == 3 else _KBITS_MPEG2)[kbits]
    padding = header[2] >> 1 & 1
    return _frame_samples(header) // 8 * bits_per_second * _RATE_DIVISOR[version] // _RATES[rate] + padding


def _frame_samples(header: bytes) -> int:
    return 1152 if header[1] >> 3 & 3 == 3 else 576


def _end_of_tag(data: Bytes, at: int) -> int:
    """Position behind an ID3v2 tag that begins here, else the same position."""
    header = data[at : at + 10]
    if len(header) < 10 or not header.startswith(b"ID3"):
        return at
    size = 0
    for byte in header[6:10]:  # seven bits each
        size = size << 7 | byte & 0x7F
    return at + 10 + size
