"""Write a network as an ONNX file, or a set of them, that appears only when it is proved equal."""

import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flasepformer.export.errors import ExportError
from flasepformer.export.graphs import Graph, StreamingStep, WholeRecording
from flasepformer.export.operators import check_operators
from flasepformer.export.proof import Proof, Speech, caution, prove, prove_long, prove_quality, prove_stream
from flasepformer.export.quantizing import Quantization, quantize
from flasepformer.export.sweeps import Level, Sweeping
from flasepformer.files import write_whole, written_whole
from flasepformer.installing import how_to_install
from flasepformer.models import ModelInfo, SeparationNetwork, load_described_model
from flasepformer.onnx import ExportedFacts, ExportedSeparator, ExportedSet, ExportedStream
from flasepformer.onnx.files import read_facts
from flasepformer.onnx.long import LEVEL, PLAN
from flasepformer.temporary import temporary_folder

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""The newest set of operators that onnxruntime-web's WebGPU has all we use of."""

MAX_FOLDED = 1 << 21
"""Numbers in a tensor that may be computed beforehand: the matrix of the widest Fourier transform we use."""


def export_model(
    model: str | Path,
    path: str | Path,
    *,
    quantization: Quantization | None = None,
    block_seconds: float | None = None,
    long: bool = False,
    speech: Speech | None = None,
    mixtures: str | Path | None = None,
) -> Proof:
    """Export a model to one file, and prove on real speech that the file gives PyTorch's numbers.

    The proof is written beside the file, as `NAME.proof.json` and `NAME.proof.md`.

    Args:
        model: See `flasepformer.models.load_model`.
        path: The file, whose name ends in .onnx, or .zip for a set; its folder exists.
        quantization: Pack the weights: "fp16" or "int8".
        block_seconds: Export one step of a causal model for streams, of about this length; it is rounded up
            to whole steps of the network.
        long: Export a set of graphs that takes recordings of hours in bounded memory, as a zip file.
        speech: What to prove it on; by default the recording that comes with the package.
        mixtures: A set to score both on, too, as `flasepformer.data.open_mixtures` takes it; not for streams.

    Raises:
        CheckpointError: If there is no such model.
        ExportError: If it cannot be exported, or (`ProofFailed`) differs; there is no new file then.
        ImportError: If the extra "export" is not installed.
        OSError: If the file cannot be written.
    """
    path, kind = Path(path), "long" if long else "whole" if block_seconds is None else "stream"
    suffix = ".zip" if long else ".onnx"
    if path.suffix != suffix:
        raise ExportError(f"{path}: an exported {'set' if long else 'file'} is called {suffix}")
    network, info = load_described_model(model)
    network = network.eval().requires_grad_(False)
    block_length = 0 if block_seconds is None else stream_block(network, block_seconds)
    facts = ExportedFacts(
        model=info.name, family=info.family, sample_rate=network.sample_rate, n_sources=network.n_sources,
        kind=kind, quantized=quantization or "", licence=info.licence, description=info.description,
        model_card=model_card(info), config=dict(vars(network.config)), block_length=block_length,
        delay=network.lag if block_length else 0,
    )  # fmt: skip
    sweeping = Sweeping(network) if long else None
    with written_whole(path) as temporary:
        if sweeping is not None:
            _write_set(temporary, sweeping, facts, quantization)
        else:
            graph = StreamingStep(network, block_length) if block_length else WholeRecording(network)
            proto = _checked(graph, quantization)
            for name, value in facts.to_metadata().items():
                entry = proto.metadata_props.add()
                entry.key, entry.value = name, value
            temporary.write_bytes(proto.SerializeToString())
        proof = _prove(temporary, kind, network, speech, mixtures)
    _write_proof(path, proof)
    return proof


def _checked(graph: Graph, quantization: Quantization | None) -> "onnx.ModelProto":
    """Translate a graph whose operators a browser has, and pack its weights."""
    proto = to_onnx(graph)
    check_operators(node.op_type for node in proto.graph.node)
    if quantization is not None:
        quantize(proto, quantization)
    return proto


def _write_set(
    path: Path, sweeping: Sweeping, facts: ExportedFacts, quantization: Quantization | None
) -> None:
    """Write the graphs of all sweeps, and the plan of them."""
    plan, network = sweeping.plan(), sweeping.network
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(PLAN), plan.to_json(facts.to_metadata()))
        if network.normalizes:
            archive.writestr(zipfile.ZipInfo(LEVEL), _checked(Level(network), None).SerializeToString())
        for sweep, planned in zip(sweeping.sweeps, plan.sweeps, strict=True):
            proto = _checked(sweep, quantization)
            archive.writestr(zipfile.ZipInfo(planned.graph), proto.SerializeToString())


def verify_file(
    path: str | Path,
    model: str | Path,
    *,
    speech: Speech | None = None,
    mixtures: str | Path | None = None,
) -> Proof:
    """Prove again that a file gives the numbers of a model, on this computer; nothing is written.

    Args:
        path: A file that `export_model` wrote.
        model: The model that it was exported from.
        speech: See `export_model`.
        mixtures: See `export_model`.

    Raises:
        CheckpointError: If there is no such model.
        OnnxError: If the file is none of ours.
        ExportError: If the file is of another kind of model, or (`ProofFailed`) differs.
    """
    path = Path(path)
    facts = read_facts(path)
    network = load_described_model(model)[0].eval().requires_grad_(False)
    for name in ("sample_rate", "n_sources"):
        if getattr(facts, name) != getattr(network, name):
            raise ExportError(
                f"{path} was exported from {facts.model}: its {name} is {getattr(facts, name)}, "
                f"that of {model} is {getattr(network, name)}"
            )
    return _prove(path, facts.kind, network, speech, mixtures)


def _prove(
    path: Path, kind: str, network: SeparationNetwork, speech: Speech | None, mixtures: str | Path | None
) -> Proof:
    n_threads = torch.get_num_threads()
    speech = speech or Speech.shipped(network.sample_rate)
    if kind == "stream":
        if mixtures is not None:
            raise ExportError("a file for streams is not scored on mixtures; leave them out")
        return prove_stream(ExportedStream(path, n_threads=n_threads), network, speech)
    exported: ExportedSeparator | ExportedSet
    if kind == "long":
        exported = ExportedSet(path, n_threads=n_threads)
        proof = prove_long(exported, network, speech)
    else:
        exported = ExportedSeparator(path, n_threads=n_threads)
        proof = prove(exported, network, speech)
    quality = None if mixtures is None else prove_quality(exported, network, mixtures)
    return replace(proof, quality=quality, caution=caution(network))


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


def to_onnx(graph: Graph) -> "onnx.ModelProto":
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
    arguments, names, outputs, shapes = graph.signature()
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
