"""Softmax attention with learned relative positions, as the softmax SepReformer has it.

References: Shaw et al., "Self-Attention with Relative Position Representations", NAACL 2018; Shin et al.,
"Separate and Reconstruct: Asymmetric Encoder-Decoder for Speech Separation", NeurIPS 2024.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY_BLOCK = 128
"""Frames whose scores exist at a time: few enough that those of one head stay in the cache."""


class RelativePositions(nn.Module):
    """Learned vectors for the distance from one frame to another.

    Args:
        max_distance: Distances are clamped to those from -max_distance to max_distance - 1.
        head_dim: Length of a vector.
    """

    def __init__(self, max_distance: int, head_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * max_distance, head_dim))

    def forward(self, n_frames: int) -> Tensor:
        """Return (2 n_frames, head_dim): the vectors for distances from n_frames - 1 down to -n_frames."""
        limit = self.table.shape[0] // 2
        distance = torch.arange(n_frames - 1, -n_frames - 1, -1, device=self.table.device)
        return self.table.index_select(0, distance.clamp(-limit, limit - 1) + limit)


class RelativeAttention(nn.Module):
    """Multi-head softmax self-attention over frames; its time grows with the square of their number.

    Args:
        n_channels: Feature channels, split evenly over the heads.
        n_heads: Number of attention heads.
        dropout: Share of weights and of output features dropped in training.

    Shape: (batch, frames, n_channels) and positions (2 frames, n_channels / n_heads) as `RelativePositions`
    gives them, to (batch, frames, n_channels).
    """

    def __init__(self, n_channels: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(n_channels, n_channels)
        self.key = nn.Linear(n_channels, n_channels)
        self.value = nn.Linear(n_channels, n_channels)
        self.output = nn.Linear(n_channels, n_channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (batch, heads, frames, head_dim)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout.p if self.training else 0.0
        attended = relative_attention(query, key, value, positions, dropout)
        return self.dropout(self.output(attended.transpose(1, 2).flatten(2)))


def relative_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    dropout: float = 0.0,
    block_length: int = QUERY_BLOCK,
) -> Tensor:
    """Average the values with weights softmax_j((q_i . k_j + q_i . r_(i-j)) / sqrt(head_dim)).

    No tensor of frames x frames exists unless gradients are recorded, and never one of frames x frames x
    head_dim.

    Args:
        query: (batch, heads, frames, head_dim).
        key: Same shape as `query`.
        value: Same shape as `query`.
        positions: (2 frames, head_dim), the vectors r for distances i - j from frames - 1 down to -frames.
        dropout: Share of the weights that is dropped.
        block_length: Queries whose scores exist at a time.

    Returns:
        (batch, heads, frames, head_dim).
    """
    scaled, positions = query * query.shape[-1] ** -0.5, positions.to(query.dtype)
    # Without gradients, a CPU takes one head at a time: faster, and a fraction of the memory.
    n_at_once = 1 if query.is_cpu and not torch.is_grad_enabled() else query.shape[0] * query.shape[1]
    every = [x.flatten(0, 1).unsqueeze(1) for x in (scaled, key, value)]
    # An exported network does not know how many recordings, and so heads, there are.
    free = torch.compiler.is_compiling()
    heads = [every] if free else zip(*(x.split(n_at_once) for x in every), strict=True)
    attended = torch.cat([_attend(q, k, v, positions, dropout, block_length) for q, k, v in heads])
    return attended.squeeze(1).unflatten(0, query.shape[:2])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, dropout: float, block_length: int
) -> Tensor:
    """Do the work of `relative_attention` with queries that are scaled already, block by block."""
    n_frames = key.shape[-2]
    blocks = []
    free = torch.compiler.is_compiling()  # an exported network does not know how many blocks there are
    for start in (0,) if free else range(0, n_frames, block_length):
        block = query if free else query[..., start : start + block_length, :]
        in_reach = positions[n_frames - start - block.shape[-2] : 2 * n_frames - start]
        scores = _by_key(block @ in_reach.mT, n_frames)
        blocks.append(
            F.scaled_dot_product_attention(block, key, value, attn_mask=scores, dropout_p=dropout, scale=1.0)
        )
    return torch.cat(blocks, dim=-2)


def _by_key(scores: Tensor, n_frames: int) -> Tensor:
    """Turn scores by distance into scores by key, without a copy.

    Args:
        scores: (..., queries, n_frames + queries), contiguous; the distance falls by one from each column to
            the next, and the last query meets the first key in column 0.
        n_frames: Number of keys.

    Returns:
        (..., queries, n_frames): each row starts one column further left than the row below it.
    """
    n_queries, width = scores.shape[-2:]
    rows = scores.flatten(-2)[..., n_queries - 1 : n_queries * width - 1]
    return rows.unflatten(-1, (n_queries, width - 1))[..., :n_frames]
