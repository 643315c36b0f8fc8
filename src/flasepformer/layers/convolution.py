"""Convolutions over frames that keep the channels last, the layout of everything around them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """Filter every channel over time with a kernel of its own.

    The same numbers as `F.conv1d` of the transposed input with half the kernel as padding and one group per
    channel, several times faster on a CPU: seen as a channels-last image, the input needs no copy, and oneDNN
    has better kernels for images. An image one row high is computed fastest, one a column wide has the faster
    gradients.

    Args:
        x: (batch, frames, channels).
        weight: (channels, 1, kernel_size), kernel_size odd.
        bias: (channels,).
        stride: Frames from one output frame to the next.

    Returns:
        (batch, ceil(frames / stride), channels).
    """
    time_axis, other_axis = (1, 2) if torch.is_grad_enabled() else (2, 1)
    padding = weight.shape[-1] // 2
    image = x.unsqueeze(other_axis).permute(
        0, 3, 1, 2
    )  # (batch, channels, frames, 1) or the last two swapped
    filtered = F.conv2d(
        image,
        weight.unsqueeze(other_axis + 1),
        bias,
        stride=(stride, 1) if time_axis == 1 else (1, stride),
        padding=(padding, 0) if time_axis == 1 else (0, padding),
        groups=x.shape[-1],
    )
    return filtered.permute(0, 2, 3, 1).squeeze(other_axis)


class DepthwiseConv(nn.Module):
    """`depthwise_conv` with its parameters.

    Args:
        n_channels: Channels, each with its own kernel.
        kernel_size: Frames under the kernel, odd.
        stride: Frames from one output frame to the next.

    Shape: (batch, frames, n_channels) to (batch, ceil(frames / stride), n_channels).
    """

    def __init__(self, n_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.padding = kernel_size // 2
        self.stride = stride
        bound = kernel_size**-0.5
        self.weight = nn.Parameter(torch.empty(n_channels, 1, kernel_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_channels).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv(x, self.weight, self.bias, self.stride)
