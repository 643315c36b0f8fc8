"""What became of each recording, and the manifest of all tracks."""

import csv
import importlib.util
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flasepformer.batch.recordings import Recording
from flasepformer.files import write_whole, written_whole

State = Literal["done", "skipped", "failed", "quarantined", "elsewhere", "cramped", "stopped"]

COLUMNS = ("input", "track", "sha256", "seconds", "confidence", "state", "error")
"""Of a manifest, one row for each track, or for each recording that has none."""


@dataclass(frozen=True)
class Track:
    """One track that is there."""

    place: str
    """Its path or address."""
    sha256: str
    """Of the file."""
    confidence: float | None = None
    """How sure it is that it is one talker, from 0 to 1."""


@dataclass(frozen=True)
class Outcome:
    """What became of one recording."""

    recording: Recording
    state: State
    """"done" now; "skipped", done by an earlier run or another one; "failed", as its outputs are of something
    else; "quarantined", after two tries; "elsewhere", another run works on it; "cramped", it needs more
    memory than it was given, and there is more; "stopped", nothing can be written any more."""
    tracks: tuple[Track, ...] = ()
    seconds: float | None = None
    """Length of the recording and of each track."""
    error: str = ""
    """Why there are no tracks, as a sentence."""
    warnings: tuple[str, ...] = ()
    """What may have gone wrong."""
    lacks_memory: bool = False
    """Whether it failed as there was too little memory."""


def manifest_rows(outcomes: Sequence[Outcome]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the manifest, in the order of the recordings' names."""
    for outcome in sorted(outcomes, key=lambda outcome: outcome.recording.key):
        fixed = {"input": outcome.recording.source, "state": outcome.state, "error": outcome.error}
        if not outcome.tracks:
            yield {**dict.fromkeys(COLUMNS), **fixed}
        for track in outcome.tracks:
            yield {
                **fixed, "track": track.place, "sha256": track.sha256, "seconds": outcome.seconds,
                "confidence": track.confidence,
            }  # fmt: skip


def write_manifest(outcomes: Sequence[Outcome], folder: Path) -> list[Path]:
    """Write `manifest.csv`, and `manifest.parquet` where pyarrow is installed; return what was written."""
    rows = list(manifest_rows(outcomes))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    written = [folder / "manifest.csv"]
    write_whole(written[0], text.getvalue().encode(errors="surrogateescape"))
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow
        from pyarrow import parquet

        kinds = {"seconds": pyarrow.float64(), "confidence": pyarrow.float64()}
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
        sound = [{name: _text(value) for name, value in row.items()} for row in rows]
        written.append(folder / "manifest.parquet")
        with written_whole(written[1]) as path:
            parquet.write_table(pyarrow.Table.from_pylist(sound, schema), path)
    return written


def _text(value: Any) -> Any:
    """Return a value with bytes that are no text replaced, as Parquet has no other."""
    return (
        value.encode(errors="surrogateescape").decode(errors="replace") if isinstance(value, str) else value
    )
