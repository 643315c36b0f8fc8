"""A training run as data: what is trained, on what, and how; read from YAML, saved with the run."""

import dataclasses
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flasepformer.data import DynamicMixingConfig
from flasepformer.models import SepReformerConfig


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
    n_workers: int = 0
    """Processes that mix; 0 mixes in the training process."""


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How the weights are found."""

    n_steps: int = 100_000
    """Steps of the whole training."""
    batch_size: int = 4
    """Mixtures in one step of each process."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW as in the papers, or Muon for the matrices of the blocks and AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 1000
    """Steps until the learning rate reaches its peak."""
    decay_steps: int = 20_000
    """Steps at the end in which the learning rate falls to zero."""
    weight_decay: float = 1e-2
    """Weight decay of both."""
    clip_norm: float = 5.0
    """Largest norm of the gradient."""
    auxiliary_weight: float = 0.4
    """Share of the auxiliary loss."""
    auxiliary_decay_steps: int = 0
    """Steps in which that share falls linearly to zero; 0 keeps it."""
    average_decay: float = 0.999
    """Decay of the running average of the weights, which is validated and shipped; 0 takes the weights
    themselves."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; the loss is always computed in float32."""
    max_bad_steps: int = 20
    """Steps in a row with a loss or gradient that is not finite before the run gives up."""

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.auxiliary_weight <= 1:
            raise ValueError(f"auxiliary_weight must be from 0 to 1, got {self.auxiliary_weight}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be at least 0 and below 1, got {self.average_decay}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a training run turns out."""

    seed: int = 0
    """Of the weights, the mixtures and the dropout."""
    model: SepReformerConfig = field(default_factory=SepReformerConfig)
    """The network."""
    initial_checkpoint: str = ""
    """Start from these weights, a checkpoint of the same config; empty starts from random ones."""
    fourier_filters: bool = False
    """Start from filters that are a windowed Fourier basis, not from random ones."""
    data: SpeechConfig = field(default_factory=SpeechConfig)
    """The speech."""
    mixing: DynamicMixingConfig = field(default_factory=DynamicMixingConfig)
    """The mixtures."""
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    """The training."""
    validate_every: int = 1000
    """Steps between two validations."""
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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML over the fields of `Recipe`; an unknown key is an error, a missing one takes its default.
        overrides: Settings on top of it, such as "optimization.n_steps=2000".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value is not of its type or out of its range.
    """
    parser = _parser()
    if not Path(path).is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    arguments = [f"--config={path}", *(f"--{override}" for override in overrides)]
    try:
        values = vars(parser.instantiate(parser.parse_args(arguments)))
    except ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    return Recipe(**{key.name: values[key.name] for key in dataclasses.fields(Recipe)})


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as YAML, every field of it."""
    import yaml

    content = {key: _plain(value) for key, value in dataclasses.asdict(recipe).items()}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Turn tuples into lists, which YAML knows."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _parser() -> Any:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise ImportError('training needs the extra "train": pip install "flasepformer[train]"') from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Recipe)
    return parser
