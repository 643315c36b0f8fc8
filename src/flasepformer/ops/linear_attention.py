"""Focused linear attention as pure functions: the heart of the project.

Reference: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV 2023;
Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from dataclasses import dataclass

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
    return attend_to_means(query, key_value_means(key, value, key.shape[-2]))


@dataclass(frozen=True)
class KeyValueMeans:
    """All the global state of linear attention: means over the frames, or a part that adds up to them."""

    context: Tensor
    """(batch, heads, head_dim, value_dim), mean of key^T value."""
    key: Tensor
    """(batch, heads, head_dim), mean of the keys."""

    def __add__(self, other: "KeyValueMeans") -> "KeyValueMeans":
        return KeyValueMeans(self.context + other.context, self.key + other.key)


def key_value_means(key: Tensor, value: Tensor, n_frames: int) -> KeyValueMeans:
    """Return the share of these frames in the means over `n_frames`; shapes as in `linear_attention`."""
    return KeyValueMeans(key.mT @ (value / n_frames), key.sum(dim=-2) / n_frames)


def attend_to_means(query: Tensor, means: KeyValueMeans) -> Tensor:
    """Let queries (batch, heads, frames, head_dim) attend to all the frames that the means are of."""
    weight = query @ means.key.unsqueeze(-1)  # (batch, heads, frames, 1)
    return query @ means.context / (weight + EPS)


def linear_attention_naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Define `linear_attention` by its matrix of frames x frames weights: quadratic, for tests only."""
    scores = query @ key.mT  # (batch, heads, frames, frames)
    return scores @ value / (scores.sum(dim=-1, keepdim=True) + EPS * key.shape[-2])
