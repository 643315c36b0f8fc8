"""Training of the network that filters estimates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.networks import tiny

from flasepformer.inference import Separator
from flasepformer.metrics import si_snr
from flasepformer.models.filter_network import FilterNetwork
from flasepformer.training.filtering import filtered, grown, in_order, levels, score, separated, train_filter

N_SAMPLES = 4000


class Mixtures:
    """Makes a mixture of two noises for every index."""

    def __init__(self):
        self.n_made = 0

    def __call__(self, index):
        self.n_made += 1
        sources = torch.from_numpy(np.random.default_rng(index).standard_normal((2, N_SAMPLES))).float()
        return sources.sum(0), sources


@pytest.fixture
def bands():
    """Two sources of half the band each, of which the estimates have a part of the other: six examples."""
    torch.manual_seed(0)
    spectra = torch.fft.rfft(torch.randn(6, 2, N_SAMPLES))
    spectra[:, 0, N_SAMPLES // 4 :] = 0
    spectra[:, 1, : N_SAMPLES // 4] = 0
    sources = torch.fft.irfft(spectra, N_SAMPLES)
    return sources.sum(1), sources + 0.5 * sources.flip(1), sources


def test_sources_stand_in_the_order_of_their_estimates_and_what_tells_nothing_is_left_out(bands):
    mixtures, estimates, sources = bands
    sources = torch.cat([sources[:1].flip(1), sources[1:]])
    sources[2] = 0
    sources[3, 1] = 0
    found = in_order(mixtures, estimates, sources)
    assert len(found) == 5
    torch.testing.assert_close(found.sources[0], sources[0].flip(0))
    assert found.wanted.tolist() == [[True, True], [True, True], [True, False], [True, True], [True, True]]


@pytest.mark.slow
def test_training_teaches_it_what_belongs_to_whom(bands):
    examples = in_order(*bands)
    torch.manual_seed(0)
    network = FilterNetwork(n_channels=4)
    before, untrained = score(examples), score(examples, network)
    expected = torch.stack([si_snr(estimates, sources) for _, estimates, sources in zip(*bands, strict=True)])
    assert before == pytest.approx(expected.mean().item(), abs=1e-4)
    step, gain, averaged = list(train_filter(network, examples, 40, learning_rate=1e-2))[-1]
    assert step == 40
    assert gain > untrained - before
    assert score(examples, averaged) > untrained + 1


@pytest.mark.slow
def test_tracks_come_to_the_level_of_their_talkers(bands, monkeypatch):
    monkeypatch.setattr("flasepformer.training.filtering.LEVEL_WEIGHT", 0.2)
    examples = in_order(*bands)
    louder = levels(2 * examples.sources, examples)
    torch.testing.assert_close(louder, torch.full((12,), 20 * math.log10(2)), atol=1e-3, rtol=0)
    examples = replace(examples, estimates=0.5 * examples.sources)
    torch.manual_seed(0)
    *_, averaged = list(train_filter(FilterNetwork(n_channels=4), examples, 60, learning_rate=1e-2))[-1]
    found = filtered(averaged, examples.mixtures, examples.estimates)
    before, after = (levels(x, examples).abs().mean() for x in (examples.estimates, found))
    assert after < before / 2


def test_a_network_that_has_grown_does_as_before_and_learns_with_all_it_has():
    torch.manual_seed(0)
    small = FilterNetwork(n_bins=33, n_channels=4)
    for weight in small.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    weights = small.state_dict()
    weights = {name: weight for name, weight in weights.items() if not name.startswith("blocks.7.")}
    for block in small.blocks[7:]:
        block.out.weight.data.zero_()
        block.out.bias.data.zero_()
    large = grown(FilterNetwork(n_bins=33, n_channels=6), weights)
    spectra = torch.randn(3, 2, 20, 33, dtype=torch.complex64)
    torch.testing.assert_close(large(*spectra), small(*spectra))
    for _ in range(2):  # what reads new channels learns first, then what fills them
        large.zero_grad()
        large(*spectra).abs().sum().backward()
        with torch.no_grad():
            for weight in large.parameters():
                weight.sub_(1e-4 * weight.grad)
    assert all(weight.grad.abs().sum() > 0 for weight in large.parameters())


def test_mixtures_are_separated_once_and_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("flasepformer.training.filtering.SHARD", 2)
    mixtures = Mixtures()
    monkeypatch.setattr(
        "flasepformer.training.filtering.take_example", lambda examples, index: examples(index)
    )
    separator = Separator(tiny(layer_scale=0.5), "cpu", mode="whole")
    first = separated(separator, mixtures, 3, tmp_path)
    assert mixtures.n_made == 3
    (tmp_path / "000002.safetensors").unlink()
    again = separated(separator, mixtures, 3, tmp_path)
    assert mixtures.n_made == 4
    assert torch.equal(first.mixtures, again.mixtures)
    assert torch.equal(first.estimates, again.estimates)
