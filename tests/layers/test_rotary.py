import pytest
import torch
from torch.testing import assert_close

from flasepformer.layers import RotaryAttention
from flasepformer.layers.rotary import rotate


def test_a_pair_is_turned_by_position_times_frequency():
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).expand(4, 4)  # frequencies 1 and 1 / 100
    at_3 = torch.tensor([-0.989992, 0.141120, -0.029996, 0.999550])  # cos 3, sin 3, -sin 0.03, cos 0.03
    assert_close(rotate(x)[3], at_3, atol=1e-6, rtol=0)
    assert_close(rotate(x)[0], x[0])


@pytest.mark.parametrize("distance", [0, 1, 7])
def test_products_depend_on_the_distance_only(distance):
    query, key = torch.randn(2, 1, 16)
    products = rotate(query.expand(30, 16)) @ rotate(key.expand(30, 16)).mT
    diagonal = products.diagonal(distance)
    assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-5)


def test_angles_are_exact_after_an_hour_of_frames():
    position = 450_000
    turned = rotate(torch.tensor([1.0, 0, 1, 0, 1, 0]).expand(position + 1, 6))[position]
    angles = position * 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    assert_close(turned[::2].double(), angles.cos(), atol=1e-6, rtol=0)


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    attention = RotaryAttention(n_channels=6, attention_channels=8, n_heads=2)
    x = torch.randn(3, 11, 6)
    query, key, value = (
        part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.query_key_value(x).chunk(3, dim=-1)
    )
    weights = (rotate(query) @ rotate(key).mT / 4**0.5).softmax(dim=-1)
    expected = attention.output((weights @ value).transpose(1, 2).flatten(2))
    assert_close(attention(x), expected)


def test_half_precision_is_turned_in_single_precision():
    x = torch.randn(500, 8).bfloat16()
    assert torch.equal(rotate(x), rotate(x.float()).bfloat16())
