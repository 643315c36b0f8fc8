"""The network that segments is made of published weights."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from flasepformer.conversation.segmentation import SAMPLE_RATE, SegmentationNetwork
from flasepformer.training import segmentation

HALF = 125


@pytest.fixture(scope="module")
def published():
    """Weights named and shaped as pyannote has those of PyanNet, at random; its bands are mel-like."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def affine(name, *shape):
        n_inputs = int(np.prod(shape[1:]))
        found[name + ".weight"] = torch.randn(shape, generator=generator) / n_inputs**0.5
        found[name + ".bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    affine("sincnet.wav_norm1d", 1)
    bank = "sincnet.conv1d.0.filterbank."
    edges = torch.logspace(np.log10(30), np.log10(7000), 41)[:, None]
    found[bank + "low_hz_"], found[bank + "band_hz_"] = edges[:-1], -edges.diff(dim=0)
    found[bank + "n_"] = 2 * np.pi * torch.arange(-HALF, 0.0)[None] / SAMPLE_RATE
    found[bank + "window_"] = torch.hamming_window(2 * HALF + 1, periodic=False)[:HALF]
    for k, n_inputs in ((1, 80), (2, 60)):
        affine(f"sincnet.conv1d.{k}", 60, n_inputs, 5)
    for k, n in enumerate((80, 60, 60)):
        affine(f"sincnet.norm1d.{k}", n)
    for layer in range(4):
        for direction in ("", "_reverse"):
            for kind, n in (("ih", 60 if layer == 0 else 256), ("hh", 128)):
                affine("lstm", 512, n)
                for part in ("weight", "bias"):
                    found[f"lstm.{part}_{kind}_l{layer}{direction}"] = found.pop(f"lstm.{part}")
    affine("linear.0", 128, 256)
    affine("linear.1", 128, 128)
    affine("classifier", 7, 128)
    return found


def as_published(weights, waveform):
    """Return what PyanNet makes of a waveform (time,), with the filters of SincNet by their definition."""

    def norm(x, name):
        return F.instance_norm(x, weight=weights[name + ".weight"], bias=weights[name + ".bias"])

    bank = "sincnet.conv1d.0.filterbank."
    lower = 50 + weights[bank + "low_hz_"].abs().double()
    upper = (lower + 50 + weights[bank + "band_hz_"].abs()).clamp(50, 8000)
    seconds = torch.arange(-HALF, HALF + 1, dtype=torch.float64)[None] / SAMPLE_RATE
    window = torch.hamming_window(2 * HALF + 1, periodic=False, dtype=torch.float64)
    angle = 2 * np.pi * seconds
    ideal = 2 * upper * torch.sinc(2 * upper * seconds) - 2 * lower * torch.sinc(2 * lower * seconds)
    hilbert = (torch.cos(lower * angle) - torch.cos(upper * angle)) / (np.pi * seconds)
    hilbert[:, HALF] = 0
    filters = torch.cat([ideal, hilbert]) * window / (2 * (upper - lower)).repeat(2, 1)
    x = norm(waveform[None, None], "sincnet.wav_norm1d")
    x = F.conv1d(x, filters.float()[:, None], stride=10).abs()
    x = F.leaky_relu(norm(F.max_pool1d(x, 3), "sincnet.norm1d.0"))
    for k in (1, 2):
        name = f"sincnet.conv1d.{k}"
        x = F.conv1d(x, weights[name + ".weight"], weights[name + ".bias"])
        x = F.leaky_relu(norm(F.max_pool1d(x, 3), f"sincnet.norm1d.{k}"))
    x = x[0].T
    for layer in range(4):
        ways = []
        for direction, steps in (("", x), ("_reverse", x.flip(0))):
            w = {
                f"{part}_{kind}": weights[f"lstm.{part}_{kind}_l{layer}{direction}"]
                for part in ("weight", "bias")
                for kind in ("ih", "hh")
            }
            h = c = torch.zeros(128)
            outputs = []
            for step in steps:
                gates = w["weight_ih"] @ step + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"]
                i, f, g, o = gates.chunk(4)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                outputs.append(h)
            ways.append(torch.stack(outputs if not direction else outputs[::-1]))
        x = torch.cat(ways, -1)
    for k in range(2):
        x = F.leaky_relu(x @ weights[f"linear.{k}.weight"].T + weights[f"linear.{k}.bias"])
    return (x @ weights["classifier.weight"].T + weights["classifier.bias"]).log_softmax(-1)


def test_the_network_is_the_published_one_with_its_filters(published):
    network = SegmentationNetwork().eval()
    network.load_state_dict(segmentation.from_published(published))
    waveform = 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, wanted = network(waveform[None])[0], as_published(published, waveform)
    assert found.shape == (56, 7)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_weights_of_another_network_are_refused(published):
    other = {name: value for name, value in published.items() if "reverse" not in name}
    with pytest.raises(KeyError, match="reverse"):
        segmentation.from_published(other)


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_command_stores_weights_that_the_network_takes(published, tmp_path, wrapped):
    torch.save({"state_dict": published, "version": 1} if wrapped else published, tmp_path / "published.pt")
    segmentation.main([str(tmp_path / name) for name in ("published.pt", "out.safetensors")])
    weights = load_file(tmp_path / "out.safetensors")
    SegmentationNetwork().load_state_dict(weights)
    assert weights["filters.weight"].dtype == torch.float16
