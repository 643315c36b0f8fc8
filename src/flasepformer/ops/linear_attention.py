"""Focused linear attention as pure functions: the heart of the project.

Reference: Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV 2023;
Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import functional as F

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
    wide = widen(feature)
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
    return attend(query, key_value_sums(key, value))


@dataclass(frozen=True)
class KeyValueSums:
    """All the global state of linear attention: sums over the frames, or over some of them, which add up."""

    context: Tensor
    """(batch, heads, head_dim, value_dim), sum of key^T value."""
    key: Tensor
    """(batch, heads, head_dim), sum of the keys."""
    count: float
    """Frames."""

    def __add__(self, other: "KeyValueSums") -> "KeyValueSums":
        return KeyValueSums(self.context + other.context, self.key + other.key, self.count + other.count)

    def faded(self, share: float) -> "KeyValueSums":
        """Return the sums as if the frames had counted for a share of what they did."""
        return KeyValueSums(self.context * share, self.key * share, self.count * share)


def key_value_sums(key: Tensor, value: Tensor) -> KeyValueSums:
    """Return the sums over these frames; shapes as in `linear_attention`."""
    key, value = widen(key), widen(value)
    return KeyValueSums(matmul(key.mT, value), key.sum(dim=-2), key.shape[-2])


def attend(query: Tensor, sums: KeyValueSums) -> Tensor:
    """Let queries (batch, heads, frames, head_dim) attend to all the frames that the sums are of."""
    wide = widen(query)
    weight = matmul(wide, sums.key.unsqueeze(-1) / sums.count)  # (batch, heads, frames, 1)
    attended = matmul(wide, sums.context / sums.count) / (weight + EPS)
    return attended.to(query.dtype)


def causal_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: float = 1.0,
    block: int = 64,
) -> tuple[Tensor, Tensor]:
    """Average the values over the frames so far, with the weights of `linear_attention`.

    With a decay d < 1, a frame that is n frames old counts d^n times as much.

    Args:
        query: (batch, heads, frames, head_dim), non-negative.
        key: Same shape as `query`, non-negative.
        value: (batch, heads, frames, value_dim).
        past: What this function returned for the frames before; None where there were none.
        decay: Share of its weight that a frame keeps when the next one comes.
        block: Frames whose weights exist at a time, at most.

    Returns:
        (batch, heads, frames, value_dim), and what the next frames need of these and all before:
        (batch, heads, head_dim + 1, value_dim + 1), of a size that does not grow.
    """
    n_frames = query.shape[-2]
    block = _no_larger(block, n_frames)
    missing = (n_frames + block - 1) // block * block - n_frames
    # One more value of 1 makes the denominator, one more feature what EPS stands against the mean key with.
    queries, values = F.pad(widen(query), (0, 1), value=EPS), F.pad(widen(value), (0, 1), value=1.0)
    queries, keys, values = (
        (F.pad(t, (0, 0, 0, missing)) if missing else t).unflatten(2, (-1, block))
        for t in (queries, widen(key), values)
    )
    fading, from_start, until_end = _fadings(block, decay, keys)
    feature_sums = matmul((keys * until_end).mT, values)  # (batch, heads, blocks, head_dim, value_dim + 1)
    count_sums = F.pad(matmul(values[..., -1:].mT, until_end), (values.shape[-1] - 1, 0))
    sums = torch.cat([feature_sums, count_sums], -2)
    start = (torch.zeros_like(sums[:, :, 0]) if past is None else past).unsqueeze(2)
    if isinstance(n_frames, int) and n_frames == block:  # a step, or very short
        before, total = start, torch.add(sums, start, alpha=decay**block)
    else:
        total = running_sums(sums.flatten(3).flatten(0, 1), decay**block, start.flatten(2).flatten(0, 1))
        total = total.view_as(sums)
        before = torch.cat([start, total[:, :, :-1]], dim=2)
    scores = matmul(queries[..., :-1], keys.mT) * fading
    attended = matmul(queries * from_start, before) + matmul(scores, values)
    numerator, denominator = attended.split((value.shape[-1], 1), -1)
    denominator = torch.add(denominator, fading.sum(-1, keepdim=True), alpha=EPS)
    attended = (numerator / denominator.clamp_min(torch.finfo(attended.dtype).tiny)).flatten(2, 3)
    total = total[:, :, -1]
    return attended[:, :, :n_frames].to(query.dtype), total * decay**-missing if missing else total


def running_sums(x: Tensor, decay: float = 1.0, past: Tensor | None = None, block: int = 64) -> Tensor:
    """Sum up all frames so far, of which each counts `decay` times as much when the next one comes.

    Args:
        x: (batch, frames, n).
        decay: Above 0, at most 1.
        past: (batch, n), the last of these sums for the frames before; None where there were none.
        block: Frames that are summed up at a time, at most.

    Returns:
        (batch, frames, n).
    """
    if decay == 1:
        sums = x.cumsum(1)
        return sums if past is None else sums + past.unsqueeze(1)
    n_frames = x.shape[1]
    block = _no_larger(block, n_frames)
    n_blocks = (n_frames + block - 1) // block
    fading, from_start, _ = _fadings(block, decay, x)
    if isinstance(n_frames, int) and n_frames == block:  # a step, or very short
        within = matmul(fading, x)
        return within if past is None else torch.addcmul(within, past.unsqueeze(1), from_start)
    blocks = F.pad(x, (0, 0, 0, n_blocks * block - n_frames)).unflatten(1, (n_blocks, block))
    within = matmul(fading, blocks)  # (batch, blocks, block, n)
    ends = matmul(decay_matrix(n_blocks, decay**block, x), within[:, :, -1])
    start = torch.zeros_like(x[:, 0]) if past is None else past
    faded = start.unsqueeze(1) * (decay**block) ** torch.arange(n_blocks, device=x.device).unsqueeze(-1)
    before = F.pad(ends[:, :-1], (0, 0, 1, 0)) + faded
    return (within + before.unsqueeze(2) * from_start).flatten(1, 2)[:, :n_frames]


def _no_larger(block: int, n_frames: int) -> int:
    """Return the length of a block that is not mostly padding: a live step has a frame or a few."""
    return min(block, max(n_frames, 1)) if isinstance(n_frames, int) else block  # else unknown: an export


def _fadings(n: int, decay: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what is left from a frame of n (columns) to a later one; from before them; and until their end.

    Shapes: (n, n), (n, 1), (n, 1).
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor:  # one of a trace
        return _made_fadings(n, decay, like)
    return _known_fadings(n, decay, like.dtype, like.device)


@lru_cache(maxsize=64)
def _known_fadings(
    n: int, decay: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):  # gradients may be wanted of what they are multiplied with
        return _made_fadings(n, decay, torch.empty(0, dtype=dtype, device=device))


def _made_fadings(n: int, decay: float, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    fading = decay_matrix(n, decay, like)
    return fading, fading[:, :1] * decay, fading[-1].unsqueeze(-1)


def decay_matrix(n: int, decay: float, like: Tensor) -> Tensor:
    """Return what each of n frames (columns) counts for at each (rows): decay^(row - column), 0 before it."""
    ages = torch.arange(n, device=like.device)
    ages = ages.unsqueeze(-1) - ages
    return (decay ** ages.clamp_min(0).to(like.dtype)).tril()


def widen(x: Tensor) -> Tensor:
    """Turn half precision into float32: cubes leave the range of float16, sums the precision of bfloat16."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def matmul(a: Tensor, b: Tensor) -> Tensor:
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
