import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flasepformer.layers import DepthwiseConv
from flasepformer.layers.convolution import depthwise_conv


@pytest.mark.parametrize("kernel_size", [3, 65])  # run as rows and as columns of an image
@pytest.mark.parametrize(("n_frames", "stride"), [(1, 1), (50, 1), (50, 2), (51, 2)])
def test_depthwise_conv_equals_a_grouped_conv1d(kernel_size, n_frames, stride):
    conv = DepthwiseConv(6, kernel_size, stride)
    plain = nn.Conv1d(6, 6, kernel_size, stride, kernel_size // 2, groups=6)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, n_frames, 6)
    assert_close(conv(x), plain(x.mT).mT)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_in_bfloat16_are_those_of_float32(stride):
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 17, 4), (4, 1, 5), (4,)))
    wanted = torch.autograd.grad(depthwise_conv(x, weight, bias, stride).square().sum(), (x, weight, bias))
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(
            depthwise_conv(x, weight, bias, stride).float().square().sum(), (x, weight, bias)
        )
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        assert (got - expected).norm() < 0.02 * expected.norm()
