"""A wider network that begins with what a narrower one has learned."""

import pytest
import torch

from flasepformer.models import SepReformer, SepReformerConfig
from flasepformer.models.growing import widened, widened_config

SMALL = {
    "n_filters": 12, "filter_length": 8, "hop_length": 4, "n_channels": 8, "n_heads": 2, "n_stages": 2,
    "n_encoder_blocks": 1, "n_decoder_blocks": 1, "local_kernel_size": 5, "layer_scale": 0.5, "dropout": 0.0,
}  # fmt: skip


def trained(**settings):
    """Return a network none of whose weights is special, as if it had been trained."""
    torch.manual_seed(0)
    network = SepReformer(SepReformerConfig(**(SMALL | settings)))
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.2 * torch.rand_like(value))
    return network.eval()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"masking": True, "normalize_variance": True, "auxiliary_heads": False},
        {"attention": "linear", "gated": False, "n_sources": 3},
        {"attention": "softmax"},
        {"causal": True, "value_kernel_size": 0},
    ],
    ids=lambda settings: "-".join(settings) or "default",
)
def test_a_wider_network_begins_with_the_estimates_of_the_narrower_one(settings):
    narrow = trained(**settings)
    wide = widened(narrow).eval()
    assert wide.config == widened_config(narrow.config)
    assert (wide.config.n_channels, wide.config.n_heads) == (16, 4)
    mixture = torch.randn(2, 200)
    with torch.no_grad():
        expected, auxiliary = narrow.forward_with_auxiliary(mixture)
        estimates, wide_auxiliary = wide.forward_with_auxiliary(mixture)
    torch.testing.assert_close(estimates, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
    assert len(wide_auxiliary) == len(auxiliary)
    for one, other in zip(wide_auxiliary, auxiliary, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.std()))


def test_both_copies_of_a_channel_learn_different_things_from_the_first_step_on():
    wide = widened(trained()).train()
    wide(torch.randn(2, 200)).square().sum().backward()
    for name in ("feature_projection.weight", "bottleneck.0.feed_forward.contract.weight"):
        first, second = wide.get_parameter(name).grad.chunk(2)
        assert not torch.allclose(first, second, rtol=0.01)


def test_the_same_seed_shares_weights_in_the_same_way():
    narrow = trained()
    first, again, other = (widened(narrow, seed).state_dict() for seed in (1, 1, 2))
    name = "bottleneck.0.attention.gate.1.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
