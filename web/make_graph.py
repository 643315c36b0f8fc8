"""Write the networks of the page, which refer to the weights of the package's models as they are.

`graph.onnx` is the default model for recordings, `filter.onnx` what filters its estimates, `live.onnx` one
step of the live model, and `late.onnx` several at once, for a stream that has fallen behind. Needs the
packages onnx and onnxscript. To be run anew when a network changes, not when its weights do:

    python web/make_graph.py [default] [default-live]
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from flasepformer.export.exporting import stream_block
from flasepformer.export.graphs import StreamingStep
from flasepformer.inference.post_filter import HOP_SECONDS
from flasepformer.models import load_filter, load_model
from flasepformer.models.filter_network import CONTEXT, FilterNetwork
from flasepformer.models.network import SeparationNetwork
from flasepformer.ops import overlap_add
from flasepformer.running import Whole

ROOT = Path(__file__).parents[1]
PRETRAINED = ROOT / "src/flasepformer/pretrained"
PAGE = ROOT / "web/src"

LATE_STEPS = 4
"""Steps that a late stream takes at once: in WebAssembly no more work than one, whose time goes into
beginning some thousand operations."""


class _Parts(nn.Module):
    """A filter without complex numbers; see `FilterNetwork.of_parts`."""

    def __init__(self, network: FilterNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor, own: Tensor, others: Tensor) -> Tensor:
        return self.network.of_parts(mixture, own, others)


class _Real(Whole):
    """Plays a score on whole steps of frames, of which those beyond the recording count for nothing.

    Graphs of a free length want a multiple of `frames_per_step` frames from the beginning, whereas the score
    normalises those of the recording and fills up with zeros only then.
    """

    def __init__(self, network: SeparationNetwork, real: Tensor) -> None:
        super().__init__()
        self.first, self.real = network.feature_norm, real

    def through(self, x: Tensor, *layers: nn.Module) -> Tensor:
        if layers[0] is self.first:
            count = self.real.sum(1) * x.shape[-1]  # (batch, 1)
            mean = (x * self.real).sum((1, 2)).unsqueeze(1) / count
            variance = ((x - mean.unsqueeze(-1)).square() * self.real).sum((1, 2)).unsqueeze(1) / count
            scale = torch.rsqrt(variance + self.first.eps)
            x, layers = self.first._normalize(x, scale[:, 0], mean[:, 0]), layers[1:]
        return super().through(x, *layers)

    def fill(self, x: Tensor, multiple: int) -> Tensor:
        return x * self.real


class PageNetwork(nn.Module):
    """The network at its own level, on whole steps.

    Shape: samples (batch, time), real (batch, frames, 1) to (batch, source, time); `real` is 1 for frames of
    the recording, then 0.
    """

    def __init__(self, network: SeparationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, samples: Tensor, real: Tensor) -> Tensor:
        windows = self.network.flow(_Real(self.network, real), self.network.analyse(samples))
        return overlap_add(windows * real, self.network.hop_length).unflatten(0, (-1, self.network.n_sources))


def export(network: SeparationNetwork) -> onnx.ModelProto:
    """Export for recordings: a free number of steps."""
    step, beyond = network.hop_length * network.frames_per_step, network.window_length - network.hop_length
    example = torch.randn(1, 8 * step + beyond), torch.ones(1, 8 * network.frames_per_step, 1)
    steps = torch.export.Dim("steps", min=1, max=10**6)
    free = {1: steps * step + beyond}, {1: steps * network.frames_per_step}
    return _translated(PageNetwork(network), example, ["samples", "real"], ["estimates"], free)


def export_filter(network: FilterNetwork) -> onnx.ModelProto:
    """Export a filter of a free number of windows."""
    example = tuple(torch.randn(3, 1, 64, network.n_bins, 2))
    free = [{1: torch.export.Dim("windows", min=1, max=10**6)}] * 3
    return _translated(_Parts(network), example, ["mixture", "own", "others"], ["filtered"], free)


def export_step(network: SeparationNetwork, n_steps: int = 1) -> onnx.ModelProto:
    """Export the shortest steps of a stream: samples and state in, estimates and state out."""
    graph = StreamingStep(network, n_steps * stream_block(network, 0))
    before, after = ([f"{when}.{name}" for name in graph.names] for when in ("state", "next"))
    example = torch.zeros(1, graph.block_length), graph.zeros
    return _translated(graph, example, ["samples", *before], ["estimates", *after])


def _translated(
    graph: nn.Module, example: Any, inputs: list[str], outputs: list[str], free: Any = None
) -> onnx.ModelProto:
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=free, strict=False)
        exported = torch.onnx.export(
            program, input_names=inputs, output_names=outputs, dynamo=True, optimize=False, verbose=False
        )
        assert exported is not None
    return exported.model_proto


def share_weights(model: onnx.ModelProto, weights: bytes) -> int:
    """Take every weight out of a graph that lies in the safetensors file; return their number.

    Each becomes a tensor of half precision outside the graph, at its place behind the header of the file, and
    is widened when the graph is loaded.

    Raises:
        ValueError: If a weight is not that of the file.
    """
    n_header = int.from_bytes(weights[:8], "little")
    places = json.loads(weights[8 : 8 + n_header])
    graph, kept, casts = model.graph, [], []
    for tensor in graph.initializer:
        place = places.get(tensor.name.removeprefix("network."))
        if place is None or place["dtype"] != "F16":
            kept.append(tensor)
            continue
        first, last = place["data_offsets"]
        stored = np.frombuffer(weights[8 + n_header + first : 8 + n_header + last], np.float16)
        if not np.array_equal(stored.astype(np.float32), numpy_helper.to_array(tensor).ravel()):
            raise ValueError(f"{tensor.name} is not the weight of that name in the file")
        outside = TensorProto(
            name=f"{tensor.name}.half", data_type=TensorProto.FLOAT16, dims=tensor.dims,
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        for key, value in {"location": "weights", "offset": first, "length": last - first}.items():
            outside.external_data.add(key=key, value=str(value))
        casts.append(helper.make_node("Cast", [outside.name], [tensor.name], to=TensorProto.FLOAT))
        kept.append(outside)
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:], graph.value_info[:]
    graph.initializer.extend(kept)
    graph.node.extend([*casts, *nodes])
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for described in (*graph.input, *graph.output):
        del described.metadata_props[:]
    del graph.metadata_props[:], model.metadata_props[:]
    return len(casts)


def main(*names: str) -> None:
    """Write the graphs of these models, and what the page has to know of each."""
    for name in names or ("default", "default-live"):
        network = load_model(name).eval().requires_grad_(False)
        live = name == "default-live"
        filtering = None if live else load_filter(name)
        models = {"graph.onnx": export(network)} if not live else {
            "live.onnx": export_step(network), "late.onnx": export_step(network, LATE_STEPS)
        }  # fmt: skip
        if filtering is not None:
            models["filter.onnx"] = export_filter(filtering.requires_grad_(False))
        for file, model in models.items():
            of_it = "filter" if file == "filter.onnx" else "model"
            n_shared = share_weights(model, (PRETRAINED / name / f"{of_it}.safetensors").read_bytes())
            (PAGE / file).write_bytes(model.SerializeToString())
            print(f"{PAGE / file}: {model.ByteSize():,} bytes, {n_shared} weights outside")
        about: dict[str, Any] = {
            "name": name, "licence": "CC BY-SA 4.0", "graph": "live.onnx" if live else "graph.onnx",
            "weights": "live-weights.safetensors" if live else "weights.safetensors",
            "sample_rate": network.sample_rate, "n_sources": network.n_sources,
            "hop_length": network.hop_length, "window_length": network.window_length,
            "frames_per_step": network.frames_per_step,
        }  # fmt: skip
        if live:
            about |= {"lag": network.lag, "late_graph": "late.onnx", "late_steps": LATE_STEPS}
        if filtering is not None:
            about["filter"] = {
                "graph": "filter.onnx", "weights": "filter-weights.safetensors", "n_bins": filtering.n_bins,
                "hop_length": round(HOP_SECONDS * network.sample_rate), "context": CONTEXT,
            }  # fmt: skip
        (PAGE / ("live.json" if live else "model.json")).write_text(
            json.dumps(about, indent=1) + "\n", "ascii"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
