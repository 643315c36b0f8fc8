import pytest
import torch
from tests.models.test_linear_cost import LargestTensor
from torch.testing import assert_close

from flasepformer.layers import RelativeAttention, RelativePositions, relative_attention


def attend_by_definition(query, key, value, table):
    """Softmax attention with the (frames, frames, head_dim) tensor of positions written out."""
    limit, n_frames = table.shape[0] // 2, query.shape[-2]
    distance = torch.arange(n_frames)[:, None] - torch.arange(n_frames)
    vectors = table[distance.clamp(-limit, limit - 1) + limit]
    scores = query @ key.mT + torch.einsum("bhid,ijd->bhij", query, vectors)
    return (scores / query.shape[-1] ** 0.5).softmax(-1) @ value


def random_inputs(n_frames, max_distance=1000):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, n_frames, 4).unbind()
    return query, key, value, RelativePositions(max_distance, 4)


# One frame; no clamping; clamping on both sides; exactly a block of queries; three blocks, clamped.
@pytest.mark.parametrize(("n_frames", "max_distance"), [(1, 5), (63, 100), (63, 5), (128, 128), (300, 40)])
def test_attention_equals_its_definition_and_gradient(n_frames, max_distance):
    *inputs, positions = random_inputs(n_frames, max_distance)
    for x in inputs:
        x.requires_grad_()
    fast = relative_attention.relative_attention(*inputs, positions(n_frames))
    slow = attend_by_definition(*inputs, positions.table)
    upstream = torch.randn_like(fast)
    leaves = (*inputs, positions.table)
    assert_close(fast, slow)
    assert_close(*(torch.autograd.grad(y, leaves, upstream) for y in (fast, slow)), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert_close(relative_attention.relative_attention(*inputs, positions(n_frames)), slow.detach())


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_of_queries_give_the_same_as_the_whole(block, gradients):
    *inputs, positions = random_inputs(100)
    with torch.set_grad_enabled(gradients):
        whole = relative_attention.relative_attention(*inputs, positions(100))
        blocks = relative_attention.relative_attention(*inputs, positions(100), block_length=block)
        assert_close(blocks, whole)


def test_positions_point_from_the_key_to_the_query():
    n_frames, shift = 200, 3
    query, value = torch.ones(1, 1, n_frames, 4), torch.randn(1, 1, n_frames, 4)
    positions = RelativePositions(2000, 4)
    torch.nn.init.zeros_(positions.table)
    with torch.no_grad():
        positions.table[2000 + shift] = 100.0  # look at the frame three before
        attended = relative_attention.relative_attention(
            query, torch.zeros_like(query), value, positions(n_frames)
        )
    assert_close(attended[..., shift:, :], value[..., :-shift, :])


def test_without_gradients_no_tensor_grows_with_the_square_of_the_frames():
    def largest(n_frames):
        inputs, positions = torch.randn(3, 1, 1, n_frames, 4), RelativePositions(2000, 4)
        with torch.no_grad(), LargestTensor() as tensors:
            relative_attention.relative_attention(*inputs, positions(n_frames))
        return tensors.n_elements

    assert largest(2000) <= 2 * largest(1000)
    assert largest(2000) < 2000 * 2000 / 10


def test_dropout_thins_the_weights_out_in_training_only():
    torch.manual_seed(0)
    layer = RelativeAttention(64, 8, dropout=0.5)
    positions = RelativePositions(100, 8)(200)
    for linear in (layer.value, layer.output):
        torch.nn.init.eye_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    x = torch.ones(2, 200, 64)  # every average of the values is one
    assert_close(layer.eval()(x, positions), x)
    dropped = layer.train()(x, positions)
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)  # of the output's features
    assert dropped[dropped > 0].std() > 0.05  # of the weights
