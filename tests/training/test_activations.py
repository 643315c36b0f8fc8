import copy

import pytest
import torch
from tests.training.conftest import MINIATURES

from flasepformer.models.registry import FAMILIES
from flasepformer.training import multi_stage_loss
from flasepformer.training.activations import checkpoint_activations


def build(config):
    network = next(network for config_class, network in FAMILIES.values() if isinstance(config, config_class))
    torch.manual_seed(0)
    return network(config).train()


def backward(model, n_samples):
    """Return the loss, the gradients, and how many numbers were kept for the backward pass."""
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(1)
    sources = torch.randn(2, 2, n_samples)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = multi_stage_loss(*model.forward_with_auxiliary(sources.sum(1)), sources, 0.4)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, kept


@pytest.mark.parametrize("name", MINIATURES)
def test_the_blocks_keep_nothing_and_all_numbers_stay_the_same(name):
    plain = build(MINIATURES[name])
    lean = copy.deepcopy(plain)
    checkpoint_activations(lean)
    (loss, gradients, kept), (lean_loss, lean_gradients, lean_kept) = (
        backward(model, n_samples=2000) for model in (plain, lean)
    )
    assert torch.equal(loss, lean_loss)  # so the dropout is the same too
    torch.testing.assert_close(lean_gradients, gradients)
    assert lean_kept < 0.5 * kept
    assert lean.state_dict().keys() == plain.state_dict().keys()
    for key, buffer in plain.named_buffers():  # batch normalisation has seen the frames once
        assert torch.equal(buffer, lean.get_buffer(key)), key


def test_a_checkpointed_network_still_separates():
    model = build(MINIATURES["fla-sepreformer"]).eval()
    mixture = torch.randn(1, 1000)
    with torch.inference_mode():
        expected = model(mixture)
        checkpoint_activations(model)
        assert torch.equal(model(mixture), expected)
