"""A training run as data: what is trained, on what, and how; read from YAML, saved with the run."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from flasepformer.data import DynamicMixingConfig
from flasepformer.installing import how_to_install
from flasepformer.models import SepReformerConfig
from flasepformer.models.registry import FAMILIES, build_model, registered_names

DEFAULT_FAMILY = "sepreformer"
"""Of a recipe that names none."""

NEEDS_EXTRA = f'training needs the extra "train": {how_to_install("train")}'


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained and validated on: mixtures drawn anew from single talkers, or fixed ones on disk."""

    train_on: Literal["speech", "mixtures"] = "speech"
    """Draw mixtures anew from `speech` for every step (dynamic mixing), or take segments of `mixtures`."""
    validate_on: Literal["speech", "mixtures"] = "speech"
    """Draw mixtures from `speech` once and for all, or take those of `mixtures`."""
    speech: str = ""
    """Single talkers: a folder with a folder per speaker, or a CSV manifest; or a folder of manifests of
    mixtures, whose sources are taken. See `data.read_utterances`."""
    mixtures: str = ""
    """Fixed mixtures: a folder of manifests, `SPLIT.csv`, as `flasepformer prepare` writes it."""
    train_split: str = "train"
    """Split that is trained on."""
    valid_split: str = "valid"
    """Split that is validated on; none of its speakers may be in the other."""
    allow_shared_speakers: bool = False
    """Let speakers be in both of these splits.

    For sets that are published so: the speakers of `cv` in WSJ0-2mix, WHAM! and WHAMR! are those of `tr`, and
    results are published for the weights that `cv` chose. Such a validation tells one step from another, and
    says nothing of strangers. Their test speakers are others; training opens no test split. The splits of
    LibriMix share nobody."""
    exclude_licences: tuple[str, ...] = ()
    """Leave out the recordings of `speech` under these licences."""
    held_out_share: float = 0.0
    """Share of the speakers of `held_out_corpora` in `train_split` that are not trained on but validated on,
    beside `valid_split`: the first ones by the SHA-256 of their names."""
    held_out_corpora: tuple[str, ...] = ()
    """Beginnings of the names of corpora in the manifest of `speech`; for `held_out_share`."""
    n_valid_conversations: int = 0
    """Fixed conversations of speakers of `valid_split` in turns of 4 s without overlap, to count the turns
    that come out on the wrong track."""
    n_valid_mixtures: int = 100
    """Fixed mixtures that the model is validated on; of `mixtures` at most so many, drawn at random, and 0
    takes all."""
    valid_segment_seconds: float = 4.0
    """Length of those mixtures, whatever the length that is trained on; 0 takes those of `mixtures` whole."""
    valid_clean: bool = False
    """Validate on clean `speech`, even if `mixing` adds noise, rooms, equalization or band limits."""
    n_workers: int = 0
    """Processes that mix or read; 0 does it in the training process."""
    max_corrupt_share: float = 0.01
    """Share of a split that may be corrupt: recordings of `speech` that are unreadable or silent, with more
    the run does not begin; or `mixtures` that are not as their manifest says, with more the run ends. Of a
    split below 100 items, the usual share leaves room for none."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_corrupt_share < 1:
            raise ValueError(
                f"max_corrupt_share must be at least 0 and below 1, got {self.max_corrupt_share}"
            )
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"held_out_share must be at least 0 and below 1, got {self.held_out_share}")
        if (self.held_out_share > 0) != bool(self.held_out_corpora):
            raise ValueError("held_out_share and held_out_corpora need each other")
        if self.n_valid_conversations < 0:
            raise ValueError(f"n_valid_conversations must not be negative, got {self.n_valid_conversations}")
        is_fixed = self.validate_on == "mixtures"
        if (self.held_out_share or self.n_valid_conversations) and (is_fixed or self.train_on == "mixtures"):
            raise ValueError("held_out_share and n_valid_conversations are for training on speech alone")
        least, which = (0, "") if is_fixed else (1, " where mixtures are drawn from speech")
        if self.n_valid_mixtures < least:
            raise ValueError(f"n_valid_mixtures must be at least {least}{which}, got {self.n_valid_mixtures}")
        if self.valid_segment_seconds < 0 or (self.valid_segment_seconds == 0 and not is_fixed):
            raise ValueError(
                f"valid_segment_seconds must be {'at least 0' if is_fixed else 'positive' + which}, "
                f"got {self.valid_segment_seconds}"
            )
        if self.valid_clean and is_fixed:
            raise ValueError("valid_clean is for validation on speech; fixed mixtures stay as they are")


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How the weights are found. An epoch is `Recipe.epoch_steps` steps and ends with a validation."""

    n_steps: int = 100_000
    """Steps of the whole training; `warmup_steps` and `decay_steps` are among them."""
    batch_size: int = 4
    """Mixtures that each process computes at a time."""
    accumulate_steps: int = 1
    """Such batches in one step, whose gradients are averaged."""
    long_every: int = 0
    """Every so many steps one takes longer segments, in which a network learns who is who; 0 never does."""
    long_seconds: tuple[float, float] = (15.0, 30.0)
    """Their length, whole seconds, the same for all mixtures of a step."""
    long_batch_size: int = 1
    """Mixtures of such a step, in place of `batch_size`."""
    loss_limit_db: float = 0.0
    """A separation this good earns little more, so that what is easy, such as talkers who take turns, does
    not outweigh the rest; 0 sets no limit."""
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
    mixture_clip: float = 0.0
    """Largest norm of what one mixture sends back through a block, in medians of its batch; 0 sets no limit.
    See `flasepformer.training.balance`."""
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
    precision: Literal["no", "bf16", "auto"] = "no"
    """Mixed precision; the loss is always computed in float32. "auto" measures at the start of the run if the
    machine is clearly faster in bfloat16, says so, and decides by it; Muon orthogonalizes in the same."""
    checkpoint_activations: bool = False
    """Compute the blocks a second time in the backward pass instead of keeping what is in them: less memory,
    for long segments, at the price of another forward pass."""
    max_bad_steps: int = 20
    """Steps in a row with a loss or gradient that is not finite before the run gives up."""

    def __post_init__(self) -> None:
        counts = (
            "n_steps", "batch_size", "accumulate_steps", "average_best", "auxiliary_decay_epochs",
            "long_batch_size",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        together = self.warmup_steps + self.decay_steps
        if together > self.n_steps:
            warmup_steps, decay_steps = (
                count * self.n_steps // together for count in (self.warmup_steps, self.decay_steps)
            )
            raise ValueError(
                f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps} are together more than "
                f"n_steps {self.n_steps}, and the learning rate would never reach its peak; raise n_steps to "
                f"{together}, or lower them, for instance to {warmup_steps} and {decay_steps}"
            )
        if self.long_every < 0:
            raise ValueError(f"long_every must not be negative, got {self.long_every}")
        if self.long_every and not 1 <= self.long_seconds[0] <= self.long_seconds[1]:
            raise ValueError(f"long_seconds must run from low to high, from 1 on, got {self.long_seconds}")
        if self.long_every and self.long_batch_size > self.batch_size:
            raise ValueError(
                f"long_batch_size must be at most batch_size, {self.batch_size}, got {self.long_batch_size}"
            )
        if self.loss_limit_db < 0:
            raise ValueError(f"loss_limit_db must not be negative, got {self.loss_limit_db}")
        if self.mixture_clip < 0:
            raise ValueError(f"mixture_clip must not be negative, got {self.mixture_clip}")
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
    data: DataConfig = field(default_factory=DataConfig)
    """The speech, or the mixtures."""
    mixing: DynamicMixingConfig = field(default_factory=DynamicMixingConfig)
    """How mixtures are drawn from speech. Of this, `n_sources` and `segment_seconds` hold for fixed mixtures
    that are trained on, too."""
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
    n_logged_mixtures: int = 2
    """Validation mixtures whose tracks and spectrograms go to TensorBoard at every validation."""
    description: str = ""
    """One sentence for the model's card."""
    licence: str = ""
    """Licence of the trained weights."""
    trained_on: str = ""
    """What the weights were trained on, for the card; by default the names of the data."""

    def __post_init__(self) -> None:
        if self.model.n_sources != self.mixing.n_sources:
            raise ValueError(
                "model.n_sources and mixing.n_sources must agree, "
                f"got {self.model.n_sources} and {self.mixing.n_sources}"
            )
        if self.data.train_on == self.data.validate_on == "mixtures":
            usual = DynamicMixingConfig(
                n_sources=self.mixing.n_sources, segment_seconds=self.mixing.segment_seconds
            )
            names = (field.name for field in dataclasses.fields(usual))
            idle = [f"mixing.{name}" for name in names if getattr(self.mixing, name) != getattr(usual, name)]
            if idle:
                raise ValueError(f"{', '.join(idle)}: of no effect, as no mixture is drawn from speech")
        longest = self.mixing.segment_seconds
        if self.optimization.long_every and self.data.train_on == "mixtures":
            raise ValueError("optimization.long_every is for mixtures that are drawn from speech")
        if self.optimization.long_every and self.optimization.long_seconds[0] <= longest:
            raise ValueError(
                f"optimization.long_seconds must lie above mixing.segment_seconds, {longest}, "
                f"got {self.optimization.long_seconds}"
            )
        if self.n_logged_mixtures < 0:
            raise ValueError(f"n_logged_mixtures must not be negative, got {self.n_logged_mixtures}")
        if self.fourier_filters and self.family != "sepreformer":
            raise ValueError(f"fourier_filters is for the family sepreformer, not {self.family}")
        if self.epoch_steps < 1:
            raise ValueError(f"an epoch must have at least 1 step, got {self.epoch_steps}")

    @property
    def family(self) -> str:
        """Family of the network, a key of `models.registry.FAMILIES`."""
        return next(name for name, (config, _) in FAMILIES.items() if isinstance(self.model, config))

    @property
    def card(self) -> dict[str, str]:
        """What is to be known of the weights: description, licence and data."""
        trained_on = self.trained_on or _place(getattr(self.data, self.data.train_on))
        return {"description": self.description, "licence": self.licence, "data": trained_on}

    @property
    def epoch_steps(self) -> int:
        """Steps from one validation to the next."""
        return self.steps_per_epoch or self.validate_every


_READING_KEYS = ("base", "family", "model_name")
"""What a recipe can say besides the fields of `Recipe`."""
_CARD_KEYS = ("description", "licence", "trained_on")
"""What a recipe says of the weights that its data give."""
_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "mixing": DynamicMixingConfig,
    "optimization": OptimizationConfig,
}
"""Whose keys stand under the key of the section; `model` is one more, whose config the family decides."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Beside the fields of `Recipe` it may say `family`, which decides what `model` has for fields, or
    `model_name`, a name such as "fla-sepreformer-b" that fills them in; what stands under `model` goes first.
    And it may say `base`, another recipe (relative to its own folder) of which it changes what it says.

    Args:
        path: YAML; an unknown key is an error, a missing one takes its default.
        overrides: Settings on top of it, such as "optimization.n_steps=20000". Where they name other data
            than the recipe, what it says of the weights (description, licence, trained_on) does not hold and
            is left out, unless they say that, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value is not of its type or out of its range.
    """
    documents = _with_bases(Path(path))
    settings = _top_level(documents, overrides)
    family, fields = _network(settings.get("family"), settings.get("model_name"))
    kinds = _kinds(family)
    values: dict[str, Any] = {f"model.{name}": value for name, value in fields.items()}
    for part, document in documents.items():
        for key, value in _flat(document).items():
            values[key] = _checked(key, value, kinds, str(part))
    stated = dict(values)
    for override in overrides:
        key, _, text = override.partition("=")
        where = f"setting {override}"
        _check_known(key, list(kinds), where)
        values[key] = _checked(key, _as_yaml(text, kinds[key], where), kinds, where)
    data = ("data.speech", "data.mixtures")
    if any(stated.get(key) and _place(stated[key]) != _place(values[key]) for key in data):
        for key in _CARD_KEYS:
            if not any(override.startswith(f"{key}=") for override in overrides):
                values.pop(key, None)
    sections: dict[str, dict[str, Any]] = {"model": {}, **{name: {} for name in _SECTIONS}}
    top: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (sections[section] if section else top)[name] = value
    configs = {"model": FAMILIES[family][0], **_SECTIONS}
    made = {name: configs[name](**settings) for name, settings in sections.items()}
    return Recipe(**made, **{key: value for key, value in top.items() if key not in _READING_KEYS})


def _place(path: Any) -> str:
    """Name data as a person does who need not know where they lie: a folder, or a list in a folder."""
    if not path:
        return ""
    path = Path(path)
    return f"{path.absolute().parent.name}/{path.name}" if path.suffix else path.absolute().name


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


def _with_bases(path: Path) -> dict[Path, dict[str, Any]]:
    """Return what a recipe says, after what the recipe that it is based on says, and so on."""
    documents: dict[Path, dict[str, Any]] = {}
    part: Path | None = path
    while part is not None:
        if part.resolve() in map(Path.resolve, documents):
            raise ValueError(f"{path} is based on itself, by {' and '.join(map(str, documents))}")
        documents[part] = _read(part)
        base = documents[part].get("base")
        part = part.parent / str(base) if base else None
    return dict(reversed(documents.items()))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
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
    for section in ("model", *_SECTIONS):
        if section in settings and settings[section] is None:  # all that stands under it is commented out
            settings[section] = {}
        if not isinstance(settings.get(section, {}), dict):
            raise ValueError(f"{path}: {section} must hold keys and values, got {settings[section]!r}")
    return settings


def _top_level(documents: Mapping[Path, Mapping[str, Any]], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the top-level settings that decide how the others are read."""
    settings: dict[str, Any] = {}
    for document in documents.values():
        settings |= document
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key or key in ("base", "model", *_SECTIONS):
            raise ValueError(f"a setting is a key of the recipe and its value, KEY=VALUE, got {override!r}")
        settings[key] = value
    return settings


def _flat(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the keys of a recipe with their values, those of a section with its name before them."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, dict) else {}
        flat |= {} if isinstance(value, dict) else {str(key): value}
    return flat


def _kinds(family: str) -> dict[str, Any]:
    """Return what a recipe for a network of that family can say, and of what type each value is."""
    sections = {"model": FAMILIES[family][0], **_SECTIONS}
    kinds = {key: kind for key, kind in get_type_hints(Recipe).items() if key not in sections}
    for name, config in sections.items():
        kinds |= {f"{name}.{field}": kind for field, kind in get_type_hints(config).items()}
    return {**kinds, **dict.fromkeys(_READING_KEYS, str)}


def _as_yaml(text: str, kind: Any, where: str) -> Any:
    """Return the value that a setting names; text is taken as it stands."""
    import yaml

    if kind is str or get_origin(kind) is Literal:
        return None if text in ("", "null", "~") else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


def _checked(key: str, value: Any, kinds: Mapping[str, Any], where: str) -> Any:
    """Return a value as its key wants it; null is "none" where there is such a thing.

    Raises:
        ValueError: There is no such key, or the value is not of its type.
    """
    _check_known(key, list(kinds), where)
    kind = kinds[key]
    expected, convert = _reader(kind)
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        came = "nothing (null)" if value is None else repr(value)
        raise ValueError(f"{where}: {key} must be {expected}, got {came}") from error


def _reader(kind: Any) -> tuple[str, Callable[[Any], Any]]:
    """Return what a person is told that a value must be, and what makes it so or raises an error."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}", lambda value: _one_of(value, get_args(kind))
    if kind == tuple[str, ...]:
        return "a list, such as [one, another], or null", _texts
    if kind == tuple[float, float]:
        return "two numbers, such as [0.5, 2]", _two_numbers
    readers: dict[Any, tuple[str, Callable[[Any], Any]]] = {
        int: ("a whole number", _whole), float: ("a number", _number), bool: ("true or false", _truth),
        str: ("text, or null for none", _text),
    }  # fmt: skip
    return readers[kind]


def _one_of(value: Any, choices: Sequence[Any]) -> Any:
    value = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value  # YAML's no
    if value not in choices:
        raise ValueError(value)
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)  # text, too: YAML takes 1e-3 for text


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    return value if isinstance(value, int) else int(number)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _text(value: Any) -> str:
    if isinstance(value, (bool, list, dict)):
        raise TypeError(value)
    return "" if value is None else str(value)


def _texts(value: Any) -> tuple[str, ...]:
    values = [] if value is None or value == "" else value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in values):
        raise TypeError(value)
    return tuple(values)


def _two_numbers(value: Any) -> tuple[float, float]:
    if not isinstance(value, list):
        raise TypeError(value)
    low, high = map(_number, value)
    return low, high


def _check_known(key: str, keys: Sequence[str], where: str) -> None:
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: there is no key {key}{hint}")


def _network(family: Any, model_name: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the family that a recipe is about, and the fields of its config that it begins with."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if not model_name:
        return family or DEFAULT_FAMILY, {}
    if model_name not in registered_names():
        raise ValueError(f"model_name must be one of {', '.join(registered_names())}, got {model_name!r}")
    config = _registered_config(model_name)
    found = next(name for name, (config_class, _) in FAMILIES.items() if isinstance(config, config_class))
    if family not in (None, found):
        raise ValueError(f"model_name {model_name} is of the family {found}, but family says {family}")
    return found, vars(config)


@functools.cache
def _registered_config(model_name: str) -> Any:
    with torch.device("meta"):  # nothing is allocated
        return build_model(model_name).config
