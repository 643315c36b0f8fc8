import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flasepformer.layers import FocusedLinearAttention, GatedResidualAttention
from flasepformer.ops import PIECE_LENGTH, focus, linear_attention_naive


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
            heads.append(linear_attention_naive(q, k, v) + layer.value_conv(v.mT).mT)
        expected = layer.output(torch.cat(heads, dim=-1))
        assert_close(layer(x), expected)


def test_a_shut_gate_lets_nothing_of_the_attention_through():
    block = GatedResidualAttention(FocusedLinearAttention(8, 2), 8, nn.LayerNorm(8), nn.LayerNorm(8))
    nn.init.zeros_(block.gate[1].weight)
    nn.init.constant_(block.gate[1].bias, -100.0)
    x = torch.randn(1, 5, 8)
    assert_close(block(x), x)


def test_without_gate_the_attention_is_added_whole():
    block = GatedResidualAttention(FocusedLinearAttention(8, 2), 8, nn.LayerNorm(8), None)
    x = torch.randn(1, 5, 8)
    assert_close(block(x), x + block.attention(block.norm(x)))


@pytest.mark.parametrize("gated", [True, False])
def test_a_long_recording_in_pieces_gives_the_same_as_the_whole(gated):
    torch.manual_seed(0)
    block = GatedResidualAttention(
        FocusedLinearAttention(8, 2), 8, nn.LayerNorm(8), nn.LayerNorm(8) if gated else None
    )
    x = torch.randn(2, 2 * PIECE_LENGTH + 9, 8)
    whole = block(x)  # gradients are recorded: all frames at once
    with torch.no_grad():
        assert_close(block(x), whole.detach())
