"""What was done to one file, for a person and for the next run."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flasepformer


@dataclass(frozen=True, kw_only=True)
class SeparationReport:
    """What was done to one file; written as JSON beside its tracks."""

    input: str
    """The recording, as it was named."""
    content: dict[str, Any]
    """Of the recording: its size in "bytes" and its "sha256"."""
    origin: dict[str, str]
    """Where it was fetched from, and what changes there when it does; empty where it was at hand."""
    tracks: tuple[Path, ...]
    """One file per talker."""
    files: tuple[Path, ...]
    """Others beside them, such as labels."""
    seconds: float
    """Length of the recording and of every track."""
    sample_rate: int
    """Of the tracks, in Hz."""
    model: dict[str, Any]
    """Name, licence, sample rate and talkers of the model, and "weights_sha256", a digest of its weights."""
    options: dict[str, Any]
    """What decides the tracks, of `RunOptions` and `FileOptions`."""
    device: str
    """Where the model ran."""
    real_time_factor: float
    """Time of the separation over the length of the recording; reading and writing files not counted."""
    total_real_time_factor: float
    """The same with reading, resampling and writing."""
    mode: str
    """"whole": the model heard all of the recording at once; "chunks"; "channels": it was not needed, as each
    channel had its talker; "silence": nor here."""
    memory_bytes: int | None
    """Estimate of the most memory at a time, beside the program and the model; None where nobody knows."""
    disk_bytes: int
    """Estimate of the room in temporary files."""
    n_joins: int
    """Joins of two chunks."""
    doubtful_joins: tuple[dict[str, float], ...]
    """Those at which two talkers may have changed tracks: "seconds" into the recording, and the "margin" with
    which their tracks agree better than with two of them swapped."""
    confidence: dict[str, Any] | None
    """How sure it is that each track is one talker, see `Confidence.as_dict`; None without a model."""
    conversation: dict[str, Any]
    """Who spoke how long, and what is doubtful, where that was asked for; see `flasepformer.conversation`."""
    gain: float
    """Gain of all tracks against the mixture: 1, or less where a format would have clipped."""
    warnings: tuple[str, ...]
    """What may have gone wrong, in sentences."""
    notes: tuple[str, ...]
    """What was done that nobody asked for, in sentences."""

    def write(self, path: Path) -> None:
        """Write the report as JSON, safely on disk when this returns; tracks appear by their names alone."""
        content = {
            "flasepformer": flasepformer.__version__,
            **asdict(self),
            "tracks": [track.name for track in self.tracks],
            "files": [file.name for file in self.files],
        }
        with path.open("w", encoding="ascii") as file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
