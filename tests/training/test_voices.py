"""The network of voices is made of published weights, and scored on talkers."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from flasepformer.conversation.voice import VoiceNetwork, log_mel
from flasepformer.training import voices

N_LAYERS = (12, 24, 16)


@pytest.fixture(scope="module")
def published():
    """Weights named and shaped as 3D-Speaker has those of CAM++, at random."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def convolution(name, *shape, bias=False):
        n_inputs = int(np.prod(shape[1:]))
        found[name + ".weight"] = torch.randn(shape, generator=generator) / n_inputs**0.5
        if bias:
            found[name + ".bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    def norm(name, n, *, affine=True):
        found[name + ".running_mean"] = 0.3 * torch.randn(n, generator=generator)
        found[name + ".running_var"] = 0.5 + torch.rand(n, generator=generator)
        found[name + ".num_batches_tracked"] = torch.tensor(7)
        if affine:
            found[name + ".weight"] = 0.5 + torch.rand(n, generator=generator)
            found[name + ".bias"] = 0.3 * torch.randn(n, generator=generator)

    convolution("head.conv1", 32, 1, 3, 3)
    norm("head.bn1", 32)
    for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        for k in (1, 2):
            convolution(f"head.{name}.conv{k}", 32, 32, 3, 3)
            norm(f"head.{name}.bn{k}", 32)
        if name.endswith("0"):
            convolution(f"head.{name}.shortcut.0", 32, 32, 1, 1)
            norm(f"head.{name}.shortcut.1", 32)
    convolution("head.conv2", 32, 32, 3, 3)
    norm("head.bn2", 32)
    convolution("xvector.tdnn.linear", 128, 320, 5)
    norm("xvector.tdnn.nonlinear.batchnorm", 128)
    n = 128
    for block, n_layers in enumerate(N_LAYERS, 1):
        for layer in range(1, n_layers + 1):
            name = f"xvector.block{block}.tdnnd{layer}."
            norm(name + "nonlinear1.batchnorm", n)
            convolution(name + "linear1", 128, n, 1)
            norm(name + "nonlinear2.batchnorm", 128)
            convolution(name + "cam_layer.linear_local", 32, 128, 3)
            convolution(name + "cam_layer.linear1", 64, 128, 1, bias=True)
            convolution(name + "cam_layer.linear2", 32, 64, 1, bias=True)
            n += 32
        norm(f"xvector.transit{block}.nonlinear.batchnorm", n)
        convolution(f"xvector.transit{block}.linear", n // 2, n, 1)
        n //= 2
    norm("xvector.out_nonlinear.batchnorm", n)
    convolution("xvector.dense.linear", 192, 2 * n, 1)
    norm("xvector.dense.nonlinear.batchnorm", 192, affine=False)
    return found


def as_published(weights, mels):
    """Return what CAM++ makes of log mel powers (frames, mels), with its norms where the paper has them."""

    def norm(x, name):
        w = {
            part: weights.get(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])

    def conv2d(x, name, stride=1):
        weight = weights[name + ".weight"]
        return F.conv2d(x, weight, stride=(stride, 1), padding=weight.shape[-1] // 2)

    x = (mels - mels.mean(0)).T[None, None]
    x = norm(conv2d(x, "head.conv1"), "head.bn1").relu()
    for name, stride in (("layer1.0", 2), ("layer1.1", 1), ("layer2.0", 2), ("layer2.1", 1)):
        name = f"head.{name}."
        y = norm(conv2d(x, name + "conv1", stride), name + "bn1").relu()
        y = norm(conv2d(y, name + "conv2"), name + "bn2")
        if stride == 2:
            x = norm(conv2d(x, name + "shortcut.0", stride), name + "shortcut.1")
        x = (y + x).relu()
    x = norm(conv2d(x, "head.conv2", 2), "head.bn2").relu().reshape(1, 320, -1)
    x = F.conv1d(x, weights["xvector.tdnn.linear.weight"], stride=2, padding=2)
    x = norm(x, "xvector.tdnn.nonlinear.batchnorm").relu()
    for block, n_layers in enumerate(N_LAYERS, 1):
        dilation = 1 if block == 1 else 2
        for layer in range(1, n_layers + 1):
            name = f"xvector.block{block}.tdnnd{layer}."
            y = F.conv1d(norm(x, name + "nonlinear1.batchnorm").relu(), weights[name + "linear1.weight"])
            y = norm(y, name + "nonlinear2.batchnorm").relu()
            cam = {p: weights[f"{name}cam_layer.{p}"] for p in ("linear1.weight", "linear1.bias")}
            means = [part.mean(-1, keepdim=True).expand_as(part) for part in y.split(100, -1)]
            gate = F.conv1d(y.mean(-1, keepdim=True) + torch.cat(means, -1), *cam.values()).relu()
            gate = F.conv1d(
                gate, weights[name + "cam_layer.linear2.weight"], weights[name + "cam_layer.linear2.bias"]
            )
            local = weights[name + "cam_layer.linear_local.weight"]
            y = F.conv1d(y, local, padding=dilation, dilation=dilation)
            x = torch.cat([x, y * gate.sigmoid()], 1)
        x = norm(x, f"xvector.transit{block}.nonlinear.batchnorm").relu()
        x = F.conv1d(x, weights[f"xvector.transit{block}.linear.weight"])
    x = norm(x, "xvector.out_nonlinear.batchnorm").relu()
    x = torch.cat([x.mean(-1), x.std(-1)], -1)
    x = norm(x @ weights["xvector.dense.linear.weight"][..., 0].T, "xvector.dense.nonlinear.batchnorm")
    return F.normalize(x, dim=-1)[0]


def test_the_network_is_the_published_one_with_its_norms_in_its_layers(published):
    network = VoiceNetwork().eval()
    network.load_state_dict(voices.from_published(published))
    waveform = (
        0.05 * F.normalize(torch.randn(40_000, generator=torch.Generator().manual_seed(1)), dim=0) * 200
    )
    with torch.inference_mode():
        found = network(waveform[None])[0]
        wanted = as_published(published, log_mel(waveform))
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)


def test_weights_of_another_network_are_refused(published):
    other = {name: value for name, value in published.items() if "block3.tdnnd16" not in name}
    with pytest.raises(KeyError, match=r"block3\.tdnnd16"):
        voices.from_published(other)


def test_pairs_from_one_recording_do_not_count():
    found = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    alike = found @ found.T
    assert voices.error_rate_of(alike, ["a", "a", "b", "b"], [0, 0, 1, 2]) == 0  # the pair of a is of one
    assert voices.error_rate_of(alike, ["a", "b", "b", "a"], [0, 1, 2, 3]) == 0.625  # 1 of 2, 3 of 4


@pytest.mark.slow
def test_the_command_stores_weights_that_the_network_takes_and_prints_two_rates(
    published, speech, tmp_path, capsys
):
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "test").symlink_to(speech / "valid")
    torch.save(published, tmp_path / "published.pt")
    voices.main([str(tmp_path / name) for name in ("published.pt", "voice.safetensors", "speech")])
    weights = load_file(tmp_path / "voice.safetensors")
    VoiceNetwork().load_state_dict(weights)
    assert weights["project.weight"].dtype == torch.float16
    said = capsys.readouterr().out
    assert "test, 2 s: equal error rate" in said
    assert "below 4 kHz" in said
    assert "test, 4 s: no utterance is as long" in said
