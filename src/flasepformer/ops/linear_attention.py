"""Focused linear attention as pure functions: the heart of the project.

Reference: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV 2023;
Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from torch import Tensor
from torch.linalg import vector_norm

EPS = 1e-6
"""Added to the normaliser of the attention, where it stands against the mean key."""

FOCUS_EPS = 1e-8
"""Added to the norm that `focus` divides by, so that an all-zero feature stays zero."""


def focus(feature: Tensor, power: int) -> Tensor:
    """Sharpen a feature: keep its length, raise its direction to a power.

    Queries and keys that point the same way come closer together, the others move apart, which gives linear
    attention the sharp weights that softmax has.

    Args:
        feature: (..., channels), non-negative.
        power: Focusing factor p, at least 1; the paper uses 3.

    Returns:
        ||u|| u^p / ||u^p||, same shape. Reference: Han et al. (ICCV 2023), equation 5.
    """
    powered = feature**power
    length = vector_norm(feature, dim=-1, keepdim=True)
    return powered * (length / (vector_norm(powered, dim=-1, keepdim=True) + FOCUS_EPS))


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Average the values over all frames, in time and memory linear in their number.

    Args:
        query: (batch, heads, frames, head_dim), non-negative.
        key: Same shape as `query`, non-negative.
        value: (batch, heads, frames, value_dim).

    Returns:
        (batch, heads, frames, value_dim). Equals `linear_attention_naive`, its definition.
    """
    context = key.mT @ (value / value.shape[-2])  # (batch, heads, head_dim, value_dim)
    weight = query @ key.mean(dim=-2).unsqueeze(-1)  # (batch, heads, frames, 1)
    return query @ context / (weight + EPS)


def linear_attention_naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Define `linear_attention` by its matrix of frames x frames weights: quadratic, for tests only."""
    scores = query @ key.mT  # (batch, heads, frames, frames)
    return scores @ value / (scores.sum(dim=-1, keepdim=True) + EPS * key.shape[-2])
