"""What an exported file says of itself, and how it is opened."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flasepformer.errors import FlasepformerError
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


def open_session(path: Path, n_threads: int | None = None) -> "InferenceSession":
    """Load a file with onnxruntime, on the CPU.

    Raises:
        ImportError: If onnxruntime is not installed.
        OnnxError: If the file cannot be read, or has operators that onnxruntime lacks.
    """
    if not path.is_file():
        raise OnnxError(f"{path}: there is no such file")
    return session_of(str(path), path, n_threads)


def session_of(model: str | bytes, name: object, n_threads: int | None = None) -> "InferenceSession":
    """Load a file by its path, or what stands in it, with onnxruntime on the CPU; see `open_session`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"this needs onnxruntime: {how_to_install('onnx')}", name="onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if n_threads is not None:
        options.intra_op_num_threads = n_threads
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own, which have no base in common
        raise OnnxError(f"{name}: onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
