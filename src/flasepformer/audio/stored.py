"""Samples that are written once and read several times: in memory, or in a temporary file."""

import os
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from flasepformer.files.scratch import scratch_file

_SAMPLE_BYTES = 4


class StoredSignals:
    """Room for signals of one length, float32, all zero at first.

    Args:
        n_signals: How many.
        n_samples: Of each.
        folder: Where the temporary file goes, which has no name and goes with its process; None keeps the
            signals in memory.

    Raises:
        OSError: The disk has no room.
    """

    def __init__(self, n_signals: int, n_samples: int, folder: str | os.PathLike[str] | None = None) -> None:
        self.n_signals, self.n_samples = n_signals, n_samples
        self._samples: NDArray[np.float32] | None = None
        self._file: BinaryIO | None = None
        self._lock = Lock()  # several threads read at a time
        if folder is None:
            self._samples = np.zeros((n_signals, n_samples), np.float32)
            return
        size = n_signals * n_samples * _SAMPLE_BYTES
        self._file = scratch_file(size, folder)

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Return the samples (signal, last - first), not to be changed in place."""
        if self._samples is not None:
            return self._samples[:, first:last]
        samples = np.empty((self.n_signals, last - first), np.float32)
        for index, signal in enumerate(samples):
            view = memoryview(signal.data).cast("B")
            with self._lock:
                file, n_read = self._moved(index, first), 0
                while n_read < len(view):
                    n_more = file.readinto(view[n_read:])  # type: ignore[attr-defined]
                    if not n_more:
                        raise OSError("the temporary file has lost its end")
                    n_read += n_more
        return samples

    def write(self, first: int, samples: NDArray[np.float32]) -> None:
        """Set the samples from `first` on to `samples` (signal, some time)."""
        if self._samples is not None:
            self._samples[:, first : first + samples.shape[1]] = samples
            return
        for index, signal in enumerate(samples):
            view = memoryview(np.ascontiguousarray(signal, np.float32).data).cast("B")
            with self._lock:
                file = self._moved(index, first)
                while len(view):
                    view = view[file.write(view) :]

    def _moved(self, index: int, first: int) -> BinaryIO:
        assert self._file is not None
        self._file.seek((index * self.n_samples + first) * _SAMPLE_BYTES)
        return self._file
