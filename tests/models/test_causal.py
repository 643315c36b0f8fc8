"""A causal network begins with what fits of the weights of one that hears the future."""

import pytest
import torch
from tests.models.conftest import tiny_config

from flasepformer.models import SepReformer
from flasepformer.models.causal import _looking_back, made_causal
from flasepformer.models.sepreformer import ConvLocalAttention


def test_kernels_keep_their_past_and_lay_their_future_over_the_last_frame():
    kernel = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0]]])
    assert _looking_back(kernel, 1).tolist() == [[[0, 0, 1, 2, 3 + 4 + 5]]]
    assert _looking_back(kernel, 2).tolist() == [[[0, 1, 2, 3, 4 + 5]]]  # sees one frame after its own
    assert _looking_back(kernel, 1, 1).tolist() == [[[0, 1, 2, 3, 4 + 5]]]
    assert _looking_back(kernel, 1, 2).tolist() == kernel.tolist()


def test_a_block_that_looks_ahead_gives_later_what_one_that_hears_the_future_does():
    torch.manual_seed(0)
    network = SepReformer(tiny_config(layer_scale=0.5)).eval()
    causal = made_causal(network, look_ahead=2)
    *_, heard = (m for m in network.decoder_stages[-1].modules() if isinstance(m, ConvLocalAttention))
    *_, later = (m for m in causal.decoder_stages[-1].modules() if isinstance(m, ConvLocalAttention))
    frames = torch.randn(1, 20, 8)
    torch.testing.assert_close(later(frames)[:, 2:], heard(frames)[:, :-2])


def test_a_network_of_fewer_stages_has_the_weights_of_the_finer_ones():
    torch.manual_seed(0)
    network = SepReformer(tiny_config(n_stages=3, masking=True, normalize_variance=True)).eval()
    causal = made_causal(network, n_stages=2, level=0.1)
    assert (causal.config.causal, causal.config.normalize_variance) == (True, False)
    assert torch.allclose(causal.encoder.weight, 10 * network.encoder.weight)
    assert torch.allclose(causal.decoder.weight, 0.1 * network.decoder.weight)
    for own, source in (
        (causal.bottleneck, network.encoder_stages[2].blocks),
        (causal.decoder_stages[0], network.decoder_stages[1]),
    ):
        weights = dict(source.named_parameters())
        same = [name for name, value in own.named_parameters() if torch.equal(value, weights[name])]
        other = {name for name, _ in own.named_parameters()} - {*same}
        assert len(same) > 10
        assert all("conv" in name for name in other)
    assert causal(torch.randn(1, 500)).isfinite().all()


def test_more_stages_than_there_are_cannot_be_made():
    with pytest.raises(ValueError, match="from 1 to 2"):
        made_causal(SepReformer(tiny_config()), n_stages=3)


def test_no_block_looks_further_ahead_than_its_kernel_did():
    with pytest.raises(ValueError, match="look_ahead must be at most half of local_kernel_size, 2, got 3"):
        made_causal(SepReformer(tiny_config()), look_ahead=3)
