"""A larger network begins with what a smaller one has learned."""

import pytest
import torch
from tests.models.conftest import tiny_config

from flasepformer.models import SepReformer
from flasepformer.models.growing import refined


def masked(**changes):
    return tiny_config(masking=True, filter_length=32, hop_length=16, n_filters=64, **changes)


def trained_looking(config):
    """A network with smooth filters, and norms that are not what they are at initialization."""
    torch.manual_seed(2)
    network = SepReformer(config)
    network.initialize_fourier()
    for _ in range(3):
        network(torch.randn(2, 3000))
    return network.eval()


def test_half_the_hop_begins_with_the_estimates_of_the_network_before():
    network = trained_looking(masked(layer_scale=0.1))
    mixture = torch.randn(1, 6400)
    fine = refined(network, mixture)
    assert (fine.config.hop_length, fine.config.n_stages) == (8, network.config.n_stages + 1)
    with torch.no_grad():
        before, after = network(mixture)[..., 640:-640], fine(mixture)[..., 640:-640]
    assert (after - before).square().mean() < 0.02 * before.square().mean()
    # and it is the network before that makes it so: another one is far away
    with torch.no_grad():
        other = trained_looking(masked(layer_scale=0.1, n_heads=1))(mixture)[..., 640:-640]
    assert (other - before).square().mean() > 0.02 * before.square().mean()


def test_every_weight_of_the_new_stage_learns():
    fine = refined(trained_looking(masked()), torch.randn(1, 3200)).train()
    optimizer = torch.optim.SGD(fine.parameters(), lr=0.1)
    for _ in range(2):  # the first step reaches the last projections, the second what is before them
        optimizer.zero_grad()
        fine(torch.randn(1, 3200)).square().mean().backward()
        optimizer.step()
    new = [*fine.encoder_stages[0].named_parameters(), *fine.decoder_stages[-1].named_parameters()]
    assert len(new) > 50
    assert [name for name, parameter in new if not parameter.grad.abs().sum() > 0] == []


@pytest.mark.parametrize(
    "changes",
    [{"masking": False}, {"attention": "softmax", "masking": True}, {"hop_length": 5, "masking": True}],
)
def test_what_cannot_be_refined_is_refused(changes):
    with pytest.raises(ValueError, match="can be refined"):
        refined(SepReformer(tiny_config(**changes)), torch.randn(1, 500))
