"""Networks as graphs: waveforms in, waveforms out, with all padding, levelling and trimming inside."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import Moments
from flasepformer.models import SeparationNetwork, TFLocoformer
from flasepformer.ops import overlap_add
from flasepformer.running import Whole
from flasepformer.running.signals import SMALLEST_OVERLAP

MAX_BATCH = 1 << 12
MAX_SAMPLES = 1 << 31


class Signature(NamedTuple):
    """What a graph is traced with."""

    arguments: tuple[Any, ...]
    """An example."""
    inputs: list[str]
    """Names of all tensors that go in."""
    outputs: list[str]
    """Names of all that come out."""
    shapes: Any
    """Which axes are free, for `torch.export`."""


class Graph(nn.Module, ABC):
    """A network, or a part of one, that can be exported."""

    @abstractmethod
    def signature(self) -> Signature:
        """Return what to trace it with."""


class Unrolled(Whole):
    """Plays with all frames at once, in shapes that an exporter understands."""

    def fill(self, x: Tensor, multiple: int) -> Tensor:
        n_frames = x.shape[1]
        n_steps = (n_frames + multiple - 1) // multiple
        return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, n_steps * multiple - n_frames))


class WholeRecording(Graph):
    """A network for a recording of any length from one sample on, as a graph to export.

    The numbers are those of the network's `forward` in eval mode, but for rounding.

    Args:
        network: Any network.

    Shape: mixture (batch, time) to estimates (batch, source, time).
    """

    def __init__(self, network: SeparationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor) -> Tensor:
        network, n_samples = self.network, mixture.shape[-1]
        level = None
        if network.normalizes:
            level = network.level_of(Moments.of(mixture), mixture.abs().amax(-1)).unsqueeze(-1)
            mixture = mixture / torch.where(level > 0, level, 1)
        windows = network.flow(Unrolled(), network.analyse(self._padded(mixture)))
        waveforms = overlap_add(windows, network.hop_length)
        squared = network.squared_window(windows)
        if squared is not None:
            overlapping = overlap_add(squared.expand(windows.shape[1], -1), network.hop_length)
            waveforms = waveforms / overlapping.clamp_min(SMALLEST_OVERLAP)
        waveforms = F.pad(waveforms, (0, n_samples))[:, network.lag : network.lag + n_samples]
        estimates = waveforms.unflatten(0, (-1, network.n_sources))
        return estimates if level is None else estimates * level.unsqueeze(-1)

    def signature(self) -> Signature:
        """Return what to trace it with."""
        batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
        axes = {0: batch, 1: torch.export.Dim("time", max=MAX_SAMPLES)}
        return Signature((torch.randn(2, 8001),), ["mixture"], ["estimates"], {"mixture": axes})

    def _padded(self, mixture: Tensor) -> Tensor:
        """Return the samples under all windows, as `read_windows` reads them."""
        network, n_samples = self.network, mixture.shape[-1]
        lead, hop, window = network.lead, network.hop_length, network.window_length
        if isinstance(network, TFLocoformer) and not network.causal:
            n_least = torch.sym_max(n_samples, lead + 1)
            least = F.pad(mixture, (0, n_least - n_samples))
            before = least[:, 1 : lead + 1].flip(-1)
            after = least[:, n_least - 1 - lead : n_least - 1].flip(-1)
            n_frames = n_least // hop + 1
            return torch.cat([before, least, after], -1)[:, : (n_frames - 1) * hop + window]
        if network.causal:
            step = network.frames_per_step
            n_frames = (n_samples + network.lag + hop * step - 1) // (hop * step) * step
        else:
            n_beyond = torch.sym_max(n_samples - window, 0)
            n_frames = (n_beyond + (hop - 1 if network.config.pad_end else 0)) // hop + 1
        n_padded = (n_frames - 1) * hop + window
        return F.pad(mixture, (lead, window))[:, :n_padded]


class StreamingStep(Graph):
    """One step of a causal network as a graph to export: its state comes in and goes out as tensors.

    A stream begins with zeros.

    Args:
        network: A causal network.
        block_length: Samples in a step, a multiple of the network's step.

    Shape: samples (1, block_length) and the state to estimates (1, source, block_length), which are those of
    the samples `network.lag` earlier, and the next state.
    """

    def __init__(self, network: SeparationNetwork, block_length: int) -> None:
        super().__init__()
        self.network, self.block_length = network, block_length
        state: dict[str, Tensor] = {}
        samples = torch.zeros(1, block_length)
        with torch.no_grad():
            for _ in range(2):  # what there is to remember shows in the second step
                state = network.step(samples, state)[1]
        self.names = sorted(state)
        self.zeros = [torch.zeros_like(state[name]) for name in self.names]

    def forward(self, samples: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        estimates, after = self.network.step(samples, dict(zip(self.names, state, strict=True)))
        return estimates, [after[name] for name in self.names]

    def signature(self) -> Signature:
        """Return what to trace it with."""
        inputs, outputs = ([f"{kind}.{name}" for name in self.names] for kind in ("state", "next"))
        arguments = (torch.zeros(1, self.block_length), self.zeros)
        return Signature(arguments, ["samples", *inputs], ["estimates", *outputs], None)
