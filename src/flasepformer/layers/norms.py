"""Normalisations of features whose channels come last; always computed in at least single precision."""

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm


class GlobalNorm(nn.Module):
    """Normalise a recording by the mean and variance of all its features, then scale each channel.

    The same as `nn.GroupNorm(1, n_channels)` with the channels last, but exact for long recordings too:
    PyTorch's own sums for this layout on a CPU drift by percents within a quarter of an hour.

    Args:
        n_channels: Feature channels.
        eps: Added to the variance.

    Shape: (batch, frames, bins, n_channels), in and out.
    """

    def __init__(self, n_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x)
        variance, mean = torch.var_mean(wide, dim=(1, 2, 3), correction=0, keepdim=True)
        gain = (variance + self.eps).rsqrt() * self.weight
        return torch.addcmul(self.bias - mean * gain, wide, gain).to(x.dtype)


class RMSGroupNorm(nn.Module):
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
        groups = _at_least_float32(x).unflatten(-1, (self.n_groups, -1))
        root_mean_square = vector_norm(groups, dim=-1, keepdim=True) / groups.shape[-1] ** 0.5
        return ((groups / (root_mean_square + self.eps)).flatten(-2) * self.weight).to(x.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
