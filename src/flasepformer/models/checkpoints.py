"""Save and load models: our own format, and the layouts of published checkpoints.

Our format is a folder with `model.safetensors` (weights) and `config.json` (family, config, what is known of
the weights). A checkpoint is loaded whole or refused: every weight must be there, with the right shape, and
none too many. Nothing in a checkpoint is ever executed.
"""

import json
import os
import pickle
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from flasepformer.models.registry import (
    DEFAULT_MODEL,
    FAMILIES,
    ModelInfo,
    build_model,
    count_parameters,
    registered_info,
    registered_names,
)
from flasepformer.models.sepreformer import SepReformerConfig
from flasepformer.models.weight_names import rename_fla_sepreformer

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MODELSCOPE_WEIGHTS_FILE = "pytorch_model.pt"
MODELSCOPE_CONFIG_FILE = "configuration.json"

N_NAMES_SHOWN = 5
"""How many differing weight names an error lists."""


class CheckpointError(ValueError):
    """A checkpoint that is refused; the message says what was expected and what came."""


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> nn.Module:
    """Load a model, ready to separate (in eval mode, float32, on the CPU).

    Args:
        name_or_path: "default" for the trained model of the package; a registry name such as
            "fla-sepreformer-b" for random weights; or a checkpoint: its folder, or the weights file in it,
            ours or a published one (ModelScope).

    Returns:
        The model: mixture (batch, time) to estimates (batch, source, time).

    Raises:
        CheckpointError: If there is no such model, or its checkpoint is damaged, incomplete or not of a known
        layout.
    """
    return load_described_model(name_or_path)[0]


def load_described_model(name_or_path: str | Path = DEFAULT_MODEL) -> tuple[nn.Module, ModelInfo]:
    """Load a model and what is known of it; takes and raises the same as `load_model`."""
    name = str(name_or_path)
    if name in registered_names():
        return build_model(name).eval(), registered_info(name)
    return _open(name_or_path)


def model_info(name_or_path: str | Path = DEFAULT_MODEL) -> ModelInfo:
    """Describe a model; takes and raises the same as `load_model`."""
    name = str(name_or_path)
    return registered_info(name) if name in registered_names() else _open(name_or_path)[1]


def list_models() -> list[ModelInfo]:
    """Describe every model that has a name, the trained one first."""
    names = [DEFAULT_MODEL, *registered_names()] if _default_folder_exists() else registered_names()
    return [model_info(name) for name in names]


def save_model(
    model: nn.Module,
    folder: str | Path,
    info: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model in our format.

    Both files appear under their final names only when they are complete; the weights go first.

    Args:
        model: A network of one of the families.
        folder: Where to write `model.safetensors` and `config.json`; made if missing.
        info: What is known of the weights, kept in the config file under "info": "description", "licence" and
            anything else that JSON can hold.
        dtype: Precision of the stored weights; float16 halves the file, and is loaded as float32.
    """
    family = next(name for name, (_, network) in FAMILIES.items() if isinstance(model, network))
    description = {"family": family, "config": vars(model.config), "info": dict(info or {})}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in model.state_dict().items()
    }
    _write_atomically(folder / WEIGHTS_FILE, to_safetensors(weights))
    _write_atomically(folder / CONFIG_FILE, (json.dumps(description, indent=2) + "\n").encode())


def _write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _open(name_or_path: str | Path) -> tuple[nn.Module, ModelInfo]:
    if str(name_or_path) == DEFAULT_MODEL:
        with as_file(files("flasepformer") / "pretrained" / DEFAULT_MODEL) as folder:
            return _load_own(folder, DEFAULT_MODEL)
    path = Path(name_or_path)
    if not path.exists():
        names = ", ".join((DEFAULT_MODEL, *registered_names()))
        raise CheckpointError(f"no model and no file is called {str(name_or_path)!r}; the models are {names}")
    folder = path if path.is_dir() else path.parent
    # A config names the layout; a file that was asked for by name must be the one that the config belongs to.
    for config_name, weights_name, load in (
        (CONFIG_FILE, WEIGHTS_FILE, _load_own),
        (MODELSCOPE_CONFIG_FILE, MODELSCOPE_WEIGHTS_FILE, _load_modelscope),
    ):
        if path.is_dir() or path.name in (config_name, weights_name):
            present = [name for name in (config_name, weights_name) if (folder / name).is_file()]
            if len(present) == 2:
                return load(folder, str(name_or_path))
            if path.is_file():
                missing = ({config_name, weights_name} - set(present)).pop()
                raise CheckpointError(f"{path} needs {missing} beside it, which is not there")
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, "
        f"or with {MODELSCOPE_WEIGHTS_FILE} and {MODELSCOPE_CONFIG_FILE}, or one of these files"
    )


def _default_folder_exists() -> bool:
    return (files("flasepformer") / "pretrained" / DEFAULT_MODEL / WEIGHTS_FILE).is_file()


def _load_own(folder: Path, name: str) -> tuple[nn.Module, ModelInfo]:
    description = _read_json(folder / CONFIG_FILE)
    family, fields, info = (description.get(key) for key in ("family", "config", "info"))
    if family not in FAMILIES or not isinstance(fields, dict):
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: expected a family ({known}) and its config, got family {family!r}"
        )
    config = _build_config(FAMILIES[family][0], fields, folder / CONFIG_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} is damaged or not a safetensors file ({error})"
        ) from error
    return _assemble(
        family, config, weights, folder / WEIGHTS_FILE, name, info if isinstance(info, dict) else {}
    )


def _load_modelscope(folder: Path, name: str) -> tuple[nn.Module, ModelInfo]:
    model_section = _read_json(folder / MODELSCOPE_CONFIG_FILE).get("model")
    path = folder / MODELSCOPE_WEIGHTS_FILE
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, or is no PyTorch file; it is not opened"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or not a PyTorch file ({error})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} must hold one flat table of weights")
    try:
        fields = _modelscope_fields(model_section, weights)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / MODELSCOPE_CONFIG_FILE} does not describe an FLA-SepReformer, "
            f"the family that is read so far: {error!r} under model.separator_conf"
        ) from error
    config = _build_config(SepReformerConfig, fields, folder / MODELSCOPE_CONFIG_FILE)
    info = {
        "description": "Published FLA-SepReformer checkpoint (ModelScope layout)",
        "licence": "see its publisher",
    }
    return _assemble("sepreformer", config, rename_fla_sepreformer(weights), path, name, info)


def _modelscope_fields(model_section: Any, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Translate the published configuration of an FLA-SepReformer into the fields of our config."""
    conf = model_section["separator_conf"]
    encoder, separator = conf["module_audio_enc"], conf["module_separator"]
    stage = separator["enc_stage"]
    attention = stage["addition_conf"]["ega_addition_conf"]
    if (
        attention["linear_attn_type"] != "FocusedLinearAttention"
        or attention.get("norm_type", "layernorm") != "layernorm"
    ):
        raise KeyError("FocusedLinearAttention with layernorm")
    return {
        "n_sources": conf["num_spks"],
        "sample_rate": model_section.get("sample_rate", 8000),
        "n_filters": encoder["out_channels"],
        "filter_length": encoder["kernel_size"],
        "hop_length": encoder["stride"],
        "n_channels": stage["global_blocks"]["in_channels"],
        "n_heads": stage["global_blocks"]["num_mha_heads"],
        "n_stages": separator["num_stages"],
        "local_kernel_size": stage["local_blocks"]["kernel_size"],
        "gated": attention["gated"],
        "focusing_power": attention["focusing_factor"],
        "value_kernel_size": attention["kernel_size"],
        "dropout": stage["global_blocks"]["dropout_rate"],
        "auxiliary_heads": any(key.startswith("separator.out_layer_bn.") for key in weights),
        "normalize_variance": model_section.get("normalize_variance", False),
        "pad_end": False,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def _build_config(config_class: type[Any], fields: Mapping[str, Any], path: Path) -> Any:
    """Build a config; its own checks bound every size, before anything is allocated."""
    try:
        return config_class(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _assemble(
    family: str, config: Any, weights: Mapping[str, Tensor], path: Path, name: str, info: Mapping[str, Any]
) -> tuple[nn.Module, ModelInfo]:
    """Put the weights into their network, all of them or none."""
    with torch.device("meta"):  # nothing is allocated for a network whose weights turn out not to fit
        model = FAMILIES[family][1](config)
    _check_same_shapes(model.state_dict(), weights, path)
    expected = model.state_dict()
    model.load_state_dict({key: value.to(expected[key].dtype) for key, value in weights.items()}, assign=True)
    model.requires_grad_(True)
    not_finite = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise CheckpointError(f"{path} has weights that are NaN or infinite: {_shown(not_finite)}")
    return model.eval(), ModelInfo(
        name=name,
        family=family,
        sample_rate=config.sample_rate,
        n_sources=config.n_sources,
        n_parameters=count_parameters(model),
        trained=True,
        description=str(info.get("description", "")),
        licence=str(info.get("licence", "")),
    )


def _check_same_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    missing = [key for key in expected if key not in weights]
    extra = [key for key in weights if key not in expected]
    differing = [
        f"{key} is {tuple(weights[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    faults = [
        f"{len(names)} {what}: {_shown(names)}"
        for what, names in (
            ("missing", missing),
            ("not of this model", extra),
            ("of another shape", differing),
        )
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{path} does not fit its config, nothing was loaded. Weights {'; '.join(faults)}"
        )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:N_NAMES_SHOWN]) + (", ..." if len(names) > N_NAMES_SHOWN else "")
