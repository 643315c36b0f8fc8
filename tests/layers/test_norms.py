import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flasepformer.layers import GlobalNorm, RMSGroupNorm


def test_rms_group_norm_divides_each_group_by_its_root_mean_square():
    norm = RMSGroupNorm(4, n_groups=2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 1.0, 2.0]))
    x = torch.tensor([[3.0, 4.0, 10.0, -10.0]])  # root mean squares 3.5355 and 10
    assert_close(norm(x), torch.tensor([[0.848528, 2.262742, 1.0, -2.0]]))


def test_rms_group_norm_adds_eps_to_the_root_mean_square():
    x = torch.full((1, 4), 1e-5)
    assert_close(RMSGroupNorm(4, n_groups=1, eps=1e-5)(x), torch.full((1, 4), 0.5))


def test_rms_group_norm_of_silence_is_silent_and_has_a_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    y = RMSGroupNorm(4, n_groups=2)(x)
    y.sum().backward()
    assert (y == 0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-4, 1e3])  # their squares are zero and infinite in float16
def test_float16_is_normalized_in_float32(size):
    x = (size * torch.randn(2, 3, 5, 8)).half()
    for norm in (RMSGroupNorm(8, n_groups=2, eps=1e-8), GlobalNorm(8, eps=1e-12)):
        assert_close(norm(x), norm(x.float()).half())


def test_global_norm_is_group_norm_of_one_group_with_the_channels_last():
    norm, plain = GlobalNorm(6), nn.GroupNorm(1, 6)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_()
    plain.load_state_dict(norm.state_dict())
    x = 3 + torch.randn(2, 7, 5, 6)
    assert_close(norm(x), plain(x.movedim(-1, 1).contiguous()).movedim(1, -1))


def test_global_norm_is_exact_for_a_long_recording():
    x = 1 + torch.randn(1, 40_000, 65, 1, generator=torch.Generator().manual_seed(0))
    normalized = GlobalNorm(1)(x).double()
    assert normalized.mean().item() == pytest.approx(0, abs=1e-6)
    assert normalized.std().item() == pytest.approx(1, abs=2e-5)  # nn.GroupNorm: 1.002
