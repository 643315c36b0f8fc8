"""Focused linear attention with its parameters, and the gated residual block around it.

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.ops import focus, linear_attention

RELU_FLOOR = 1e-6
"""Keeps queries and keys positive, so that a feature that ReLU has emptied still has a direction."""


class FocusedLinearAttention(nn.Module):
    """Multi-head self-attention whose cost grows linearly with the number of frames.

    A depthwise convolution of the values, one filter for each channel of a head and shared by all heads, is
    added to the attention and gives back the local detail that linear attention averages away.

    Args:
        n_channels: Feature channels, split evenly over the heads.
        n_heads: Number of attention heads.
        power: Focusing factor p of `ops.focus`.
        kernel_size: Frames that the convolution of the values spans, odd.

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
        self.value_conv = nn.Conv1d(
            head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim
        )
        self.output = nn.Linear(n_channels, n_channels)

    def forward(self, x: Tensor) -> Tensor:
        key, value = self.key_value(x).chunk(2, dim=-1)
        scale = F.softplus(self.scale).reciprocal()
        query, key = (focus((F.relu(u) + RELU_FLOOR) * scale, self.power) for u in (self.query(x), key))
        heads = [u.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for u in (query, key, value)]
        attended = linear_attention(*heads) + self._convolve(heads[2])  # (batch, heads, frames, head_dim)
        return self.output(attended.transpose(1, 2).flatten(2))

    def _convolve(self, value: Tensor) -> Tensor:
        """Filter the values of each head over time; (batch, heads, frames, head_dim), in and out."""
        return self.value_conv(value.flatten(0, 1).mT).mT.unflatten(0, value.shape[:2])


class GatedResidualAttention(nn.Module):
    """Residual block whose attention is scaled, frame by frame and channel by channel, by a learned gate.

    x + sigmoid(gate(norm'(x))) * attention(norm(x)); without the gate x + attention(norm(x)).

    Args:
        attention: The attention, (batch, frames, n_channels) in and out.
        n_channels: Feature channels.
        norm: Normalisation of the attention's input.
        gate_norm: Normalisation of the gate's input, or None for a block without gate.

    Shape: (batch, frames, n_channels), in and out.

    Reference: Wang et al., "FLASepformer", Interspeech 2025 (the gated module).
    """

    def __init__(
        self, attention: nn.Module, n_channels: int, norm: nn.Module, gate_norm: nn.Module | None
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.gate = None if gate_norm is None else nn.Sequential(gate_norm, nn.Linear(n_channels, n_channels))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(self.norm(x))
        if self.gate is not None:
            attended = torch.sigmoid(self.gate(x)) * attended
        return x + attended
