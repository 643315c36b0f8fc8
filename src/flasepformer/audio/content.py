"""Tell by the first bytes what a file holds, and read the headers that decoders believe too easily."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_FOREIGN = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_TEXT_BYTES = frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100)) | frozenset(b"\t\n\r\f\x1b")
_OPEN_ENDED = (
    2**31,
    2**32,
)  # a program that writes into a pipe puts one of these, or a little less, for "to the end"
_MAX_CHUNKS = 1000  # of a WAV file; a proper one has a dozen


def looks_like(head: bytes) -> str | None:
    """Name what the first bytes of a file show when it is not audio, else None.

    >>> looks_like(b"<!DOCTYPE html><title>Not found</title>")
    'HTML'
    """
    for magic, name in _FOREIGN:
        if head.startswith(magic):
            return name
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML"
    if start.startswith(b"<?xml"):
        return "XML"
    # Playlists are text too: refused here, they never reach a decoder that would fetch what they point to.
    return "plain text" if head and all(byte in _TEXT_BYTES for byte in head) and _is_utf8(head) else None


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # the last character may be cut in two
    return True


def media_kind(head: bytes) -> str | None:
    """Name the container when only PyAV can read it, else None."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
        return "MP4 (m4a, mp4, mov)"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "Matroska (mkv, webm)"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "Windows Media (wma, wmv)"
    if head.startswith(b"FLV"):
        return "Flash video"
    if head[8:12] == b"AVI ":
        return "AVI"
    if head[:1] == b"\xff" and head[1:2] in (b"\xf1", b"\xf9"):
        return "AAC"
    return None


def audio_kind(head: bytes) -> str | None:
    """Name the audio format that the first bytes announce, else None."""
    known = {b"RIFF": "WAV", b"RF64": "WAV", b"RIFX": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF"}
    known |= {b"ID3\x02": "MP3", b"ID3\x03": "MP3", b"ID3\x04": "MP3", b".snd": "AU", b"caff": "CAF"}
    return known.get(head[:4]) or media_kind(head)


@dataclass(frozen=True)
class WavHeader:
    """The part of a WAV header that a fault can make wrong."""

    n_channels: int
    sample_rate: int
    bytes_per_second: int
    data_start: int
    """Offset of the first sample in the file, in bytes."""
    data_size: int
    """Bytes of samples that the header promises."""
    abandoned: bool
    """Whether the recorder died before it filled in the length: 0 by the header, and yet samples follow."""

    def open_ended(self) -> bool:
        """Whether the writer did not know the length, as when it wrote into a pipe."""
        return any(0 <= limit - self.data_size <= 2**16 for limit in _OPEN_ENDED)

    def missing_seconds(self, file_size: int) -> float:
        """Seconds that the header promises and the file lacks."""
        missing = self.data_start + self.data_size - file_size
        return 0.0 if self.open_ended() or missing <= 0 else missing / max(self.bytes_per_second, 1)


def read_wav_header(file: BinaryIO, file_size: int) -> WavHeader | None:
    """Read the header of a WAV or RF64 file, None when the file is something else or has no samples chunk."""
    file.seek(0)
    magic, _, form = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if magic not in (b"RIFF", b"RF64") or form != b"WAVE":
        return None
    long_data_size = 0
    layout = None
    for name, start, size in _chunks(file, 12, file_size):
        file.seek(start)
        if name == b"ds64":
            _, long_data_size = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))
        elif name == b"fmt ":
            layout = struct.unpack("<HHII", file.read(12).ljust(12, b"\0"))
        elif name == b"data" and layout is not None:
            _, n_channels, sample_rate, bytes_per_second = layout
            data_size = long_data_size if magic == b"RF64" and size == 2**32 - 1 else size
            abandoned = data_size == 0 and not _only_chunks(file, start, file_size)
            return WavHeader(n_channels, sample_rate, bytes_per_second, start, data_size, abandoned)
    return None


def _chunks(file: BinaryIO, at: int, file_size: int) -> Iterator[tuple[bytes, int, int]]:
    """Give name, start of the content and size of each chunk, as far as they are properly named."""
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if at + 8 > file_size or len(header) < 8:
            return
        name, size = struct.unpack("<4sI", header)
        if not (name.isascii() and name.decode().isprintable()):
            return
        yield name, at + 8, size
        at += 8 + size + size % 2


def _only_chunks(file: BinaryIO, at: int, file_size: int) -> bool:
    """Whether nothing but whole, properly named chunks follows up to the end of the file."""
    for _, start, size in _chunks(file, at, file_size):
        at = start + size + size % 2
    return at in (file_size, file_size + 1)
