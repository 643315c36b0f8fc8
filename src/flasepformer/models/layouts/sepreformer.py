"""What the SepReformer code, which both publications of the family build on, calls its weights."""

import re
from typing import Any

from flasepformer.models.layouts.published import Rules, rewrite

_NETWORK: Rules = (
    (r"encoder\.", "audio_encoder.conv1d."),
    (r"feature_norm\.", "feature_projector.norm."),
    (r"feature_projection\.", "feature_projector.conv1d."),
    (r"encoder_stages\.(\d+)\.downsample\.", r"separator.enc_stages.\1.downconv.down_conv."),
    (r"encoder_stages\.(\d+)\.downsample_norm\.", r"separator.enc_stages.\1.downconv.BN."),
    (r"encoder_stages\.(\d+)\.blocks\.", r"separator.enc_stages.\1."),
    (r"bottleneck\.", "separator.bottleneck_G."),
    (r"source_split\.expand\.", "separator.spk_split_block.linear.0."),
    (r"source_split\.contract\.", "separator.spk_split_block.linear.2."),
    (r"source_split\.norm\.", "separator.spk_split_block.norm."),
    (r"decoder_stages\.(\d+)\.fusion\.", r"separator.simple_fusion.\1."),
    (r"decoder_stages\.(\d+)\.blocks\.", r"separator.dec_stages.\1."),
    (r"output\.", "out_layer.end_conv1x1."),
    (r"auxiliary_outputs\.(\d+)\.", r"out_layer_bn.\1.end_conv1x1."),
    (r"decoder\.", "audio_decoder."),
    (r"auxiliary_decoders\.(\d+)\.", r"decoder_bn.\1."),
)

FEED_FORWARD: Rules = (
    (r"feed_forward\.norm\.", "net1.0."),
    (r"feed_forward\.expand\.", "net1.1."),
    (r"feed_forward\.convolution\.", "depthwise."),
    (r"feed_forward\.contract\.", "net2.2."),
    (r"feed_forward\.scale\.scale", "Layer_scale.layer_scale"),
)
SOFTMAX_ATTENTION: Rules = (
    (r"attention\.norm\.", "layer_norm."),
    (r"attention\.query\.", "linear_q."),
    (r"attention\.key\.", "linear_k."),
    (r"attention\.value\.", "linear_v."),
    (r"attention\.output\.", "linear_out."),
    (r"attention\.scale\.scale", "Layer_scale.layer_scale"),
)
_CONVOLUTION: Rules = (
    (r"convolution\.norm\.", "layer_norm."),
    (r"convolution\.gate\.", "linear1."),
    (r"convolution\.convolution\.", "dw_conv_1d."),
    (r"convolution\.expand\.", "linear2."),
    (r"convolution\.batch_norm\.", "BN."),
    (r"convolution\.contract\.", "linear3.1."),
    (r"convolution\.scale\.scale", "Layer_scale.layer_scale"),
)
_BLOCKS = {"g_block": "block.gcfn.", "l_block": "block.gcfn.", "spk_attn": "feed_forward."}
"""The blocks of a decoder stage in order, of which an encoder stage has the first two; and how the name of
their feed-forward network begins."""

_POINTWISE = (
    r"feature_projector\.conv1d\.weight|separator\.(simple_fusion|spk_split_block\.linear)\.\d+\.weight"
)


def rename(name: str, global_attention: Rules) -> str:
    """Turn our name of a SepReformer weight into that of the SepReformer code.

    Args:
        name: Our name.
        global_attention: Rules for the attention of a global block, in which the publications differ.
    """
    name = rewrite(name, _NETWORK)
    block = re.match(r"(separator\.(?:enc_stages\.\d+|bottleneck_G|dec_stages\.\d+)\.)(\d+)\.(.*)", name)
    if block is None:
        return name
    stem, position, rest = block[1], int(block[2]), block[3]
    kinds = list(_BLOCKS) if "dec_stages" in stem else list(_BLOCKS)[:2]
    kind = kinds[position % len(kinds)]
    inner = {
        "g_block": ("", global_attention),
        "l_block": ("block.cla.", _CONVOLUTION),
        "spk_attn": ("self_attn.", SOFTMAX_ATTENTION),
    }[kind]
    prefix, rules = (_BLOCKS[kind], FEED_FORWARD) if rest.startswith("feed_forward.") else inner
    return f"{stem}{kind}_{position // len(kinds) + 1}.{prefix}{rewrite(rest, rules)}"


def reshape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the published shape: some of our linear layers are convolutions over one frame there."""
    if name.endswith("layer_scale"):
        return (1, 1, *shape)
    return (*shape, 1) if re.search(f"({_POINTWISE})$", name) else shape


def config_fields(conf: Any) -> dict[str, Any]:
    """Translate the sizes in a configuration of the SepReformer code into fields of `SepReformerConfig`.

    Raises:
        KeyError: If a setting is missing.
    """
    encoder, separator = conf["module_audio_enc"], conf["module_separator"]
    stage = separator["enc_stage"]
    return {
        "n_sources": conf["num_spks"],
        "n_filters": encoder["out_channels"],
        "filter_length": encoder["kernel_size"],
        "hop_length": encoder["stride"],
        "n_channels": stage["global_blocks"]["in_channels"],
        "n_heads": stage["global_blocks"]["num_mha_heads"],
        "n_stages": separator["num_stages"],
        "local_kernel_size": stage["local_blocks"]["kernel_size"],
        "max_distance": separator["relative_positional_encoding"]["maxlen"],
        "dropout": stage["global_blocks"]["dropout_rate"],
        "pad_end": False,
    }
