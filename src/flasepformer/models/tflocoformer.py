"""TF-Locoformer and FLA-TFLocoformer: blocks over frequency and over time by turns, in the STFT domain.

References:
    Saijo et al., "TF-Locoformer: Transformer with Local Modeling by Convolution for Speech Separation and
    Enhancement", IWAENC 2024, arXiv:2408.03440, which has softmax attention over time too.
    Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528: gated focused linear attention over time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers import (
    FocusedLinearAttention,
    GatedResidualAttention,
    GlobalNorm,
    RMSGroupNorm,
    RotaryAttention,
)
from flasepformer.models.long_form import FrameMemory
from flasepformer.models.long_tflocoformer import ACCELERATOR_ROWS, LongPass
from flasepformer.ops import PIECE_LENGTH, inverse_stft, map_pieces, stft

SMALLEST_DEVIATION = 1e-6
"""A recording that varies less than this, in units of its peak, varies by nothing but rounding."""

Attention = Literal["focused_linear", "linear", "softmax"]


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

    def __post_init__(self) -> None:
        bounds = {
            "n_sources": (2, 16), "sample_rate": (2000, 384_000), "n_fft": (4, 8192), "hop_length": (1, 4096),
            "n_blocks": (1, 32), "n_channels": (1, 1024), "n_heads": (1, 64), "n_groups": (1, 256),
            "attention_channels": (2, 1024), "feed_forward_channels": (1, 2048),
            "feed_forward_kernel": (1, 32), "focusing_power": (1, 8), "value_kernel_size": (0, 129),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
        for name in ("gated", "repeat_input", "normalize_variance"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.attention not in get_args(Attention):
            known = ", ".join(get_args(Attention))
            raise ValueError(f"attention must be one of {known}, got {self.attention!r}")
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


class TFLocoformer(nn.Module):
    """Separate the talkers of a mixture in the STFT domain.

    With linear attention, cost and memory grow linearly with the mixture's length.

    Args:
        config: Sizes of the network.

    Shape: mixture (batch, time) to estimates (batch, source, time), of any length from one sample on.

    Raises:
        ValueError: If the mixture is not a floating-point tensor of two axes with at least one sample.

    References: Saijo et al. (IWAENC 2024); Wang et al. (Interspeech 2025).
    """

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_conv = nn.Conv2d(2, config.n_channels, 3, padding=1)
        self.input_norm = GlobalNorm(config.n_channels)
        self.blocks = nn.ModuleList(BlockPair(config) for _ in range(config.n_blocks))
        self.output_conv = nn.ConvTranspose2d(config.n_channels, 2 * config.n_sources, 3, padding=1)
        self._initialize()

    def _initialize(self) -> None:
        """Start as the original does: weights uniform after Glorot and Bengio, biases at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("weight") and parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def sample_rate(self) -> int:
        """Sample rate of mixture and estimates in Hz."""
        return self.config.sample_rate

    @property
    def n_sources(self) -> int:
        """Number of estimates for each mixture."""
        return self.config.n_sources

    def forward_with_auxiliary(self, mixture: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the estimates, and those of the auxiliary heads, which this family does not have."""
        return self(mixture), []

    def forward(self, mixture: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled() or self.config.attention == "softmax":
            return self._separate(mixture)
        return self.separate_in_pieces(mixture)

    @torch.no_grad()
    def separate_in_pieces(
        self,
        mixture: Tensor,
        memory: FrameMemory | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Separate recordings of any length in pieces of time, one by one, with the numbers of the whole.

        Args:
            mixture: (batch, time).
            memory: Room for what is kept of a recording between two sweeps over it; by default without limit.
            progress: Told the share that is done, from 0 to 1, after every piece.

        Returns:
            The estimates (batch, source, time), as the whole at once gives them in eval mode.

        Raises:
            ValueError: If the attention is softmax, which has no small state to carry from piece to piece.
        """
        if self.config.attention == "softmax":
            raise ValueError("softmax attention cannot be evaluated in pieces: every frame needs all others")
        normalized, level = self._normalize(mixture)
        memory = memory or FrameMemory()
        estimates: list[Tensor] = []

        def tell(share: float) -> None:
            if progress is not None:
                progress((len(estimates) + share) / len(mixture))

        for waveform in normalized:
            estimates.append(LongPass(self, waveform, memory, tell).run())
        return (torch.stack(estimates) * level).to(mixture.dtype)

    def _separate(self, mixture: Tensor) -> Tensor:
        config = self.config
        normalized, level = self._normalize(mixture)
        with torch.autocast(mixture.device.type, enabled=False):
            x = self.input_norm(self.input_features(stft(normalized, config.n_fft, config.hop_length)))
        for block in self.blocks:
            x = block(x)
        with torch.autocast(mixture.device.type, enabled=False):
            estimates = inverse_stft(self.decode(x), config.hop_length, mixture.shape[-1])
            return (estimates * level).to(mixture.dtype)

    def _normalize(self, mixture: Tensor) -> tuple[Tensor, Tensor]:
        """Check the mixture; return it normalised if that is wanted, and what it was divided by."""
        if mixture.ndim != 2 or mixture.shape[-1] == 0 or not mixture.is_floating_point():
            raise ValueError(
                "mixture must be floating point (batch, time) with at least one sample, "
                f"got {tuple(mixture.shape)} of {mixture.dtype}; add a batch axis with mixture[None]"
            )
        if not self.config.normalize_variance:
            return mixture, mixture.new_ones(())
        with torch.autocast(mixture.device.type, enabled=False):
            normalized, level = normalize(mixture)
        return normalized, level.unsqueeze(1)

    def input_features(self, spectrum: Tensor) -> Tensor:
        """Turn complex (batch, frames, bins) into features (batch, frames, bins, channels) at any level."""
        image = torch.view_as_real(spectrum).movedim(-1, 1)  # (batch, real and imaginary, frames, bins)
        return self.input_conv(image.to(self.input_conv.weight.dtype)).movedim(1, -1)

    def decode(self, x: Tensor) -> Tensor:
        """Turn features into the talkers' spectra, complex (batch, source, frames, bins)."""
        image = self.output_conv(x.to(self.output_conv.weight.dtype).movedim(-1, 1))
        parts = image.to(torch.promote_types(image.dtype, torch.float32)).unflatten(1, (-1, 2))
        return torch.complex(parts[:, :, 0], parts[:, :, 1])


def normalize(mixture: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each mixture by its standard deviation, or by its peak if it does not vary.

    Args:
        mixture: (batch, time).

    Returns:
        The normalised mixture, and what it was divided by (batch, 1), zero for silence.
    """
    mixture = mixture.to(torch.promote_types(mixture.dtype, torch.float32))
    peak = mixture.abs().amax(dim=-1, keepdim=True)
    scaled = mixture / torch.where(peak > 0, peak, 1)  # so that no square leaves the range of numbers
    varies = mixture.shape[-1] > 1
    deviation = scaled.std(dim=-1, keepdim=True) if varies else torch.zeros_like(peak)
    deviation = torch.where(deviation > SMALLEST_DEVIATION, deviation, 1)
    return scaled / deviation, peak * deviation


class BlockPair(nn.Module):
    """A block along the bins of every frame, then one along the frames of every bin.

    Where no gradient is recorded, only a group of frames or bins is worked on at a time, and the result takes
    the input's place, so that memory holds little more than the features themselves.

    Shape: (batch, frames, bins, channels), in and out.
    """

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__()
        self.frequency = MacaronBlock(config, softmax_attention(config))
        if config.attention == "softmax":
            self.time = MacaronBlock(config, softmax_attention(config))
        else:
            self.time = MacaronBlock(config, linear_attention(config), config.repeat_input)

    def forward(self, x: Tensor) -> Tensor:
        x = map_sequences(self.frequency, x)
        return map_sequences(self.time, x.transpose(1, 2)).transpose(1, 2)


def map_sequences(block: nn.Module, x: Tensor) -> Tensor:
    """Apply a block to every sequence of (batch, sequences, length, channels); in place without gradients."""
    if torch.is_grad_enabled():
        return block(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    n_rows = PIECE_LENGTH if x.device.type == "cpu" else ACCELERATOR_ROWS
    group_size = max(1, n_rows // x.shape[2])
    for recording in x:
        for group in recording.split(group_size):
            group.copy_(block(group.contiguous()))
    return x


class MacaronBlock(nn.Module):
    """Attention between two feed-forward networks, along one axis.

    Args:
        config: Sizes of the network.
        attention: Residual attention.
        repeat_input: Add the attention's input once more.

    Shape: (sequences, length, channels), in and out.
    """

    def __init__(self, config: TFLocoformerConfig, attention: nn.Module, repeat_input: bool = False) -> None:
        super().__init__()
        self.feed_forward_1 = ConvSwiGLU(config)
        self.attention = attention
        self.feed_forward_2 = ConvSwiGLU(config)
        self.repeat_input = repeat_input

    def forward(self, x: Tensor) -> Tensor:
        x = self.feed_forward_1(x)
        # Differs from the paper: the published weights were trained with a second residual connection.
        x = self.attention(x) + x if self.repeat_input else self.attention(x)
        return self.feed_forward_2(x)


class ConvSwiGLU(nn.Module):
    """Residual feed-forward network that is gated by SiLU and sees its neighbours.

    The convolutions see the sequences as rows of a channels-last image: the same numbers as `nn.Conv1d` and
    `nn.ConvTranspose1d` on transposed sequences, without a copy, and faster on a CPU.

    Shape: (sequences, length, channels), in and out.

    Reference: Saijo et al. (IWAENC 2024).
    """

    def __init__(self, config: TFLocoformerConfig) -> None:
        super().__init__()
        kernel, hidden = config.feed_forward_kernel, config.feed_forward_channels
        self.reach = kernel - 1
        self.norm = RMSGroupNorm(config.n_channels, config.n_groups)
        self.expand = nn.Conv1d(config.n_channels, 2 * hidden, kernel)
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.ConvTranspose1d(hidden, config.n_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return map_pieces(self._forward, x, halo=self.reach)

    def _forward(self, x: Tensor) -> Tensor:
        image = self.norm(x).unsqueeze(0).movedim(-1, 1)  # (1, channels, sequences, length)
        padding = (0, self.reach)
        expanded = F.conv2d(image, self.expand.weight.unsqueeze(2), self.expand.bias, padding=padding)
        value, gate = expanded.chunk(2, dim=1)  # (1, hidden, sequences, length + reach)
        hidden = self.dropout(value * F.silu(gate))
        weight = self.contract.weight.unsqueeze(2)
        contracted = F.conv_transpose2d(hidden, weight, self.contract.bias, padding=padding)
        return x + self.dropout(contracted.movedim(1, -1).squeeze(0))


class ResidualAttention(nn.Module):
    """x + attention(norm(x)); (sequences, length, channels), in and out."""

    def __init__(self, norm: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.norm(x))


def softmax_attention(config: TFLocoformerConfig) -> ResidualAttention:
    """Return softmax attention with rotary positions and its residual connection."""
    attention = RotaryAttention(config.n_channels, config.attention_channels, config.n_heads, config.dropout)
    return ResidualAttention(RMSGroupNorm(config.n_channels, config.n_groups), attention)


def linear_attention(config: TFLocoformerConfig) -> GatedResidualAttention:
    """Return linear attention with its gate and residual connection."""
    n_channels, n_groups = config.n_channels, config.n_groups
    power = config.focusing_power if config.attention == "focused_linear" else 1
    attention = FocusedLinearAttention(n_channels, config.n_heads, power, config.value_kernel_size)
    gate_norm = RMSGroupNorm(n_channels, n_groups) if config.gated else None
    return GatedResidualAttention(attention, n_channels, RMSGroupNorm(n_channels, n_groups), gate_norm)
