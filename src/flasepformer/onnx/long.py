"""Run exported sets: recordings of hours in bounded memory, with the numbers of the whole."""

import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from math import prod
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flasepformer.errors import InputError
from flasepformer.files.scratch import spill_folder
from flasepformer.onnx.facts import ExportedFacts, OnnxError, session_of
from flasepformer.onnx.plan import Framing, Plan, Room, Sweep
from flasepformer.onnx.running import TracksOfWaveforms

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from flasepformer.audio import StoredSignals

Array = NDArray[np.float32]
Summary = tuple[NDArray[np.float64], NDArray[np.float64]]

PLAN, LEVEL = "plan.json", "level.onnx"
"""What an exported set has beside the graphs of its sweeps."""

MEMORY_BYTES = 1 << 28
"""Memory for frames between two sweeps; what does not fit goes to temporary files."""

SAMPLES_AT_ONCE = 1 << 20
"""Samples that are read at a time to measure the level of a recording."""


class Samples(Protocol):
    """A recording that is read when it is needed, several times over."""

    n_samples: int

    def read(self, first: int, last: int) -> Array:
        """Return (1, last - first); both within the recording."""


class ArraySamples:
    """A recording in memory (time,)."""

    def __init__(self, mixture: Array) -> None:
        self.mixture, self.n_samples = mixture[None], len(mixture)

    def read(self, first: int, last: int) -> Array:
        return self.mixture[:, first:last]


class ExportedSet(TracksOfWaveforms):
    """A network that was exported for long recordings.

    A recording is gone through several times, piece by piece. What the network knows of all of it, the sums
    of its attention and normalisations, is added up on the way, so that the numbers are those of the whole.

    Args:
        path: The set, a zip file.
        memory_bytes: Memory for frames between two sweeps; what does not fit goes to temporary files.
        folder: Where they lie; by default in TMPDIR.
        piece_length: Frames that are computed at a time; by default what suits a processor's cache.
        n_threads: Threads for one operation; by default onnxruntime's choice.

    Raises:
        OnnxError: If the file is no such set.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        memory_bytes: int = MEMORY_BYTES,
        folder: str | PathLike[str] | None = None,
        piece_length: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.memory_bytes, self.folder, self.n_threads = memory_bytes, folder or spill_folder(), n_threads
        self.plan, metadata = Plan.from_json(self._content(PLAN), self.path)
        self.piece_length = piece_length or self.plan.piece_length
        self.facts = ExportedFacts.from_metadata(metadata, self.path)
        self.sample_rate, self.n_sources = self.facts.sample_rate, self.facts.n_sources

    def _content(self, name: str) -> bytes:
        if not self.path.is_file():
            raise OnnxError(f"{self.path}: there is no such file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(name)
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise OnnxError(f"{self.path}: expected a set that `flasepformer export --long` wrote") from error

    def session(self, name: str) -> "InferenceSession":
        """Load one graph of the set."""
        return session_of(self._content(name), f"{self.path}: {name}", self.n_threads)

    def separate(self, mixture: NDArray[np.floating]) -> Array:
        """Separate a mixture (time,) in memory: (source, time).

        The scale of an estimate means nothing; see `tracks`.

        Raises:
            InputError: If it is something else, empty, or has samples that are no numbers.
        """
        if mixture.ndim != 1 or not mixture.size or mixture.dtype.kind != "f":
            raise InputError(
                "mixture must be floating point (time,) with at least one sample, "
                f"got {mixture.shape} of {mixture.dtype}"
            )
        if not np.isfinite(mixture).all():
            raise InputError("mixture has samples that are not finite numbers")
        samples = ArraySamples(np.ascontiguousarray(mixture, dtype=np.float32))
        return np.concatenate(list(self.estimates(samples)), axis=-1)

    def estimates(self, samples: Samples, progress: Callable[[float], None] | None = None) -> Iterator[Array]:
        """Separate a recording of any length.

        Args:
            samples: The recording, at `sample_rate`.
            progress: Told the share that is done, from 0 to 1, after every piece.

        Yields:
            The next estimates (source, some time), one after the other.
        """
        framing, n_samples = self.plan.framing, samples.n_samples
        level = self._level(samples) if framing.normalizes else np.float32(1)
        adder, n_lead, n_left = _OverlapAdd(framing), framing.lead, n_samples
        for added, n_windows, is_last in _Run(self, samples, level, progress).pieces():
            done = adder.push(added, n_windows, is_last)[:, n_lead:]
            n_lead = max(n_lead - n_windows * framing.hop_length, 0)
            done = done[:, :n_left] * level
            n_left -= done.shape[1]
            yield done
        if n_left:
            yield np.zeros((self.n_sources, n_left), np.float32)

    def _level(self, samples: Samples) -> np.float32:
        total: tuple[float, float, float] = (0, 0.0, 0.0)
        peak = 0.0
        for first in range(0, samples.n_samples, SAMPLES_AT_ONCE):
            some = samples.read(first, min(first + SAMPLES_AT_ONCE, samples.n_samples)).astype(np.float64)
            total = _merged(total, (some.size, some.mean(), some.var() * some.size))
            peak = max(peak, float(np.abs(some).max()))
        numbers = {"mean": total[1], "squares": total[2], "peak": peak}
        inputs = {name: np.array([value], np.float32) for name, value in numbers.items()}
        session = self.session(LEVEL)
        inputs["count"] = np.array(samples.n_samples, np.int64)
        known = {given.name for given in session.get_inputs()}
        (level,) = session.run(None, {name: value for name, value in inputs.items() if name in known})
        return level[0]


class _Run:
    """One recording on its way through the sweeps."""

    def __init__(
        self,
        exported: ExportedSet,
        samples: Samples,
        level: np.float32,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.exported, self.samples, self.progress = exported, samples, progress
        self.plan, self.framing = exported.plan, exported.plan.framing
        self.divisor = level if level > 0 else np.float32(1)
        self.n_frames = self.framing.n_frames(samples.n_samples)
        self.n_steps = -(-self.n_frames // self.framing.step)
        self.stored: dict[int, StoredSignals] = {}
        self.summaries: list[Summary | None] = []
        self.n_done, self.n_bytes = 0, 0
        self.n_all = sum(self._length(sweep) for sweep in self.plan.sweeps)

    def pieces(self) -> Iterator[tuple[Array, int, bool]]:
        """Play all sweeps; yield samples, of how many windows they are, and whether they are the last."""
        *sweeps, last = self.plan.sweeps
        for sweep in sweeps:
            self._play(sweep)
        for first, end, (added,) in self._swept(last):
            yield added, end - first, end == self._length(last)

    def _length(self, sweep: Sweep) -> int:
        """Return the frames of a sweep's result."""
        return self.n_steps * sweep.rate if sweep.filled else self.n_frames

    def _play(self, sweep: Sweep) -> None:
        """Store and sum up."""
        waiting: deque[tuple[int, Array]] = deque()
        n_waiting = 1 + sweep.halo * (sweep.rate // sweep.unit) // self._piece(sweep)
        total: Any = None
        for first, end, results in self._swept(sweep):
            if sweep.writes is not None:
                frames, *results = results
                waiting.append((first, frames))
                if len(waiting) > n_waiting:  # the others' neighbours may be still to be read in their place
                    self._write(sweep.writes, *waiting.popleft())
            if sweep.sums:
                one, other = (part.astype(np.float64) for part in results)
                if sweep.sums == "means":
                    part = (end - first, one, other)
                    total = part if total is None else tuple(a + b for a, b in zip(total, part, strict=True))
                else:
                    count = (end - first) * sweep.numbers
                    total = _merged(total or (0, 0.0, 0.0), (count, one, other))
        for piece in waiting:
            assert sweep.writes is not None
            self._write(sweep.writes, *piece)
        for room in sweep.frees:
            self.n_bytes -= _n_bytes(self.plan.rooms[room], self.n_steps)
            del self.stored[room]
        self.summaries.append(self._summary(sweep, total))

    def _summary(self, sweep: Sweep, total: Any) -> Summary | None:
        if not sweep.sums:
            return None
        count, one, other = total
        return (one / count if sweep.sums == "means" else one), other / count

    def _swept(self, sweep: Sweep) -> Iterator[tuple[int, int, list[Array]]]:
        """Yield the first and the last frame of every piece, and what the graph makes of it."""
        session = self.exported.session(sweep.graph)
        given: dict[str, Array] = {}
        for number in sweep.given:
            summary = self.summaries[number]
            assert summary is not None
            given |= {f"given{number}.{i}": part.astype(np.float32) for i, part in enumerate(summary)}
        length, n_per_unit, n_frames = self._piece(sweep), sweep.rate // sweep.unit, self._length(sweep)
        n_units = self.n_steps * sweep.unit
        for first in range(0, n_frames, length):
            end = min(first + length, n_frames)
            begin = max(first // n_per_unit - sweep.halo, 0)
            stop = min(-(-end // n_per_unit) + sweep.halo, n_units)
            inputs: dict[str, Any] = {
                f"frames{i}": self._read(room, begin, stop, sweep) for i, room in enumerate(sweep.reads)
            }
            inputs["first"] = np.array(first - begin * n_per_unit, np.int64)
            inputs["last"] = np.array(end - begin * n_per_unit, np.int64)
            yield first, end, session.run(None, {**inputs, **given})
            self.n_done += end - first
            if self.progress is not None:
                self.progress(self.n_done / self.n_all)

    def _piece(self, sweep: Sweep) -> int:
        n_per_unit = sweep.rate // sweep.unit
        return -(-self.exported.piece_length // n_per_unit) * n_per_unit

    def _read(self, room: int | None, begin: int, stop: int, sweep: Sweep) -> Array:
        """Read what lies under some frames of the coarsest resolution in a sweep."""
        rate = self.framing.step if room is None else self.plan.rooms[room].rate
        first, last = begin * rate // sweep.unit, stop * rate // sweep.unit
        if room is None:
            last = last if sweep.windows_filled else min(last, self.n_frames)
            hop, lead = self.framing.hop_length, self.framing.lead
            end = (last - 1) * hop + self.framing.window_length - lead
            return self._around(first * hop - lead, end) / self.divisor
        shape = self.plan.rooms[room].shape
        n = prod(shape[1:])
        return self.stored[room].read(first * n, last * n).reshape(shape[0], last - first, *shape[1:])

    def _around(self, first: int, last: int) -> Array:
        """Read samples, also beyond the recording's ends."""
        n = (
            max(self.samples.n_samples, self.framing.least)
            if self.framing.mirrored
            else self.samples.n_samples
        )
        middle = self._padded(max(first, 0), min(last, n))
        if not self.framing.mirrored:
            return np.pad(middle, ((0, 0), (max(-first, 0), max(last - max(n, first), 0))))[:, : last - first]
        before = self._padded(1 - min(last, 0), 1 - first)[:, ::-1] if first < 0 else middle[:, :0]
        after = (
            self._padded(2 * n - 1 - last, 2 * n - 1 - max(first, n))[:, ::-1] if last > n else middle[:, :0]
        )
        return np.concatenate([before, middle, after], axis=1)

    def _padded(self, first: int, last: int) -> Array:
        """Read samples from one of the recording on, with zeros after it."""
        end = min(last, self.samples.n_samples)
        read = self.samples.read(first, end) if end > first else np.zeros((1, 0), np.float32)
        return np.pad(read, ((0, 0), (0, max(last - first, 0) - read.shape[1])))

    def _write(self, number: int, first: int, frames: Array) -> None:
        room = self.plan.rooms[number]
        n = prod(room.shape[1:])
        if number not in self.stored:
            from flasepformer.audio import StoredSignals  # here, since the room needs soundfile and soxr

            size = _n_bytes(room, self.n_steps)
            in_memory = self.n_bytes + size <= self.exported.memory_bytes
            self.n_bytes += size
            folder = None if in_memory else self.exported.folder
            self.stored[number] = StoredSignals(room.shape[0], self.n_steps * room.rate * n, folder)
        self.stored[number].write(first * n, frames.reshape(room.shape[0], -1))


def _n_bytes(room: Room, n_steps: int) -> int:
    return 4 * prod(room.shape) * n_steps * room.rate


def _merged(one: tuple[float, Any, Any], other: tuple[float, Any, Any]) -> tuple[float, Any, Any]:
    """Merge counts, means and sums of squared distances from the mean (Chan et al., 1979)."""
    count = one[0] + other[0]
    difference, share = other[1] - one[1], other[0] / count
    return count, one[1] + difference * share, one[2] + other[2] + difference**2 * (one[0] * share)


class _OverlapAdd:
    """Adds up pieces of overlapping windows, and gives away the samples that are complete."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.tails: list[Array] = []

    def push(self, added: Array, n_windows: int, last: bool) -> Array:
        """Take what the next windows add up to (source, samples); return what is complete."""
        rows = [added]
        if self.framing.squared_window is not None:
            rows.append(self._weights(n_windows)[None])
        n_done = added.shape[1] if last else n_windows * self.framing.hop_length
        done = []
        for i, row in enumerate(rows):
            if self.tails:
                row[:, : self.tails[i].shape[1]] += self.tails[i]
            done.append(row[:, :n_done])
        self.tails = [row[:, n_done:].copy() for row in rows]
        if len(done) == 1:
            return done[0]
        weights = np.maximum(done[1], np.float32(self.framing.smallest_overlap))
        return np.divide(done[0], weights, dtype=np.float32)

    def _weights(self, n_windows: int) -> Array:
        """Return what the squares of so many windows add up to."""
        window = np.array(self.framing.squared_window, np.float32)
        weights = np.zeros((n_windows - 1) * self.framing.hop_length + len(window), np.float32)
        for i in range(n_windows):
            begin = i * self.framing.hop_length
            weights[begin : begin + len(window)] += window
        return weights
