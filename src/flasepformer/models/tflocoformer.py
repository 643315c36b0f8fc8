"""TF-Locoformer and FLA-TFLocoformer: blocks over frequency and over time by turns, in the STFT domain.

References:
    Saijo et al., "TF-Locoformer: Transformer with Local Modeling by Convolution for Speech Separation and
    Enhancement", IWAENC 2024, arXiv:2408.03440, which has softmax attention over time too.
    Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528: gated focused linear attention over time.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import (
    Carry,
    FocusedLinearAttention,
    GatedResidualAttention,
    Given,
    GlobalNorm,
    Layer,
    Moments,
    RMSGroupNorm,
    RotaryAttention,
    WholeLayer,
    with_past,
)
from flasepformer.models.fast_convolution import FastConvolution, swiglu
from flasepformer.models.network import (
    Block,
    Modules,
    SeparationNetwork,
    X,
    check_causal,
    check_fields,
    decay,
)
from flasepformer.ops import KeyValueSums, cut_frames, is_exporting, real_fft, real_ifft
from flasepformer.running import Performer, Samples, read_reflected

PIECE_ROWS = 1 << 14
"""Frames times bins in a piece: many enough that its halo does not count."""

ACCELERATOR_ROWS = 1 << 17
"""The same on other devices: enough to keep one busy, 0.2 GB of M's widest features."""

LIVE_TENSORS = 10
"""Tensors as large as a piece that exist at a time, measured; what is wider exists for `AT_ONCE` only."""

AT_ONCE = 8
"""Frames whose bins, or bins whose frames, go through a layer at a time: enough to use a kernel well, few
enough for the cache."""

SHORTEST_FAST_KERNEL = 6
"""Kernels from which `FastConvolution` is faster: with 8 taps a seventh off S, a third off M."""

SMALLEST_DEVIATION = 1e-6
"""A recording that varies less than this, in units of its peak, varies by nothing but rounding."""

Attention = Literal["focused_linear", "linear", "softmax"]
Axis = Literal["bins", "frames"]


@dataclass(frozen=True, kw_only=True)
class TFLocoformerConfig:
    """Everything needed to rebuild the network; saved next to the weights.

    The defaults are the paper's FLA-TFLocoformer-M, with the parameters that the paper counts. The bounds
    keep a hostile or damaged config from allocating the machine's memory.
    """

    n_sources: int = 2
    """Talkers in each mixture."""
    sample_rate: int = 8000
    """Sample rate of the mixtures in Hz."""
    n_fft: int = 128
    """Samples in an STFT frame, even: 256 for WHAMR!."""
    hop_length: int = 64
    """Samples between two STFT frames, at most half a frame."""
    n_blocks: int = 6
    """Pairs of a frequency and a time block: 4 in S, 6 in M, 9 in L."""
    n_channels: int = 128
    """Feature channels of each bin: 96 in S, 128 in M and L."""
    n_heads: int = 4
    """Attention heads, over frequency and over time."""
    n_groups: int = 4
    """Groups of channels that are normalised together."""
    attention_channels: int = 128
    """Channels of queries, keys and values in softmax attention, an even number per head: 96 in S, 128 in M
    and L."""
    feed_forward_channels: int = 192
    """Hidden channels of the feed-forward networks: 192, in S 128; 384 in TF-Locoformer-M for WSJ0-2mix and
    Libri2Mix."""
    feed_forward_kernel: int = 8
    """Frames or bins under the kernels of the feed-forward networks: 8; 4 where they have 384 channels."""
    attention: Attention = "focused_linear"
    """Attention over time: "softmax" makes this a TF-Locoformer. Over frequency it is always softmax."""
    gated: bool = True
    """Scale linear attention by the paper's gate."""
    focusing_power: int = 3
    """Focusing factor p of focused linear attention."""
    value_kernel_size: int = 5
    """Frames under the convolution of linear attention's values, odd; 0 leaves it out."""
    repeat_input: bool = True
    """Add the input of linear attention a second time, as the published models do."""
    dropout: float = 0.0
    """Share of features dropped in training by feed-forward networks and softmax attention."""
    normalize_variance: bool = True
    """Divide the mixture by its standard deviation and give it back to the estimates."""
    causal: bool = False
    """Let no frame depend on a later one, so that the network can be played live."""
    look_ahead: int = 0
    """Frames that a causal network waits, and hears, before it answers."""
    forget_seconds: float = 0.0
    """Time constant with which a causal network forgets what it sums up; 0: never."""

    def __post_init__(self) -> None:
        bounds = {
            "n_sources": (2, 16), "sample_rate": (2000, 384_000), "n_fft": (4, 8192), "hop_length": (1, 4096),
            "n_blocks": (1, 32), "n_channels": (1, 1024), "n_heads": (1, 64), "n_groups": (1, 256),
            "attention_channels": (2, 1024), "feed_forward_channels": (1, 2048),
            "feed_forward_kernel": (1, 32), "focusing_power": (1, 8), "value_kernel_size": (0, 129),
            "look_ahead": (0, 1024),
        }  # fmt: skip
        flags = ("gated", "repeat_input", "normalize_variance", "causal")
        check_fields(self, bounds, flags, {"attention": get_args(Attention)})
        if self.causal and (self.attention == "softmax" or self.normalize_variance):
            raise ValueError(
                "a causal network has linear attention over time and takes the mixture at the level it has; "
                'set attention to "focused_linear" and normalize_variance to false'
            )
        check_causal(self)
        for name, divisor, unit in (
            ("n_fft", 2, "2"),
            ("n_channels", self.n_heads, "n_heads"),
            ("n_channels", self.n_groups, "n_groups"),
            ("attention_channels", 2 * self.n_heads, "2 n_heads"),
        ):
            if getattr(self, name) % divisor:
                raise ValueError(f"{name} must be a multiple of {unit}, got {getattr(self, name)}")
        if self.hop_length > self.n_fft // 2:
            raise ValueError(
                f"hop_length must not exceed half of n_fft, got {self.hop_length} and {self.n_fft}"
            )
        if self.value_kernel_size and self.value_kernel_size % 2 == 0:
            raise ValueError(f"value_kernel_size must be odd or 0, got {self.value_kernel_size}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout!r}")

    @property
    def decay(self) -> float:
        """What is left of a sum after a frame."""
        return decay(self.forget_seconds, self.hop_length / self.sample_rate)


class TFLocoformer(SeparationNetwork):
    """Separate the talkers of a mixture in the STFT domain.

    With linear attention, cost and memory grow linearly with the mixture's length.

    Args:
        config: Sizes of the network.

    References: Saijo et al. (IWAENC 2024); Wang et al. (Interspeech 2025).
    """

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__(config)
        self.config: TFLocoformerConfig = config
        self.window_length, self.features = config.n_fft, (config.n_fft // 2 + 1, 2)
        self.lead = config.n_fft - config.hop_length if config.causal else config.n_fft // 2
        self.look_ahead = config.look_ahead
        self.in_pieces = config.attention != "softmax"
        self.input_conv = BinConv(2, config.n_channels, config.causal)
        self.input_norm = GlobalNorm(config.n_channels, causal=config.causal, decay=config.decay)
        self.blocks: Modules[BlockPair] = Modules(BlockPair(config) for _ in range(config.n_blocks))
        self.output_conv = BinConv(config.n_channels, 2 * config.n_sources, config.causal, transposed=True)
        self._initialize()

    def flow(self, run: Performer[X], frames: X) -> X:
        x = run.through(frames, self.input_conv, self.input_norm)
        for block in self.blocks:
            x = run.through(x, *block.frequency.layers(), *block.time.layers())
        return run.through(x, self.output_conv, Windows(self.config.n_fft, self.causal))

    def analyse(self, windows: Tensor) -> Tensor:
        windows = windows.to(torch.promote_types(windows.dtype, torch.float32))
        frames = cut_frames(windows, self.window_length, self.hop_length)
        return real_fft(frames * hann_window(self.window_length, windows))  # (batch, frames, bins, 2)

    def read_windows(self, samples: Samples, first: int, last: int) -> Tensor:
        if self.causal:
            return super().read_windows(samples, first, last)
        begin = first * self.hop_length - self.lead
        end = begin + (last - first - 1) * self.hop_length + self.window_length
        return read_reflected(samples, begin, end, self.lead + 1)

    def n_frames(self, n_samples: int) -> int:
        if self.causal:
            return -(-(n_samples + self.lag) // self.hop_length)
        return 1 + max(n_samples, self.lead + 1) // self.hop_length

    def squared_window(self, like: Tensor) -> Tensor | None:
        return hann_window(self.window_length, like).square()

    def piece_length(self, device: torch.device) -> int:
        rows = PIECE_ROWS if device.type == "cpu" else ACCELERATOR_ROWS
        return max(1, rows // (self.config.n_fft // 2 + 1))

    def numbers_at_a_time(self, n_frames: int) -> int:
        n_bins = self.config.n_fft // 2 + 1
        return LIVE_TENSORS * n_frames * n_bins * self.config.n_channels

    def level_of(self, moments: Moments, peak: Tensor) -> Tensor:
        """Return the unbiased standard deviation, or the peak of what does not vary."""
        deviation = (moments.squares / torch.sym_max(moments.count - 1, 1)).sqrt()
        return torch.where(deviation > SMALLEST_DEVIATION * peak, deviation, peak)

    def _initialize(self) -> None:
        """Start as the original does: weights uniform after Glorot and Bengio, biases at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("weight") and parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)


class BinConv(Layer):
    """A convolution over three frames and three bins, in single precision at least.

    Args:
        n_in: Channels that come in.
        n_out: Channels that go out.
        causal: Look back only.
        transposed: Have the weights of `nn.ConvTranspose2d`.

    Shape: (batch, frames, bins, n_in) to (batch, frames, bins, n_out).
    """

    def __init__(self, n_in: int, n_out: int, causal: bool, transposed: bool = False) -> None:
        super().__init__()
        self.causal, self.transposed = causal, transposed
        self.halo = 2 if causal else 1
        self.weight = nn.Parameter(
            torch.empty(n_in, n_out, 3, 3) if transposed else torch.empty(n_out, n_in, 3, 3)
        )
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        weight = self.weight.transpose(0, 1).flip(2, 3) if self.transposed else self.weight
        with without_autocast(x):
            x = x.to(weight.dtype)
            x = with_past(x, 2, carry) if self.causal else x
            padding = (0 if self.causal else 1, 1)
            return F.conv2d(x.movedim(-1, 1), weight, self.bias, padding=padding).movedim(1, -1)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], len(self.bias))


class BlockPair(nn.Module):
    """A block along the bins of every frame, then one along the frames of every bin."""

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__()
        self.frequency = macaron(config, "bins", BinAttention(config))
        time = FrameAttention(config) if config.attention == "softmax" else time_attention(config)
        self.time = macaron(config, "frames", time)


def macaron(config: TFLocoformerConfig, axis: Axis, attention: Layer) -> Block:
    """Return attention between two feed-forward networks, along one axis."""
    layers = {"feed_forward_1": ConvSwiGLU(config, axis), "attention": attention}
    return Block({**layers, "feed_forward_2": ConvSwiGLU(config, axis)})


class ConvSwiGLU(Layer):
    """Residual feed-forward network that is gated by SiLU and sees its neighbours along one axis.

    The convolutions see the features as a channels-last image: the same numbers as `nn.Conv1d` and
    `nn.ConvTranspose1d` on transposed sequences, without a copy, and faster on a CPU.

    Args:
        config: Sizes of the network.
        axis: Along which neighbours are seen: "bins" or "frames".

    Shape: (batch, frames, bins, channels), in and out.

    Reference: Saijo et al. (IWAENC 2024).
    """

    def __init__(self, config: TFLocoformerConfig, axis: Axis) -> None:
        super().__init__()
        kernel, hidden = config.feed_forward_kernel, config.feed_forward_channels
        self.axis = axis
        self.reach = kernel - 1
        self.causal = config.causal
        if axis == "frames":
            self.halo = 2 * self.reach if config.causal else self.reach
        self.width = (config.n_fft // 2 + 1) * 2 * hidden
        self.norm = RMSGroupNorm(config.n_channels, config.n_groups)
        self.expand = nn.Conv1d(config.n_channels, 2 * hidden, kernel)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.ConvTranspose1d(hidden, config.n_channels, kernel)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        along_frames = self.axis == "frames"
        steps_back = along_frames and self.causal  # else the sequence grows by the reach, and shrinks again
        padding = (0 if steps_back else self.reach, 0) if along_frames else (0, self.reach)
        axis = 3 if along_frames else 2  # of the kernel, that the sequence is not along
        normalized = self.norm(x)
        normalized = with_past(normalized, self.reach, carry, "normalized") if steps_back else normalized
        image = normalized.movedim(-1, 1)  # (batch, channels, frames, bins)
        expanded = F.conv2d(image, self.expand.weight.unsqueeze(axis), self.expand.bias, padding=padding)
        value, gate = expanded.chunk(2, dim=1)
        hidden = self.dropout(value * F.silu(gate))
        if steps_back:
            hidden = with_past(hidden.movedim(1, -1), self.reach, carry, "hidden").movedim(-1, 1)
            weight = self.contract.weight.transpose(0, 1).flip(-1).unsqueeze(axis)
            contracted = F.conv2d(hidden, weight, self.contract.bias)
        else:
            weight = self.contract.weight.unsqueeze(axis)
            contracted = F.conv_transpose2d(hidden, weight, self.contract.bias, padding=padding)
        return x + self.dropout(contracted.movedim(1, -1))

    def prepared(self) -> Layer:
        weight = self.expand.weight
        exact = weight.is_cpu and weight.dtype in (torch.float32, torch.float64)
        steps_back = self.axis == "frames" and self.causal
        if (
            not exact
            or steps_back
            or torch.is_autocast_enabled("cpu")
            or self.reach + 1 < SHORTEST_FAST_KERNEL
        ):
            return self
        return FastConvSwiGLU(self)


class FastConvSwiGLU(Layer):
    """A `ConvSwiGLU` with fast convolutions, whose kernels are transformed already."""

    def __init__(self, layer: ConvSwiGLU) -> None:
        super().__init__()
        self.norm, self.axis, self.halo, self.reach = layer.norm, layer.axis, layer.halo, layer.reach
        contract = layer.contract.weight.transpose(0, 1).flip(-1)
        assert layer.expand.bias is not None
        assert layer.contract.bias is not None
        self.expand = FastConvolution(layer.expand.weight, layer.expand.bias)
        self.contract = FastConvolution(contract, layer.contract.bias)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        along, dim = (self._along_frames, 2) if self.axis == "frames" else (self._along_bins, 1)
        for recording, whole in zip(x.split(1), result.split(1), strict=True):
            for some, out in zip(recording.split(AT_ONCE, dim), whole.split(AT_ONCE, dim), strict=True):
                along(some[0], out[0])
        return result

    def _along_frames(self, x: Tensor, out: Tensor) -> None:
        padded = F.pad(self.norm(x), (0, 0, 0, 0, self.reach, self.reach))
        torch.add(x, self.contract(swiglu(self.expand(padded))), out=out)

    def _along_bins(self, x: Tensor, out: Tensor) -> None:
        # All frames are one sequence; the zeros before a frame are also those after the frame before.
        n_frames, n_bins, n_channels = x.shape
        period = n_bins + self.reach
        sequence = x.new_zeros(n_frames * period + 2 * self.reach, 1, n_channels)
        frames = sequence[: n_frames * period].view(n_frames, period, n_channels)
        frames[:, self.reach :] = self.norm(x)
        y = self.contract(swiglu(self.expand(sequence))).view(n_frames, period, n_channels)
        torch.add(x, y[:, :n_bins], out=out)


class SoftmaxAttention(Layer):
    """x + attention(norm(x)) along an axis, with rotary positions.

    Shape: (batch, frames, bins, channels), in and out.
    """

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__()
        self.norm = RMSGroupNorm(config.n_channels, config.n_groups)
        self.attention = RotaryAttention(
            config.n_channels, config.attention_channels, config.n_heads, config.dropout
        )
        self.causal = config.causal

    def attend(self, sequences: Tensor) -> Tensor:
        """Attend in sequences (batch, sequences, length, channels)."""
        attended = self.attention(self.norm(sequences).flatten(0, 1))
        return sequences + attended.unflatten(0, sequences.shape[:2])


class BinAttention(SoftmaxAttention):
    """Softmax attention along the bins of every frame."""

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__(config)
        self.width = (config.n_fft // 2 + 1) * 3 * config.attention_channels

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return self.attend(x)


class FrameAttention(SoftmaxAttention, WholeLayer):
    """Softmax attention along the frames of every bin."""

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return self.attend(x.transpose(1, 2)).transpose(1, 2)


class TimeAttention(GatedResidualAttention):
    """Linear attention along the frames of every bin; (batch, frames, bins, channels), in and out.

    Where the sums are known, a few bins at a time, so that all that passes stays in the cache.
    """

    def summarize(self, x: Tensor) -> KeyValueSums:
        parts = [
            super(TimeAttention, self).summarize(by_bin(some))
            for some in x.split(bins_at_once(x.shape[2]), dim=2)
        ]
        context, key = (
            torch.cat([some.unflatten(0, (len(x), -1)) for some in sums], dim=1)  # (batch, bins, heads, ...)
            for sums in zip(*((part.context, part.key) for part in parts), strict=True)
        )
        return KeyValueSums(context, key, x.shape[1])

    def given(self, summary: KeyValueSums) -> Given:
        n_bins = bins_at_once(summary.context.shape[1])
        groups = zip(*(t.split(n_bins, dim=1) for t in (summary.context, summary.key)), strict=True)
        updates = [
            super(TimeAttention, self).given(
                KeyValueSums(context.flatten(0, 1), key.flatten(0, 1), summary.count)
            )
            for context, key in groups
        ]

        def update(x: Tensor, first: int) -> Tensor:
            some_bins = zip(updates, x.split(n_bins, dim=2), strict=True)
            attended = [apply(by_bin(some), first).unflatten(0, (len(x), -1)) for apply, some in some_bins]
            return torch.cat([some.transpose(1, 2) for some in attended], dim=2)

        return update

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return by_frame(super().forward(by_bin(x), carry), x.shape[0])


def bins_at_once(n_bins: int) -> int:
    """Return how many of so many bins `TimeAttention` takes at a time: all where a graph is to be small."""
    return n_bins if is_exporting() else AT_ONCE


def time_attention(config: TFLocoformerConfig) -> TimeAttention:
    """Return linear attention over time with its gate and residual connection."""
    n_channels, n_groups, causal = config.n_channels, config.n_groups, config.causal
    power = config.focusing_power if config.attention == "focused_linear" else 1
    attention = FocusedLinearAttention(
        n_channels, config.n_heads, power, config.value_kernel_size, causal, config.decay
    )
    gate_norm = RMSGroupNorm(n_channels, n_groups) if config.gated else None
    norm = RMSGroupNorm(n_channels, n_groups)
    # Differs from the paper: the published weights were trained with a second residual connection.
    return TimeAttention(
        attention, n_channels, norm, gate_norm, causal=causal, repeat_input=config.repeat_input
    )


def by_bin(x: Tensor) -> Tensor:
    """Turn (batch, frames, bins, channels) into sequences (batch * bins, frames, channels)."""
    return x.transpose(1, 2).flatten(0, 1)


def by_frame(x: Tensor, batch: int) -> Tensor:
    """Undo `by_bin`."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2).contiguous()


class Windows(Layer):
    """Turn spectra of the talkers into windows of samples, weighted by a Hann window.

    Shape: (batch, frames, bins, 2 * source) to (batch * source, frames, n_fft).
    """

    def __init__(self, n_fft: int, causal: bool) -> None:
        super().__init__()
        self.n_fft, self.causal = n_fft, causal

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        with without_autocast(x):
            parts = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
            spectra = parts.movedim(-2, 1).flatten(0, 1)  # (batch * source, frames, bins, 2)
            windows = real_ifft(spectra)
            return windows * hann_window(self.n_fft, windows)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        batch, n_frames, _, n_channels = shape
        return (batch * n_channels // 2, n_frames, self.n_fft)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context in which numbers on the device of a tensor keep their precision."""
    device = x.device.type
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else nullcontext()


def hann_window(length: int, like: Tensor) -> Tensor:
    """Return a Hann window of the type and on the device of a tensor."""
    return torch.hann_window(length, dtype=like.dtype, device=like.device)
