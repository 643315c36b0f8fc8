"""The blocks of a SepReformer as a long recording goes through them: merged, with the same numbers.

Outside the training a gain, a scale or a batch normalisation is a constant, so it belongs into the weights of
the projection beside it. What is left are matrix products and as few passes over the frames as there can be:
those passes, not the arithmetic, take most of the time on a CPU.

Everything here is made anew for every forward pass, from the weights as they are then.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from flasepformer.layers import DepthwiseConv, GatedResidualAttention
from flasepformer.layers.attention import RELU_FLOOR
from flasepformer.layers.convolution import depthwise_conv
from flasepformer.models.long_form import Moments
from flasepformer.ops import KeyValueMeans, map_pieces
from flasepformer.ops.linear_attention import EPS, FOCUS_EPS

if TYPE_CHECKING:
    from flasepformer.models import sepreformer

BLOCK_DIAGONAL_CHANNELS = 128
"""Up to so many channels, one product with all heads in a block-diagonal matrix beats one for each head."""


class Projection:
    """A linear layer, with what can be merged into it.

    Args:
        weight: (out channels, channels).
        bias: (out channels,), or None.
        dtype: Type to compute in.
        before: A layer normalisation in front of it, whose gain and offset it takes over; what it is applied
            to is to be normalised without them.
        scale: (out channels,) or a scalar, multiplied onto what comes out.
        shift: (out channels,), added after that.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        *,
        before: nn.LayerNorm | nn.GroupNorm | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> None:
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
        if before is not None:
            bias, weight = bias + weight @ before.bias, weight * before.weight
        if scale is not None:
            bias, weight = bias * scale, weight * scale.unsqueeze(-1)
        if shift is not None:
            bias = bias + shift
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)

    @classmethod
    def of(
        cls,
        layer: nn.Linear,
        dtype: torch.dtype,
        *,
        before: nn.LayerNorm | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> "Projection":
        return cls(layer.weight, layer.bias, dtype, before=before, scale=scale, shift=shift)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual (..., out channels) + projection of x, in as few passes as it takes."""
        if residual.dtype != self.weight.dtype:
            return residual + self(x)
        result = torch.add(residual, self.bias, out=residual.new_empty(residual.shape))  # contiguous
        result.flatten(0, -2).addmm_(x.flatten(0, -2), self.weight.mT)
        return result


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise (..., channels), without gain and offset: the projection that follows has them."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps)


class MergedConv:
    """A depthwise convolution, with what can be merged into it.

    Args:
        conv: The convolution.
        dtype: Type to compute in.
        after: A batch normalisation of what comes out.
        repeat: Times that its filters are repeated, for heads that share them.
    """

    def __init__(
        self, conv: DepthwiseConv, dtype: torch.dtype, *, after: nn.BatchNorm1d | None = None, repeat: int = 1
    ) -> None:
        weight, bias = conv.weight.repeat(repeat, 1, 1), conv.bias.repeat(repeat)
        if after is not None:
            scale, shift = batch_norm_line(after)
            weight, bias = weight * scale[:, None, None], bias * scale + shift
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self.stride = conv.stride

    def __call__(self, x: Tensor) -> Tensor:
        return depthwise_conv(x.to(self.weight.dtype), self.weight, self.bias, self.stride)


def batch_norm_line(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return scale and shift (channels,) of a batch normalisation in eval mode."""
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


class MergedGlobalBlock:
    """`sepreformer.GlobalBlock` with linear attention.

    Args:
        block: The block.
        dtype: Type to compute in.
    """

    def __init__(self, block: "sepreformer.GlobalBlock", dtype: torch.dtype) -> None:
        self.attention = MergedAttention(block.attention, dtype)
        self.feed_forward = MergedFeedForward(block.feed_forward, dtype)
        self.halo = self.attention.halo + self.feed_forward.halo

    def summarize(self, x: Tensor, n_frames: int) -> KeyValueMeans:
        """Return what some frames (batch, some frames, channels) add to the means over all `n_frames`."""
        return self.attention.summarize(x, n_frames)

    def given(self, means: KeyValueMeans) -> Callable[[Tensor, int], Tensor]:
        """Return the block for a recording with these means, to be applied to frames of it.

        It takes (batch, some frames, channels), of which the first and last `halo` need their neighbours, and
        the number of the first of them.
        """
        attend = self.attention.given(means)
        return lambda x, first: self.feed_forward(attend(x))


@dataclass(frozen=True)
class PooledFrames:
    """All the global state of softmax attention at the resolution of the bottleneck, or a part of it."""

    parts: tuple[Tensor, ...]
    """(batch, some frames of the bottleneck, channels) each, in their order."""

    def __add__(self, other: "PooledFrames") -> "PooledFrames":
        return PooledFrames((*self.parts, *other.parts))


class MergedPooledBlock:
    """`sepreformer.GlobalBlock` with softmax attention.

    Args:
        block: The block.
        dtype: Type to compute in.
        positions: As `RelativePositions` gives them for all frames of the bottleneck.
    """

    def __init__(self, block: "sepreformer.GlobalBlock", dtype: torch.dtype, positions: Tensor) -> None:
        pooled = block.attention
        self.pooled, self.rate, self.positions, self.dtype = pooled, pooled.rate, positions, dtype
        self.gate: Projection | None = None
        if pooled.gate is not None:
            self.gate_norm, gate = pooled.gate
            self.gate = Projection.of(gate, dtype, before=self.gate_norm)
        self.feed_forward = MergedFeedForward(block.feed_forward, dtype)
        self.halo = self.feed_forward.halo

    def summarize(self, x: Tensor, n_frames: int) -> PooledFrames:
        """Return the pooled frames of (batch, some frames, channels), which begin with a whole one."""
        return PooledFrames((x.unflatten(1, (-1, self.rate)).mean(dim=2),))

    def given(self, pooled: PooledFrames) -> Callable[[Tensor, int], Tensor]:
        """Return the block for a recording with these pooled frames; see `MergedGlobalBlock.given`."""
        frames = torch.cat(pooled.parts, dim=1)
        with torch.autocast(frames.device.type, self.dtype, enabled=self.dtype != frames.dtype):
            attended = self.pooled.attention(self.pooled.norm(frames), self.positions)
        attended = self.pooled.scale(attended).to(frames.dtype)
        return lambda x, first: self.feed_forward(self._update(x, first, attended))

    def _update(self, x: Tensor, first: int, attended: Tensor) -> Tensor:
        last = first + x.shape[1]
        own = attended[:, first // self.rate : (last - 1) // self.rate + 1].repeat_interleave(
            self.rate, dim=1
        )
        own = own[:, first % self.rate :][:, : x.shape[1]]
        if self.gate is None:
            return x + own
        return torch.addcmul(x, own, self.gate(layer_norm(x, self.gate_norm)).sigmoid_().to(x.dtype))


class MergedAttention:
    """Gated residual focused linear attention; shapes as in `layers.GatedResidualAttention`.

    With u the features of a query before they are raised to the power p, and r = |u| / |u^p|, the query is
    r u^p. Numerator and denominator of the attention both have this r, so it cancels, but for EPS, which is
    divided by it.
    """

    def __init__(self, gated: GatedResidualAttention, dtype: torch.dtype) -> None:
        dtype = (
            torch.float32 if dtype == torch.float16 else dtype
        )  # cubes and sums leave the range of float16
        attention, norm = gated.attention, gated.norm
        assert isinstance(norm, nn.LayerNorm)
        self.norm, self.halo = norm, gated.halo
        self.n_heads, self.power = attention.n_heads, attention.power
        self.n_channels = attention.query.in_features
        sharpness = 1 / F.softplus(attention.scale.flatten())
        floor = RELU_FLOOR * sharpness  # relu(u) + floor is max(u + floor, floor)
        self.floor = floor.to(dtype)
        self.query = Projection.of(attention.query, dtype, before=norm, scale=sharpness, shift=floor)
        key_value = zip(attention.key_value.weight.chunk(2), attention.key_value.bias.chunk(2), strict=True)
        key, value = key_value
        self.key = Projection(*key, dtype, before=norm, scale=sharpness, shift=floor)
        self.value = Projection(*value, dtype, before=norm)
        conv = attention.value_conv
        self.value_conv = None if conv is None else MergedConv(conv, dtype, repeat=self.n_heads)
        self.output = Projection.of(attention.output, dtype)
        self.gate: Projection | None = None
        if gated.gate is not None:
            gate_norm, gate = gated.gate
            assert isinstance(gate_norm, nn.LayerNorm)
            assert isinstance(gate, nn.Linear)
            assert gate_norm.eps == norm.eps  # they normalise the same features, once
            self.gate = Projection.of(gate, dtype, before=gate_norm)

    def summarize(self, x: Tensor, n_frames: int) -> KeyValueMeans:
        normalized = layer_norm(x, self.norm)
        raised, ratio = self._focus(self.key(normalized))
        key, value = raised.mul_(ratio), self.value(normalized)
        wide = torch.promote_types(key.dtype, torch.float32)
        if self._has_few_channels:
            products = key.mT @ value  # (batch, channels, channels), of which the diagonal's blocks count
            context = torch.stack(self._diagonal(products), dim=1)
        else:
            context = self._split_heads(key).mT @ self._split_heads(value)
        total = key.sum(dim=1, dtype=wide).unflatten(-1, (self.n_heads, -1))
        return KeyValueMeans(context.to(wide) / n_frames, total / n_frames)

    def given(self, means: KeyValueMeans) -> Callable[[Tensor], Tensor]:
        """Return the attention for a recording with these means, to be applied to frames of it."""
        if self._has_few_channels:
            batch = means.key.shape[0]
            matrix = means.key.new_zeros(batch, self.n_channels, 2, self.n_channels)
            parts = (means.context, means.key.unsqueeze(-1).expand_as(means.context))
            for column, part in enumerate(parts):
                for block, values in zip(self._diagonal(matrix[:, :, column]), part.unbind(1), strict=True):
                    block.copy_(values)
            matrix = matrix.flatten(2).to(self.floor.dtype)  # (batch, channels, 2 * channels)
            return lambda x: self._update(x, lambda raised: halves(raised @ matrix))
        context, key = means.context.to(self.floor.dtype), means.key.to(self.floor.dtype).unsqueeze(-1)

        def attend(raised: Tensor) -> tuple[Tensor, Tensor]:
            query = self._split_heads(raised)
            denominator = (query @ key).expand_as(query)
            numerator, denominator = (t.transpose(1, 2).flatten(2) for t in (query @ context, denominator))
            return numerator, denominator

        return lambda x: self._update(x, attend)

    def _update(self, x: Tensor, attend: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        normalized = layer_norm(x, self.norm)
        raised, ratio = self._focus(self.query(normalized))
        numerator, denominator = attend(raised)
        denominator += EPS / ratio
        if self.value_conv is None:
            attended = numerator / denominator
        else:
            local = self.value_conv(self.value(normalized))
            attended = torch.addcdiv(local, numerator, denominator)
        attended = self.output(attended).to(x.dtype)
        if self.gate is None:
            return x + attended
        return torch.addcmul(x, attended, self.gate(normalized).sigmoid_().to(x.dtype))

    def _focus(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Return u^p (batch, frames, channels), and what gives it the length of u (batch, frames, 1)."""
        feature = torch.maximum(feature, self.floor)
        if self.power == 1:
            return feature, feature.new_ones(()).expand(*feature.shape[:-1], 1)
        length = vector_norm(feature, dim=-1, keepdim=True)
        raised = feature.square().mul_(feature) if self.power == 3 else feature**self.power
        return raised, length / (vector_norm(raised, dim=-1, keepdim=True) + FOCUS_EPS)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Turn (batch, frames, channels) into (batch, heads, frames, head_dim)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    @property
    def _has_few_channels(self) -> bool:
        return self.n_channels <= BLOCK_DIAGONAL_CHANNELS

    def _diagonal(self, matrices: Tensor) -> list[Tensor]:
        """Return the blocks (batch, head_dim, head_dim) on the diagonal of (batch, channels, channels)."""
        size = self.n_channels // self.n_heads
        return [matrices[:, k : k + size, k : k + size] for k in range(0, self.n_channels, size)]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the last half of the channels."""
    first, second = x.chunk(2, dim=-1)
    return first, second


class MergedFeedForward:
    """`sepreformer.GatedConvFeedForward`."""

    def __init__(self, block: "sepreformer.GatedConvFeedForward", dtype: torch.dtype) -> None:
        self.norm = block.norm
        self.expand = Projection.of(block.expand, dtype, before=block.norm)
        self.convolution = MergedConv(block.convolution, dtype)
        self.contract = Projection.of(block.contract, dtype, scale=block.scale.scale)
        self.halo = block.halo
        weight = block.expand.weight
        self.width = (
            weight.shape[0] * dtype.itemsize // weight.itemsize
        )  # as if it were of the residual's type

    def __call__(self, x: Tensor) -> Tensor:
        return map_pieces(self._forward, x, halo=self.halo, width=self.width)

    def _forward(self, x: Tensor) -> Tensor:
        hidden = F.glu(self.convolution(self.expand(layer_norm(x, self.norm))))
        return self.contract.add(x, hidden)


class MergedLocalBlock:
    """`sepreformer.LocalBlock`."""

    def __init__(self, block: "sepreformer.LocalBlock", dtype: torch.dtype) -> None:
        local = block.convolution
        self.norm = local.norm
        self.gate = Projection.of(local.gate, dtype, before=local.norm)
        self.convolution = MergedConv(local.convolution, dtype)
        scale, shift = batch_norm_line(local.batch_norm)
        self.expand = Projection.of(local.expand, dtype, scale=scale, shift=shift)
        self.contract = Projection.of(local.contract, dtype, scale=local.scale.scale)
        self.feed_forward = MergedFeedForward(block.feed_forward, dtype)
        self.halo = block.convolution.halo + self.feed_forward.halo

    def __call__(self, x: Tensor) -> Tensor:
        local = self.convolution(F.glu(self.gate(layer_norm(x, self.norm))))
        return self.feed_forward(self.contract.add(x, F.gelu(self.expand(local))))


class MergedSourceBlock:
    """`sepreformer.SourceBlock`."""

    def __init__(self, block: "sepreformer.SourceBlock", dtype: torch.dtype) -> None:
        attention = block.attention
        self.n_sources, self.n_heads, self.norm = block.n_sources, attention.n_heads, attention.norm
        head_dim = attention.query.in_features // self.n_heads
        scale = attention.query.weight.new_tensor(head_dim**-0.5)
        self.query = Projection.of(attention.query, dtype, before=self.norm, scale=scale)
        self.key, self.value = (
            Projection.of(layer, dtype, before=self.norm) for layer in (attention.key, attention.value)
        )
        self.output = Projection.of(attention.output, dtype, scale=attention.scale.scale)
        self.feed_forward = MergedFeedForward(block.feed_forward, dtype)
        self.halo = self.feed_forward.halo

    def __call__(self, x: Tensor) -> Tensor:
        normalized = layer_norm(x, self.norm)
        query, key, value = (
            layer(normalized).unflatten(0, (-1, self.n_sources)).unflatten(-1, (self.n_heads, -1))
            for layer in (self.query, self.key, self.value)
        )  # (batch, source, frames, heads, head_dim)
        if self.n_sources == 2:
            attended = _attend_to_two(query, key, value)
        else:
            scores = (query.unsqueeze(2) * key.unsqueeze(1)).sum(-1)  # (batch, query, key, frames, heads)
            attended = (scores.softmax(dim=2).unsqueeze(-1) * value.unsqueeze(1)).sum(2)
        return self.feed_forward(self.output.add(x, attended.flatten(0, 1).flatten(-2)))


def _attend_to_two(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to two talkers: the softmax of two scores is the sigmoid of their difference.

    All are (batch, 2, frames, heads, head_dim).
    """
    first, second = key.unbind(1)
    weight = (query * (first - second).unsqueeze(1)).sum(-1, keepdim=True).sigmoid_()
    first, second = value.unbind(1)
    return torch.addcmul(second.unsqueeze(1), weight, (first - second).unsqueeze(1))


class MergedSourceSplit:
    """`sepreformer.SourceSplit` without its normalisation, which needs all frames."""

    def __init__(self, split: "sepreformer.SourceSplit", dtype: torch.dtype) -> None:
        self.n_sources = split.n_sources
        self.expand = Projection.of(split.expand, dtype)
        self.contract = Projection.of(split.contract, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the branches (batch * source, frames, channels) of (batch, frames, channels)."""
        width = self.expand.weight.shape[0]
        branches = map_pieces(lambda piece: self.contract(F.glu(self.expand(piece))), x, width=width)
        return branches.unflatten(-1, (self.n_sources, -1)).transpose(1, 2).flatten(0, 1).to(x.dtype)


class MergedDownsample:
    """The half frame rate at the end of `sepreformer.EncoderStage`."""

    def __init__(self, stage: "sepreformer.EncoderStage", dtype: torch.dtype) -> None:
        self.convolution = MergedConv(stage.downsample, dtype, after=stage.downsample_norm)
        self.reach = stage.downsample.padding

    def __call__(self, x: Tensor) -> Tensor:
        return F.gelu(self.convolution(x)).to(x.dtype)


class MergedFusion:
    """The projection that begins `sepreformer.DecoderStage`: half of it comes at half the frame rate."""

    def __init__(self, fusion: nn.Linear, dtype: torch.dtype) -> None:
        below, skip = fusion.weight.chunk(2, dim=1)
        self.below = Projection(below, None, dtype)
        self.skip = Projection(skip, fusion.bias, dtype)

    def __call__(self, below: Tensor, skip: Tensor, first: int) -> Tensor:
        """Join branches (batch * source, frames, channels) with those below.

        Args:
            below: Every frame that lies below a frame of `skip`.
            skip: Frames from `first` on.
            first: Tells whether the first frame of `skip` is the first or the second one above its own.
        """
        spread = self.below(below).repeat_interleave(2, dim=1)
        return self.skip(skip).add_(spread[:, first % 2 :][:, : skip.shape[1]]).to(skip.dtype)


class MergedEncoder:
    """The waveform encoder, and the projection of its normalised output."""

    def __init__(self, model: "sepreformer.SepReformer", dtype: torch.dtype) -> None:
        config, norm = model.config, model.feature_norm
        self.hop_length, self.filter_length = config.hop_length, config.filter_length
        self.filters = Projection(model.encoder.weight.squeeze(1), None, dtype)
        weight = model.feature_projection.weight
        self.projection = Projection(weight * norm.weight, None, dtype)
        self.ones = (weight * norm.weight).sum(1)  # what a shift of all features by 1 adds
        self.offset = weight @ norm.bias
        self.eps = norm.eps

    def __call__(self, samples: Tensor) -> Tensor:
        """Turn whole frames (batch, time) into the encoder's output (batch, frames, filters)."""
        frames = samples.to(self.filters.weight.dtype).unfold(-1, self.filter_length, self.hop_length)
        return F.gelu(frames @ self.filters.weight.mT)

    def normalize(self, projected: Tensor, moments: Moments) -> Tensor:
        """Turn projections of the output into those of the output normalised over all frames.

        Args:
            projected: (batch, frames, channels).
            moments: Of the encoder's output.
        """
        scale, shift = moments.line(self.eps)  # (batch, 1, 1)
        offset = shift.to(self.ones.dtype) * self.ones + self.offset
        return torch.addcmul(offset.to(projected.dtype), projected, scale.to(projected.dtype))


class MergedOutput:
    """The output layer and, where nothing comes between, the waveform decoder's filters.

    Shape: (batch, frames, channels) to windows (batch, frames, filter_length); with masking to the masks
    (batch, frames, filters), which `synthesis` turns into windows once they are applied.
    """

    def __init__(self, model: "sepreformer.SepReformer", dtype: torch.dtype) -> None:
        output: Any = model.output  # whose layers mypy takes for bare modules
        expand, _, contract = output
        synthesis = model.decoder.weight.squeeze(1).mT  # (filter_length, filters)
        self.expand = Projection.of(expand, dtype)
        self.synthesis = Projection(synthesis, None, dtype)
        self.contract = (
            Projection.of(contract, dtype)
            if model.config.masking
            else Projection(synthesis @ contract.weight, synthesis @ contract.bias, dtype)
        )
        self.width: int = max(expand.out_features, contract.out_features)

    def __call__(self, x: Tensor) -> Tensor:
        return self.contract(F.glu(self.expand(x)))
