import pytest
import torch
from torch.testing import assert_close

from flasepformer.ops import (
    causal_linear_attention,
    focus,
    key_value_sums,
    linear_attention,
    linear_attention_naive,
    running_sums,
)
from flasepformer.ops.linear_attention import EPS


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


def test_focus_of_power_one_changes_nothing():
    feature = 1e-8 * torch.rand(3, 8)  # even where FOCUS_EPS would
    assert_close(focus(feature, 1), feature, rtol=0, atol=0)


def test_focus_is_right_where_cubes_leave_float16():
    focused = focus(torch.tensor([300.0, 400.0]).half(), 3)  # 400 cubed is 64 million, float16 ends at 65504
    assert focused.dtype == torch.float16
    expected = 500 * torch.tensor([27.0, 64.0]) / (27**2 + 64**2) ** 0.5
    assert_close(focused.float(), expected, rtol=1e-3, atol=0)


def test_focus_is_right_where_cubes_vanish_in_float16():
    feature = torch.tensor([[3e-3, 4e-3], [0.0, 0.0]]).half()  # 0.003 cubed rounds to zero, and so does 1e-8
    focused = focus(feature, 3).float()
    assert_close(focused, focus(feature.float(), 3), rtol=1e-3, atol=0)
    assert focused[0].norm().item() == pytest.approx(5e-3, rel=0.15)  # FOCUS_EPS takes a share here
    assert focused[1].tolist() == [0, 0]


def test_sums_of_float16_are_summed_in_float32():
    key, value = torch.full((1, 1, 1000, 2), 300.0).half(), torch.full((1, 1, 1000, 3), 400.0).half()
    sums = key_value_sums(key, value)
    assert_close(sums.context / sums.count, torch.full((1, 1, 2, 3), 120_000.0))  # beyond float16
    assert_close(sums.key, torch.full((1, 1, 2), 300_000.0))


def test_attention_of_large_float16_features_equals_float32():
    query, key = (100 * torch.rand(2, 1, 2, 50, 16) + 50).half()  # query . key is beyond float16
    value = torch.randn(1, 2, 50, 4).half()
    attended = linear_attention(query, key, value)
    assert attended.dtype == torch.float16
    expected = linear_attention_naive(query.float(), key.float(), value.float())
    assert_close(attended.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_sums_and_their_gradients_in_float32(dtype):
    query, key = (1e3 * torch.rand(2, 1, 2, 50, 16)).requires_grad_()
    value = 1e3 * torch.randn(1, 2, 50, 4)
    expected = linear_attention(query, key, value)
    gradients = torch.autograd.grad(expected.sum(), key, retain_graph=True)
    with torch.autocast("cpu", dtype):
        attended = linear_attention(query, key, value)
    assert_close(attended, expected, rtol=0, atol=0)
    assert_close(torch.autograd.grad(attended.sum(), key), gradients, rtol=0, atol=0)


def test_sums_of_bfloat16_keep_what_its_eight_bits_cannot():
    key, value = torch.ones(1, 1, 1000, 2).bfloat16(), torch.full((1, 1, 1000, 3), 1.0078125).bfloat16()
    sums = key_value_sums(key, value)  # 1007.8125 is no bfloat16
    assert_close(sums.context, torch.full((1, 1, 2, 3), 1007.8125))
    attended = linear_attention(key, key, value)
    assert attended.dtype == torch.bfloat16
    assert_close(attended.float(), value.float(), rtol=0, atol=0)


def test_shapes_pass_through_where_there_is_no_autocast():
    query, key, value = torch.empty(3, 1, 2, 50, 4, device="meta")
    assert linear_attention(query, key, value).shape == (1, 2, 50, 4)


@pytest.mark.parametrize("decay", [1.0, 0.97])
@pytest.mark.parametrize("n_frames", [1, 64, 150])
def test_running_sums_are_those_of_a_loop(decay, n_frames):
    x, past = torch.randn(2, n_frames, 3).double(), torch.randn(2, 3).double()
    expected, total = [], past
    for frame in x.unbind(1):
        total = decay * total + frame
        expected.append(total)
    assert torch.allclose(running_sums(x, decay, past), torch.stack(expected, 1), atol=1e-12)
    assert torch.allclose(running_sums(x, decay)[:, 0], x[:, 0])


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_causal_attention_that_forgets_is_a_fading_average(decay):
    query, key = torch.rand(2, 1, 2, 150, 4).double().unbind(0)
    value = torch.randn(1, 2, 150, 3).double()
    age = torch.arange(150)[:, None] - torch.arange(150)
    fading = (decay ** age.clamp_min(0).double()).tril()
    weights = query @ key.mT * fading
    counts = fading.sum(-1)[:, None]
    expected = (weights @ value) / (weights.sum(-1, keepdim=True) + EPS * counts)
    first, past = causal_linear_attention(*(t[:, :, :100] for t in (query, key, value)), decay=decay)
    second, _ = causal_linear_attention(*(t[:, :, 100:] for t in (query, key, value)), past, decay)
    assert torch.allclose(torch.cat([first, second], 2), expected, atol=1e-9)
