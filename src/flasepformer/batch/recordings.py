"""What there is to do: recordings with a place for their tracks, longest first, also from lists."""

import csv
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flasepformer.errors import InputError
from flasepformer.installing import how_to_install

LIST_COLUMNS = ("input", "path", "audio", "mixture")
"""Names, the first that there is, of the column that names the recordings of a list."""

_LEAST_BYTE_RATE = 500.0  # of speech in any codec; what a header says beyond that is not believed
_USUAL_BYTE_RATE = 32000.0


@dataclass(frozen=True)
class Recording:
    """One recording to separate."""

    source: str
    """A path or an address in a bucket."""
    folder: str
    """Where its tracks go, relative to the folder or bucket of all tracks; "" for that itself."""
    name: str
    """How their names begin."""
    seconds: float = 0.0
    """About how long it is: by its header, or its size."""

    @property
    def key(self) -> str:
        """What no other recording of the run has."""
        return f"{self.folder}/{self.name}"


def longest_first(recordings: Sequence[Recording]) -> list[Recording]:
    """Return recordings in the order of work: nobody waits for a long one that began last."""
    return sorted(recordings, key=lambda recording: (-recording.seconds, recording.key))


def estimate_seconds(path: str | Path) -> float:
    """Return about how long a recording is, without decoding it; 0 for what cannot be opened."""
    import soundfile

    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0.0
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for its writer
        return 0.0
    try:
        return min(float(soundfile.info(str(path)).duration), status.st_size / _LEAST_BYTE_RATE)
    except (RuntimeError, OSError, UnicodeError):
        return status.st_size / _USUAL_BYTE_RATE


def is_list(path: str | Path) -> bool:
    """Tell a list of recordings from a recording, by its name."""
    return Path(path).suffix.lower() in (".csv", ".parquet")


def read_list(path: str | Path) -> list[str]:
    """Return the recordings that a CSV or Parquet file lists; relative paths are relative to its folder.

    Raises:
        InputError: It has no column that names recordings, or a row without a name.
        OSError: It cannot be read.
    """
    path = Path(path)
    rows = list(_parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path))
    if not rows:
        return []
    column = next((name for name in LIST_COLUMNS if name in rows[0]), None)
    if column is None:
        raise InputError(
            f"{path}: a list of recordings needs a column {' or '.join(LIST_COLUMNS)}, "
            f"got {', '.join(rows[0])}"
        )
    for number, row in enumerate(rows, 2):
        if not row.get(column):
            raise InputError(f"{path}: row {number} names no recording in its column {column}")
    names = (str(row[column]) for row in rows)
    return [name if "://" in name else os.path.join(path.parent, name) for name in names]


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow: {how_to_install('parquet')}") from error
    yield from parquet.read_table(path).to_pylist()
