"""What a run is trained and validated on, as its recipe says: fixed mixtures, or ones drawn from speech."""

import csv
import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flasepformer.data import (
    DynamicMixing,
    DynamicMixingConfig,
    Examples,
    FixedMixtures,
    Mixture,
    MixtureFiles,
    SpeechStore,
    TurnTaking,
    Utterance,
    check_disjoint,
    read_split,
    read_utterances,
    shared_speakers,
)
from flasepformer.data.mixture_manifest import is_mixture_manifest
from flasepformer.training.recipe import DataConfig, Recipe
from flasepformer.training.run_folder import TrainingError

VALID_SEED = 1
"""Of the validation mixtures; the same for every run, so that runs compare."""

_CLEAN: dict[str, Any] = {"noise": (), "rooms": "", "equalization_db": 0.0, "band_limit_probability": 0.0}


def open_examples(recipe: Recipe, cache: str | Path) -> tuple[Examples, Examples]:
    """Return what to train on and what to validate on.

    Args:
        recipe: Its `data` and `mixing` decide.
        cache: Folder that keeps the decoded speech.

    Raises:
        FileNotFoundError: There is no such speech, or no such manifest.
        ValueError: The recipe names none, a speaker is in both splits, or the mixtures are not for this
            model.
        TrainingError: Too many recordings are corrupt.
    """
    data, mixing = recipe.data, recipe.mixing
    train = _list(recipe, data.train_on, data.train_split)
    valid = _list(recipe, data.validate_on, data.valid_split)
    _check_speakers(data, train, valid)
    valid_seconds = data.valid_segment_seconds or None
    return (
        _open(recipe, train, mixing.segment_seconds, mixing, recipe.seed, cache),
        _open(recipe, valid, valid_seconds, _valid_mixing(recipe), VALID_SEED, cache),
    )


class FurtherValidation(NamedTuple):
    """What is validated on beside the validation split."""

    held_out: DynamicMixing | None
    """Mixtures of the speakers that are held out of the training split."""
    conversations: Sequence[Mixture]
    """See `DataConfig.n_valid_conversations`."""


def open_further_validation(recipe: Recipe, cache: str | Path) -> FurtherValidation:
    """Return what the recipe asks to be validated on beside `valid_split`; raises as `open_examples`."""
    data = recipe.data
    held_out, conversations = None, []
    if data.held_out_share:
        split = _list(recipe, "speech", data.train_split, held_out=True)
        held_out = DynamicMixing(_store(recipe, split, cache), _valid_mixing(recipe), VALID_SEED, cache=cache)
    if data.n_valid_conversations:
        store = _store(recipe, _list(recipe, "speech", data.valid_split), cache)
        turns = TurnTaking(store, data.n_valid_conversations)
        conversations = [turns[index] for index in range(len(turns))]
    return FurtherValidation(held_out, conversations)


def n_valid_mixtures(recipe: Recipe, examples: Examples) -> int:
    """Return how many mixtures a validation takes."""
    n_mixtures = recipe.data.n_valid_mixtures
    if not isinstance(examples, FixedMixtures):
        return n_mixtures
    return min(n_mixtures or len(examples), len(examples))


Batch = tuple[Tensor, Tensor, Mapping[str, str]]
"""Mixtures (batch, time), sources (batch, source, time), and name and fault of the corrupt mixtures that this
process has met so far."""


def take_example(examples: Examples, index: int, seconds: float | None = None) -> tuple[Tensor, Tensor]:
    """Return mixture (time,) and sources (source, time); of `seconds` if they are drawn from speech.

    Raises:
        TrainingError: None can be read or drawn any more.
    """
    try:
        if seconds is not None and isinstance(examples, DynamicMixing):
            return examples.example(index, seconds)
        return examples.example(index)
    except ValueError as error:
        raise TrainingError(str(error)) from error


class Draw(NamedTuple):
    """What a process computes in a step."""

    indices: Sequence[int]
    """Of the examples."""
    seconds: float | None
    """Their length; None is the usual one."""


class BatchTable(Dataset[Batch | TrainingError]):
    """Batches by what is drawn for them, so that worker processes can make them.

    An error is returned, not raised: one that a worker raises arrives with a traceback in its message.
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, draw: Draw) -> Batch | TrainingError:
        try:
            taken = [take_example(self.examples, index, draw.seconds) for index in draw.indices]
        except TrainingError as error:
            return error
        mixtures, sources = zip(*taken, strict=True)
        corrupt = dict(self.examples.corrupt) if isinstance(self.examples, FixedMixtures) else {}
        return torch.stack(mixtures), torch.stack(sources), corrupt


class CorruptMixtures:
    """Counts the corrupt mixtures of a split over all processes, and ends a run that has too many.

    Args:
        split: Its name.
        n_mixtures: How many it has.
        max_share: Largest share of them that may be corrupt.
    """

    def __init__(self, split: str, n_mixtures: int, max_share: float) -> None:
        self.split, self.n_mixtures, self.max_share = split, n_mixtures, max_share
        self.found: dict[str, str] = {}

    def check(self, found: Mapping[str, str], *, tell: bool) -> None:
        """Take in what this process has found; every process must call this at the same steps.

        Args:
            found: Name and fault of each corrupt mixture.
            tell: Say on stderr what is new.

        Raises:
            TrainingError: There are more than may be.
        """
        from accelerate.utils import gather_object

        everywhere = dict(sorted(gather_object(list(found.items()))))
        new = {name: fault for name, fault in everywhere.items() if name not in self.found}
        self.found |= new
        faults = "; ".join(f"{name}: {fault}" for name, fault in list(new.items())[:3])
        counted = f"{len(self.found)} of {self.n_mixtures} mixtures of split {self.split!r} are corrupt"
        if new and tell:
            print(f"{counted} and replaced by others; new: {faults}", file=sys.stderr)
        if len(self.found) > self.max_share * self.n_mixtures:
            raise TrainingError(
                f"{counted}, more than data.max_corrupt_share {self.max_share}; {faults}; "
                "mend them, leave them out of the manifest, or raise that share"
            )


@dataclass(frozen=True)
class _Split:
    """What there is of a split: recordings of single talkers, or mixtures."""

    name: str
    utterances: Sequence[Utterance] = ()
    mixtures: Sequence[MixtureFiles] = ()

    @property
    def items(self) -> list[Utterance | MixtureFiles]:
        return [*self.utterances, *self.mixtures]


def is_held_out(utterance: Utterance, data: DataConfig) -> bool:
    """Say whether a recording is of a speaker whom the training never hears; see `held_out_share`."""
    if not utterance.corpus.startswith(data.held_out_corpora):
        return False
    digest = hashlib.sha256(utterance.speaker.encode()).digest()
    return int.from_bytes(digest[:8]) < data.held_out_share * 2**64


def _list(
    recipe: Recipe, kind: Literal["speech", "mixtures"], split: str, *, held_out: bool = False
) -> _Split:
    data, model = recipe.data, recipe.model
    if kind == "speech":
        if not data.speech:
            raise ValueError("the recipe names no speech; set data.speech to a folder or a manifest")
        exclude = {"licence": data.exclude_licences} if data.exclude_licences else None
        utterances = read_utterances(data.speech, split, exclude=exclude)
        if split == data.train_split and data.held_out_share:
            utterances = [item for item in utterances if is_held_out(item, data) == held_out]
        if not utterances:
            raise ValueError(
                f"data.held_out_share {data.held_out_share} of the speakers of the corpora "
                f"{', '.join(data.held_out_corpora)} leaves nobody to "
                f"{'validate' if held_out else 'train'} on"
            )
        return _Split(f"{split}, held out" if held_out else split, utterances=utterances)
    if not data.mixtures:
        raise ValueError("the recipe names no mixtures; set data.mixtures to a folder of manifests")
    mixtures = _read_mixtures(data.mixtures, split)
    found = {(item.sample_rate, len(item.sources)) for item in mixtures}
    if found != {(model.sample_rate, model.n_sources)}:
        kinds = " and ".join(f"{n} talkers at {rate} Hz" for rate, n in sorted(found))
        raise ValueError(
            f"the mixtures of split {split!r} of {data.mixtures} have {kinds}, "
            f"the model separates {model.n_sources} at {model.sample_rate} Hz"
        )
    return _Split(split, mixtures=mixtures)


def _read_mixtures(folder: str, split: str) -> list[MixtureFiles]:
    """Read a manifest of a set; where there is none, name those that there are."""
    try:
        return read_split(folder, split)
    except FileNotFoundError as error:
        root = Path(folder)
        tables = sorted(path for depth in ("*.csv", "*/*.csv") for path in root.glob(depth))
        manifests = filter(_lists_mixtures, tables)
        names = [path.relative_to(root).with_suffix("").as_posix() for path in manifests]
        found = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        way = (
            f"it has {found}: give two of them as data.train_split and data.valid_split"
            if names
            else "`flasepformer prepare` and `flasepformer mixtures --kind set` write some"
        )
        raise FileNotFoundError(f"no manifest {split}.csv in {folder}; {way}") from error


def _lists_mixtures(table: Path) -> bool:
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        return is_mixture_manifest(next(csv.reader(file), []))


def _check_speakers(data: DataConfig, train: _Split, valid: _Split) -> None:
    if not data.allow_shared_speakers:
        try:
            check_disjoint(train.items, valid.items)
        except ValueError as error:
            reason = f"{error}; data.allow_shared_speakers is for sets that are published so"
            raise ValueError(reason) from error
    elif shared := shared_speakers(train.items, valid.items):
        print(
            f"{len(shared)} speakers are in both {train.name!r} and {valid.name!r}, as the recipe allows: "
            "the validation says nothing of strangers",
            file=sys.stderr,
        )


def _valid_mixing(recipe: Recipe) -> DynamicMixingConfig:
    data = recipe.data
    return dataclasses.replace(
        recipe.mixing,
        segment_seconds=data.valid_segment_seconds or recipe.mixing.segment_seconds,
        speed_range=(1.0, 1.0),
        absent_probability=0.0,  # a silent source has no SI-SNR
        conversation_probability=0.0,
        **(_CLEAN if data.valid_clean else {}),
    )


def _open(
    recipe: Recipe,
    split: _Split,
    segment_seconds: float | None,
    mixing: DynamicMixingConfig,
    seed: int,
    cache: str | Path,
) -> Examples:
    if split.mixtures:  # how many may be corrupt is counted over all processes, by `CorruptMixtures`
        return FixedMixtures(split.mixtures, segment_seconds, seed, max_corrupt_share=1.0)
    return DynamicMixing(_store(recipe, split, cache), mixing, seed, cache=cache)


def _store(recipe: Recipe, split: _Split, cache: str | Path) -> SpeechStore:
    """Decode the recordings of a split."""
    n_all, max_share = len(split.utterances), recipe.data.max_corrupt_share
    rate = recipe.model.sample_rate
    limit = f"data.max_corrupt_share is {max_share}; mend them, leave them out, or raise it"
    try:
        store = SpeechStore.load(
            split.utterances, rate, cache=cache, max_corrupt_share=max_share, progress=True
        )
    except ValueError as error:  # it names the first of them
        raise TrainingError(f"split {split.name!r}: {error}; {limit}") from error
    if store.n_corrupt:
        print(f"{split.name}: skipped {store.n_corrupt} corrupt of {n_all} recordings", file=sys.stderr)
    if store.n_corrupt > max_share * n_all:
        raise TrainingError(
            f"split {split.name!r}: {store.n_corrupt} of {n_all} utterances are corrupt; {limit}"
        )
    return store
