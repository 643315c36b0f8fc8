"""What the two publications of the TF-Locoformer family call their weights and settings."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flasepformer.models.layouts.published import PublishedNames, Rules, require, rewrite
from flasepformer.models.tflocoformer import TFLocoformerConfig

ESPNET_ATTENTION_CHANNELS = 128
"""What ESPnet takes where its settings do not say; the published ones do not."""

_ENDS: Rules = (
    (r"input_conv\.", "conv.0."),
    (r"input_norm\.", "conv.1."),
    (r"output_conv\.", "deconv."),
)
_MODELSCOPE_BLOCKS: Rules = (
    (r"blocks\.(\d+)\.frequency\.", r"f_blocks.\1.block."),
    (r"blocks\.(\d+)\.time\.", r"t_blocks.\1.block."),
)
_ESPNET_BLOCKS: Rules = (
    (r"blocks\.(\d+)\.frequency\.", r"blocks.\1.freq_path."),
    (r"blocks\.(\d+)\.time\.", r"blocks.\1.frame_path."),
)

_NORMS: Rules = (
    (r"feed_forward_1\.norm\.weight", "ffn_norm.1.gamma"),
    (r"feed_forward_2\.norm\.weight", "ffn_norm.0.gamma"),
    (r"attention\.norm\.weight", "attn_norm.gamma"),
)
_SOFTMAX_ATTENTION: Rules = (
    (r"attention\.attention\.query_key_value\.", "attn.qkv."),
    (r"attention\.attention\.output\.", "attn.aggregate_heads.0."),
)
_LINEAR_ATTENTION: Rules = (
    (r"attention\.norm\.weight", "attn.ega.layer_norm.gamma"),
    (r"attention\.gate\.0\.weight", "attn.ega.gate_layer.0.gamma"),
    (r"attention\.gate\.1\.", "attn.ega.gate_layer.1."),
    (r"attention\.attention\.query\.", "attn.ega.attn.q."),
    (r"attention\.attention\.key_value\.", "attn.ega.attn.kv."),
    (r"attention\.attention\.value_conv\.", "attn.ega.attn.dwc."),
    (r"attention\.attention\.output\.", "attn.ega.attn.proj."),
    (r"attention\.attention\.scale", "attn.ega.attn.scale"),
)


def _feed_forward(where: str) -> Rules:
    """Return the names of the feed-forward networks, which are numbered from the last to the first."""
    return tuple(
        (rf"feed_forward_{ours}\.{part}\.", f"ffn.{theirs}.{where}{name}.")
        for ours, theirs in ((1, 1), (2, 0))
        for part, name in (("expand", "conv1d"), ("contract", "deconv1d"))
    )


def modelscope_names(config: TFLocoformerConfig) -> PublishedNames:
    """Return the names in the FLASepformer release."""
    softmax = (*_NORMS, *_SOFTMAX_ATTENTION, *_feed_forward("branchs.0."))
    linear = (*_LINEAR_ATTENTION, *softmax)
    frequencies = _rotary_frequencies(config)
    return PublishedNames(
        rename=lambda name: _rename(name, _MODELSCOPE_BLOCKS, linear if ".time." in name else softmax),
        constants={
            f"separator.f_blocks.{i}.block.attn.attns.0.rope.freqs": frequencies
            for i in range(config.n_blocks)
        },
    )


def espnet_names(config: TFLocoformerConfig) -> PublishedNames:
    """Return the names in the ESPnet code."""
    rules = (*_NORMS, *_SOFTMAX_ATTENTION, *_feed_forward(""))
    frequencies = _rotary_frequencies(config)
    return PublishedNames(
        rename=lambda name: _rename(name, _ESPNET_BLOCKS, rules),
        constants={
            f"separator.blocks.{i}.{path}.attn.rope.freqs": frequencies
            for i in range(config.n_blocks)
            for path in ("freq_path", "frame_path")
        },
    )


def _rename(name: str, blocks: Rules, block: Rules) -> str:
    """Turn our name of a weight into a published one: which block it belongs to, then where in there."""
    place = re.match(r"blocks\.\d+\.(frequency|time)\.", name)
    if place is None:
        return "separator." + rewrite(name, _ENDS)
    return "separator." + rewrite(place[0], blocks) + rewrite(name[place.end() :], block)


def _rotary_frequencies(config: TFLocoformerConfig) -> Tensor:
    """Return the frequencies as the published files have them, to the last bit."""
    head_dim = config.attention_channels // config.n_heads
    return 1.0 / 10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim)


def modelscope_fields(conf: Any, path: Path) -> dict[str, Any]:
    """Translate the sizes in the FLASepformer release's settings into fields of `TFLocoformerConfig`.

    Raises:
        CheckpointError: If they ask for something that our network does not have.
        KeyError: If a setting is missing.
    """
    n_layers = len(conf["layers_type"])
    require(conf, "n_layers", (n_layers,), path)
    require(conf, "layers_type", (["f", "t"] * (n_layers // 2),), path)
    require(conf, "attn_types", (["LocoformerMHSA", "LocoformerLinearAttnMHSA"],), path)
    require(conf, "ffn_type", (["swiglu_conv1d_layerchange"] * 2,), path)
    require(conf, "attention_dim", (conf["emb_dim"],), path)
    _require_if_given(conf, {"norm_type": "rmsgroupnorm", "use_rope": True, "eps": 1e-5}, path)
    return _sizes(conf, path) | {"n_blocks": n_layers // 2, "repeat_input": True}


def espnet_fields(conf: Any, path: Path) -> dict[str, Any]:
    """Translate the sizes in ESPnet's settings into fields of `TFLocoformerConfig`; raises as the other."""
    require(conf, "norm_type", ("rmsgroupnorm",), path)
    require(conf, "ffn_type", (["swiglu_conv1d"] * 2,), path)
    _require_if_given(conf, {"tf_order": "ft", "pos_enc": "rope", "eps": 1e-5}, path)
    return _sizes(conf, path) | {"n_blocks": conf["n_layers"], "attention": "softmax", "repeat_input": False}


def _require_if_given(conf: Any, values: dict[str, Any], path: Path) -> None:
    for name in values.keys() & conf.keys():
        require(conf, name, (values[name],), path)


def _sizes(conf: Any, path: Path) -> dict[str, Any]:
    require(conf, "conv1d_shift", (1,), path)
    width = conf["ffn_hidden_dim"][0]
    require(conf, "ffn_hidden_dim", ([width, width],), path)
    return {
        "n_sources": conf["num_spk"],
        "n_channels": conf["emb_dim"],
        "n_heads": conf["n_heads"],
        "n_groups": conf["num_groups"],
        "attention_channels": conf.get("attention_dim", ESPNET_ATTENTION_CHANNELS),
        "feed_forward_channels": width,
        "feed_forward_kernel": conf["conv1d_kernel"],
        "dropout": conf.get("dropout", 0.0),
    }


def modelscope_settings(config: TFLocoformerConfig, attention: dict[str, Any]) -> dict[str, Any]:
    """Return the FLASepformer release's settings of a network, with those of its time attention."""
    return {
        "num_spk": config.n_sources,
        "n_layers": 2 * config.n_blocks,
        "emb_dim": config.n_channels,
        "num_groups": config.n_groups,
        "n_heads": config.n_heads,
        "attention_dim": config.attention_channels,
        "ffn_type": ["swiglu_conv1d_layerchange"] * 2,
        "ffn_hidden_dim": [config.feed_forward_channels] * 2,
        "conv1d_kernel": config.feed_forward_kernel,
        "conv1d_shift": 1,
        "dropout": config.dropout,
        "layers_type": ["f", "t"] * config.n_blocks,
        "attn_types": ["LocoformerMHSA", "LocoformerLinearAttnMHSA"],
        "attn_addition_conf": {"ega_addition_conf": attention},
    }
