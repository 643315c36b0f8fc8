"""Focused linear attention with its parameters, and the gated residual layer around it.

Reference: Wang et al., "FLASepformer", Interspeech 2025, arXiv:2508.19528.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from flasepformer.layers.convolution import DepthwiseConv, Weights
from flasepformer.layers.layer import Carry, Given, GlobalLayer
from flasepformer.layers.norms import FrameNorm
from flasepformer.ops import KeyValueSums, causal_linear_attention, key_value_sums
from flasepformer.ops.linear_attention import EPS, FOCUS_EPS, matmul, widen

RELU_FLOOR = 1e-6
"""Keeps queries and keys positive, so that a feature that ReLU has emptied still has a direction."""

BLOCK_DIAGONAL_CHANNELS = 128
"""Up to so many channels, one product with all heads in a block-diagonal matrix beats one for each head."""


@dataclass(frozen=True)
class Projections:
    """What the weights of an attention come to, with the gain of the norm before it."""

    weight: Tensor
    """For queries, keys, values and, if there is one, the gate: (3 or 4 channels, channels)."""
    bias: Tensor
    sharpness: Tensor
    """What queries and keys are multiplied with before they are raised, twice over."""
    convolution: Weights | None
    """Of the values."""

    def of(self, x: Tensor, first: int, last: int) -> Tensor:
        """Project to some of queries (0), keys (1), values (2) and gate (3), side by side."""
        n = self.weight.shape[1]
        return F.linear(x, self.weight[first * n : last * n], self.bias[first * n : last * n])


class FocusedLinearAttention(nn.Module):
    """Multi-head self-attention whose cost grows linearly with the number of frames.

    A depthwise convolution of the values, one filter for each channel of a head and shared by all heads, is
    added to the attention and gives back the local detail that linear attention averages away.

    With u the features of a query before they are raised to the power p, and r = |u| / |u^p|, the query is
    r u^p. Numerator and denominator of the attention both have this r, so it cancels, but for EPS, which is
    divided by it.

    Args:
        n_channels: Feature channels, split evenly over the heads.
        n_heads: Number of attention heads.
        power: Focusing factor p of `ops.focus`; 1 gives plain linear attention.
        kernel_size: Frames that the convolution of the values spans, odd; 0 leaves it out.
        causal: Attend to what has been, not to what will be.
        decay: What is left, where it is causal, of a frame's weight when the next one comes.

    Shape: (batch, frames, n_channels), in and out.

    Reference: Han et al. (ICCV 2023), section 3; Wang et al., "FLASepformer", Interspeech 2025.
    """

    def __init__(
        self,
        n_channels: int,
        n_heads: int,
        power: int = 3,
        kernel_size: int = 5,
        causal: bool = False,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.decay = decay
        self.power = power
        self.query = nn.Linear(n_channels, n_channels)
        self.key_value = nn.Linear(n_channels, 2 * n_channels)
        self.scale = nn.Parameter(torch.zeros(1, 1, n_channels))
        conv = (
            DepthwiseConv(n_channels // n_heads, kernel_size, causal=causal, n_repeats=n_heads)
            if kernel_size
            else None
        )
        self.value_conv = conv
        self.output = nn.Linear(n_channels, n_channels)

    @property
    def halo(self) -> int:
        """Frames that the convolution of the values looks at beside its own."""
        return 0 if self.value_conv is None else self.value_conv.halo

    def fold(self, norm: FrameNorm | None = None) -> Projections:
        """Return what the weights come to for frames that lack the gain of `norm`."""
        weight = torch.cat([self.query.weight, self.key_value.weight])
        bias = torch.cat([self.query.bias, self.key_value.bias])
        if norm is not None:
            weight, bias = norm.into(weight, bias)
        sharpness = widen(1 / F.softplus(self.scale)).repeat(1, 1, 2)
        convolution = None if self.value_conv is None else self.value_conv.fold()
        return Projections(weight, bias, sharpness, convolution)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.fold()
        sums, values = self.summarize(x, folded)
        return self.given(sums, folded)(x, values)

    def summarize(self, x: Tensor, folded: Projections) -> tuple[KeyValueSums, Tensor]:
        """Return sums over frames (batch, frames, channels), and values."""
        key, values = folded.of(x, 1, 3).chunk(2, -1)
        raised, ratio = self._raise(key, folded.sharpness[..., : x.shape[-1]])
        return key_value_sums(self._split_heads(raised * ratio), self._split_heads(values)), values

    def given(
        self, sums: KeyValueSums, folded: Projections, dense: bool = False
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Return the attention to all frames that the sums are of: of frames and, if known, their values.

        Args:
            sums: Of all frames.
            folded: See `fold`.
            dense: Attend with all heads in one block-diagonal matrix: more multiplications in less time.
        """
        context, key = sums.context / sums.count, (sums.key / sums.count).unsqueeze(-1)
        sharpness = folded.sharpness[..., : self.query.in_features]
        if dense:
            both = torch.cat([context, key.expand_as(context)], -1).unflatten(-1, (2, 1, -1))
            heads = torch.eye(self.n_heads, dtype=context.dtype, device=context.device)
            matrix = (
                (both * heads[:, None, None, :, None]).flatten(4).flatten(3).flatten(1, 2)
            )  # (batch, C, 2 C)

        def attend(x: Tensor, values: Tensor | None) -> Tensor:
            raised, ratio = self._raise(folded.of(x, 0, 1), sharpness)
            if dense:
                numerator, denominator = matmul(raised, matrix).chunk(2, dim=-1)
            else:
                per_head = self._split_heads(raised)
                weight = matmul(per_head, key).expand_as(per_head)
                numerator, denominator = (self._join_heads(t) for t in (matmul(per_head, context), weight))
            denominator = denominator + EPS / ratio
            if self.value_conv is None:
                return self.output((numerator / denominator).to(x.dtype))
            values = folded.of(x, 2, 3) if values is None else values
            local = self.value_conv(values, weights=folded.convolution)
            return self.output(torch.addcdiv(local.to(numerator.dtype), numerator, denominator).to(x.dtype))

        return attend

    def step(self, projected: Tensor, carry: Carry | None, folded: Projections) -> Tensor:
        """Attend to what has been: of these frames and, in a stream, of those before them.

        Args:
            projected: Queries, keys and values side by side, (batch, frames, 3 n_channels).
            carry: Of the stream.
            folded: See `fold`.
        """
        query_key, value = projected.split((2 * self.query.in_features, self.query.in_features), -1)
        both = query_key.unflatten(-1, (2, -1))  # a length for each
        raised, ratio = self._raise(both, folded.sharpness.unflatten(-1, (2, -1)))
        queries, keys = (self._split_heads(t) for t in (raised * ratio).unbind(-2))
        past = None if carry is None else carry.load("sums")
        attended, past = causal_linear_attention(queries, keys, self._split_heads(value), past, self.decay)
        if carry is not None:
            carry.save("sums", past)
        attended = self._join_heads(attended)
        if self.value_conv is not None:
            attended = attended + self.value_conv(value, carry, folded.convolution)
        return self.output(attended.to(projected.dtype))

    def _raise(self, u: Tensor, sharpness: Tensor) -> tuple[Tensor, Tensor]:
        """Return u^p (..., channels), and what gives it the length of u (..., 1)."""
        u = torch.addcmul(RELU_FLOOR * sharpness, F.relu(widen(u)), sharpness)
        if self.power == 1:
            return u, u.new_ones(()).expand(*u.shape[:-1], 1)
        raised = u.square() * u if self.power == 3 else u**self.power
        length = vector_norm(u, dim=-1, keepdim=True)
        return raised, length / (vector_norm(raised, dim=-1, keepdim=True) + FOCUS_EPS)

    def _split_heads(self, u: Tensor) -> Tensor:
        """Turn (batch, frames, channels) into (batch, heads, frames, head_dim)."""
        return u.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def _join_heads(self, u: Tensor) -> Tensor:
        return u.transpose(1, 2).flatten(2)


class GatedResidualAttention(GlobalLayer):
    """Residual layer whose attention is scaled, frame by frame and channel by channel, by a learned gate.

    x + sigmoid(gate(norm'(x))) * attention(norm(x)); without the gate x + attention(norm(x)).

    Args:
        attention: The attention.
        n_channels: Feature channels.
        norm: Normalisation of the attention's input.
        gate_norm: Normalisation of the gate's input, which differs from `norm` in its gain only; None for no
            gate.
        causal: See `FocusedLinearAttention`.
        repeat_input: Add the input a second time.

    Shape: (batch, frames, n_channels), in and out.

    Reference: Wang et al., "FLASepformer", Interspeech 2025 (the gated module).
    """

    def __init__(
        self,
        attention: FocusedLinearAttention,
        n_channels: int,
        norm: FrameNorm,
        gate_norm: FrameNorm | None,
        *,
        causal: bool = False,
        repeat_input: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = attention
        self.gate = None if gate_norm is None else nn.Sequential(gate_norm, nn.Linear(n_channels, n_channels))
        self.causal = causal
        self.halo = attention.halo
        self.repeat_input = repeat_input

    def fold(self) -> Projections:
        folded = self.attention.fold(self.norm)
        if self.gate is None:
            return folded
        norm, linear = self.gate
        assert isinstance(norm, FrameNorm)
        assert isinstance(linear, nn.Linear)
        weight, bias = norm.into(linear.weight, linear.bias)
        return replace(folded, weight=torch.cat([folded.weight, weight]), bias=torch.cat([folded.bias, bias]))

    def summarize(self, x: Tensor) -> KeyValueSums:
        return self.attention.summarize(self.norm.plain(x), self.folded())[0]

    def given(self, summary: KeyValueSums) -> Given:
        folded = self.folded()
        dense = self._folded is not None and self.attention.query.in_features <= BLOCK_DIAGONAL_CHANNELS
        attend = self.attention.given(summary, folded, dense)

        def update(x: Tensor, first: int) -> Tensor:
            plain = self.norm.plain(x)
            gate = None if self.gate is None else folded.of(plain, 3, 4)
            return self._add(x, attend(plain, None), gate)

        return update

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        folded, plain = self.folded(), self.norm.plain(x)
        if self.causal:
            projected = F.linear(plain, folded.weight, folded.bias)
            gate = None if self.gate is None else projected[..., 3 * x.shape[-1] :]
            return self._add(x, self.attention.step(projected[..., : 3 * x.shape[-1]], carry, folded), gate)
        sums, values = self.attention.summarize(plain, folded)
        gate = None if self.gate is None else folded.of(plain, 3, 4)
        return self._add(x, self.attention.given(sums, folded)(plain, values), gate)

    def _add(self, x: Tensor, attended: Tensor, gate: Tensor | None) -> Tensor:
        residual = x + x if self.repeat_input else x
        if gate is None:
            return residual + attended.to(x.dtype)
        return torch.addcmul(residual, attended.to(x.dtype), gate.sigmoid().to(x.dtype))
