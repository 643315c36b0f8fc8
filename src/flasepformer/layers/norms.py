"""Normalisations of features whose channels come last; always computed in at least single precision."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from flasepformer.layers.layer import Carry, Given, GlobalLayer
from flasepformer.ops import is_exporting, running_sums


class FrameNorm(nn.Module, ABC):
    """A normalisation of single frames, whose gain a projection may take over."""

    @abstractmethod
    def plain(self, x: Tensor) -> Tensor:
        """Normalise (..., channels) without gain and offset."""

    @abstractmethod
    def into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight and bias of a projection of `plain` that equals that of the whole normalisation."""


class LayerNorm(nn.LayerNorm, FrameNorm):
    """`nn.LayerNorm` over the channels; see `FrameNorm`."""

    def plain(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, eps=self.eps)

    def into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight * self.weight, torch.addmv(bias, weight, self.bias)


class RMSGroupNorm(FrameNorm):
    """Divide groups of channels by their root mean square, frame by frame, then scale each channel.

    Args:
        n_channels: Feature channels.
        n_groups: Groups of neighbouring channels.
        eps: Added to the root mean square.

    Shape: (..., n_channels), in and out.

    Reference: Saijo et al., "TF-Locoformer", IWAENC 2024, arXiv:2408.03440.
    """

    def __init__(self, n_channels: int, n_groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_channels))

    def forward(self, x: Tensor) -> Tensor:
        return (self._normalized(x) * self.weight).to(x.dtype)

    def plain(self, x: Tensor) -> Tensor:
        return self._normalized(x).to(x.dtype)

    def into(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight * self.weight, bias

    def _normalized(self, x: Tensor) -> Tensor:
        groups = _at_least_float32(x).unflatten(-1, (self.n_groups, -1))
        root_mean_square = vector_norm(groups, dim=-1, keepdim=True) / groups.shape[-1] ** 0.5
        return (groups / (root_mean_square + self.eps)).flatten(-2)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each recording's features over some frames; those of all add up."""

    count: float
    """Numbers in each recording."""
    mean: Tensor
    """(batch,), as `widest` has it."""
    squares: Tensor
    """(batch,), sum of the squared distances from the mean, as `widest` has it."""

    @classmethod
    def of(cls, x: Tensor) -> "Moments":
        """Measure features (batch, some frames, ...)."""
        wide = _at_least_float32(x).flatten(1)
        if is_exporting():  # few runtimes have float64; two steps, so that no sum has all the numbers
            frames = wide.unflatten(1, (x.shape[1], -1))
            mean = frames.mean(dim=2).mean(dim=1)
            variance = (frames - mean[:, None, None]).square().mean(dim=2).mean(dim=1)
            return cls(wide.shape[1], mean, variance * wide.shape[1])
        variance, mean = torch.var_mean(wide, dim=1, correction=0)
        count = wide.shape[1]
        return cls(count, widest(mean), widest(variance) * count)

    def __add__(self, other: "Moments") -> "Moments":
        # Chan et al. (1979): no large sums are subtracted from each other.
        count = self.count + other.count
        difference, share = other.mean - self.mean, other.count / count
        squares = self.squares + other.squares + difference**2 * (self.count * share)
        return Moments(count, self.mean + difference * share, squares)

    def faded(self, share: float) -> "Moments":
        """Return the moments as if the frames had counted for a share of what they did."""
        return Moments(self.count * share, self.mean, self.squares * share)


class GlobalNorm(GlobalLayer):
    """Normalise a recording by the mean and variance of all its features, then scale each channel.

    The same as `nn.GroupNorm(1, n_channels)` with the channels last, but exact for long recordings too:
    PyTorch's own sums for this layout on a CPU drift by percents within a quarter of an hour.

    Args:
        n_channels: Feature channels.
        eps: Added to the variance.
        causal: Normalise every frame by the features up to it.
        decay: What is left, where it is causal, of a frame's weight when the next one comes.

    Shape: (batch, frames, ..., n_channels), in and out.
    """

    def __init__(self, n_channels: int, eps: float = 1e-5, causal: bool = False, decay: float = 1.0) -> None:
        super().__init__()
        self.eps = eps
        self.causal = causal
        self.decay = decay
        self._faded: dict[float, GlobalNorm] = {}
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def fading(self, decay: float) -> "GlobalNorm":
        """Return the same norm for frames of another length, with their decay."""
        if decay == self.decay:
            return self
        if decay not in self._faded:
            norm = copy.copy(self)
            norm.decay = decay
            self._faded[decay] = norm
        return self._faded[decay]

    def summarize(self, x: Tensor) -> Moments:
        return Moments.of(x)

    def given(self, summary: Moments) -> Given:
        scale = torch.rsqrt(summary.squares / summary.count + self.eps)
        return lambda x, first: self._normalize(x, scale, summary.mean)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return self._cumulative(x, carry) if self.causal else super().forward(x)

    def _cumulative(self, x: Tensor, carry: Carry | None) -> Tensor:
        wide = _at_least_float32(x).flatten(2)
        sums = widest(torch.stack([wide.sum(2), wide.square().sum(2)], 2))
        sums = F.pad(sums, (0, 1), value=float(wide.shape[2]))  # and how many they are
        past = None if carry is None else carry.load("sums")
        total = running_sums(sums, self.decay, past)  # (batch, frames, 3)
        if carry is not None:
            carry.save("sums", total[:, -1].clone())
        mean, square = (total[..., :2] / total[..., 2:]).split(1, -1)
        scale = torch.rsqrt(torch.addcmul(square, mean, mean, value=-1).clamp_min_(0) + self.eps)
        scale, shift = (
            t.view(*t.shape[:2], *[1] * (x.ndim - 2)).to(wide.dtype) for t in (scale, -mean * scale)
        )
        plain = torch.addcmul(shift, _at_least_float32(x), scale)
        return torch.addcmul(self.bias, plain, self.weight).to(x.dtype)

    def _normalize(self, x: Tensor, scale: Tensor, mean: Tensor) -> Tensor:
        """Normalise by a scale and a mean for every recording."""
        wide = _at_least_float32(x)
        scale, shift = (t.reshape(-1, *[1] * (x.ndim - 1)) for t in (scale, -mean * scale))
        gain = (self.weight * scale).to(wide.dtype)
        offset = (self.weight * shift + self.bias).to(wide.dtype)
        return torch.addcmul(offset, wide, gain).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def widest(x: Tensor) -> Tensor:
    """Return a tensor in float64, or in float32 on a device that has no wider type (MPS)."""
    return x.float() if x.is_mps else x.double()
