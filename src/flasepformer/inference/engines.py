"""What separates a stream at the model's own rate: step by step, or the last seconds over and over.

An engine is pushed samples, advanced while it is `ready`, and gives away tracks of as many samples, later by
its `delay`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil, exp
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.audio import explaining_gains
from flasepformer.errors import InputError
from flasepformer.inference.chunks import match_tracks
from flasepformer.inference.levels import MODEL_RMS, SILENCE_PEAK
from flasepformer.inference.live_levels import MEMORY_SECONDS, PastGain, PastLevel, ramp
from flasepformer.layers import Layer, Moments
from flasepformer.models import SeparationNetwork
from flasepformer.ops import KeyValueSums
from flasepformer.running import Following

Samples = NDArray[np.float32]
State = dict[str, NDArray[Any]]

STEPS_AT_ONCE = 32
"""Steps that are taken together when so many samples have come."""

WINDOW_SECONDS = 4.0
"""What is separated anew each time where the model hears the future."""

KNOWN_SECONDS = 1.0
"""The first part of it, which is only there to be looked back at."""

FADE_SECONDS = 0.016
"""From one result to the next."""

SURE_MARGIN = 0.05
"""Margin from which on the sound, and not the model's memory, decides which track is whose."""


class Engine(ABC):
    """Separates one stream, (time,) in, (source, time) out, at the model's rate.

    Args:
        model: In eval mode; its weights stay as they are.
        device: Where it is.
        layers: Its prepared layers, for all its streams, filled by the first; see `running.Whole`.
    """

    delay: int
    """Samples that a track lags behind the stream, at most."""

    def __init__(
        self, model: SeparationNetwork, device: torch.device, layers: dict[str, Layer] | None = None
    ) -> None:
        self.model, self.device = model, device
        self._layers: dict[str, Layer] = {} if layers is None else layers
        self.pending = np.zeros(0, np.float32)
        """Samples that are still needed."""
        self.n_in = 0
        self.n_out = 0
        self._ready: list[Samples] = []

    def push(self, samples: Samples) -> None:
        """Take the next samples (time,), any number."""
        self.n_in += len(samples)
        self.pending = np.concatenate([self.pending, samples])

    def pop(self) -> Samples:
        """Return what has become ready (source, some)."""
        parts, self._ready = self._ready, []
        tracks = np.concatenate([np.zeros((self.model.n_sources, 0), np.float32), *parts], axis=1)
        self.n_out += tracks.shape[1]
        return tracks

    def finish(self) -> Samples:
        """Return the rest: as many samples as came, in all."""
        n_in, parts = self.n_in, [self.pop()]
        n_left = n_in - self.n_out
        self.push(np.zeros(self.delay, np.float32))
        while self.ready:
            self.advance([self])
        parts.append(self.pop()[:, :n_left])
        return np.concatenate(parts, axis=1)

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether enough samples have come to go on."""

    @classmethod
    @abstractmethod
    def advance(cls, engines: Sequence[Any]) -> None:
        """Let engines that are ready, of one model, go on by as much as they can together."""

    def state(self) -> State:
        """Return all that has to be known to go on."""
        return {"counts": np.array([self.n_in, self.n_out]), "pending": self.pending.copy()}

    def load(self, state: State) -> None:
        """Go on from the state of another engine like this one."""
        self.n_in, self.n_out = (int(count) for count in state["counts"])
        self.pending = np.asarray(state["pending"], np.float32)
        self._ready = []


class CausalEngine(Engine):
    """Plays a causal network step by step.

    Args:
        model: A causal network, in eval mode.
        device: Where it is.
        levels: Bring the stream to the level that the model knows, and the tracks back so that they explain
            it; without, the network hears what comes.
        layers: See `Engine`.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        device: torch.device,
        *,
        levels: bool = True,
        layers: dict[str, Layer] | None = None,
    ) -> None:
        super().__init__(model, device, layers)
        self.step = model.hop_length * model.frames_per_step
        self.lag = model.lag
        self.delay = self.step + self.lag
        self.levels = levels
        self._level = PastLevel(self.step / model.sample_rate)
        self._gain = PastGain(self.step / model.sample_rate)
        self._last_level = 1.0
        self._late = np.zeros((2, self.lag), np.float32)  # samples that are not given away yet, and levels
        self._model_state: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        return len(self.pending) >= self.step

    @classmethod
    @torch.inference_mode()
    def advance(cls, engines: Sequence["CausalEngine"]) -> None:
        for group in (
            [engine for engine in engines if engine._model_state],
            [engine for engine in engines if not engine._model_state],
        ):
            if group:
                cls._advance(group)

    @classmethod
    def _advance(cls, engines: Sequence["CausalEngine"]) -> None:
        first = engines[0]
        n_steps = min(STEPS_AT_ONCE, *(len(engine.pending) // engine.step for engine in engines))
        heard = [engine._take(n_steps * engine.step) for engine in engines]
        mixtures = torch.from_numpy(np.stack([levelled for levelled, _ in heard])).to(first.device)
        states = [engine._model_state for engine in engines]
        if len(states) > 1:
            states = [{name: torch.cat([each[name] for each in states]) for name in states[0]}]
        estimates, state = first.model.step(mixtures, states[0], first._layers)
        states = [state]
        if len(engines) > 1:
            parts = {name: value.chunk(len(engines)) for name, value in state.items()}
            states = [{name: part[i].clone() for name, part in parts.items()} for i in range(len(engines))]
        for engine, own, tracks, (_, stretch) in zip(engines, states, estimates, heard, strict=True):
            engine._model_state = own
            engine._give(tracks.float().cpu().numpy(), stretch)

    def _take(self, n: int) -> tuple[Samples, Samples]:
        """Take n samples; return what the model hears, and the samples and their levels that come out now."""
        samples, self.pending = self.pending[:n], self.pending[n:]
        levels = np.ones_like(samples)
        if self.levels:
            for at in range(0, n, self.step):
                level = self._level.take_excess(samples[at : at + self.step], MODEL_RMS)
                levels[at : at + self.step] = ramp(self._last_level, level, self.step)
                self._last_level = level
        joined = np.concatenate([self._late, np.stack([samples, levels])], axis=1)
        self._late = joined[:, joined.shape[1] - self.lag :]
        return samples / levels, joined[:, :n]

    def _give(self, estimates: Samples, stretch: Samples) -> None:
        mixture, levels = stretch
        if self.levels:
            tracks = estimates * levels
            steps = range(0, len(mixture), self.step)
            tracks = np.concatenate(
                [
                    self._gain.apply(tracks[:, at : at + self.step], mixture[at : at + self.step])
                    for at in steps
                ],
                axis=1,
            )
        else:
            tracks = estimates
        n_before = self.lag if self.n_out == 0 and not self._ready else 0
        tracks = tracks[:, n_before:]
        if self.levels and np.abs(mixture).max() <= SILENCE_PEAK:
            tracks = np.zeros_like(tracks)
        self._ready.append(tracks)

    def state(self) -> State:
        network = {f"network.{name}": value.cpu().numpy() for name, value in self._model_state.items()}
        levels: State = {
            "level": self._level.numbers.copy(), "gain": self._gain.numbers.copy(),
            "last_level": np.array(self._last_level), "late": self._late.copy(),
        }  # fmt: skip
        return super().state() | network | levels

    def load(self, state: State) -> None:
        super().load(state)
        self._level.numbers, self._gain.numbers = state["level"].copy(), state["gain"].copy()
        self._last_level, self._late = float(state["last_level"]), state["late"].copy()
        self._model_state = {
            name.removeprefix("network."): torch.from_numpy(value.copy()).to(self.device)
            for name, value in state.items()
            if name.startswith("network.")
        }


class FollowingEngine(Engine):
    """Lets a network that hears the future follow: separates the last seconds again and again.

    Every time, it gives away what has `ahead` samples after it; the order of the tracks is that in which they
    go on from what was given away before. What has moved out of these seconds is still heard, in the sums of
    the global layers.

    Args:
        model: A network, in eval mode.
        device: Where it is.
        delay_seconds: How far the tracks may lag behind.
        window_seconds: What is separated each time.
        hop_seconds: How much further it moves each time; about half the delay by default.
        keeps_sums: Whether the past is kept.
        layers: See `Engine`.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        device: torch.device,
        *,
        delay_seconds: float,
        window_seconds: float = WINDOW_SECONDS,
        hop_seconds: float | None = None,
        keeps_sums: bool = True,
        layers: dict[str, Layer] | None = None,
    ) -> None:
        super().__init__(model, device, layers)
        rate, self.block = model.sample_rate, model.hop_length * model.frames_per_step
        self.beyond = model.window_length - model.hop_length
        self.fade = round(FADE_SECONDS * rate)
        least = self.block + self.beyond + self.fade
        self.delay = int(delay_seconds * rate)
        if self.delay < least:
            raise InputError(
                f"delay must be at least {ceil(least / rate * 1000) / 1000:g} s for this model, "
                f"got {delay_seconds:g}"
            )
        hop = (delay_seconds / 2 if hop_seconds is None else hop_seconds) * rate
        largest = (self.delay - self.beyond - self.fade) // self.block
        self.hop = self.block * min(max(round(hop / self.block), 1), largest)
        self.ahead = self.delay - self.hop
        self.window = self.block * max(
            round(window_seconds * rate / self.block), ceil(self.delay / self.block)
        )
        self.known = self.block * round(KNOWN_SECONDS * rate / self.block) if keeps_sums else 0
        self.keeps_sums = keeps_sums
        self._level = PastLevel(self.hop / rate)
        self._keep = exp(-self.hop / rate / MEMORY_SECONDS)
        n_sources = model.n_sources
        self._past: dict[str, Any] = {}
        self._history = np.zeros((n_sources, 0), np.float32)  # given away, as far as the window goes back
        self._tail = np.zeros((n_sources, 0), np.float32)  # of the last result, to be faded out
        self._order = np.arange(n_sources)
        self._first = 0  # of the pending samples
        self._n_done = 0  # samples given away

    @property
    def ready(self) -> bool:
        return self._first + len(self.pending) >= self._n_done + self.delay

    @classmethod
    @torch.inference_mode()
    def advance(cls, engines: Sequence["FollowingEngine"]) -> None:
        for engine in engines:
            engine._advance()

    def _advance(self) -> None:
        start, end = self._n_done, self._n_done + self.delay
        newest = self.pending[: end - self._first]
        level = self._level.take(newest[-self.hop :] if start else newest)
        n_blocks = min(self.window // self.block, ceil((end - self.beyond + self.model.lead) / self.block))
        begin = end - n_blocks * self.block - self.beyond  # of the windows, in the stream
        heard = self.pending[max(begin - self._first, 0) : end - self._first]
        heard = np.pad(heard, (end - begin - len(heard), 0))
        if level and np.abs(heard).max() > SILENCE_PEAK:
            tracks = self._separate(heard, level, n_blocks, start - begin)
        else:
            tracks = np.zeros((self.model.n_sources, len(heard)), np.float32)
        now = tracks[:, start - begin :]
        done = now[:, : self.hop].copy()
        n_fade = self._tail.shape[1]
        if n_fade:
            weight = ramp(0, 1, n_fade)
            done[:, :n_fade] = self._tail * (1 - weight) + done[:, :n_fade] * weight
        self._tail = now[:, self.hop : self.hop + self.fade].copy()
        self._history = np.concatenate([self._history, done], axis=1)[:, -self.window :]
        self._ready.append(done)
        self._n_done += self.hop
        n_drop = max(end + self.hop - self.window - self.beyond - self._first, 0)
        self.pending, self._first = self.pending[n_drop:], self._first + min(n_drop, len(self.pending))

    def _separate(self, heard: Samples, level: float, n_blocks: int, n_before: int) -> Samples:
        """Return the tracks (source, time) of the last seconds, in the order of those given away."""
        model, full = self.model, n_blocks == self.window // self.block
        n_frames = n_blocks * model.frames_per_step
        n_known, n_leaving = (
            (n // model.hop_length if full and self.keeps_sums else 0) for n in (self.known, self.hop)
        )
        if full and self.keeps_sums and not self._past:  # the first that leave are all that were known
            n_known, n_leaving = 0, n_leaving + n_known
        run = Following(self._past, n_frames, n_known, n_leaving, self._layers)
        scale = level if model.normalizes else level / MODEL_RMS
        estimates = model.core(torch.from_numpy(heard / np.float32(scale))[None].to(self.device), run)
        self._past = {place: summary.faded(self._keep) for place, summary in run.left.items()}
        found = estimates[0].float().cpu().numpy()[:, : len(heard)] * np.float32(scale)
        found = np.pad(found, ((0, 0), (0, len(heard) - found.shape[1])))
        n_common = min(self._history.shape[1], n_before)
        if n_common:
            before, again = self._history[:, -n_common:], found[:, n_before - n_common : n_before]
            if min(np.abs(before).max(), np.abs(again).max()) > SILENCE_PEAK:
                order, margin = match_tracks(before, again)
                if margin > SURE_MARGIN:
                    self._order = np.asarray(order)
        found = found[self._order]
        return found * explaining_gains(heard, found).astype(np.float32)[:, None]

    def state(self) -> State:
        sums: State = {
            f"past.{place}.{name}": np.asarray(value.cpu().numpy() if isinstance(value, Tensor) else value)
            for place, summary in self._past.items()
            for name, value in vars(summary).items()
        }
        own: State = {
            "level": self._level.numbers.copy(), "history": self._history.copy(), "tail": self._tail.copy(),
            "order": self._order.copy(), "place": np.array([self._first, self._n_done]),
        }  # fmt: skip
        return super().state() | own | sums

    def load(self, state: State) -> None:
        super().load(state)
        self._level.numbers = state["level"].copy()
        self._history, self._tail, self._order = (state[name].copy() for name in ("history", "tail", "order"))
        self._first, self._n_done = (int(number) for number in state["place"])
        parts: dict[str, dict[str, Any]] = {}
        for name, value in state.items():
            if name.startswith("past."):
                _, place, part = name.split(".")
                tensor = torch.from_numpy(np.array(value)).to(self.device)
                parts.setdefault(place, {})[part] = tensor.item() if part == "count" else tensor
        self._past = {
            place: (KeyValueSums if "context" in part else Moments)(**part) for place, part in parts.items()
        }
