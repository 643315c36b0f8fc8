import pytest
import torch
from torch.testing import assert_close

from flasepformer.ops import focus, linear_attention, linear_attention_naive


@pytest.mark.parametrize("n_frames", [1, 63, 250])  # a single frame, an odd count, a usual segment
def test_linear_attention_equals_its_definition_and_gradient(n_frames):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.rand(2, 2, 4, n_frames, 16, generator=generator).requires_grad_()
    value = torch.randn(2, 4, n_frames, 8, generator=generator).requires_grad_()
    fast, naive = (f(query, key, value) for f in (linear_attention, linear_attention_naive))
    upstream = torch.randn(fast.shape, generator=generator)
    gradients = [torch.autograd.grad(y, (query, key, value), upstream) for y in (fast, naive)]
    assert_close(fast, naive)
    assert_close(*gradients)


def test_linear_attention_of_equal_values_returns_that_value():
    query, key = torch.rand(2, 1, 2, 40, 4) + 0.5
    value = torch.tensor([3.0, -1.0]).expand(1, 2, 40, 2)
    assert_close(linear_attention(query, key, value), value, rtol=1e-4, atol=1e-4)


def test_linear_attention_of_silent_keys_is_zero_and_finite():
    query, value = torch.rand(1, 2, 10, 4), torch.randn(1, 2, 10, 4)
    assert linear_attention(query, torch.zeros(1, 2, 10, 4), value).abs().max() == 0


def test_focus_keeps_the_length_and_sharpens_the_direction():
    focused = focus(torch.tensor([3.0, 4.0]), 3)  # length 5, direction (27, 64)
    assert_close(focused, 5 * torch.tensor([27.0, 64.0]) / (27**2 + 64**2) ** 0.5)


def test_focus_is_finite_for_silent_frames():
    feature = torch.zeros(2, 8, requires_grad=True)
    focused = focus(feature + 1e-6, 3)
    focused.sum().backward()
    assert focused.isfinite().all()
    assert feature.grad.isfinite().all()
