"""Softmax attention that knows positions by rotation.

Reference: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, arXiv:2104.09864.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.ops import is_exporting

ROTARY_BLOCK = 512
"""Positions whose angles an exported network stores one by one."""

ROTARY_BLOCKS = 1024
"""Blocks of them, enough for an hour at the finest hop; softmax attention takes days for as much."""


class RotaryAttention(nn.Module):
    """Multi-head softmax self-attention whose queries and keys are turned by angles that grow with position.

    Args:
        n_channels: Feature channels, in and out.
        attention_channels: Channels of queries, keys and values: an even number for each head.
        n_heads: Number of attention heads.
        dropout: Share of weights and of output features dropped in training.

    Shape: (batch, length, n_channels), in and out.
    """

    def __init__(self, n_channels: int, attention_channels: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(n_channels, 3 * attention_channels, bias=False)
        self.output = nn.Linear(attention_channels, n_channels, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, head_dim)
        attended = F.scaled_dot_product_attention(
            rotate(query), rotate(key), value, dropout_p=self.dropout.p if self.training else 0.0
        )
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


def rotate(x: Tensor) -> Tensor:
    """Turn each pair of neighbouring channels by its position times a frequency, from 1 towards 1 / 10000.

    Args:
        x: (..., length, head_dim), head_dim even.

    Returns:
        Same shape. The product of two rotated vectors depends on the difference of their positions only.
    """
    length, head_dim = x.shape[-2:]
    dtype = torch.promote_types(x.dtype, torch.float32)
    pairs = x.to(dtype).unflatten(-1, (-1, 2))  # a pair is a point of the plane
    if is_exporting():
        cosine, sine = _exported_turns(length, head_dim, dtype)
        real, imaginary = pairs.unbind(-1)
        turned = [real * cosine - imaginary * sine, real * sine + imaginary * cosine]
        return torch.stack(turned, -1).flatten(-2).to(x.dtype)
    turns = _turns(torch.arange(length, dtype=torch.float64), head_dim).to(x.device, dtype.to_complex())
    return torch.view_as_real(torch.view_as_complex(pairs) * turns).flatten(-2).to(x.dtype)


def _turns(positions: Tensor, head_dim: int) -> Tensor:
    """Return unit numbers (positions, head_dim / 2) for positions in float64, complex."""
    # Double precision: in single precision the angles are off by 0.03 rad after an hour of frames.
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = positions.unsqueeze(-1) * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def _exported_turns(length: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angles (length, head_dim / 2), from constants and without float64.

    The angle of a position is that of whole blocks of positions and that of the rest.
    """
    fine = torch.view_as_real(_turns(torch.arange(ROTARY_BLOCK, dtype=torch.float64), head_dim)).to(dtype)
    if isinstance(length, int):  # an axis of fixed length
        blocks = torch.arange(-(-length // ROTARY_BLOCK), dtype=torch.float64) * ROTARY_BLOCK
    else:
        blocks = torch.arange(ROTARY_BLOCKS, dtype=torch.float64) * ROTARY_BLOCK
    coarse = torch.view_as_real(_turns(blocks, head_dim)).to(dtype)
    coarse = coarse[: (length + ROTARY_BLOCK - 1) // ROTARY_BLOCK].unsqueeze(1)
    cosine = coarse[..., 0] * fine[..., 0] - coarse[..., 1] * fine[..., 1]
    sine = coarse[..., 0] * fine[..., 1] + coarse[..., 1] * fine[..., 0]
    return cosine.flatten(0, 1)[:length], sine.flatten(0, 1)[:length]
