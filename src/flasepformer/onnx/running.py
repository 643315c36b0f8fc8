"""Run exported files; see the room."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.errors import FlasepformerError, InputError
from flasepformer.installing import how_to_install

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = "1"
"""Version of the metadata's form."""


class OnnxError(FlasepformerError, ValueError):
    """A file that is not an exported network of ours, or that onnxruntime cannot run."""


@dataclass(frozen=True, kw_only=True)
class ExportedFacts:
    """What stands in the metadata of an exported file; every value there is text."""

    model: str
    """Name of the model."""
    family: str
    """Architecture."""
    sample_rate: int
    """In Hz, of mixture and estimates."""
    n_sources: int
    """Talkers."""
    kind: str
    """"whole" for recordings of any length, "stream" for one step of a stream."""
    quantized: str
    """"int8", "fp16" or "" for float32."""
    licence: str
    """Licence of the weights."""
    description: str
    """One sentence."""
    model_card: str
    """What is known of the model, in Markdown."""
    config: dict[str, Any]
    """Sizes of the network."""
    block_length: int = 0
    """Samples in a step of a stream."""
    delay: int = 0
    """Samples by which the estimates of a stream are late, beside the step itself."""

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata to write: the config as JSON."""
        texts = {name: str(value) for name, value in vars(self).items()}
        return {**texts, "config": json.dumps(self.config), "flasepformer_format": FORMAT}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], path: Path) -> "ExportedFacts":
        """Read the metadata of a file.

        Raises:
            OnnxError: If it is not one of ours, or of a later form.
        """
        if metadata.get("flasepformer_format") != FORMAT:
            raise OnnxError(
                f"{path}: expected a file that `flasepformer export` of this version wrote, "
                f"got form {metadata.get('flasepformer_format', 'unknown')!r}; export it again"
            )
        try:
            numbers = {
                name: int(metadata[name]) for name in ("sample_rate", "n_sources", "block_length", "delay")
            }
            names = ("model", "family", "kind", "quantized", "licence", "description", "model_card")
            texts = {name: metadata[name] for name in names}
            return cls(**texts, **numbers, config=json.loads(metadata["config"]))  # type: ignore[arg-type]
        except (KeyError, ValueError) as error:
            raise OnnxError(f"{path}: its metadata is damaged ({error!r}); export it again") from error


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


def open_session(path: Path, n_threads: int | None = None) -> "InferenceSession":
    """Load a file with onnxruntime, on the CPU.

    Raises:
        ImportError: If onnxruntime is not installed.
        OnnxError: If the file cannot be read, or has operators that onnxruntime lacks.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"this needs onnxruntime: {how_to_install('onnx')}", name="onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if n_threads is not None:
        options.intra_op_num_threads = n_threads
    if not path.is_file():
        raise OnnxError(f"{path}: there is no such file")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, which have no base in common
        raise OnnxError(f"{path}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error


class ExportedSeparator(_Exported):
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
