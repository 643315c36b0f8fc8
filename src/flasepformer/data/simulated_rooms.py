"""Rooms that are simulated with image sources, for mixtures whose dry sources are known."""

import hashlib
import io
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from flasepformer.data.acoustics import RoomResponse
from flasepformer.files import write_whole
from flasepformer.installing import how_to_install

_FORMAT = 1  # part of the cache key: raise it when rooms are drawn or stored otherwise
_N_ROOMS = 100  # drawn before the decay asked for is held to be impossible


@dataclass(frozen=True)
class SimulatedRoom:
    """A shoebox room with one microphone; all lengths in metres."""

    size: tuple[float, float, float]
    microphone: tuple[float, float, float]
    talkers: tuple[tuple[float, float, float], ...]
    decay_seconds: float
    """Time in which reverberation falls by 60 dB."""

    def responses(self, sample_rate: int) -> list[tuple[RoomResponse, RoomResponse]]:
        """Return for each talker the direct path alone, and the whole response, in line with each other."""
        pra = load_pyroomacoustics()
        absorption, max_order = pra.inverse_sabine(self.decay_seconds, self.size)
        direct, whole = (
            self._simulate(pra, sample_rate, absorption, order) for order in (0, max_order)
        )  # fmt: skip
        pairs = []
        for path, response in zip(direct, whole, strict=True):
            arrival = int(np.abs(path).argmax())
            level = np.linalg.norm(path)  # so a talker keeps its level, near or far
            pairs.append(
                (
                    RoomResponse((path / level).astype(np.float32), arrival),
                    RoomResponse((response / level).astype(np.float32), arrival),
                )
            )
        return pairs

    def _simulate(
        self, pra: Any, sample_rate: int, absorption: float, max_order: int
    ) -> list[NDArray[np.float64]]:
        room = pra.ShoeBox(self.size, fs=sample_rate, materials=pra.Material(absorption), max_order=max_order)
        room.add_microphone(self.microphone)
        for talker in self.talkers:
            room.add_source(talker)
        room.compute_rir()
        return list(room.rir[0])


def draw_room(rng: np.random.Generator, n_talkers: int, decay_seconds: tuple[float, float]) -> SimulatedRoom:
    """Draw a room as those of WHAMR!: a microphone near the middle, talkers around it.

    The room measures 5 to 10 m by 5 to 10 m by 3 to 4 m; heads and microphone are 0.9 to 1.8 m high; each
    talker is 0.66 to 2 m away.

    Args:
        rng: Draws everything.
        n_talkers: How many there are.
        decay_seconds: Range of the time in which reverberation falls by 60 dB.

    Raises:
        ValueError: No room of that size decays so fast.
    """
    pra = load_pyroomacoustics()
    for _ in range(_N_ROOMS):
        size = rng.uniform((5, 5, 3), (10, 10, 4))
        decay = float(rng.uniform(*decay_seconds))
        try:
            pra.inverse_sabine(decay, size)
        except ValueError:  # needs more absorption than there can be
            continue
        middle = np.array([*(size[:2] / 2 + rng.uniform(-0.2, 0.2, 2)), rng.uniform(0.9, 1.8)])
        distance, angle = rng.uniform(0.66, 2.0, n_talkers), rng.uniform(0, 2 * np.pi, n_talkers)
        height = rng.uniform(0.9, 1.8, n_talkers)
        talkers = np.stack(
            [middle[0] + distance * np.cos(angle), middle[1] + distance * np.sin(angle), height], axis=1
        )
        return SimulatedRoom(
            size=_point(size),
            microphone=_point(middle),
            talkers=tuple(map(_point, talkers)),
            decay_seconds=decay,
        )
    raise ValueError(
        f"no room of 5 to 10 m decays in {decay_seconds[0]} to {decay_seconds[1]} s; take 0.2 s or more"
    )


def simulate_rooms(
    n_rooms: int,
    n_talkers: int,
    decay_seconds: tuple[float, float],
    sample_rate: int,
    *,
    seed: int,
    cache: str | Path | None = None,
) -> list[list[RoomResponse]]:
    """Draw rooms with `draw_room` and return the responses of the talkers in each.

    Args:
        n_rooms: Number of rooms.
        n_talkers: Talkers, and so responses, in each.
        decay_seconds: As in `draw_room`.
        sample_rate: Of the responses, Hz.
        seed: Another seed, other rooms.
        cache: Folder that keeps the responses for the next call of the same kind.

    Raises:
        ValueError: No room decays so fast.
        ImportError: The extra "data" is missing.
    """
    wanted = (n_rooms, n_talkers, *decay_seconds, sample_rate, seed, version("pyroomacoustics"), _FORMAT)
    kept = cache and Path(cache) / f"rooms-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:16]}.npz"
    if kept and kept.is_file():
        return _read_rooms(kept, n_talkers)
    rng = np.random.default_rng([seed, n_rooms])
    rooms = (draw_room(rng, n_talkers, decay_seconds) for _ in range(n_rooms))
    if not sys.stderr.isatty():  # where there is no bar, half a minute of silence has a reason, too
        print(f"simulating {n_rooms} rooms", file=sys.stderr, flush=True)
    bar = tqdm(rooms, total=n_rooms, desc="simulating rooms", unit="room", disable=None)
    simulated = [[response for _, response in room.responses(sample_rate)] for room in bar]
    if kept:
        _keep_rooms(kept, simulated)
    return simulated


def _keep_rooms(path: Path, rooms: list[list[RoomResponse]]) -> None:
    responses = [response for room in rooms for response in room]
    content = io.BytesIO()
    np.savez(
        content,
        samples=np.concatenate([response.samples for response in responses]),
        lengths=[len(response.samples) for response in responses],
        direct=[response.direct for response in responses],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getvalue())


def _read_rooms(path: Path, n_talkers: int) -> list[list[RoomResponse]]:
    with np.load(path, allow_pickle=False) as stored:
        parts = np.split(stored["samples"], np.cumsum(stored["lengths"])[:-1])
        responses = [
            RoomResponse(samples, int(direct))
            for samples, direct in zip(parts, stored["direct"], strict=True)
        ]
    return [responses[first : first + n_talkers] for first in range(0, len(responses), n_talkers)]


def _point(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 3) for value in values)
    return x, y, z


def load_pyroomacoustics() -> Any:
    """Import the simulator.

    Raises:
        ImportError: The extra "data" is missing.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise ImportError(f'simulated rooms need the extra "data": {how_to_install("data")}') from error
    pyroomacoustics.constants.set("num_threads", 1)  # the order of its sums must not depend on the machine
    return pyroomacoustics
