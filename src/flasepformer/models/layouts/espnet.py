"""The layout of TF-Locoformer in ESPnet: `config.yaml` and `valid.loss.ave_5best.pth`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from flasepformer.models.errors import CheckpointError
from flasepformer.models.layouts import tflocoformer
from flasepformer.models.layouts.published import (
    Layout,
    PublishedCheckpoint,
    read_tensors,
    read_yaml,
    require,
)

SETTINGS_FILE = "config.yaml"
WEIGHTS_FILE = "valid.loss.ave_5best.pth"


def _find(path: Path) -> tuple[Path, Path] | None:
    if path.is_dir():
        settings, weights = path / SETTINGS_FILE, path / WEIGHTS_FILE
        return (settings, weights) if settings.is_file() and weights.is_file() else None
    if path.suffix != ".pth":
        return None
    settings = path.with_name(SETTINGS_FILE)
    return (settings, path) if settings.is_file() else None


def _read(settings_path: Path, weights_path: Path) -> PublishedCheckpoint:
    settings = read_yaml(settings_path)
    for where, value in (("separator", "tflocoformer"), ("encoder", "stft"), ("decoder", "stft")):
        require(settings, where, (value,), settings_path)
    try:
        fields = tflocoformer.espnet_fields(settings["separator_conf"], settings_path) | _front_end(settings)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{settings_path} does not describe a TF-Locoformer: {error!r}") from error
    return PublishedCheckpoint(
        family="tflocoformer",
        fields=fields,
        weights=_read_weights(weights_path)[0],
        weights_path=weights_path,
        settings=settings,
    )


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return read_tensors(path), {}


def _front_end(settings: Any) -> dict[str, Any]:
    encoder, model = settings["encoder_conf"], settings.get("model_conf") or {}
    return {
        "n_fft": encoder["n_fft"],
        "hop_length": encoder["hop_length"],
        "sample_rate": settings.get("sample_rate") or encoder.get("default_fs", 8000),
        "normalize_variance": any(
            model.get(name, False) for name in ("normalize_variance", "normalize_variance_per_ch")
        ),
    }


LAYOUT = Layout(
    origin="TF-Locoformer in ESPnet",
    expects=f"{SETTINGS_FILE} and {WEIGHTS_FILE}",
    find=_find,
    read=_read,
    read_weights=_read_weights,
    names=tflocoformer.espnet_names,
)
