"""Maps from the weight names of published checkpoints to ours; the values stay as they are."""

import re
from collections.abc import Mapping

from torch import Tensor

_FLA_SEPREFORMER = {
    r"separator\.audio_encoder\.conv1d\.": "encoder.",
    r"separator\.feature_projector\.norm\.": "feature_norm.",
    r"separator\.feature_projector\.conv1d\.": "feature_projection.",
    r"separator\.separator\.enc_stages\.(\d+)\.downconv\.down_conv\.": r"encoder_stages.\1.downsample.",
    r"separator\.separator\.enc_stages\.(\d+)\.downconv\.BN\.": r"encoder_stages.\1.downsample_norm.",
    r"separator\.separator\.enc_stages\.(\d+)\.": r"encoder_stages.\1.blocks.",
    r"separator\.separator\.bottleneck_G\.": "bottleneck.",
    r"separator\.separator\.spk_split_block\.linear\.0\.": "source_split.expand.",
    r"separator\.separator\.spk_split_block\.linear\.2\.": "source_split.contract.",
    r"separator\.separator\.spk_split_block\.norm\.": "source_split.norm.",
    r"separator\.separator\.simple_fusion\.(\d+)\.": r"decoder_stages.\1.fusion.",
    r"separator\.separator\.dec_stages\.(\d+)\.": r"decoder_stages.\1.blocks.",
    r"separator\.out_layer\.end_conv1x1\.": "output.",
    r"separator\.out_layer_bn\.(\d+)\.end_conv1x1\.": r"auxiliary_outputs.\1.",
    r"separator\.audio_decoder\.": "decoder.",
    r"separator\.decoder_bn\.(\d+)\.": r"auxiliary_decoders.\1.",
}

_BLOCK = {
    r"block\.ega\.attn\.q\.": "attention.attention.query.",
    r"block\.ega\.attn\.kv\.": "attention.attention.key_value.",
    r"block\.ega\.attn\.proj\.": "attention.attention.output.",
    r"block\.ega\.attn\.dwc\.": "attention.attention.value_conv.",
    r"block\.ega\.attn\.": "attention.attention.",
    r"block\.ega\.layer_norm\.": "attention.norm.",
    r"block\.ega\.gate_layer\.": "attention.gate.",
    r"block\.cla\.layer_norm\.": "convolution.norm.",
    r"block\.cla\.linear1\.": "convolution.gate.",
    r"block\.cla\.dw_conv_1d\.": "convolution.convolution.",
    r"block\.cla\.linear2\.": "convolution.expand.",
    r"block\.cla\.BN\.": "convolution.batch_norm.",
    r"block\.cla\.linear3\.1\.": "convolution.contract.",
    r"block\.cla\.Layer_scale\.layer_scale": "convolution.scale.scale",
    r"self_attn\.layer_norm\.": "attention.norm.",
    r"self_attn\.linear_q\.": "attention.query.",
    r"self_attn\.linear_k\.": "attention.key.",
    r"self_attn\.linear_v\.": "attention.value.",
    r"self_attn\.linear_out\.": "attention.output.",
    r"self_attn\.Layer_scale\.layer_scale": "attention.scale.scale",
    r"(?:block\.gcfn|feed_forward)\.net1\.0\.": "feed_forward.norm.",
    r"(?:block\.gcfn|feed_forward)\.net1\.1\.": "feed_forward.expand.",
    r"(?:block\.gcfn|feed_forward)\.depthwise\.": "feed_forward.convolution.",
    r"(?:block\.gcfn|feed_forward)\.net2\.2\.": "feed_forward.contract.",
    r"(?:block\.gcfn|feed_forward)\.Layer_scale\.layer_scale": "feed_forward.scale.scale",
}

_POINTWISE = ("feature_projection.weight", "fusion.weight", "expand.weight", "contract.weight")
_ENCODER_BLOCKS = ("g_block", "l_block")
_DECODER_BLOCKS = ("g_block", "l_block", "spk_attn")

UNUSED = ("separator.separator.pos_emb.pe_k.weight",)
"""Weights that the published FLA-SepReformer carries and never reads: the softmax model's table of
positions."""


def rename_fla_sepreformer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights of a published FLA-SepReformer (ModelScope) our names and shapes.

    Args:
        weights: The published state dict.

    Returns:
        A state dict for `SepReformer`. A name that no rule knows is kept, so that the strict check of the
        loader shows it.
    """
    renamed = {}
    for key, value in weights.items():
        if key in UNUSED:
            continue
        name = _rename_fla_sepreformer_key(key)
        if name.endswith("scale.scale"):
            value = value.flatten()  # published as (1, 1, channels)
        elif value.ndim == 3 and name.endswith(_POINTWISE):
            value = value.squeeze(-1)  # published as convolutions over one frame
        renamed[name] = value
    return renamed


def _rename_fla_sepreformer_key(key: str) -> str:
    name = _replace_first(key, _FLA_SEPREFORMER)
    kinds = _DECODER_BLOCKS if name.startswith("decoder_stages") else _ENCODER_BLOCKS
    block = re.search(r"(g_block|l_block|spk_attn)_(\d+)\.", name)
    if block and block[1] in kinds:
        position = (int(block[2]) - 1) * len(kinds) + kinds.index(block[1])
        rest = _replace_first(name[block.end() :], _BLOCK)
        name = f"{name[: block.start()]}{position}.{rest}"
    return name


def _replace_first(name: str, table: Mapping[str, str]) -> str:
    """Rewrite the beginning of a name by the first rule that matches it."""
    for pattern, replacement in table.items():
        renamed, n_matches = re.subn(f"^{pattern}", replacement, name)
        if n_matches:
            return renamed
    return name
