"""Focused linear attention as pure functions: the heart of the project.

Reference: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV 2023;
Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from dataclasses import dataclass

import torch
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
        feature: (..., channels), non-negative; half precision is raised and summed in float32.
        power: Focusing factor p, at least 1; the paper uses 3, and 1 leaves the feature as it is.

    Returns:
        ||u|| u^p / ||u^p||, same shape and type. Reference: Han et al. (ICCV 2023), equation 5.
    """
    if power == 1:
        return feature
    wide = _widen(feature)
    powered = wide**power
    length = vector_norm(wide, dim=-1, keepdim=True)
    focused = powered * (length / (vector_norm(powered, dim=-1, keepdim=True) + FOCUS_EPS))
    return focused.to(feature.dtype)


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Average the values over all frames, in time and memory linear in their number.

    Args:
        query: (batch, heads, frames, head_dim), non-negative.
        key: Same shape as `query`, non-negative.
        value: (batch, heads, frames, value_dim).

    Returns:
        (batch, heads, frames, value_dim), of the type of `query`. Equals `linear_attention_naive`, its
        definition. Sums of half precision, also those that autocast would compute in it, are float32.
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
    key, value = _widen(key), _widen(value)
    return KeyValueMeans(_matmul(key.mT, value / n_frames), key.sum(dim=-2) / n_frames)


def attend_to_means(query: Tensor, means: KeyValueMeans) -> Tensor:
    """Let queries (batch, heads, frames, head_dim) attend to all the frames that the means are of."""
    wide = _widen(query)
    weight = _matmul(wide, means.key.unsqueeze(-1))  # (batch, heads, frames, 1)
    attended = _matmul(wide, means.context) / (weight + EPS)
    return attended.to(query.dtype)


def _widen(x: Tensor) -> Tensor:
    """Turn half precision into float32: cubes leave the range of float16, sums the precision of bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b, which autocast may not compute in half precision."""
    device = a.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return a @ b
    return a @ b


def linear_attention_naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Define `linear_attention` by its matrix of frames x frames weights: quadratic, for tests only."""
    scores = query @ key.mT  # (batch, heads, frames, frames)
    return scores @ value / (scores.sum(dim=-1, keepdim=True) + EPS * key.shape[-2])
