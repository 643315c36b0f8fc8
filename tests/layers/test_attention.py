import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flasepformer.layers import FocusedLinearAttention, GatedResidualAttention, LayerNorm, depthwise_conv
from flasepformer.ops import focus, linear_attention_naive


def test_attention_is_the_paper_formula_written_out():
    torch.manual_seed(0)
    layer = FocusedLinearAttention(n_channels=12, n_heads=3, kernel_size=5)
    nn.init.normal_(layer.scale)
    x = torch.randn(2, 20, 12)
    with torch.no_grad():
        scale = torch.log1p(layer.scale.exp())
        query = focus((layer.query(x).relu() + 1e-6) / scale, 3)
        key, value = layer.key_value(x).chunk(2, dim=-1)
        key = focus((key.relu() + 1e-6) / scale, 3)
        heads = []
        for h in range(3):
            q, k, v = (u[..., 4 * h : 4 * h + 4] for u in (query, key, value))
            local = depthwise_conv(v, layer.value_conv.weight, layer.value_conv.bias)
            heads.append(linear_attention_naive(q, k, v) + local)
        expected = layer.output(torch.cat(heads, dim=-1))
        assert_close(layer(x), expected)


def test_a_shut_gate_lets_nothing_of_the_attention_through():
    block = GatedResidualAttention(FocusedLinearAttention(8, 2), 8, LayerNorm(8), LayerNorm(8))
    nn.init.zeros_(block.gate[1].weight)
    nn.init.constant_(block.gate[1].bias, -100.0)
    x = torch.randn(1, 5, 8)
    assert_close(block(x), x)


def test_without_gate_the_attention_is_added_whole():
    block = GatedResidualAttention(FocusedLinearAttention(8, 2), 8, LayerNorm(8), None)
    x = torch.randn(1, 5, 8)
    assert_close(block(x), x + block.attention(block.norm(x)))


def test_attention_without_convolution_is_linear_attention_alone():
    layer = FocusedLinearAttention(8, 2, kernel_size=0)
    whole = FocusedLinearAttention(8, 2, kernel_size=5)
    missing = whole.load_state_dict(layer.state_dict(), strict=False)
    assert missing.missing_keys == ["value_conv.weight", "value_conv.bias"]
    nn.init.zeros_(whole.value_conv.weight)
    nn.init.zeros_(whole.value_conv.bias)
    x = torch.randn(2, 20, 8)
    assert_close(layer(x), whole(x))


@pytest.mark.parametrize("half", ["module", "autocast"])
def test_float16_follows_float32_where_cubes_and_sums_leave_its_range(half):
    torch.manual_seed(0)
    layer = FocusedLinearAttention(16, 2)
    x = 200 * torch.randn(1, 400, 16)  # queries and keys of about 100: a cube is a million
    with torch.no_grad():
        expected = layer(x)
        if half == "module":
            attended = layer.half()(x.half())
        else:
            with torch.autocast("cpu", torch.float16):
                attended = layer(x)
    assert_close(attended.float(), expected, rtol=0, atol=0.01 * expected.abs().max().item())
