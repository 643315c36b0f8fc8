"""Checkpoints as others publish them, made of our networks with random weights."""

import hashlib
import io
import json
import tomllib
from importlib.resources import files

import torch
import yaml

from flasepformer.models import SepReformer, SepReformerConfig, TFLocoformer, TFLocoformerConfig
from flasepformer.models.layouts import LAYOUTS
from flasepformer.models.layouts.modelscope import _sepreformer_settings
from flasepformer.models.registry import count_parameters

CATALOGUE = tomllib.loads((files("flasepformer") / "models" / "published.toml").read_text())
SEVEN = tuple(CATALOGUE["models"])


def layout_of(name):
    if name.startswith("fla-"):
        return "modelscope"
    return "espnet" if name.startswith("tf") else "sepreformer"


def tiny_network(name):
    """Return a small network of the kind that a published name has."""
    torch.manual_seed(len(name))
    if "sepreformer" in name:
        attention = "focused_linear" if name.startswith("fla-") else "softmax"
        return SepReformer(
            SepReformerConfig(
                n_filters=16,
                n_channels=8,
                n_heads=2,
                n_stages=2,
                local_kernel_size=5,
                dropout=0.0,
                attention=attention,
                auxiliary_heads=True,
                pad_end=False,
            )
        )
    softmax = {} if name.startswith("fla-") else {"attention": "softmax", "repeat_input": False}
    config = TFLocoformerConfig(
        n_fft=256 if "whamr" in name else 128, n_blocks=1, n_channels=8, n_heads=2, n_groups=2,
        attention_channels=8, feed_forward_channels=8, feed_forward_kernel=4, normalize_variance=True,
        dropout=0.0, **softmax,
    )  # fmt: skip
    return TFLocoformer(config)


def publish(model, layout_name, folder, settings=None):
    """Return settings and weights of a network as that layout has them, and as files would hold them."""
    layout, config = LAYOUTS[layout_name], model.config
    names = layout.names(config)
    weights = dict(names.constants)
    for key, value in model.state_dict().items():
        name = names.rename(key)
        weights[name] = value.reshape(names.reshape(name, tuple(value.shape)))
    if layout_name == "modelscope":
        layout.write(folder, config, weights | dict(names.unread), None)
        return tuple((folder / name).read_bytes() for name in ("configuration.json", "pytorch_model.pt"))
    if layout_name == "espnet":
        return settings or _espnet_settings(config), _saved(weights)
    settings = settings or yaml.safe_dump({"config": {"model": _sepreformer_settings(config, {})}}).encode()
    return settings, _saved(
        {
            "epoch": 180,
            "model_state_dict": weights,
            "optimizer_state_dict": _adam_state(model),
            "train_loss": -21.5,
            "valid_loss": -20.0,
        }
    )


def entry(name, settings, weights, model):
    """Return the entry of a published name for other files than those that are published."""
    published = json.loads(json.dumps(CATALOGUE["models"][name]))
    if published["source"]["host"] == "github":
        for key, content in (("settings", settings), ("weights", weights)):
            if key in published:
                published[key] |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if "config" in published:  # the fields that the list has for the published network, of this one
        published["config"] = {field: getattr(model.config, field) for field in published["config"]}
    return published | {"parameters": count_parameters(model)}


def place(server, published, settings, weights):
    """Put the two files where the entry says that they are published."""
    source = published["source"]
    lying = server.github_files if source["host"] == "github" else server.modelscope_files
    for key, content in (("settings", settings), ("weights", weights)):
        if key in published:
            lying[f"{source['repository']}/{source['revision']}/{published[key]['path']}"] = content


def _saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _adam_state(model):
    parameters = list(model.parameters())
    state = {
        index: {
            "step": torch.tensor(1.0),
            "exp_avg": torch.zeros_like(value.data),
            "exp_avg_sq": torch.zeros_like(value.data),
        }
        for index, value in enumerate(parameters)
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 1e-2, "params": list(range(len(parameters)))}
    return {"state": state, "param_groups": [group]}


def _espnet_settings(config):
    return yaml.safe_dump(
        {
            "encoder": "stft",
            "decoder": "stft",
            "separator": "tflocoformer",
            "sample_rate": 8000,
            "encoder_conf": {"n_fft": config.n_fft, "hop_length": config.hop_length},
            "model_conf": {"normalize_variance": config.normalize_variance},
            "separator_conf": {
                "num_spk": config.n_sources,
                "n_layers": config.n_blocks,
                "emb_dim": config.n_channels,
                "norm_type": "rmsgroupnorm",
                "num_groups": config.n_groups,
                "n_heads": config.n_heads,
                "attention_dim": config.attention_channels,
                "ffn_type": ["swiglu_conv1d"] * 2,
                "ffn_hidden_dim": [config.feed_forward_channels] * 2,
                "conv1d_kernel": config.feed_forward_kernel,
                "conv1d_shift": 1,
                "dropout": config.dropout,
            },
        }
    ).encode()
