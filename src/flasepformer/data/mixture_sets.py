"""Fixed sets of mixtures with known sources: lists of recipes, folders of files, manifests of files."""

import csv
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from flasepformer.audio import AUDIO_EXTENSIONS, read_audio
from flasepformer.data.long_mixtures import LongMixture
from flasepformer.data.manifest import Utterance
from flasepformer.data.mixture import Mixture, MixtureSet, read_mixture, sex_letter, talker_groups
from flasepformer.data.mixture_manifest import MixtureFiles, is_mixture_manifest, read_mixture_manifest
from flasepformer.data.speech_store import mono
from flasepformer.files import written_whole

T = TypeVar("T")
_COLUMNS = ("path", "speaker", "gain_db", "start_s", "sex", "corpus")  # of each source

_MAX_COMBINATIONS = 2_000_000  # of speakers, listed in memory

LEVEL_DB = -26.0
"""RMS level against full scale of a source at gain 0."""
MAX_PEAK = 0.9
"""A mixture above it is turned down as a whole."""


@dataclass(frozen=True)
class MixtureSpec:
    """How to make one mixture; all tuples have one entry for each source."""

    name: str
    paths: tuple[Path, ...]
    speakers: tuple[str, ...]
    gains_db: tuple[float, ...]
    """Level of each source, about a common level."""
    starts_seconds: tuple[float, ...]
    """Where in its recording each source starts."""
    sexes: tuple[str, ...] = ()
    corpora: tuple[str, ...] = ()

    @property
    def groups(self) -> dict[str, str]:
        """The sexes and the corpora of the talkers, in alphabetic order; empty where not all are known."""
        return talker_groups(self.sexes, self.corpora)


def make_mixture_list(
    utterances: Sequence[Utterance],
    n_mixtures: int,
    seed: int,
    *,
    n_sources: int = 2,
    gain_range_db: tuple[float, float] = (-2.5, 2.5),
) -> list[MixtureSpec]:
    """Draw mixtures of different speakers.

    The combinations of sexes (FF, FM, MM, and all that hold an unknown) take turns; within one, a combination
    of speakers comes back only after all others had their turn, and so does an utterance of a speaker.

    Args:
        utterances: Single-talker recordings.
        n_mixtures: How many to draw.
        seed: The same seed gives the same list.
        n_sources: Speakers in each mixture.
        gain_range_db: Range of the gain of each source, uniform.

    Raises:
        ValueError: There are fewer speakers than sources.
    """
    rng = np.random.default_rng(seed)
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    combinations = speaker_combinations(by_speaker, n_sources, rng)
    recordings = {name: shuffled_forever(items, rng) for name, items in sorted(by_speaker.items())}
    specs = []
    for number, speakers in zip(range(n_mixtures), combinations, strict=False):
        chosen = [next(recordings[speakers[i]]) for i in rng.permutation(n_sources)]
        specs.append(
            MixtureSpec(
                name=f"{number:04d}_" + "_".join(utterance.path.stem for utterance in chosen),
                paths=tuple(utterance.path for utterance in chosen),
                speakers=tuple(utterance.speaker for utterance in chosen),
                gains_db=tuple(round(float(gain), 3) for gain in rng.uniform(*gain_range_db, n_sources)),
                starts_seconds=(0.0,) * n_sources,
                sexes=tuple(utterance.sex for utterance in chosen),
                corpora=tuple(utterance.corpus for utterance in chosen),
            )
        )
    return specs


def speaker_combinations(
    by_speaker: Mapping[str, Sequence[Utterance]], n_sources: int, rng: np.random.Generator
) -> Iterator[tuple[str, ...]]:
    """Yield combinations of speakers without end, as `make_mixture_list` draws them.

    When there are more than two million, the speakers are drawn at random instead of in turns.

    Raises:
        ValueError: There are fewer speakers than sources.
    """
    if len(by_speaker) < n_sources:
        raise ValueError(f"mixtures of {n_sources} need as many speakers, got {len(by_speaker)}")
    names = sorted(by_speaker)
    if math.comb(len(names), n_sources) > _MAX_COMBINATIONS:
        return (tuple(rng.choice(names, n_sources, replace=False).tolist()) for _ in itertools.count())
    by_sexes: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for speakers in itertools.combinations(names, n_sources):
        sexes = tuple(sorted(sex_letter(by_speaker[speaker][0].sex) for speaker in speakers))
        by_sexes[sexes if all(sexes) else ()].append(speakers)
    turns = [shuffled_forever(by_sexes[sexes], rng) for sexes in sorted(by_sexes)]
    return (next(turn) for turn in itertools.cycle(turns))


def shuffled_forever(items: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """Yield all items in a random order, then all again in another one, without end."""
    while True:
        for i in rng.permutation(len(items)):
            yield items[i]


def write_mixture_list(specs: Sequence[MixtureSpec], path: str | Path) -> None:
    """Write a list as CSV, one mixture per row, with paths relative to the CSV's folder."""
    path = Path(path)
    n_sources = len(specs[0].paths)
    columns = [f"{column}_{s}" for s in range(1, n_sources + 1) for column in _COLUMNS]
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *columns])
        for spec in specs:
            files = [Path(os.path.relpath(source, path.parent)).as_posix() for source in spec.paths]
            unknown = ("",) * n_sources
            per_source = zip(
                files,
                spec.speakers,
                spec.gains_db,
                spec.starts_seconds,
                spec.sexes or unknown,
                spec.corpora or unknown,
                strict=True,
            )
            writer.writerow([spec.name, *itertools.chain.from_iterable(per_source)])


def read_mixture_list(path: str | Path) -> list[MixtureSpec]:
    """Read a list that `write_mixture_list` wrote.

    Raises:
        ValueError: A column is missing, a number is not one, or there is no row.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        header = reader.fieldnames or []
        n_sources = max(1, sum(column.startswith("path_") for column in header))
        needed = ["name", *(f"{column}_{s}" for s in range(1, n_sources + 1) for column in _COLUMNS[:4])]
        missing = [column for column in needed if column not in header]
        if missing:
            raise ValueError(f"{path} is no list of mixtures: it lacks {', '.join(missing)}, it has {header}")
        specs = []
        for row in reader:

            def values(column: str, row: dict[str, str] = row) -> tuple[str, ...]:
                return tuple(row.get(f"{column}_{s}") or "" for s in range(1, n_sources + 1))

            try:
                spec = MixtureSpec(
                    name=row["name"],
                    paths=tuple(path.parent / file for file in values("path")),
                    speakers=values("speaker"),
                    gains_db=tuple(map(float, values("gain_db"))),
                    starts_seconds=tuple(map(float, values("start_s"))),
                    sexes=values("sex"),
                    corpora=values("corpus"),
                )
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
            specs.append(spec)
    if not specs:
        raise ValueError(f"{path} lists no mixture")
    return specs


def render(spec: MixtureSpec, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Make one mixture: bring each recording to its level, cut all to the shortest ('min' mode), add.

    Returns:
        Mixture (time,) and sources (source, time), float32; the mixture is the sum of the sources.

    Raises:
        ValueError: A recording cannot be read, is silent, or starts after its end.
    """
    waveforms = []
    for path, gain_db, start in zip(spec.paths, spec.gains_db, spec.starts_seconds, strict=True):
        waveform = mono(read_audio(path), sample_rate)
        level = np.sqrt(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
        waveform = waveform[round(start * sample_rate) :]
        if level == 0 or len(waveform) == 0:
            raise ValueError(f"mixture {spec.name}: {path} is silent, or shorter than its start {start} s")
        waveforms.append(waveform * np.float32(10 ** ((LEVEL_DB + gain_db) / 20) / level))
    n_samples = min(map(len, waveforms))
    sources = torch.from_numpy(np.stack([waveform[:n_samples] for waveform in waveforms]))
    sources *= min(1.0, MAX_PEAK / max(float(sources.sum(0).abs().max()), 1e-9))
    return sources.sum(0), sources


@dataclass(frozen=True)
class MixtureList:
    """A set of mixtures that are made from single-talker recordings, at one sample rate (Hz)."""

    specs: Sequence[MixtureSpec]
    sample_rate: int

    @property
    def names(self) -> Sequence[str]:
        """Name of every mixture."""
        return [spec.name for spec in self.specs]

    @property
    def n_sources(self) -> int:
        """Speakers in each mixture."""
        return len(self.specs[0].paths)

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, index: int) -> Mixture:
        spec = self.specs[index]
        return Mixture(spec.name, *render(spec, self.sample_rate), self.sample_rate, spec.groups)


class MixtureFolder:
    """A set of mixtures on disk: `{mix*,s1,s2[,s3]}/NAME.wav`, as in WSJ0-2mix, WHAM!, WHAMR! and LibriMix.

    Args:
        root: Folder with the folders of the mixtures and of the sources, e.g. `wav8k/min/tt`.
        mix_dir: Folder of the mixtures; found by itself when only one begins with "mix".
        source_dirs: Folders of the sources; by default `s1`, `s2`, ... as many as there are, or where the
            talkers are in rooms (WHAMR!, `mixtures --reverberant`) the dry `s1_anechoic`, `s2_anechoic`, ...

    Raises:
        ValueError: A folder is missing or ambiguous, or a mixture lacks a source.
    """

    def __init__(
        self, root: str | Path, mix_dir: str | None = None, source_dirs: Sequence[str] | None = None
    ) -> None:
        self.root = Path(root)
        folders = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        mix_dirs = [mix_dir] if mix_dir else [name for name in folders if name.startswith("mix")]
        self.source_dirs = list(source_dirs or _numbered(folders) or _numbered(folders, "_anechoic"))
        if len(mix_dirs) != 1 or not self.source_dirs or not {*mix_dirs, *self.source_dirs} <= {*folders}:
            raise ValueError(
                f"{root} must hold one folder of mixtures and folders s1, s2, ... of sources, has {folders}; "
                "name mix_dir (and source_dirs) to choose, or give a manifest (CSV) of the set"
            )
        self.mix_dir = mix_dirs[0]
        self.files = sorted(
            path.name
            for path in (self.root / self.mix_dir).iterdir()
            if path.suffix.lower() in AUDIO_EXTENSIONS
        )
        if not self.files:
            raise ValueError(f"no recordings in {self.root / self.mix_dir}")
        for file, folder in itertools.product(self.files, self.source_dirs):
            if not (self.root / folder / file).is_file():
                raise ValueError(f"mixture {file} lacks its source {self.root / folder / file}")

    @property
    def names(self) -> Sequence[str]:
        """Name of every mixture."""
        return [Path(file).stem for file in self.files]

    @property
    def n_sources(self) -> int:
        """Speakers in each mixture."""
        return len(self.source_dirs)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Mixture:
        return read_mixture(*self._files(index))

    def open_long(self, index: int) -> LongMixture:
        """Open a mixture that need not fit into the memory."""
        return LongMixture(*self._files(index), {})

    def _files(self, index: int) -> tuple[str, Path, list[Path]]:
        file = self.files[index]
        mixture, *sources = (self.root / folder / file for folder in (self.mix_dir, *self.source_dirs))
        return Path(file).stem, mixture, sources


@dataclass(frozen=True)
class MixtureManifest:
    """A set of mixtures on disk, read when they are asked for."""

    files: Sequence[MixtureFiles]

    @property
    def names(self) -> Sequence[str]:
        """Name of every mixture."""
        return [item.name for item in self.files]

    @property
    def n_sources(self) -> int:
        """Speakers in each mixture."""
        return len(self.files[0].sources)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Mixture:
        return read_mixture(*self._files(index))

    def open_long(self, index: int) -> LongMixture:
        """Open a mixture that need not fit into the memory."""
        return LongMixture(*self._files(index))

    def _files(self, index: int) -> tuple[str, Path, Sequence[Path], dict[str, str]]:
        item = self.files[index]
        groups = talker_groups(item.sexes, item.corpora) if item.sexes else {}
        return item.name, item.mixture, item.sources, groups


def _numbered(folders: Sequence[str], ending: str = "") -> list[str]:
    """Return the folders s1, s2, ... of the talkers."""
    return [name for name in folders if re.fullmatch(rf"s\d+{ending}", name)]


def open_mixtures(path: str | Path, sample_rate: int, mix_dir: str | None = None) -> MixtureSet:
    """Open a folder or a manifest of mixtures on disk, or a list to be made at `sample_rate` (Hz).

    Raises:
        ValueError: It is none of these, or `mix_dir` is to choose where there is no choice.
    """
    if Path(path).is_dir():
        return MixtureFolder(path, mix_dir)
    if mix_dir:
        raise ValueError(f"mix_dir chooses a folder of a set, but {path} is a file, which names its mixtures")
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            header = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no CSV list or manifest of mixtures: it is not text") from error
    if is_mixture_manifest(header):
        return MixtureManifest(read_mixture_manifest(path))
    return MixtureList(read_mixture_list(path), sample_rate)
