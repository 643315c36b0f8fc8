"""The published FLA-TFLocoformer and TF-Locoformer and ours give the same numbers, for random weights."""

import json

import numpy as np
import pytest
import torch
import yaml
from tests.parity.test_sepreformer import GOLDEN, TOLERANCE, published_weights

from flasepformer.models import load_model


def write_published_folder(name, folder):
    """Lay a golden case out as its publication does: the FLASepformer release, or ESPnet."""
    conf = json.loads((GOLDEN / name / "config.json").read_text())
    weights = published_weights(GOLDEN / name)
    half = conf["separator_conf"]["attention_dim"] // conf["separator_conf"]["n_heads"] // 2
    frequencies = torch.tensor([10000.0 ** (-i / half) for i in range(half)])
    weights |= {key: frequencies for key in weights if key.endswith("rope.freqs")}
    front_end = {"n_fft": conf["n_fft"], "hop_length": conf["hop_length"]}
    normalization = {"normalize_variance": conf["normalize_variance"]}
    if conf["layout"] == "modelscope":
        model = {"type": "speech_separation", "separator_conf": conf["separator_conf"]}
        model |= front_end | normalization
        (folder / "configuration.json").write_text(json.dumps({"model": model}))
        torch.save(weights, folder / "pytorch_model.pt")
    else:
        settings = {
            "encoder": "stft",
            "encoder_conf": front_end,
            "separator": "tflocoformer",
            "separator_conf": conf["separator_conf"],
            "decoder": "stft",
            "decoder_conf": front_end,
            "model_conf": normalization,
            "sample_rate": conf["sample_rate"],
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        torch.save(weights, folder / "valid.loss.ave_5best.pth")
    return folder


@pytest.mark.parametrize(
    ("name", "gradients"),  # without gradients in groups and in place, with them everything at once
    [
        ("fla_tflocoformer_tiny", False),
        ("fla_tflocoformer_tiny", True),
        ("tflocoformer_tiny", False),
        ("tflocoformer_tiny", True),
        ("fla_tflocoformer_M_by_rule", False),
    ],
)
def test_published_checkpoint_gives_the_reference_output(name, gradients, tmp_path):
    model = load_model(write_published_folder(name, tmp_path))
    stored = np.load(GOLDEN / name / "io.npz")
    with torch.set_grad_enabled(gradients):
        estimates = model(torch.from_numpy(stored["mixture"])).detach().transpose(1, 2).numpy()
    difference = estimates - stored["estimates"]
    rms = np.sqrt(np.mean(stored["estimates"] ** 2))
    assert np.sqrt(np.mean(difference**2)) < TOLERANCE * rms
    assert np.abs(difference).max() < TOLERANCE * rms
