import copy

import pytest
import torch
from tests.training.conftest import MINIATURES
from tests.training.test_activations import build

from flasepformer.training.balance import GradientBalance


def gradients(model, mixtures, weights):
    """Return the gradients of a sum over the mixtures' estimates, each with its weight."""
    model.zero_grad()
    estimates = model(mixtures)
    (estimates.square().sum((1, 2)) * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["fla-sepreformer", "tflocoformer"])
def test_a_mixture_that_outweighs_the_others_counts_as_much_as_one_and_a_half_of_them(name):
    model = build(MINIATURES[name]).eval()  # batch normalisation would make mixtures depend on each other
    balanced = copy.deepcopy(model)
    balance = GradientBalance(balanced, limit=1.5)
    torch.manual_seed(1)
    mixtures = torch.randn(1, 2000).expand(5, -1)  # the same five times: only the weights differ
    loud = torch.tensor([1.0, 1.0, 100.0, 1.0, 1.0])
    balance.n_mixtures = 5
    inner = next(n for n, _ in model.named_parameters() if "blocks" in n or "frequency" in n)
    alone = gradients(model, mixtures, loud / loud)[inner] / 5
    before = gradients(model, mixtures, loud)[inner]
    after = gradients(balanced, mixtures, loud)[inner]
    torch.testing.assert_close(before, 104 * alone, rtol=1e-3, atol=1e-5 * before.abs().max().item())
    torch.testing.assert_close(after, 5.5 * alone, rtol=1e-3, atol=1e-5 * before.abs().max().item())


def test_mixtures_that_are_alike_and_batches_of_two_are_left_as_they_are():
    model = build(MINIATURES["fla-sepreformer"]).eval()
    balanced = copy.deepcopy(model)
    balance = GradientBalance(balanced, limit=1.5)
    torch.manual_seed(1)
    mixtures = torch.randn(1, 2000).expand(4, -1)
    balance.n_mixtures = 4
    even = gradients(model, mixtures, torch.ones(4))
    torch.testing.assert_close(gradients(balanced, mixtures, torch.ones(4)), even)
    balance.n_mixtures = 2
    two, weights = mixtures[:2], torch.tensor([1.0, 100.0])
    torch.testing.assert_close(gradients(balanced, two, weights), gradients(model, two, weights))
