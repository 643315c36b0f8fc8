"""Focused linear attention with its parameters, and the gated residual block around it.

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers.convolution import DepthwiseConv, depthwise_conv
from flasepformer.ops import (
    PIECE_LENGTH,
    KeyValueMeans,
    attend_to_means,
    focus,
    key_value_means,
    map_pieces,
)

RELU_FLOOR = 1e-6
"""Keeps queries and keys positive, so that a feature that ReLU has emptied still has a direction."""


class FocusedLinearAttention(nn.Module):
    """Multi-head self-attention whose cost grows linearly with the number of frames.

    A depthwise convolution of the values, one filter for each channel of a head and shared by all heads, is
    added to the attention and gives back the local detail that linear attention averages away.

    Args:
        n_channels: Feature channels, split evenly over the heads.
        n_heads: Number of attention heads.
        power: Focusing factor p of `ops.focus`; 1 gives plain linear attention.
        kernel_size: Frames that the convolution of the values spans, odd; 0 leaves it out.

    Shape: (batch, frames, n_channels), in and out.

    Reference: Han et al. (ICCV 2023), section 3; Wang et al., "FLASepformer", Interspeech 2025.
    """

    def __init__(self, n_channels: int, n_heads: int, power: int = 3, kernel_size: int = 5) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.power = power
        self.query = nn.Linear(n_channels, n_channels)
        self.key_value = nn.Linear(n_channels, 2 * n_channels)
        self.scale = nn.Parameter(torch.zeros(1, 1, n_channels))
        head_dim = n_channels // n_heads
        self.value_conv = DepthwiseConv(head_dim, kernel_size) if kernel_size else None
        self.output = nn.Linear(n_channels, n_channels)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self._attend(x, value, self._means(key, value, x.shape[1]))

    def summarize(self, x: Tensor, n_frames: int) -> KeyValueMeans:
        """Return what some frames (batch, some frames, n_channels) add to the means over all `n_frames`."""
        key, value = self.key_value(x).chunk(2, dim=-1)
        return self._means(key, value, n_frames)

    def attend(self, x: Tensor, means: KeyValueMeans) -> Tensor:
        """Return what `forward` gives for some frames, whose first and last `halo` need their neighbours."""
        weight, bias = (p.chunk(2)[1] for p in (self.key_value.weight, self.key_value.bias))
        return self._attend(x, F.linear(x, weight, bias), means)

    @property
    def halo(self) -> int:
        """Frames on either side that a frame depends on, beside the means over all of them."""
        return 0 if self.value_conv is None else self.value_conv.padding

    def _attend(self, x: Tensor, value: Tensor, means: KeyValueMeans) -> Tensor:
        attended = attend_to_means(self._split_heads(self._focus(self.query(x))), means)
        attended = attended.transpose(1, 2).flatten(2)
        if self.value_conv is not None:
            weight = self.value_conv.weight.repeat(self.n_heads, 1, 1)
            bias = self.value_conv.bias.repeat(self.n_heads)
            attended = attended + depthwise_conv(value, weight, bias)
        return self.output(attended)

    def _means(self, key: Tensor, value: Tensor, n_frames: int) -> KeyValueMeans:
        return key_value_means(self._split_heads(self._focus(key)), self._split_heads(value), n_frames)

    def _focus(self, u: Tensor) -> Tensor:
        """Focus queries or keys over all channels, before the heads are split."""
        return focus((F.relu(u) + RELU_FLOOR) / F.softplus(self.scale), self.power)

    def _split_heads(self, u: Tensor) -> Tensor:
        """Turn (batch, frames, channels) into (batch, heads, frames, head_dim)."""
        return u.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class GatedResidualAttention(nn.Module):
    """Residual block whose attention is scaled, frame by frame and channel by channel, by a learned gate.

    x + sigmoid(gate(norm'(x))) * attention(norm(x)); without the gate x + attention(norm(x)).

    Args:
        attention: The attention. Where no gradient is recorded, a long recording goes through it in pieces.
        n_channels: Feature channels.
        norm: Normalisation of the attention's input.
        gate_norm: Normalisation of the gate's input, or None for a block without gate.

    Shape: (batch, frames, n_channels), in and out.

    Reference: Wang et al., "FLASepformer", Interspeech 2025 (the gated module).
    """

    def __init__(
        self, attention: FocusedLinearAttention, n_channels: int, norm: nn.Module, gate_norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.gate = None if gate_norm is None else nn.Sequential(gate_norm, nn.Linear(n_channels, n_channels))

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.shape[1] <= PIECE_LENGTH:
            return self._add(x, self.attention(self.norm(x)))
        means = reduce(add, (self.summarize(piece, x.shape[1]) for piece in x.split(PIECE_LENGTH, dim=1)))
        return map_pieces(lambda piece: self.update(piece, means), x, halo=self.halo)

    @property
    def halo(self) -> int:
        """Frames on either side that a frame depends on, beside the means over all of them."""
        return self.attention.halo

    def summarize(self, x: Tensor, n_frames: int) -> KeyValueMeans:
        """Return what some frames (batch, some frames, n_channels) add to the means over all `n_frames`."""
        return self.attention.summarize(self.norm(x), n_frames)

    def update(self, x: Tensor, means: KeyValueMeans) -> Tensor:
        """Return what `forward` gives for some frames, whose first and last `halo` need their neighbours."""
        return self._add(x, self.attention.attend(self.norm(x), means))

    def _add(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.gate is not None:
            attended = torch.sigmoid(self.gate(x)) * attended
        return x + attended
