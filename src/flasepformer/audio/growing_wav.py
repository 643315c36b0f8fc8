"""A WAV file that can be played at every moment while it grows, whatever happens to the program."""

import os
import struct
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 80
_LIMIT = 0xFFFFFFFF


class GrowingWav:
    """One track of 32-bit floats; its header is put right after every block, samples first.

    A program that is killed between the two leaves a file that is shorter by that block. Beyond 4 GiB it
    turns into an RF64 file, for which there is room in the header from the beginning.

    Args:
        path: The file, which must not exist.
        sample_rate: In Hz.
        overwrite: Replace the file if it exists.

    Raises:
        FileExistsError: The file exists.
        OSError: It cannot be made.
    """

    def __init__(self, path: str | os.PathLike[str], sample_rate: int, *, overwrite: bool = False) -> None:
        self.path = os.fspath(path)
        self.sample_rate = sample_rate
        self.n_samples = 0
        """Samples that the header says."""
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL)
        self._file = os.fdopen(
            os.open(self.path, flags | getattr(os, "O_BINARY", 0), 0o666), "wb", buffering=0
        )
        self._write_header(0)

    def write(self, samples: NDArray[np.float32]) -> None:
        """Add samples (time,).

        Raises:
            OSError: They cannot all be written, as on a full disk; the file is then what it was before.
        """
        content = memoryview(np.ascontiguousarray(samples, "<f4").tobytes())
        end = _HEADER_BYTES + 4 * self.n_samples
        try:
            self._file.seek(end)
            while content:
                content = content[self._file.write(content) :]
        except BaseException:
            self._file.truncate(end)
            raise
        self._write_header(self.n_samples + len(samples))

    def _write_header(self, n_samples: int) -> None:
        n_bytes = 4 * n_samples
        large = n_bytes + _HEADER_BYTES > _LIMIT
        sizes = (_LIMIT, _LIMIT) if large else (n_bytes + _HEADER_BYTES - 8, n_bytes)
        room = (
            struct.pack("<QQQI", n_bytes + _HEADER_BYTES - 8, n_bytes, n_samples, 0) if large else bytes(28)
        )
        header = struct.pack("<4sI4s4sI", b"RF64" if large else b"RIFF", sizes[0], b"WAVE",
                             b"ds64" if large else b"JUNK", 28) + room  # fmt: skip
        form = struct.pack("<HHIIHH", 3, 1, self.sample_rate, 4 * self.sample_rate, 4, 32)  # 3: floats
        header += struct.pack("<4sI", b"fmt ", 16) + form + struct.pack("<4sI", b"data", sizes[1])
        assert len(header) == _HEADER_BYTES
        self._file.seek(0)
        self._file.write(header)
        self.n_samples = n_samples

    def close(self) -> None:
        """Close the file; it is complete already."""
        self._file.close()

    def __enter__(self) -> "GrowingWav":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
