"""Write a network as an ONNX file, which appears under its name only when it is proved equal."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flasepformer.export.errors import ExportError
from flasepformer.export.graphs import StreamingStep, WholeRecording
from flasepformer.export.operators import check_operators
from flasepformer.export.proof import Proof, Speech, prove, prove_stream
from flasepformer.export.quantizing import Quantization, quantize
from flasepformer.files import write_whole, written_whole
from flasepformer.installing import how_to_install
from flasepformer.models import ModelInfo, SeparationNetwork, load_described_model
from flasepformer.onnx import ExportedFacts, ExportedSeparator, ExportedStream
from flasepformer.onnx.running import open_session
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""The newest set of operators that onnxruntime-web's WebGPU has all we use of."""

MAX_BATCH = 1 << 12
MAX_SAMPLES = 1 << 31

MAX_FOLDED = 1 << 21
"""Numbers in a tensor that may be computed beforehand: the matrix of the widest Fourier transform we use."""


def export_model(
    model: str | Path,
    path: str | Path,
    *,
    quantization: Quantization | None = None,
    block_seconds: float | None = None,
    speech: Speech | None = None,
) -> Proof:
    """Export a model to one file, and prove on real speech that the file gives PyTorch's numbers.

    The proof is written beside the file, as `NAME.proof.json` and `NAME.proof.md`.

    Args:
        model: See `flasepformer.models.load_model`.
        path: The file, whose name ends in .onnx; its folder exists.
        quantization: Pack the weights: "fp16" or "int8".
        block_seconds: Export one step of a causal model for streams, of about this length; it is rounded up
            to whole steps of the network.
        speech: What to prove it on; by default the recording that comes with the package.

    Raises:
        CheckpointError: If there is no such model.
        ExportError: If it cannot be exported, or (`ProofFailed`) differs; there is no new file then.
        ImportError: If the extra "export" is not installed.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise ExportError(f"{path}: an exported file is called .onnx")
    network, info = load_described_model(model)
    network = network.eval().requires_grad_(False)
    kind = "whole" if block_seconds is None else "stream"
    graph: nn.Module
    if block_seconds is None:
        block_length, graph = 0, WholeRecording(network)
    else:
        block_length = stream_block(network, block_seconds)
        graph = StreamingStep(network, block_length)
    proto = to_onnx(graph)
    check_operators(node.op_type for node in proto.graph.node)
    if quantization is not None:
        quantize(proto, quantization)
    facts = ExportedFacts(
        model=info.name, family=info.family, sample_rate=network.sample_rate, n_sources=network.n_sources,
        kind=kind, quantized=quantization or "", licence=info.licence, description=info.description,
        model_card=model_card(info), config=dict(vars(network.config)), block_length=block_length,
        delay=network.lag if block_length else 0,
    )  # fmt: skip
    for name, value in facts.to_metadata().items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, value
    with written_whole(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        proof = _prove(temporary, kind, network, speech)
    _write_proof(path, proof)
    return proof


def verify_file(path: str | Path, model: str | Path, *, speech: Speech | None = None) -> Proof:
    """Prove again that a file gives the numbers of a model, on this computer; nothing is written.

    Args:
        path: A file that `export_model` wrote.
        model: The model that it was exported from.
        speech: See `export_model`.

    Raises:
        CheckpointError: If there is no such model.
        OnnxError: If the file is none of ours.
        ExportError: If the file is of another kind of model, or (`ProofFailed`) differs.
    """
    path = Path(path)
    metadata = open_session(path).get_modelmeta().custom_metadata_map
    facts = ExportedFacts.from_metadata(metadata, path)
    network = load_described_model(model)[0].eval().requires_grad_(False)
    for name in ("sample_rate", "n_sources"):
        if getattr(facts, name) != getattr(network, name):
            raise ExportError(
                f"{path} was exported from {facts.model}: its {name} is {getattr(facts, name)}, "
                f"that of {model} is {getattr(network, name)}"
            )
    return _prove(path, facts.kind, network, speech)


def _prove(path: Path, kind: str, network: SeparationNetwork, speech: Speech | None) -> Proof:
    n_threads = torch.get_num_threads()
    speech = speech or Speech.shipped(network.sample_rate)
    if kind == "stream":
        return prove_stream(ExportedStream(path, n_threads=n_threads), network, speech)
    return prove(ExportedSeparator(path, n_threads=n_threads), network, speech)


def _write_proof(path: Path, proof: Proof) -> None:
    write_whole(path.with_suffix(".proof.json"), json.dumps(proof.to_dict(), indent=2) + "\n")
    write_whole(path.with_suffix(".proof.md"), proof.to_markdown(path.name))


def stream_block(network: SeparationNetwork, seconds: float) -> int:
    """Return the samples in a block of about so many seconds: whole steps of the network, at least one.

    Raises:
        ExportError: If the network is not causal.
    """
    if not network.causal:
        raise ExportError("only a causal model can be exported for streams; leave --stream out")
    step = network.hop_length * network.frames_per_step
    return max(1, -(-round(seconds * network.sample_rate) // step)) * step


def model_card(info: ModelInfo) -> str:
    """Return what is known of a model, in Markdown."""
    facts = {
        "Family": info.family, "Sample rate": f"{info.sample_rate} Hz", "Talkers": str(info.n_sources),
        "Parameters": f"{info.n_parameters:,}", "Trained": "yes" if info.trained else "no, random weights",
        "Data": info.data, "Licence": info.licence, "Citation": info.citation, "Source": info.source,
    }  # fmt: skip
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    return "\n".join([f"# {info.name}", "", info.description, "", *lines, ""])


def to_onnx(graph: nn.Module) -> "onnx.ModelProto":
    """Trace a graph, and translate it.

    Raises:
        ImportError: If the extra "export" is not installed.
        ExportError: If PyTorch cannot translate it.
    """
    try:
        import onnx
        import onnxscript.optimizer
    except ImportError as error:
        raise ImportError(
            f"export needs {error.name}: {how_to_install('export')}", name=error.name
        ) from error
    arguments, names, outputs, shapes = _example(graph)
    with _quiet(), torch.no_grad(), temporary_folder() as folder:
        try:
            program = torch.export.export(
                graph, arguments, dynamic_shapes=shapes, strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
            # Its optimizer takes an epsilon of 1e-8 for zero and drops it; onnxruntime optimizes on loading.
            translated = torch.onnx.export(
                program,
                input_names=names,
                output_names=outputs,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ExportError(f"PyTorch cannot export {type(graph).__name__}: {reason}") from error
        assert translated is not None
        onnxscript.optimizer.inline(translated.model)
        onnxscript.optimizer.fold_constants(
            translated.model, input_size_limit=MAX_FOLDED, output_size_limit=MAX_FOLDED
        )
        onnxscript.optimizer.remove_unused_nodes(translated.model)
        file = Path(folder) / "graph.onnx"
        translated.save(str(file), external_data=False)
        proto = onnx.load(str(file))
    _forget_the_making(proto.graph)
    _share_constants(proto.graph)
    if isinstance(graph, WholeRecording):
        _name_axes(proto.graph.input[0], "batch", "time")
        _name_axes(proto.graph.output[0], "batch", "source", "time")
    return proto


def _forget_the_making(graph: "onnx.GraphProto") -> None:
    """Drop what the exporter notes for its developers: of every node the lines and folders it came from."""
    del graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")


def _share_constants(graph: "onnx.GraphProto") -> None:
    """Keep one of every set of equal constants: folding gives each user of a weight its own."""
    first: dict[bytes, str] = {}
    names: dict[str, str] = {}
    for tensor in list(graph.initializer):
        content = tensor.raw_data + repr((tensor.data_type, list(tensor.dims))).encode()
        if not tensor.raw_data or first.setdefault(content, tensor.name) == tensor.name:
            continue
        names[tensor.name] = first[content]
        graph.initializer.remove(tensor)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def _name_axes(value: "onnx.ValueInfoProto", *names: str) -> None:
    """Give the free axes of an input or output names that a person understands."""
    for axis, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
        if not axis.HasField("dim_value"):
            axis.dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what PyTorch's exporter says to its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _example(graph: nn.Module) -> tuple[tuple[Any, ...], list[str], list[str], Any]:
    """Return inputs to trace with, the names of all inputs and outputs, and which axes are free."""
    if isinstance(graph, StreamingStep):
        names = graph.names
        inputs, outputs = [f"state.{name}" for name in names], [f"next.{name}" for name in names]
        arguments = (torch.zeros(1, graph.block_length), graph.zeros)
        return arguments, ["samples", *inputs], ["estimates", *outputs], None
    axes = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH), 1: torch.export.Dim("time", max=MAX_SAMPLES)}
    return (torch.randn(2, 8001),), ["mixture"], ["estimates"], {"mixture": axes}
