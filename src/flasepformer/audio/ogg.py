"""Walk over the pages of an Ogg file (Vorbis, Opus) and find where some are missing.

The decoders of libsndfile leave out damaged pages and go on, so that everything behind them comes too early.
Each page carries its number, a checksum and the time at which it ends.

Reference: RFC 3533 (Ogg), RFC 7845 section 4 (times in Opus).
"""

import struct
import zlib
from dataclasses import dataclass

from flasepformer.audio.window import Bytes

_HEADER = struct.Struct("<4sBBqIIIB")
_NO_TIME = -1
_LAST_PAGE = 4  # bit of the flags
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class LostSpan:
    """Samples that a decoder left out at one place."""

    start: int
    """The first of them, in the time of the whole recording."""
    n_samples: int


@dataclass(frozen=True)
class Pages:
    """What the pages of an Ogg file tell."""

    spans: tuple[tuple[int, int], ...]
    """First and last sample between the last good page before each fault and the first one behind it."""
    n_samples: int
    """At which the last page ends."""
    ended: bool
    """Whether the last page is marked as the last one."""

    def lost(self, n_decoded: int) -> tuple[LostSpan, ...]:
        """Say what a decoder that gave so many samples for the whole file has left out."""
        missing = max(self.n_samples - n_decoded, 0)
        spanned = sum(end - start for start, end in self.spans)
        share = min(missing / spanned, 1) if spanned > 0 else 0.0
        return tuple(LostSpan(start, round(share * (end - start))) for start, end in self.spans)


def walk_pages(data: Bytes, sample_rate: int) -> Pages:
    """Find the pages that cannot be used.

    Args:
        data: The whole file.
        sample_rate: Hz, of the decoded samples.
    """
    start_time, clock = _clock(data[: 2**10], sample_rate)
    spans: list[tuple[int, int]] = []
    at, time, number, fault, ended = 0, 0, 0, False, False
    while (at := data.find(b"OggS", at)) != -1:
        page = _page(data, at)
        if page is None:
            at, fault = at + 4, True
            continue
        length, flags, page_time, page_number = page
        fault = fault or page_number != number
        if page_time != _NO_TIME:
            end = round(max(page_time - start_time, 0) * sample_rate / clock)
            if fault:
                spans.append((time, end))
            time, fault = end, False
        at, number, ended = at + length, page_number + 1, bool(flags & _LAST_PAGE)
    return Pages(tuple(spans), time, ended)


def _clock(head: bytes, sample_rate: int) -> tuple[int, int]:
    """Time of the first sample, and ticks per second, in which the pages tell their times."""
    at = head.find(b"OpusHead")
    return (int.from_bytes(head[at + 10 : at + 12], "little"), 48_000) if at != -1 else (0, sample_rate)


def _page(data: Bytes, at: int) -> tuple[int, int, int, int] | None:
    """Length, flags, time and number of the page that begins here, None when it is damaged."""
    header = data[at : at + _HEADER.size]
    if len(header) < _HEADER.size:
        return None
    _, _, flags, time, _, number, checksum, n_segments = _HEADER.unpack(header)
    length = _HEADER.size + n_segments + sum(data[at + _HEADER.size : at + _HEADER.size + n_segments])
    page = bytearray(data[at : at + length])
    page[22:26] = bytes(4)
    return (length, flags, time, number) if len(page) == length and _checksum(page) == checksum else None


def _checksum(page: bytes | bytearray) -> int:
    """CRC-32 of Ogg: as in zlib, but from the other end of each byte, and not inverted."""
    crc = zlib.crc32(page.translate(_REVERSED), 2**32 - 1) ^ (2**32 - 1)
    return int(f"{crc:032b}"[::-1], 2)
