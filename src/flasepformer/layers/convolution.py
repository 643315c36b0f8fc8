"""Convolutions over frames that keep the channels last, the layout of everything around them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flasepformer.layers.layer import Carry, Layer

FEW_PRODUCTS = 1 << 17
"""Products up to which they are simply added up on a CPU: a convolution takes so long to begin."""

Weights = tuple[Tensor, Tensor]
"""Weight and bias."""


def depthwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int | None = None
) -> Tensor:
    """Filter every channel over time with a kernel of its own.

    The same numbers as `F.conv1d` of the transposed input with one group per channel, several times faster on
    a CPU: seen as a channels-last image, the input needs no copy, and oneDNN has better kernels for images.
    An image one row high is computed fastest, one a column wide has the faster gradients; with a stride only
    in float32, which bfloat16 takes forty times as long for.

    Args:
        x: (batch, frames, channels).
        weight: (channels, 1, kernel_size).
        bias: (channels,).
        stride: Frames from one output frame to the next.
        padding: Zeros on either side; by default half the kernel, whose size is odd then.

    Returns:
        (batch, ceil(frames / stride), channels).
    """
    column = torch.is_grad_enabled()
    padding = weight.shape[-1] // 2 if padding is None else padding
    if not padding and not column and x.is_cpu and not torch.compiler.is_compiling():
        windows = x.unfold(1, weight.shape[-1], stride).mT  # (batch, frames, kernel_size, channels)
        if windows.numel() <= FEW_PRODUCTS:
            return (windows * weight.squeeze(1).mT).sum(2).add_(bias)
    if stride > 1 and column and x.is_cpu and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return depthwise_conv(x.float(), weight, bias, stride, padding)
    image = x.unsqueeze(2 if column else 1).permute(0, 3, 1, 2)  # (batch, channels, frames, 1), or swapped
    filtered = F.conv2d(
        image,
        weight.unsqueeze(3 if column else 2),
        bias,
        stride=(stride, 1) if column else (1, stride),
        padding=(padding, 0) if column else (0, padding),
        groups=x.shape[-1],
    )
    return filtered.permute(0, 2, 3, 1).squeeze(2 if column else 1)


def with_past(x: Tensor, n_frames: int, carry: Carry | None, name: str = "frames") -> Tensor:
    """Return (batch, frames, ...) with `n_frames` frames before it: those of the stream, or zeros."""
    if carry is not None:
        return carry.before(name, x, n_frames)
    return torch.cat([x.new_zeros(x.shape[0], n_frames, *x.shape[2:]), x], dim=1)


class Delay(Layer):
    """Give every frame later by some frames; (batch, frames, ...), in and out.

    Args:
        n_frames: How many.
    """

    causal = True

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.halo = n_frames

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return with_past(x, self.halo, carry)[:, : x.shape[1]]


class DepthwiseConv(Layer):
    """`depthwise_conv` with its parameters.

    Args:
        n_channels: Channels, each with its own kernel.
        kernel_size: Frames under the kernel, odd.
        stride: Frames from one output frame to the next.
        causal: Look back only: the last frame under the kernel is that of the output, or with a stride the
            last one before the next output.
        n_repeats: Groups of channels that have the same kernels.

    Shape: (batch, frames, n_channels * n_repeats) to (batch, ceil(frames / stride), n_channels * n_repeats).
    """

    def __init__(
        self, n_channels: int, kernel_size: int, stride: int = 1, *, causal: bool = False, n_repeats: int = 1
    ) -> None:
        super().__init__()
        self.stride, self.causal, self.n_repeats = stride, causal, n_repeats
        self.halo = kernel_size - stride if causal else kernel_size // 2
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(n_channels, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_channels).uniform_(-bound, bound))

    def fold(self) -> Weights:
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.n_repeats > 1:
            weight, bias = weight.repeat(self.n_repeats, 1, 1), bias.repeat(self.n_repeats)
        return weight.movedim(-1, 0).contiguous().movedim(
            0, -1
        ), bias  # channels last, as the frames have them

    def forward(self, x: Tensor, carry: Carry | None = None, weights: Weights | None = None) -> Tensor:
        """Apply the layer, with what `fold` gives if it is known."""
        weight, bias = weights or self.folded()
        if self.causal:
            return depthwise_conv(with_past(x, self.halo, carry), weight, bias, self.stride, padding=0)
        return depthwise_conv(x, weight, bias, self.stride)
