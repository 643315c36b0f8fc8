"""A score written down for a runner without PyTorch: what to compute of the frames in every sweep.

`running.Pieces` plays a score on a long recording sweep by sweep; here the same sweeps become graphs to
export. A sweep reads stored frames (or the samples) piece by piece with their neighbours, applies layers, may
store what comes out, and may add up the summary that a global layer needs in the sweeps after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from flasepformer.export.errors import ExportError
from flasepformer.export.graphs import MAX_SAMPLES, Graph, Signature, Unrolled
from flasepformer.layers import GlobalLayer, GlobalNorm, Join, Layer, Moments, WholeLayer
from flasepformer.models import SeparationNetwork, TFLocoformer
from flasepformer.onnx.plan import Framing, Plan, Room
from flasepformer.onnx.plan import Sweep as SweepPlan
from flasepformer.ops import KeyValueSums, overlap_add
from flasepformer.running.signals import SMALLEST_OVERLAP

EXAMPLE_UNITS = 24
"""Frames of the coarsest resolution in the piece that a sweep is traced with."""


class Expression:
    """Frames as a formula of stored frames, samples and summaries."""

    rate: int
    """Frames in a step of the network."""
    shape: tuple[int, ...]
    """(sequences, ...) of a frame."""
    filled: bool
    """Whether there are whole steps of frames; else as many as the analysis gives."""

    def below(self, reach: int) -> "Iterator[tuple[Expression, int]]":
        """Return what it is made of, and the neighbours that `reach` neighbours of these frames need."""
        yield from ()

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        """Return the frames for those of `below` and the summaries."""
        raise NotImplementedError


@dataclass(eq=False)
class Leaf(Expression):
    """Frames that are stored, or samples under the windows of the analysis (`number` None)."""

    number: int | None
    rate: int
    shape: tuple[int, ...]
    filled: bool


@dataclass(eq=False)
class Analysis(Expression):
    """Frames of the analysis, made of samples."""

    network: SeparationNetwork
    samples: Leaf

    def __post_init__(self) -> None:
        self.rate, self.shape, self.filled = self.samples.rate, (1, *self.network.features), False

    def below(self, reach: int) -> Iterator[tuple[Expression, int]]:
        yield self.samples, reach

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        return self.network.analyse(below[0])


@dataclass(eq=False)
class Applied(Expression):
    """A layer applied to frames; a global one by its summary."""

    x: Expression
    layer: Layer
    summary: int | None = None

    def __post_init__(self) -> None:
        batch, _, *rest = self.layer.shape((self.x.shape[0], 0, *self.x.shape[1:]))
        self.rate, self.shape, self.filled = self.x.rate // self.layer.stride, (batch, *rest), self.x.filled

    def below(self, reach: int) -> Iterator[tuple[Expression, int]]:
        yield self.x, reach * self.layer.stride + self.layer.halo

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        if self.summary is None:
            return self.layer(below[0])
        assert isinstance(self.layer, GlobalLayer)
        return self.layer.given(given[self.summary])(below[0], 0)


@dataclass(eq=False)
class Joined(Expression):
    """Two sequences put together."""

    layer: Join
    coarse: Expression
    x: Expression

    def __post_init__(self) -> None:
        self.rate, self.shape, self.filled = self.x.rate, self.x.shape, self.x.filled

    def below(self, reach: int) -> Iterator[tuple[Expression, int]]:
        yield self.coarse, -(-reach // self.layer.rate)
        yield self.x, reach

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        return self.layer.join(below[0], below[1])


@dataclass(eq=False)
class Filled(Expression):
    """Frames with zeros after them, up to whole steps."""

    x: Expression

    def __post_init__(self) -> None:
        self.rate, self.shape, self.filled = self.x.rate, self.x.shape, True

    def below(self, reach: int) -> Iterator[tuple[Expression, int]]:
        yield self.x, reach

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        return Unrolled().fill(below[0], self.rate)


@dataclass(eq=False)
class Cut(Expression):
    """Frames without those that fill the last step: the runner leaves them out."""

    x: Expression

    def __post_init__(self) -> None:
        self.rate, self.shape, self.filled = self.x.rate, self.x.shape, False

    def below(self, reach: int) -> Iterator[tuple[Expression, int]]:
        yield self.x, reach

    def value(self, below: list[Tensor], given: dict[int, Any]) -> Tensor:
        return below[0]


class Sweep(Graph):
    """One sweep as a graph to export.

    Args:
        root: The frames that come out.
        summarize: The global layer that needs a summary of them.
        hop_length: Add them up as overlapping windows of samples.
        stores: Whether they are kept.

    Shape: a piece of every leaf (sequences, frames, ...), or (1, samples); the summaries; and which frames
    are wanted, since those beside them lack neighbours. To those frames, and a summary of them.
    """

    def __init__(
        self,
        root: Expression,
        *,
        summarize: GlobalLayer | None = None,
        hop_length: int = 0,
        stores: bool = True,
    ) -> None:
        super().__init__()
        self.root, self.summarize, self.hop_length, self.stores = root, summarize, hop_length, stores
        self.order = _ordered(root)
        self.layers = nn.ModuleList(
            part for node in self.order for part in vars(node).values() if isinstance(part, nn.Module)
        )
        self.leaves = [node for node in self.order if isinstance(node, Leaf)]
        self.summaries = [
            (node.summary, node.layer, node.x)
            for node in self.order
            if isinstance(node, Applied) and node.summary is not None and isinstance(node.layer, GlobalLayer)
        ]
        # A piece that is filled up must have a frame to begin with: it is made of whole steps.
        fills = any(isinstance(node, Filled) for node in self.order)
        self.unit_rate = 1 if fills else min(node.rate for node in self.order)
        self.halo = _halo(root, self.unit_rate)
        self.filled = any(isinstance(node, Cut) for node in self.order)

    def forward(self, leaves: list[Tensor], given: list[Tensor], first: int, last: int) -> list[Tensor]:
        values = {id(leaf): value for leaf, value in zip(self.leaves, leaves, strict=True)}
        pairs = zip(given[::2], given[1::2], strict=True)
        known = {
            number: _summary(layer, *pair)
            for (number, layer, _), pair in zip(self.summaries, pairs, strict=True)
        }
        for node in self.order:
            if id(node) not in values:
                values[id(node)] = node.value([values[id(part)] for part, _ in node.below(0)], known)
        y = values[id(self.root)][:, first:last]
        if self.hop_length:
            return [overlap_add(y, self.hop_length)]
        results = [y] if self.stores else []
        return results if self.summarize is None else [*results, *_tensors(self.summarize.summarize(y))]

    def signature(self) -> Signature:
        """Return what to trace it with."""
        units = torch.export.Dim("units", max=MAX_SAMPLES)
        leaves, axes = [], []
        for leaf in self.leaves:
            n = leaf.rate // self.unit_rate
            if leaf.number is None:
                hop, window = self._framing()
                leaves.append(torch.randn(1, (EXAMPLE_UNITS * n - 1) * hop + window))
                free = torch.export.Dim.DYNAMIC
                axes.append({1: free})
            else:
                leaves.append(torch.randn(leaf.shape[0], EXAMPLE_UNITS * n, *leaf.shape[1:]))
                axes.append({1: n * units})
        given: list[Tensor] = []
        for _, layer, x in self.summaries:
            frames = torch.randn(x.shape[0], 4, *x.shape[1:])
            given += [tensor.float() for tensor in _tensors(layer.summarize(frames))]
        n_last = EXAMPLE_UNITS * self.root.rate // self.unit_rate
        dynamic = torch.export.Dim.DYNAMIC
        shapes = {"leaves": axes, "given": [None] * len(given), "first": dynamic, "last": dynamic}
        inputs = [f"frames{i}" for i in range(len(leaves))]
        inputs += [f"given{number}.{i}" for number, _, _ in self.summaries for i in (0, 1)]
        outputs = ["samples"] if self.hop_length else ["frames"] if self.stores else []
        outputs += ["sum.0", "sum.1"] if self.summarize is not None else []
        return Signature((leaves, given, 3, n_last - 2), [*inputs, "first", "last"], outputs, shapes)

    def _framing(self) -> tuple[int, int]:
        network = next(node.network for node in self.order if isinstance(node, Analysis))
        return network.hop_length, network.window_length


def _tensors(summary: Any) -> list[Tensor]:
    if isinstance(summary, Moments):
        return [summary.mean, summary.squares]
    assert isinstance(summary, KeyValueSums)
    return [summary.context, summary.key]


def _summary(layer: GlobalLayer, one: Tensor, other: Tensor) -> Moments | KeyValueSums:
    """Return a summary by its means for a frame, or for a number."""
    return Moments(1, one, other) if isinstance(layer, GlobalNorm) else KeyValueSums(one, other, 1)


def _ordered(root: Expression) -> list[Expression]:
    """Return an expression and all that it is made of, what comes first first."""
    order: list[Expression] = []

    def visit(node: Expression) -> None:
        if node not in order:
            for part, _ in node.below(0):
                visit(part)
            order.append(node)

    visit(root)
    return order


def _halo(root: Expression, unit_rate: int) -> int:
    """Return the neighbours that the pieces of all leaves need, in frames of a rate."""
    most = 0

    def visit(node: Expression, reach: int) -> None:
        nonlocal most
        if isinstance(node, Leaf):
            most = max(most, -(-reach * unit_rate // node.rate))
        for part, further in node.below(reach):
            visit(part, further)

    visit(root, 0)
    return most


class Sweeping:
    """A performer that computes nothing, and writes down the sweeps of a network.

    Args:
        network: With linear attention, not causal.

    Raises:
        ExportError: If the network cannot be played in sweeps.
    """

    def __init__(self, network: SeparationNetwork) -> None:
        if network.causal:
            raise ExportError("a causal model needs no sweeps: export it with --stream")
        if not network.in_pieces:
            raise ExportError(
                "softmax attention over a recording has no summary, so that there is nothing to carry from "
                "piece to piece; --long is for models with linear attention"
            )
        self.network = network
        self.sweeps: list[Sweep] = []
        self.written: list[Leaf | None] = []
        """What every sweep stores."""
        self._n_leaves = 0
        samples = Leaf(None, network.frames_per_step, (1,), False)
        frames: Expression = Analysis(network, samples)
        windows = network.flow(self, frames)
        self._add(Sweep(windows, hop_length=network.hop_length), None)

    def through(self, x: Expression, *layers: Layer) -> Expression:
        for layer in layers:
            assert not isinstance(layer, WholeLayer)
            summary = None
            if isinstance(layer, GlobalLayer):
                stores = not isinstance(x, (Leaf, Analysis))
                summary, leaf = len(self.sweeps), self._leaf(x) if stores else None
                self._add(Sweep(x, summarize=layer, stores=stores), leaf)
                x = leaf or x
            x = Applied(x, layer, summary)
        return x

    def keep(self, x: Expression) -> Expression:
        if isinstance(x, Leaf):
            return x
        leaf = self._leaf(x)
        self._add(Sweep(x), leaf)
        return leaf

    def join(self, layer: Join, below: Expression, x: Expression) -> Expression:
        return Joined(layer, below, x)

    def fill(self, x: Expression, multiple: int) -> Expression:
        return Filled(x)

    def cut(self, x: Expression, like: Expression) -> Expression:
        return Cut(x)

    def tap(self, x: Expression) -> None:
        pass

    def _leaf(self, x: Expression) -> Leaf:
        self._n_leaves += 1
        return Leaf(self._n_leaves - 1, x.rate, x.shape, x.filled)

    def _add(self, sweep: Sweep, leaf: Leaf | None) -> None:
        self.sweeps.append(sweep)
        self.written.append(leaf)

    def plan(self) -> Plan:
        """Return what the runner does, with room for every sequence as long as somebody will read it."""
        last_read = {leaf.number: i for i, sweep in enumerate(self.sweeps) for leaf in sweep.leaves}
        rooms: list[Room] = []
        room_of: dict[int | None, int | None] = {None: None}
        plans = []
        for i, (sweep, leaf) in enumerate(zip(self.sweeps, self.written, strict=True)):
            reads = tuple(room_of[read.number] for read in sweep.leaves)
            done = [last_read[read.number] == i for read in sweep.leaves]
            over = [room for room, is_last in zip(reads, done, strict=True) if is_last and room is not None]
            writes = None
            if leaf is not None:
                room = Room(rate=leaf.rate, shape=leaf.shape)
                writes = next(
                    (number for number in over if number is not None and rooms[number] == room), None
                )
                if writes is None:
                    writes = len(rooms)
                    rooms.append(room)
                room_of[leaf.number] = writes
            plans.append(
                SweepPlan(
                    graph=f"{i:02}.onnx",
                    reads=reads,
                    given=tuple(number for number, _, _ in sweep.summaries),
                    rate=sweep.root.rate,
                    unit=sweep.unit_rate,
                    halo=sweep.halo,
                    filled=sweep.root.filled,
                    windows_filled=sweep.filled,
                    writes=writes,
                    sums=_kind(sweep.summarize),
                    numbers=prod(sweep.root.shape[1:]),
                    frees=tuple(number for number in over if number != writes),
                )
            )
        network = self.network
        return Plan(
            framing=framing(network), piece_length=network.piece_length(torch.device("cpu")),
            rooms=tuple(rooms), sweeps=tuple(plans),
        )  # fmt: skip


def _kind(layer: GlobalLayer | None) -> str:
    if layer is None:
        return ""
    return "moments" if isinstance(layer, GlobalNorm) else "means"


def framing(network: SeparationNetwork) -> Framing:
    """Return how a network makes frames of samples."""
    mirrored = isinstance(network, TFLocoformer)
    hop, window = network.hop_length, network.window_length
    squared = network.squared_window(torch.zeros(()))
    return Framing(
        hop_length=hop, window_length=window, lead=network.lead,
        least=network.lead + 1 if mirrored else window,
        beyond=0 if mirrored else (hop - 1 if network.config.pad_end else 0) - window,
        mirrored=mirrored, step=network.frames_per_step, normalizes=network.normalizes,
        squared_window=None if squared is None else tuple(squared.tolist()),
        smallest_overlap=SMALLEST_OVERLAP,
    )  # fmt: skip


class Level(Graph):
    """The level of a recording as a graph to export.

    Shape: the mean of the samples, the sum of the squared distances from it and the peak (1,), and the number
    of samples, to (1,).
    """

    def __init__(self, network: SeparationNetwork) -> None:
        super().__init__()
        self.level_of = network.level_of

    def forward(self, mean: Tensor, squares: Tensor, peak: Tensor, count: int) -> Tensor:
        return self.level_of(Moments(count, mean, squares), peak)

    def signature(self) -> Signature:
        """Return what to trace it with."""
        free = torch.export.Dim.DYNAMIC
        return Signature(
            (torch.zeros(1), torch.ones(1), torch.ones(1), 100),
            ["mean", "squares", "peak", "count"], ["level"],
            {"mean": None, "squares": None, "peak": None, "count": free},
        )  # fmt: skip
