"""What a published checkpoint is to us: files, settings, and the names and shapes of its weights."""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flasepformer.installing import how_to_install
from flasepformer.models.errors import CheckpointError

Rules = Sequence[tuple[str, str]]
"""Pattern of the beginning of a name, and what stands in its place."""


@dataclass(frozen=True, kw_only=True)
class PublishedNames:
    """How another implementation calls and shapes the weights of a network."""

    rename: Callable[[str], str]
    """Our name of a weight to theirs."""
    reshape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape
    """Their name and our shape to their shape: the same numbers in the same order."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors in their files that are no weights but follow from the architecture; they are checked."""
    unread: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors in their files that their own code never reads, with values to write where none are known."""


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """A published checkpoint, read but not yet put into a network."""

    family: str
    """Family of ours that it belongs to."""
    fields: Mapping[str, Any]
    """Fields of that family's config."""
    weights: Mapping[str, Tensor]
    """State dict under the published names."""
    weights_path: Path
    """Where the weights came from."""
    settings: Mapping[str, Any]
    """The published settings, as they were."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which checkpoints are published."""

    origin: str
    """Whose it is, for people."""
    expects: str
    """The files that make up a checkpoint, for people."""
    find: Callable[[Path], "tuple[Path, Path] | None"]
    """A folder or file to the paths of settings and weights; None if it is no checkpoint of this layout."""
    read: Callable[[Path, Path], PublishedCheckpoint]
    """Those paths to what is in them."""
    names: Callable[[Any], PublishedNames]
    """A config of ours to the published names."""
    write: "Callable[[Path, Any, Mapping[str, Tensor], Mapping[str, Any] | None], None] | None" = None
    """Write a folder from a config, weights under the published names, and the settings if known; None where
    nobody needs it."""
    read_weights: "Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]] | None" = None
    """The weights in a file, and the fields of a config that only they tell; None where the settings can be
    read with nothing but this package, so that nobody has to know them beforehand."""


def rewrite(name: str, rules: Rules) -> str:
    """Rewrite the beginning of a name by the first rule that matches it; a name that none knows is kept."""
    for pattern, replacement in rules:
        rewritten, n_matches = re.subn(f"^{pattern}", replacement, name)
        if n_matches:
            return rewritten
    return name


def read_tensors(path: Path, table: str | None = None) -> dict[str, Tensor]:
    """Read a PyTorch file of weights; nothing in it is executed.

    Args:
        path: The file.
        table: Key of the state dict in it; None if the file is the state dict.

    Raises:
        CheckpointError: If the file is damaged or holds anything but weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than weights, or is no PyTorch file; it is not opened"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or not a PyTorch file ({error})") from error
    if table is not None:
        content = content.get(table) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} must hold one table of weights{f' under {table}' if table else ''}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain values.

    Raises:
        CheckpointError: If it is damaged or holds anything but a table of plain values.
    """
    try:
        import yaml  # here, as the package itself does without
    except ImportError as error:
        raise CheckpointError(f"{path} needs PyYAML to be read: {how_to_install('hub')}") from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a table of settings, got {type(content).__name__}")
    return content


def read_setting(settings: Any, where: str, path: Path) -> Any:
    """Look up a nested setting, such as "separator_conf.num_spk".

    Raises:
        CheckpointError: If it is not there.
    """
    for key in where.split("."):
        if not isinstance(settings, Mapping) or key not in settings:
            raise CheckpointError(f"{path} does not describe a model that is read here: {where} is missing")
        settings = settings[key]
    return settings


def require(settings: Any, where: str, values: Sequence[Any], path: Path) -> None:
    """Refuse a setting that our network has no counterpart for.

    Raises:
        CheckpointError: If the setting is missing or none of `values`.
    """
    value = read_setting(settings, where, path)
    if value not in values:
        known = " or ".join(repr(known) for known in values)
        raise CheckpointError(f"{path} asks for {where} = {value!r}; only {known} can be loaded")
