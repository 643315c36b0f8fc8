"""Every registered model can be exported with a free time axis, and gives the numbers of the network."""

import pytest
import torch

from flasepformer.models.registry import FAMILIES, build_model, registered_names

SMALL = {
    "SepReformerConfig": {
        "n_filters": 16, "n_channels": 8, "n_heads": 2, "layer_scale": 0.5, "n_stages": 2,
        "n_encoder_blocks": 1, "n_decoder_blocks": 1,
    },
    "TFLocoformerConfig": {
        "n_channels": 8, "n_groups": 2, "attention_channels": 16, "feed_forward_channels": 8, "n_blocks": 1,
    },
}  # fmt: skip
"""The registered layers in the registered order, narrower, and fewer of the same."""


class Core(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, samples):
        return self.network.core(samples)


def miniature(name, **changes):
    with torch.device("meta"):
        config = build_model(name).config
    network = next(network for known, network in FAMILIES.values() if known is type(config))
    torch.manual_seed(0)
    return network(type(config)(**{**vars(config), **SMALL[type(config).__name__], **changes})).eval()


def samples(network, n_steps):
    length = n_steps * network.frames_per_step * network.hop_length
    return torch.randn(1, length + network.window_length - network.hop_length)


@pytest.mark.long
@pytest.mark.parametrize("name", registered_names())
def test_a_registered_model_is_exported_with_a_free_time_axis(name):
    assert_exported_with_a_free_time_axis(miniature(name))


@pytest.mark.slow
def test_a_sepreformer_of_one_stage_is_exported_with_a_free_time_axis():
    """To trace the others takes seconds; a TF-Locoformer is traced by tests/export, with its transforms."""
    assert_exported_with_a_free_time_axis(miniature("fla-sepreformer-t", n_stages=1))


def assert_exported_with_a_free_time_axis(network):
    # In float64: an exported Fourier transform is a matrix product, which rounds otherwise.
    network = network.double()
    core = Core(network)
    with torch.no_grad():
        step = network.frames_per_step * network.hop_length
        n_samples = (
            step * torch.export.Dim("n_steps", min=2, max=10**6) + network.window_length - network.hop_length
        )
        free = {"samples": {1: n_samples}}
        program = torch.export.export(
            core, (samples(network, 8).double(),), dynamic_shapes=free, strict=False
        )
        exported = program.module()
        for n_steps in (3, 31):
            mixture = samples(network, n_steps).double()
            expected = core(mixture)
            difference = (exported(mixture) - expected).norm() / expected.norm()
            assert difference < 1e-13


def test_the_core_is_the_network_without_padding():
    network = miniature("fla-sepreformer-t")
    mixture = samples(network, 5)
    with torch.no_grad():
        torch.testing.assert_close(network.core(mixture), network(mixture))
