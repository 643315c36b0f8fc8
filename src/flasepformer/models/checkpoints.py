"""Save and load models: our own format, and the layouts of published checkpoints.

Our format is a folder with `model.safetensors` (weights) and `config.json` (family, config, what is known of
the weights). A checkpoint is loaded whole or refused: every weight must be there, with the right shape, and
none too many. Nothing in a checkpoint is ever executed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from flasepformer.files import write_whole
from flasepformer.models.eight_bits import from_eight_bits, to_eight_bits
from flasepformer.models.errors import CheckpointError
from flasepformer.models.filter_network import FilterNetwork
from flasepformer.models.layouts import LAYOUTS, PublishedCheckpoint
from flasepformer.models.network import SeparationNetwork
from flasepformer.models.packaged import packaged
from flasepformer.models.registry import (
    DEFAULT_MODEL,
    FAMILIES,
    ModelInfo,
    build_model,
    count_parameters,
    registered_info,
    registered_names,
)

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FILTER_FILE = "filter.safetensors"
"""Weights of the network that filters what a model of the package has estimated."""
UNREAD_FILE = "unread.safetensors"
"""Tensors of a converted checkpoint that no code reads, kept so that it can be converted back bit by bit."""

_SHIPPED = files("flasepformer") / "pretrained"

OWN_LAYOUT = "flasepformer"
WRITABLE_LAYOUTS = (OWN_LAYOUT, *(name for name, layout in LAYOUTS.items() if layout.write))
"""Layouts that `convert_checkpoint` writes."""

N_NAMES_SHOWN = 5
"""How many differing weight names an error lists."""


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """What a converted checkpoint was, as far as our network has no place for it."""

    layout: str
    settings: Mapping[str, Any]
    unread: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    model: SeparationNetwork
    info: ModelInfo
    origin: _Origin | None = None


def load_model(
    name_or_path: str | Path = DEFAULT_MODEL, *, accept_licence: bool = False
) -> SeparationNetwork:
    """Load a model, ready to separate (in eval mode, float32, on the CPU).

    Args:
        name_or_path: "default" for the trained model of the package; a registry name such as
            "fla-sepreformer-b" for random weights; or a checkpoint: its folder, or the weights file in it,
            or the folder of a training run (its best weights),
            ours or a published one (FLASepformer on ModelScope, SepReformer, TF-Locoformer in ESPnet); or a
            model of ours on the Hugging Face Hub, "hf://owner/name" or "hf://owner/name@revision" ("hf://"
            may be left out where there is no folder `owner`), which `download_model` fetches once; or weights
            that others have published, by a name or alias that `published_models` lists, such as
            "tflocoformer-m-libri2mix" or "best" (unless a file or folder here is called so), which `obtain`
            fetches once.
        accept_licence: Whether a licence that forbids commercial use is accepted, where weights have to be
            fetched; see `obtain`.

    Returns:
        The model: mixture (batch, time) to estimates (batch, source, time).

    Raises:
        CheckpointError: If there is no such model, or its checkpoint is damaged, incomplete or not of a known
            layout; `HubError`, one of these, if the Hub does not give it.
    """
    return load_described_model(name_or_path, accept_licence=accept_licence)[0]


def load_described_model(
    name_or_path: str | Path = DEFAULT_MODEL, *, accept_licence: bool = False
) -> tuple[SeparationNetwork, ModelInfo]:
    """Load a model and what is known of it; takes and raises the same as `load_model`."""
    name = str(name_or_path)
    if name in registered_names():
        return build_model(name).eval(), registered_info(name)
    checkpoint = _open(name_or_path, accept_licence)
    return checkpoint.model, checkpoint.info


def model_info(name_or_path: str | Path = DEFAULT_MODEL) -> ModelInfo:
    """Describe a model; takes and raises the same as `load_model`."""
    name = str(name_or_path)
    return registered_info(name) if name in registered_names() else _open(name_or_path).info


def load_filter(name: str) -> FilterNetwork | None:
    """Load the network with which to filter, of a `ModelInfo.filter`; None if it is empty."""
    return packaged(FilterNetwork(), f"pretrained/{name}/{FILTER_FILE}") if name else None


def list_models() -> list[ModelInfo]:
    """Describe every model that has a name, the trained ones first: ours, then those published by others."""
    from flasepformer.models.published import published_models  # here, because it is built on this module

    published = [model.info() for model in published_models().models.values()]
    ours, random = ([model_info(name) for name in names] for names in (shipped_names(), registered_names()))
    return [*ours, *published, *random]


def shipped_names() -> list[str]:
    """Return the names of the trained models in the package, the default one first."""
    return sorted(_names_with(WEIGHTS_FILE), key=lambda name: (name != DEFAULT_MODEL, name))


def _names_with(file: str) -> list[str]:
    return [folder.name for folder in _SHIPPED.iterdir() if (folder / file).is_file()]


def shipped_offer(name: str) -> dict[str, Any]:
    """Return what a model of the package is offered for.

    Args:
        name: One of `shipped_names`.

    Returns:
        "use" in a few words; "si_snri" in dB and what it was "scored_on"; "real_time_factor" on two cores of
        a CPU; "megabytes" for a minute, beside program and model; "weights_bytes".
    """
    folder = _SHIPPED / name
    info = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["info"]
    return {**info["offer"], "weights_bytes": len((folder / WEIGHTS_FILE).read_bytes())}


def save_model(
    model: SeparationNetwork,
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
        dtype: Precision of the stored weights, which are loaded as float32: float16 halves the file, int8
            quarters it, with a scale for each row.
    """
    _write_own(model, Path(folder), {"info": dict(info or {})}, dtype)


def convert_checkpoint(
    source: str | Path,
    folder: str | Path,
    layout: str = OWN_LAYOUT,
    *,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    accept_licence: bool = False,
) -> ModelInfo:
    """Write a checkpoint anew in another layout, every weight bit by bit unless `dtype` is smaller.

    A ModelScope checkpoint that was converted to our format goes back exactly as it came, its unread tensors
    and its settings included.

    Args:
        source: The checkpoint, as for `load_model`.
        folder: Where to write; made if missing.
        layout: "flasepformer" (ours) or "modelscope" (what the public release of FLASepformer loads).
        info: What is known of the weights, instead of what the checkpoint says; see `save_model`.
        dtype: Precision of the stored weights in our layout; see `save_model`.
        accept_licence: As for `load_model`.

    Returns:
        What is known of the model.

    Raises:
        CheckpointError: If the source is refused, has no trained weights, or cannot be said in that layout.
        FileExistsError: If the folder holds anything already.
    """
    if layout not in WRITABLE_LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(WRITABLE_LAYOUTS)}, got {layout!r}")
    if str(source) in registered_names():
        raise CheckpointError(f"{source} has random weights; there is nothing to convert")
    folder = Path(folder)
    checkpoint = _open(source, accept_licence)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already; name a new folder")
    if layout == OWN_LAYOUT:
        _write_converted(checkpoint, folder, info, dtype)
    else:
        _write_published(checkpoint, folder, layout)
    return checkpoint.info


def convert_published_weights(
    weights_path: Path,
    folder: Path,
    *,
    layout: str,
    family: str,
    fields: Mapping[str, Any],
    info: Mapping[str, Any],
) -> ModelInfo:
    """Write weights that were published elsewhere in our format, where the config of their network is known.

    Args:
        weights_path: The file, in a layout whose weights can be read alone.
        folder: Where to write; made if missing.
        layout: Name of that layout.
        family: Key of `FAMILIES`.
        fields: Of that family's config.
        info: What is known of the weights; see `save_model`.

    Raises:
        CheckpointError: The file is damaged, or is not of that network.
    """
    read_weights = LAYOUTS[layout].read_weights
    assert read_weights is not None
    weights, told = read_weights(weights_path)
    published = PublishedCheckpoint(
        family=family, fields={**fields, **told}, weights=weights, weights_path=weights_path, settings={}
    )
    checkpoint = _build_published(layout, published, weights_path, str(weights_path))
    _write_converted(checkpoint, folder, info)
    return checkpoint.info


def _write_converted(
    checkpoint: _Checkpoint,
    folder: Path,
    info: Mapping[str, Any] | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    known, origin = checkpoint.info, checkpoint.origin
    if info is None:
        kept = ("data", "citation", "source", "post_filter", "filter")
        stated = {key: value for key in kept if (value := getattr(known, key))}
        info = {"description": known.description, "licence": known.licence, **stated}
    extra: dict[str, Any] = {"info": dict(info)}
    if origin is not None:
        extra["origin"] = {"layout": origin.layout, "settings": origin.settings}
        if origin.unread:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / UNREAD_FILE, to_safetensors(dict(origin.unread)))
    _write_own(checkpoint.model, folder, extra, dtype)


def _write_published(checkpoint: _Checkpoint, folder: Path, layout_name: str) -> None:
    layout, config = LAYOUTS[layout_name], checkpoint.model.config
    assert layout.write is not None
    origin = checkpoint.origin if checkpoint.origin and checkpoint.origin.layout == layout_name else None
    names = layout.names(config)
    weights = {}
    for key, value in checkpoint.model.state_dict().items():
        name = names.rename(key)
        weights[name] = value.reshape(names.reshape(name, tuple(value.shape)))
    unread, settings = (names.unread, None) if origin is None else (origin.unread, origin.settings)
    layout.write(folder, config, weights | dict(names.constants) | dict(unread), settings)


def _write_own(
    model: SeparationNetwork, folder: Path, extra: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    family = next(name for name, (_, network) in FAMILIES.items() if isinstance(model, network))
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if dtype == torch.int8:
        weights = to_eight_bits(weights)
    else:
        weights = {
            name: value.to(dtype if value.is_floating_point() else value.dtype)
            for name, value in weights.items()
        }
    description = {"family": family, "config": vars(model.config), **extra}
    write_whole(folder / WEIGHTS_FILE, to_safetensors(weights))
    write_whole(folder / CONFIG_FILE, json.dumps(description, indent=2) + "\n")


def _best_weights(name_or_path: str | Path) -> str | Path:
    """Return the best weights of a training run whose folder is named; anything else as it is."""
    best = Path(name_or_path) / "best"
    is_run = (best / CONFIG_FILE).is_file() and not (best.parent / CONFIG_FILE).is_file()
    return best if is_run else name_or_path


def _open(name_or_path: str | Path, accept_licence: bool = False) -> _Checkpoint:
    if str(name_or_path) in shipped_names():
        with as_file(_SHIPPED / str(name_or_path)) as folder:
            return _load_own(folder, str(name_or_path))
    name_or_path = _best_weights(name_or_path)
    path = Path(name_or_path)
    if not path.exists():
        from flasepformer.models import hub, published  # here, because they are built on this module

        if model := published.find_published(name_or_path):
            folder = published.obtain(model, accept_licence=accept_licence)
            return _load_own(folder, model.name)
        if hub.is_hub_name(name_or_path):
            folder = hub.download_model(*hub.parse_hub_name(str(name_or_path)))
            return _load_own(folder, str(name_or_path))
        names = ", ".join((*shipped_names(), *published.published_models().models, *registered_names()))
        raise CheckpointError(f"no model and no file is called {str(name_or_path)!r}; the models are {names}")
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name in (CONFIG_FILE, WEIGHTS_FILE):
        missing = [name for name in (WEIGHTS_FILE, CONFIG_FILE) if not (folder / name).is_file()]
        if not missing:
            return _load_own(folder, str(name_or_path))
        if path.is_file():
            raise CheckpointError(f"{path} needs {missing[0]} beside it, which is not there")
    for layout_name, layout in LAYOUTS.items():
        found = layout.find(path)
        if found is not None:
            return _load_published(layout_name, *found, str(name_or_path))
    known = "; ".join(f"{layout.expects} ({layout.origin})" for layout in LAYOUTS.values())
    raise CheckpointError(
        f"{path} is not a checkpoint: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE} (ours), "
        f"or with {known}, or one of these files"
    )


def _load_own(folder: Path, name: str) -> _Checkpoint:
    description = _read_json(folder / CONFIG_FILE)
    family, fields, info = (description.get(key) for key in ("family", "config", "info"))
    if family not in FAMILIES or not isinstance(fields, dict):
        known = ", ".join(FAMILIES)
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: expected a family ({known}) and its config, got family {family!r}"
        )
    config = _build_config(FAMILIES[family][0], fields, folder / CONFIG_FILE)
    model, path = _build_empty(family, config), folder / WEIGHTS_FILE
    try:
        weights = from_eight_bits(_read_safetensors(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _check_same_shapes({key: tuple(value.shape) for key, value in model.state_dict().items()}, weights, path)
    _fill(model, weights, path)
    return _Checkpoint(
        model=model,
        info=_describe(model, family, config, name, info if isinstance(info, dict) else {}),
        origin=_read_origin(folder, description.get("origin")),
    )


def _read_origin(folder: Path, origin: Any) -> _Origin | None:
    if not isinstance(origin, dict):
        return None
    unread = folder / UNREAD_FILE
    return _Origin(
        layout=str(origin.get("layout")),
        settings=origin.get("settings", {}),
        unread=_read_safetensors(unread) if unread.is_file() else {},
    )


def _load_published(layout_name: str, settings_path: Path, weights_path: Path, name: str) -> _Checkpoint:
    published = LAYOUTS[layout_name].read(settings_path, weights_path)
    return _build_published(layout_name, published, settings_path, name)


def _build_published(
    layout_name: str, published: PublishedCheckpoint, settings_path: Path, name: str
) -> _Checkpoint:
    layout, weights_path = LAYOUTS[layout_name], published.weights_path
    config = _build_config(FAMILIES[published.family][0], published.fields, settings_path)
    names = layout.names(config)
    model = _build_empty(published.family, config)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    renamed = {key: names.rename(key) for key in shapes}
    beside = names.constants.keys() | names.unread.keys()
    _check_same_shapes(
        {renamed[key]: names.reshape(renamed[key], shape) for key, shape in shapes.items()},
        {key: value for key, value in published.weights.items() if key not in beside},
        weights_path,
    )
    _check_constants(names.constants, published.weights, weights_path)
    _fill(
        model,
        {key: published.weights[renamed[key]].reshape(shape) for key, shape in shapes.items()},
        weights_path,
    )
    info = {"description": f"Checkpoint of {layout.origin}", "licence": "see its publisher"}
    origin = None
    if layout.write is not None:
        unread = {key: value for key, value in published.weights.items() if key in names.unread}
        origin = _Origin(layout=layout_name, settings=published.settings, unread=unread)
    return _Checkpoint(
        model=model, info=_describe(model, published.family, config, name, info), origin=origin
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({error})") from error


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


def _build_empty(family: str, config: Any) -> SeparationNetwork:
    """Build a network without allocating it: its weights may turn out not to fit."""
    with torch.device("meta"), _Untouched():
        return FAMILIES[family][1](config)


class _Untouched(TorchFunctionMode):
    """Leaves new weights as they are: on no device, random numbers take longer than all else."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", "") == "torch.nn.init":
            return next(iter([*args, *(kwargs or {}).values()]))
        return func(*args, **(kwargs or {}))


def _fill(model: SeparationNetwork, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights, checked before, into their network, ready to separate."""
    suspects = [key for key, value in weights.items() if not value.sum(dtype=torch.float64).isfinite()]
    not_finite = [key for key in suspects if not torch.isfinite(weights[key]).all()]  # sums are quicker
    if not_finite:
        raise CheckpointError(f"{path} has weights that are NaN or infinite: {_shown(not_finite)}")
    expected = model.state_dict()
    model.load_state_dict({key: value.to(expected[key].dtype) for key, value in weights.items()}, assign=True)
    model.requires_grad_(True).eval()


def _describe(
    model: SeparationNetwork, family: str, config: Any, name: str, info: Mapping[str, Any]
) -> ModelInfo:
    counted, share = info.get("giga_multiply_adds"), info.get("post_filter")
    makes_sense = isinstance(share, (int, float)) and not isinstance(share, bool) and 0 <= share <= 1
    return ModelInfo(
        name=name,
        family=family,
        sample_rate=config.sample_rate,
        n_sources=config.n_sources,
        n_parameters=count_parameters(model),
        giga_multiply_adds=counted if isinstance(counted, float) else None,
        trained=True,
        description=str(info.get("description", "")),
        licence=str(info.get("licence", "")),
        data=str(info.get("data", "")),
        citation=str(info.get("citation", "")),
        source=str(info.get("source", "")),
        filter=trained if (trained := info.get("filter")) in _names_with(FILTER_FILE) else "",
        post_filter=float(share) if makes_sense and share else 0.0,
    )


def _check_same_shapes(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], path: Path
) -> None:
    missing = [key for key in expected if key not in weights]
    extra = [key for key in weights if key not in expected]
    differing = [
        f"{key} is {tuple(weights[key].shape)}, not {shape}"
        for key, shape in expected.items()
        if key in weights and weights[key].shape != shape
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


def _check_constants(constants: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file whose fixed tensors are not what the architecture fixes them to."""
    other = [
        name
        for name, value in constants.items()
        if name in weights
        and not (weights[name].shape == value.shape and torch.allclose(weights[name].float(), value))
    ]
    if other:
        raise CheckpointError(f"{path} has other values than the architecture gives in {_shown(other)}")


def _shown(names: list[str]) -> str:
    return ", ".join(names[:N_NAMES_SHOWN]) + (", ..." if len(names) > N_NAMES_SHOWN else "")
