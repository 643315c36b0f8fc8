"""Run exported files; see the room."""

from abc import ABC, abstractmethod
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flasepformer.errors import InputError
from flasepformer.onnx.facts import ExportedFacts, OnnxError, open_session


class TracksOfWaveforms(ABC):
    """Brings estimates to the levels that add up to the mixture."""

    @abstractmethod
    def separate(self, mixture: NDArray[np.floating]) -> NDArray[np.float32]:
        """Separate a mixture (time,): (source, time); the scale of an estimate means nothing."""

    def tracks(self, mixture: NDArray[np.floating]) -> NDArray[np.float32]:
        """Separate a mixture (time,): (source, time), at the levels that add up to the mixture.

        Raises:
            InputError: See `separate`.
        """
        if mixture.ndim != 1:
            raise InputError(f"mixture must be (time,), got {mixture.shape}")
        from flasepformer.audio import explaining_gains  # here, since the room needs soundfile and soxr

        estimates = self.separate(mixture)
        return estimates * explaining_gains(mixture, estimates).astype(np.float32)[:, None]


class _Exported:
    """A file that onnxruntime has loaded."""

    def __init__(self, path: str | PathLike[str], kind: str, n_threads: int | None) -> None:
        self.path = Path(path)
        self.session = open_session(self.path, n_threads)
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.facts = ExportedFacts.from_metadata(metadata, self.path)
        if self.facts.kind != kind:
            raise OnnxError(f"{self.path}: expected a file of kind {kind!r}, got {self.facts.kind!r}")
        self.sample_rate, self.n_sources = self.facts.sample_rate, self.facts.n_sources


class ExportedSeparator(_Exported, TracksOfWaveforms):
    """An exported network for recordings of any length.

    Args:
        path: The file.
        n_threads: Threads for one operation; by default onnxruntime's choice.

    Raises:
        OnnxError: If the file is no such network.
    """

    def __init__(self, path: str | PathLike[str], *, n_threads: int | None = None) -> None:
        super().__init__(path, "whole", n_threads)

    def separate(self, mixture: NDArray[np.floating]) -> NDArray[np.float32]:
        """Separate a mixture (time,) or several (batch, time): (source, time) or (batch, source, time).

        The scale of an estimate means nothing; see `tracks`.

        Raises:
            InputError: If it is something else, empty, or has samples that are no numbers.
        """
        if mixture.ndim not in (1, 2) or not mixture.size or mixture.dtype.kind != "f":
            raise InputError(
                "mixture must be floating point (time,) or (batch, time) with at least one sample, "
                f"got {mixture.shape} of {mixture.dtype}"
            )
        if not np.isfinite(mixture).all():
            raise InputError("mixture has samples that are not finite numbers")
        batch = np.ascontiguousarray(np.atleast_2d(mixture), dtype=np.float32)
        (estimates,) = self.session.run(["estimates"], {"mixture": batch})
        return estimates[0] if mixture.ndim == 1 else estimates


class ExportedStream(_Exported):
    """One step after the other of an exported causal network.

    Args:
        path: The file.
        n_threads: Threads for one operation; by default onnxruntime's choice.

    Raises:
        OnnxError: If the file is no such network.
    """

    def __init__(self, path: str | PathLike[str], *, n_threads: int | None = None) -> None:
        super().__init__(path, "stream", n_threads)
        self.block_length, self.delay = self.facts.block_length, self.facts.delay
        types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
        inputs = self.session.get_inputs()[1:]
        self._zeros = {i.name: np.zeros(i.shape, types[i.type]) for i in inputs}
        self._outputs = [output.name for output in self.session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._state = dict(self._zeros)

    def step(self, samples: NDArray[np.floating]) -> NDArray[np.float32]:
        """Separate the next samples (block_length,): (source, block_length), `delay` samples late.

        Raises:
            InputError: If there are more or fewer of them.
        """
        if samples.shape != (self.block_length,):
            raise InputError(f"a step takes ({self.block_length},) samples, got {samples.shape}")
        inputs = {"samples": samples[None].astype(np.float32), **self._state}
        estimates, *state = self.session.run(self._outputs, inputs)
        self._state = dict(zip(self._state, state, strict=True))
        return estimates[0]
