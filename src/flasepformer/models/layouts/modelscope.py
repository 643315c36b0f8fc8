"""The layout of the FLASepformer release on ModelScope: `configuration.json` and `pytorch_model.pt`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flasepformer.models.errors import CheckpointError
from flasepformer.models.layouts import sepreformer, tflocoformer
from flasepformer.models.layouts.published import (
    Layout,
    PublishedCheckpoint,
    PublishedNames,
    Rules,
    read_setting,
    read_tensors,
    require,
)
from flasepformer.models.sepreformer import SepReformerConfig

SETTINGS_FILE = "configuration.json"
WEIGHTS_FILE = "pytorch_model.pt"

_FOCUSED_LINEAR_ATTENTION: Rules = (
    (r"attention\.attention\.query\.", "block.ega.attn.q."),
    (r"attention\.attention\.key_value\.", "block.ega.attn.kv."),
    (r"attention\.attention\.output\.", "block.ega.attn.proj."),
    (r"attention\.attention\.value_conv\.", "block.ega.attn.dwc."),
    (r"attention\.attention\.scale", "block.ega.attn.scale"),
    (r"attention\.norm\.", "block.ega.layer_norm."),
    (r"attention\.gate\.", "block.ega.gate_layer."),
)

_NOT_IN_THE_SETTINGS = ("auxiliary_heads", "layer_scale", "pad_end", "max_distance")
"""Fields that the settings have no word for: the heads show in the weights, the others change nothing that
was learned (`pad_end` only the last samples, fewer than a hop, which the published code leaves zero)."""


def _find(path: Path) -> tuple[Path, Path] | None:
    folder = path if path.is_dir() else path.parent
    settings, weights = folder / SETTINGS_FILE, folder / WEIGHTS_FILE
    if path.is_dir():
        return (settings, weights) if settings.is_file() and weights.is_file() else None
    if path.name not in (SETTINGS_FILE, WEIGHTS_FILE):
        return None
    for needed in (settings, weights):
        if not needed.is_file():
            raise CheckpointError(f"{path} needs {needed.name} beside it, which is not there")
    return settings, weights


def _read(settings_path: Path, weights_path: Path) -> PublishedCheckpoint:
    try:
        settings = json.loads(settings_path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{settings_path} cannot be read as JSON ({error})") from error
    weights = read_tensors(weights_path)
    family, fields = _read_fields(settings, settings_path)
    if family == "sepreformer":
        fields["auxiliary_heads"] = any(name.startswith("separator.out_layer_bn.") for name in weights)
    return PublishedCheckpoint(
        family=family, fields=fields, weights=weights, weights_path=weights_path, settings=settings
    )


def _read_fields(settings: Any, path: Path) -> tuple[str, dict[str, Any]]:
    """Translate the published settings into a family and the fields of its config."""
    model = read_setting(settings, "model", path)
    conf = read_setting(model, "separator_conf", path)
    general = {
        "sample_rate": model.get("sample_rate", 8000),
        "normalize_variance": model.get("normalize_variance", False),
    }
    try:
        if "module_audio_enc" in conf:
            where = "module_separator.enc_stage.addition_conf.ega_addition_conf"
            attention = _attention_fields(conf, where, ("layernorm",), path)
            return "sepreformer", sepreformer.config_fields(conf) | general | attention
        attention = _attention_fields(
            conf, "attn_addition_conf.ega_addition_conf", (f"RMSGroupNorm_{conf['num_groups']}",), path
        )
        front_end = {"n_fft": model.get("n_fft", 128), "hop_length": model.get("hop_length", 64)}
        return "tflocoformer", tflocoformer.modelscope_fields(conf, path) | front_end | general | attention
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not describe a model that is read here: {error!r} under model.separator_conf"
        ) from error


def _attention_fields(conf: Any, where: str, norms: tuple[str, ...], path: Path) -> dict[str, Any]:
    require(conf, f"{where}.linear_attn_type", ("FocusedLinearAttention",), path)
    settings = read_setting(conf, where, path)
    if settings.get("norm_type", norms[0]) not in norms:
        raise CheckpointError(
            f"{path} asks for {where}.norm_type = {settings['norm_type']!r}, not {norms[0]}"
        )
    return {
        "gated": settings["gated"],
        "focusing_power": settings["focusing_factor"],
        "value_kernel_size": settings["kernel_size"],
    }


def _names(config: Any) -> PublishedNames:
    if not isinstance(config, SepReformerConfig):
        return tflocoformer.modelscope_names(config)
    table = "separator.separator.pos_emb.pe_k.weight"
    shape = (2 * config.max_distance, config.n_channels // config.n_heads)
    return PublishedNames(
        rename=lambda name: "separator." + sepreformer.rename(name, _FOCUSED_LINEAR_ATTENTION),
        reshape=sepreformer.reshape,
        unread={table: torch.zeros(shape)},
    )


def _write(
    folder: Path, config: Any, weights: Mapping[str, Tensor], settings: Mapping[str, Any] | None
) -> None:
    if settings is None:
        settings = _write_settings(config)
        _, fields = _read_fields(settings, folder / SETTINGS_FILE)
        lost = [
            name
            for name, value in asdict(type(config)(**fields)).items()
            if name not in _NOT_IN_THE_SETTINGS and value != getattr(config, name)
        ]
        if lost:
            raise CheckpointError(
                f"the ModelScope layout has no word for this model's {', '.join(lost)}; "
                "its own code could not rebuild the network"
            )
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(weights), folder / WEIGHTS_FILE)
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _write_settings(config: Any) -> dict[str, Any]:
    attention = {
        "linear_attn_type": "FocusedLinearAttention",
        "gated": config.gated,
        "focusing_factor": config.focusing_power,
        "kernel_size": config.value_kernel_size,
    }
    model: dict[str, Any] = {
        "type": "speech_separation",
        "sample_rate": config.sample_rate,
        "normalize_variance": config.normalize_variance,
    }
    if isinstance(config, SepReformerConfig):
        attention["norm_type"] = "layernorm"
        model["separator_conf"] = _sepreformer_settings(config, attention)
    else:
        attention["norm_type"] = f"RMSGroupNorm_{config.n_groups}"
        model |= {"n_fft": config.n_fft, "hop_length": config.hop_length}
        model["separator_conf"] = tflocoformer.modelscope_settings(config, attention)
    return {"framework": "pytorch", "task": "speech-separation", "model": model}


def _sepreformer_settings(config: SepReformerConfig, attention: dict[str, Any]) -> dict[str, Any]:
    n_channels, n_filters, n_sources = config.n_channels, config.n_filters, config.n_sources
    heads = {"in_channels": n_channels, "num_mha_heads": config.n_heads, "dropout_rate": config.dropout}
    blocks = {
        "global_blocks": heads,
        "local_blocks": {
            "in_channels": n_channels,
            "kernel_size": config.local_kernel_size,
            "dropout_rate": config.dropout,
        },
        "addition_conf": {"ega_addition_conf": attention},
    }
    filters = {"kernel_size": config.filter_length, "stride": config.hop_length, "bias": False}
    return {
        "num_stages": config.n_stages,
        "num_spks": n_sources,
        "module_audio_enc": {"in_channels": 1, "out_channels": n_filters, "groups": 1, **filters},
        "module_feature_projector": {
            "num_channels": n_filters,
            "in_channels": n_filters,
            "out_channels": n_channels,
            "kernel_size": 1,
            "bias": False,
        },
        "module_separator": {
            "num_stages": config.n_stages,
            "relative_positional_encoding": {
                "in_channels": n_channels,
                "num_heads": config.n_heads,
                "maxlen": config.max_distance,
                "embed_v": False,
            },
            "enc_stage": blocks | {"down_conv_layer": {"in_channels": n_channels, "samp_kernel_size": 5}},
            "spk_split_stage": {"in_channels": n_channels, "num_spks": n_sources},
            "simple_fusion": {"out_channels": n_channels},
            "dec_stage": blocks | {"num_spks": n_sources, "spk_attention": heads},
        },
        "module_output_layer": {"in_channels": n_filters, "out_channels": n_channels, "num_spks": n_sources},
        "module_audio_dec": {"in_channels": n_filters, "out_channels": 1, **filters},
    }


LAYOUT = Layout(
    origin="FLASepformer on ModelScope",
    expects=f"{SETTINGS_FILE} and {WEIGHTS_FILE}",
    find=_find,
    read=_read,
    names=_names,
    write=_write,
)
