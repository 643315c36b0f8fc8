"""The layout of the original SepReformer: `epoch.NNNN.pth`, and `configs.yaml` there or two folders above."""

from pathlib import Path
from typing import Any

from torch import Tensor

from flasepformer.models.errors import CheckpointError
from flasepformer.models.layouts import sepreformer
from flasepformer.models.layouts.published import (
    Layout,
    PublishedCheckpoint,
    PublishedNames,
    Rules,
    read_setting,
    read_tensors,
    read_yaml,
    rewrite,
)

SETTINGS_FILE = "configs.yaml"
WEIGHTS_PATTERN = "epoch.*.pth"

_GLOBAL_ATTENTION: Rules = (
    (r"attention\.norm\.", "block.ega.block.self_attn.layer_norm."),
    (r"attention\.attention\.query\.", "block.ega.block.self_attn.linear_q."),
    (r"attention\.attention\.key\.", "block.ega.block.self_attn.linear_k."),
    (r"attention\.attention\.value\.", "block.ega.block.self_attn.linear_v."),
    (r"attention\.attention\.output\.", "block.ega.block.self_attn.linear_out."),
    (r"attention\.scale\.scale", "block.ega.block.self_attn.Layer_scale.layer_scale"),
    (r"attention\.gate\.", "block.ega.block.linear."),
)
_POSITIONS: Rules = ((r"positions\.table", "separator.pos_emb.pe_k.weight"),)


def _find(path: Path) -> tuple[Path, Path] | None:
    if path.is_dir():
        found = [file for depth in ("", "*/", "*/*/") for file in path.glob(depth + WEIGHTS_PATTERN)]
        weights = max(found, key=lambda file: file.name, default=None)  # the latest epoch
    else:
        weights = path if path.match(WEIGHTS_PATTERN) else None
    if weights is None:
        return None
    settings = (folder / SETTINGS_FILE for folder in weights.absolute().parents[:3])
    settings_path = next((file for file in settings if file.is_file()), None)
    return None if settings_path is None else (settings_path, weights)


def _read(settings_path: Path, weights_path: Path) -> PublishedCheckpoint:
    settings = read_yaml(settings_path)
    conf = read_setting(settings, "config.model", settings_path)
    weights, told = _read_weights(weights_path)
    try:
        fields = sepreformer.config_fields(conf)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{settings_path} does not describe a SepReformer: {error!r} under config.model"
        ) from error
    return PublishedCheckpoint(
        family="sepreformer",
        fields=fields | {"attention": "softmax"} | told,
        weights=weights,
        weights_path=weights_path,
        settings=settings,
    )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    weights = read_tensors(path, "model_state_dict")
    return weights, {"auxiliary_heads": any(name.startswith("out_layer_bn.") for name in weights)}


def _names(config: Any) -> PublishedNames:
    return PublishedNames(
        rename=lambda name: sepreformer.rename(rewrite(name, _POSITIONS), _GLOBAL_ATTENTION),
        reshape=sepreformer.reshape,
    )


LAYOUT = Layout(
    origin="SepReformer",
    expects=f"{WEIGHTS_PATTERN} and {SETTINGS_FILE}",
    find=_find,
    read=_read,
    read_weights=_read_weights,
    names=_names,
)
