"""The plan of an exported set: which graph reads, writes and sums up what, sweep after sweep."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flasepformer.onnx.facts import OnnxError

PLAN_FORMAT = "1"
"""Version of the plan's form."""


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How samples become frames, and windows of samples estimates."""

    hop_length: int
    """Samples from one window to the next."""
    window_length: int
    """Samples in a window."""
    lead: int
    """Samples of the first window that lie before the recording."""
    least: int
    """Samples that a shorter recording is filled up to with zeros."""
    beyond: int
    """A recording of n samples has 1 + (max(n, least) + beyond) // hop_length frames."""
    mirrored: bool
    """Whether the samples around the recording are the recording mirrored at its ends, or zeros."""
    step: int
    """Frames that the network takes a multiple of."""
    normalizes: bool
    """Whether the mixture is divided by its level, and the estimates are multiplied by it."""
    squared_window: tuple[float, ...] | None
    """What overlapping windows weigh, where they do."""
    smallest_overlap: float
    """Least sum of these weights that samples are divided by."""

    def n_frames(self, n_samples: int) -> int:
        """Return the frames of a recording."""
        return 1 + (max(n_samples, self.least) + self.beyond) // self.hop_length


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a sequence of frames takes."""

    rate: int
    """Frames in a step."""
    shape: tuple[int, ...]
    """(sequences, ...) of a frame."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One sweep over the recording."""

    graph: str
    """Name of the graph; its inputs are a piece of everything read, the summaries, `first` and `last`."""
    reads: tuple[int | None, ...]
    """Rooms, in the order of the inputs; None for the samples under the windows."""
    given: tuple[int, ...]
    """Sweeps whose summaries are inputs: two tensors each."""
    rate: int
    """Frames in a step, of the result."""
    unit: int
    """The same at the coarsest resolution in the sweep: pieces begin and end with such frames."""
    halo: int
    """Neighbours on either side that a piece is read with, in such frames."""
    filled: bool
    """Whether the result has whole steps; else as many frames as the analysis."""
    windows_filled: bool
    """Whether windows are read for whole steps."""
    writes: int | None
    """Room that the result is kept in, which may be one that is read; None where it is not kept."""
    sums: str
    """"means", "moments" or "": what is summed up of the result."""
    numbers: int
    """Numbers in a frame of the result, of one sequence."""
    frees: tuple[int, ...]
    """Rooms that nobody reads afterwards."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the runner of an exported set has to know beside its graphs."""

    framing: Framing
    piece_length: int
    """Frames in a piece that suit a processor's cache."""
    rooms: tuple[Room, ...]
    sweeps: tuple[Sweep, ...]
    """The last one gives overlapping windows, added up."""

    def to_json(self, metadata: Mapping[str, str]) -> str:
        """Return it as text, with the metadata of an exported file."""
        return json.dumps({"format": PLAN_FORMAT, "metadata": dict(metadata), **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, name: object) -> "tuple[Plan, dict[str, str]]":
        """Read a plan and its metadata.

        Raises:
            OnnxError: If it is none, or of a later form.
        """
        try:
            read: dict[str, Any] = json.loads(text)
            if read.pop("format") != PLAN_FORMAT:
                raise OnnxError(f"{name}: its plan is of another version; export it again")
            metadata = read.pop("metadata")
            framing = read["framing"]
            window = framing.pop("squared_window")
            return cls(
                framing=Framing(**framing, squared_window=None if window is None else tuple(window)),
                piece_length=read["piece_length"],
                rooms=tuple(Room(rate=room["rate"], shape=tuple(room["shape"])) for room in read["rooms"]),
                sweeps=tuple(Sweep(**_with_tuples(sweep)) for sweep in read["sweeps"]),
            ), metadata
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, OnnxError):
                raise
            raise OnnxError(f"{name}: its plan is damaged ({error!r}); export it again") from error


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
