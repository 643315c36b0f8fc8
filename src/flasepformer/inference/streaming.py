"""Separate a stream while it comes: samples in, and whatever is ready of every talker's track out."""

import copy
import json
from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

import flasepformer
from flasepformer.audio import LiveResampler
from flasepformer.errors import FlasepformerError, InputError
from flasepformer.inference.devices import pick_device
from flasepformer.inference.engines import CausalEngine, Engine, FollowingEngine, Samples, State
from flasepformer.inference.identity import weights_digest
from flasepformer.layers import Layer
from flasepformer.models import FAST_MODEL, ModelInfo, SeparationNetwork, load_described_model

DEFAULT_DELAY_SECONDS = 0.5
"""How far a model that hears the future lags behind."""

LIVE_MODEL = "default-live"
"""The causal model that comes with the package."""

FOLLOWS_FROM_SECONDS = 0.2
"""Least delay with which the fast model follows, where a delay is asked for and no model."""

RATES = (2000, 384_000)
"""Sample rates of streams in Hz, from and to."""

MAX_PEAK = 1e30
"""Largest sample taken; beyond it, float32 has no room left for the tracks."""

Waveform = TypeVar("Waveform", NDArray[Any], Tensor)


def live_model(delay: float | None = None) -> str:
    """Return the name of the model that is used for streams when none is named.

    >>> live_model(), live_model(0.1), live_model(0.5)
    ('default-live', 'default-live', 'default-fast')
    """
    return LIVE_MODEL if delay is None or delay < FOLLOWS_FROM_SECONDS else FAST_MODEL


class StateError(FlasepformerError, ValueError):
    """The state of a stream cannot be gone on from; the message says why."""


class StreamingSeparator:
    """Separate one stream while it comes.

    A causal network answers step by step, a few hundredths of a second later. A model that hears the future
    follows: it separates the last seconds again and again, and what is `delay` old is given away.

    The tracks do not depend on how the stream is cut. Their state is bounded, see `state_bytes`.

    Args:
        model: A network of `flasepformer.models`; it is put in eval mode, and its weights have to stay.
        sample_rate: Of the stream and of its tracks, in Hz; the model's by default.
        device: See `pick_device`.
        delay: Seconds that the tracks may lag behind, resampling not counted. A model that hears the future
            uses them, 0.5 by default; a causal one has its own. All that they lag behind, in the worst case,
            is `delay_seconds`.
        levels: Bring the stream to the level that the model knows, by what has been heard so far, and the
            tracks back. Without, a causal network gives exactly what it gives for the whole.
        info: What is known of the model.

    Raises:
        InputError: An option makes no sense.
        DeviceError: The device cannot be used.
    """

    def __init__(
        self,
        model: SeparationNetwork,
        sample_rate: int | None = None,
        device: str | torch.device = "auto",
        *,
        delay: float | None = None,
        levels: bool = True,
        info: ModelInfo | None = None,
    ) -> None:
        rate = model.sample_rate if sample_rate is None else sample_rate
        if int(rate) != rate or not RATES[0] <= rate <= RATES[1]:
            raise InputError(
                f"sample_rate must be a whole number from {RATES[0]} to {RATES[1]} Hz, got {rate}"
            )
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.sample_rate, self.n_sources = int(rate), model.n_sources
        self.name = info.name if info else type(model).__name__
        self.n_damaged = 0
        """Samples so far that were NaN, infinite or far too large, and were replaced by silence."""
        self._options: dict[str, Any] = {"delay": delay, "levels": levels}
        self._info = info
        self._digest: str | None = None
        self._layers: dict[str, Layer] = {}
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        sample_rate: int | None = None,
        device: str | torch.device = "auto",
        *,
        accept_licence: bool = False,
        delay: float | None = None,
        levels: bool = True,
    ) -> "StreamingSeparator":
        """Load a model for streams; see `load_model` for its names, `live_model`, and the class for the rest.

        Raises:
            CheckpointError: There is no such model, or its checkpoint is refused.
            DeviceError: The device cannot be used.
            InputError: An option makes no sense.
        """
        name = live_model(delay) if name_or_path is None else name_or_path
        model, info = load_described_model(name, accept_licence=accept_licence)
        return cls(model, sample_rate, device, delay=delay, levels=levels, info=info)

    def beside(self) -> "StreamingSeparator":
        """Return a separator with the same model and options for another stream; see `feed_together`."""
        other = copy.copy(self)
        other.reset()
        return other

    def warm_up(self) -> None:
        """Go through a second and a delay of noise, and begin anew: what is computed first takes longer."""
        n_samples = round((1 + self.delay_seconds) * self.sample_rate)
        self.feed(0.1 * np.random.default_rng(0).standard_normal(n_samples, np.float32))
        self.reset()

    def reset(self) -> None:
        """Forget the stream, and begin another one."""
        model, delay = self.model, self._options["delay"]
        self._engine: Engine
        if model.causal:
            self._engine = CausalEngine(
                model, self.device, levels=self._options["levels"], layers=self._layers
            )
            own = self._engine.delay / model.sample_rate
            if delay is not None and delay < own:
                raise InputError(f"delay must be at least {own:g} s for this model, got {delay:g}")
        else:
            seconds = DEFAULT_DELAY_SECONDS if delay is None else delay
            self._engine = FollowingEngine(model, self.device, delay_seconds=seconds, layers=self._layers)
        self._down = LiveResampler(self.sample_rate, model.sample_rate)
        self._up = LiveResampler(model.sample_rate, self.sample_rate, self.n_sources)
        self._n_in = self._n_out = 0
        self.n_damaged = 0

    @property
    def delay_seconds(self) -> float:
        """How long after a sample came in it comes out, at the latest; computing time not counted."""
        model_delay = self._engine.delay / self.model.sample_rate
        # Samples of one rate wait for the next of the other, up to one of it each way.
        waiting = 0.0 if self.sample_rate == self.model.sample_rate else self._grid_seconds
        return self._down.delay_seconds + model_delay + self._up.delay_seconds + waiting

    @property
    def _grid_seconds(self) -> float:
        common = gcd(self.sample_rate, self.model.sample_rate)
        coarser = min(self.sample_rate, self.model.sample_rate)
        return 0.0 if common == coarser == self.model.sample_rate else 1 / coarser

    @property
    def state_bytes(self) -> int:
        """Memory of everything that is remembered of the stream."""
        return sum(value.nbytes for value in self.state().values())

    def feed(self, samples: Waveform) -> Waveform:
        """Take the next samples, and return what has become ready.

        Args:
            samples: (time,), or (channel, time), which is mixed down; any number of them, also none. Floating
                point, or integers, which count as PCM of their full scale. NaN and infinite samples count as
                silence, see `n_damaged`.

        Returns:
            (source, some time), float32, of the kind of `samples`: what comes after that of the call
            before, so that sample n of a track is of sample n of the stream.
        """
        tracks = self.feed_together([self], [_as_numpy(samples)])[0]
        return torch.from_numpy(tracks).to(samples.device) if isinstance(samples, Tensor) else tracks

    @staticmethod
    def feed_together(
        streams: Sequence["StreamingSeparator"], samples: Sequence[NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        """Feed several streams of one model, each of which begins and ends when it likes.

        The steps of a causal network are computed as one batch; streams that follow take their turns.

        The streams may have begun at different times and rates, and get different numbers of samples.

        Args:
            streams: Separators that `beside` made of one another.
            samples: For each, see `feed`.

        Returns:
            For each, see `feed`.
        """
        if len(streams) != len(samples):
            raise InputError(f"expected samples for {len(streams)} streams, got {len(samples)}")
        if any(stream.model is not streams[0].model for stream in streams):
            raise InputError("streams of one batch need the same model; make them with beside()")
        for stream, new in zip(streams, samples, strict=True):
            stream._engine.push(stream._down.feed(stream._heard(new))[0])
        while ready := [stream._engine for stream in streams if stream._engine.ready]:
            type(ready[0]).advance(ready)
        return [stream._given(stream._up.feed(stream._engine.pop())) for stream in streams]

    def flush(self) -> NDArray[np.float32]:
        """End the stream: return the rest (source, time), so that as many came out as went in; begin anew."""
        self._engine.push(self._down.flush()[0])
        parts = [self._up.feed(self._engine.finish()), self._up.flush()]
        rest = np.concatenate(parts, axis=1)
        n_left = self._n_in - self._n_out
        rest = np.pad(rest[:, :n_left], ((0, 0), (0, max(n_left - rest.shape[1], 0))))
        n_damaged = self.n_damaged
        self.reset()
        self.n_damaged = n_damaged
        return rest

    def _heard(self, samples: NDArray[Any]) -> Samples:
        mono = _mono(samples)
        bad = ~(np.abs(mono) <= MAX_PEAK)
        if bad.any():
            self.n_damaged += int(bad.sum())
            mono = np.where(bad, np.float32(0), mono)
        self._n_in += len(mono)
        return mono[None]

    def _given(self, tracks: Samples) -> Samples:
        self._n_out += tracks.shape[1]
        return tracks

    def state(self) -> State:
        """Return all that is remembered of the stream, by names."""
        parts = {"engine": self._engine.state(), "down": self._down.state(), "up": self._up.state()}
        counts = {"counts": np.array([self._n_in, self._n_out, self.n_damaged])}
        return counts | {
            f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()
        }

    def save_state(self, path: str | Path) -> None:
        """Write the state to a file from which `restore_state` goes on, in another process if need be."""
        tensors = {name: np.array(value, order="C") for name, value in self.state().items()}
        save_file(tensors, path, metadata={"stream": json.dumps(self._identity())})

    def restore_state(self, path: str | Path) -> None:
        """Go on where the stream was when its state was saved.

        Raises:
            StateError: It is of another version, model or rate, or no state at all; nothing is changed.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                was = json.loads((file.metadata() or {}).get("stream", "null"))
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, ValueError) as error:
            raise StateError(f"{path} holds no state of a stream ({error})") from error
        if not isinstance(was, dict):
            raise StateError(f"{path} holds no state of a stream")
        for name, value in self._identity().items():
            if was.get(name) != value:
                raise StateError(
                    f"the state in {path} is of another {name}, {was.get(name)}, and this stream is of "
                    f"{value}; begin anew"
                )
        self._n_in, self._n_out, self.n_damaged = (int(count) for count in state["counts"])
        for part, owner in (("engine", self._engine), ("down", self._down), ("up", self._up)):
            prefix = f"{part}/"
            owner.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _identity(self) -> dict[str, Any]:
        """Return what a state fits."""
        self._digest = self._digest or weights_digest(self.model)
        return {
            "version": flasepformer.__version__,
            "model": self._digest,
            "sample rate": self.sample_rate,
            "delay": self._engine.delay,
            "levels": self._options["levels"],
        }


def _as_numpy(samples: NDArray[Any] | Tensor) -> NDArray[Any]:
    return samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)


def _mono(samples: NDArray[Any]) -> Samples:
    """Return samples (time,) of (time,) or (channel, time) of any kind."""
    samples = np.asarray(samples)
    if (
        samples.ndim not in (1, 2)
        or samples.dtype.kind not in "fiu"
        or (samples.ndim == 2 and not len(samples))
    ):
        raise InputError(
            f"samples must be numbers (time,) or (channel, time), got {samples.shape} of {samples.dtype}"
        )
    if samples.dtype.kind == "u":
        half = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = (samples.astype(np.float64) - half) / half
    elif samples.dtype.kind == "i":
        samples = samples.astype(np.float64) / 2.0 ** (8 * samples.dtype.itemsize - 1)
    with np.errstate(over="ignore", invalid="ignore"):
        return (samples.mean(0) if samples.ndim == 2 else samples).astype(np.float32)
