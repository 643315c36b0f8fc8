"""A training run as data: what is trained, on what, and how; read from YAML, saved with the run."""

import dataclasses
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from flasepformer.data import DynamicMixingConfig
from flasepformer.models import SepReformerConfig
from flasepformer.models.registry import FAMILIES, build_model, registered_names

DEFAULT_FAMILY = "sepreformer"
"""Of a recipe that names none."""

NEEDS_EXTRA = 'training needs the extra "train": pip install "flasepformer[train]"'


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """Where the single-talker speech is."""

    speech: str = ""
    """A folder with a folder per speaker, or a CSV manifest; see `data.read_utterances`."""
    train_split: str = "train"
    """Split that is trained on."""
    valid_split: str = "valid"
    """Split that is validated on; none of its speakers may be in the other."""
    exclude_licences: tuple[str, ...] = ()
    """Leave out the recordings under these licences."""
    n_valid_mixtures: int = 100
    """Fixed mixtures that the model is validated on."""
    valid_segment_seconds: float = 4.0
    """Length of those mixtures, whatever the length that is trained on."""
    valid_clean: bool = False
    """Validate on clean speech, even if `mixing` adds noise, rooms, equalization or band limits."""
    n_workers: int = 0
    """Processes that mix; 0 mixes in the training process."""
    max_corrupt_share: float = 0.01
    """Share of a split's recordings that may be unreadable or silent; with more the run does not begin."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_corrupt_share <= 0.01:
            raise ValueError(f"max_corrupt_share must be from 0 to 0.01, got {self.max_corrupt_share}")
        if self.n_valid_mixtures < 1:
            raise ValueError(f"n_valid_mixtures must be at least 1, got {self.n_valid_mixtures}")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How the weights are found. An epoch is `Recipe.epoch_steps` steps and ends with a validation."""

    n_steps: int = 100_000
    """Steps of the whole training."""
    batch_size: int = 4
    """Mixtures that each process computes at a time."""
    accumulate_steps: int = 1
    """Such batches in one step, whose gradients are averaged."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW as in the papers, or Muon for the matrices of the blocks and AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 1000
    """Steps until the learning rate reaches its peak."""
    decay_steps: int = 20_000
    """Steps at the end in which the learning rate falls to zero."""
    plateau_factor: float = 1.0
    """Multiply the learning rate by this when the validation does not get better; 1 leaves it."""
    plateau_patience: int = 2
    """Epochs in a row without a better validation that are forgiven before that."""
    plateau_start_epoch: int = 0
    """Epochs before the validation is watched for that."""
    early_stop_epochs: int = 0
    """Epochs in a row without a better validation that end the training; 0 never does."""
    weight_decay: float = 1e-2
    """Weight decay of both."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    auxiliary_weight: float = 0.4
    """Share of the auxiliary loss, in a network that has auxiliary heads."""
    auxiliary_decay_steps: int = 0
    """Steps in which that share falls linearly to zero; 0 keeps it."""
    auxiliary_decay_factor: float = 1.0
    """Multiply that share by this after `auxiliary_decay_start_epoch` epochs and again every
    `auxiliary_decay_epochs`; 1 leaves it."""
    auxiliary_decay_start_epoch: int = 100
    """See `auxiliary_decay_factor`."""
    auxiliary_decay_epochs: int = 5
    """See `auxiliary_decay_factor`."""
    average_decay: float = 0.999
    """Decay of the running average of the weights, which is validated and shipped; 0 takes the weights
    themselves."""
    average_best: int = 1
    """Ship the mean of the weights of this many best validations."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision; the loss is always computed in float32."""
    checkpoint_activations: bool = False
    """Compute the blocks a second time in the backward pass instead of keeping what is in them: less memory,
    for long segments, at the price of another forward pass."""
    max_bad_steps: int = 20
    """Steps in a row with a loss or gradient that is not finite before the run gives up."""

    def __post_init__(self) -> None:
        counts = ("n_steps", "batch_size", "accumulate_steps", "average_best", "auxiliary_decay_epochs")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.auxiliary_weight <= 1:
            raise ValueError(f"auxiliary_weight must be from 0 to 1, got {self.auxiliary_weight}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be at least 0 and below 1, got {self.average_decay}")
        for name in ("plateau_factor", "auxiliary_decay_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a training run turns out."""

    seed: int = 0
    """Of the weights, the mixtures and the dropout."""
    model: Any = field(default_factory=SepReformerConfig)
    """The network: the config of one of the families, `SepReformerConfig` or `TFLocoformerConfig`."""
    initial_checkpoint: str = ""
    """Start from these weights, a checkpoint of the same config; empty starts from random ones."""
    fourier_filters: bool = False
    """Start from filters that are a windowed Fourier basis, not from random ones; a SepReformer can."""
    data: SpeechConfig = field(default_factory=SpeechConfig)
    """The speech."""
    mixing: DynamicMixingConfig = field(default_factory=DynamicMixingConfig)
    """The mixtures."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """The training."""
    validate_every: int = 1000
    """Steps between two validations, where `steps_per_epoch` does not say."""
    steps_per_epoch: int = 0
    """Steps of an epoch, which ends with a validation; 0 takes `validate_every`."""
    log_every: int = 50
    """Steps between two rows of the curve."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints to resume from."""
    description: str = ""
    """One sentence for the model's card."""
    licence: str = ""
    """Licence of the trained weights."""

    def __post_init__(self) -> None:
        if self.model.n_sources != self.mixing.n_sources:
            raise ValueError(
                "model.n_sources and mixing.n_sources must agree, "
                f"got {self.model.n_sources} and {self.mixing.n_sources}"
            )
        if self.fourier_filters and self.family != "sepreformer":
            raise ValueError(f"fourier_filters is for the family sepreformer, not {self.family}")
        if self.epoch_steps < 1:
            raise ValueError(f"an epoch must have at least 1 step, got {self.epoch_steps}")

    @property
    def family(self) -> str:
        """Family of the network, a key of `models.registry.FAMILIES`."""
        return next(name for name, (config, _) in FAMILIES.items() if isinstance(self.model, config))

    @property
    def epoch_steps(self) -> int:
        """Steps from one validation to the next."""
        return self.steps_per_epoch or self.validate_every


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Beside the fields of `Recipe` it may say `family`, which decides what `model` has for fields, or
    `model_name`, a name such as "fla-sepreformer-b" that fills them in; what stands under `model` goes first.

    Args:
        path: YAML; an unknown key is an error, a missing one takes its default.
        overrides: Settings on top of it, such as "optimization.n_steps=2000".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value is not of its type or out of its range.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    settings = _top_level(path, overrides)
    family, fields = _network(settings.get("family"), settings.get("model_name"))
    parser = _parser(family, fields)
    arguments = [f"--config={path}", *(f"--{override}" for override in overrides)]
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
    except ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return Recipe(**{key.name: values[key.name] for key in dataclasses.fields(Recipe)})


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, every field of it."""
    import yaml

    fields = {"family": recipe.family, **dataclasses.asdict(recipe)}
    content = {key: _plain(value) for key, value in fields.items()}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _top_level(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the top-level settings that decide how the others are read."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold keys and values, got {type(settings).__name__}")
    known = {field.name for field in dataclasses.fields(Recipe)} | {"family", "model_name"}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or key.split(".")[0] not in known:
            raise ValueError(f"a setting is a key of the recipe and its value, KEY=VALUE, got {override!r}")
        settings[key] = value
    for section in ("model", "data", "mixing", "optimization"):
        if not isinstance(settings.get(section, {}), dict):
            raise ValueError(f"{section} must hold keys and values, got {settings[section]!r}")
    return settings


def _network(family: Any, model_name: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the family that a recipe is about, and the fields of its config that it begins with."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if not model_name:
        return family or DEFAULT_FAMILY, {}
    if model_name not in registered_names():
        raise ValueError(f"model_name must be one of {', '.join(registered_names())}, got {model_name!r}")
    with torch.device("meta"):  # nothing is allocated
        config = build_model(model_name).config
    found = next(name for name, (config_class, _) in FAMILIES.items() if isinstance(config, config_class))
    if family not in (None, found):
        raise ValueError(f"model_name {model_name} is of the family {found}, but family says {family}")
    return found, vars(config)


def _parser(family: str, fields: Mapping[str, Any]) -> Any:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError(NEEDS_EXTRA) from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--family", type=str)
    parser.add_argument("--model_name", type=str)
    parser.add_class_arguments(Recipe, skip={"model"})
    parser.add_class_arguments(FAMILIES[family][0], "model")
    parser.set_defaults({f"model.{name}": value for name, value in fields.items()})
    return parser
