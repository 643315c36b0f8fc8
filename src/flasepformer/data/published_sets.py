"""Published sets of mixtures as they lie on disk: checked file by file, then listed in manifests.

WSJ0-2mix and -3mix (Hershey et al., ICASSP 2016), WHAM! (Wichern et al., Interspeech 2019), WHAMR!
(Maciejewski et al., ICASSP 2020), Libri2Mix and Libri3Mix (Cosentino et al., 2020, arXiv:2005.11262).
"""

import csv
import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from flasepformer.audio import AudioError, Recording, read_audio
from flasepformer.data.mixture_manifest import MixtureFiles, write_mixture_manifest

_STEP = 1 / 2**15  # of 16 bits; each track of a sum may be rounded by one


@dataclass(frozen=True)
class Task:
    """Which folders a separation reads and is scored against; "{}" stands for the number of a talker."""

    mixture: str
    source: str = "s{}"
    """The target of a talker."""
    part: str = "s{}"
    """What the mixture holds of that talker."""
    noise: str = ""
    """What the mixture holds besides."""


@dataclass(frozen=True)
class PublishedSet:
    """Where the files of a set lie, how many there are, and what their names tell."""

    folder: str
    """Stands above wav8k and wav16k in the published layout; the root may also be that folder itself."""
    n_sources: int
    n_mixtures: Mapping[str, int]
    """In each split; of several train splits, one is enough."""
    tasks: Mapping[str, Task]
    """The first is what results are published for."""
    utterances: Callable[[str], list[str]]
    """The utterances in the name of a mixture."""
    speaker: Callable[[str], str]
    """The speaker in the name of an utterance."""
    shared_speakers: frozenset[str] = frozenset()
    """Splits that have their speakers in common by design."""


def _wsj0(folder: str, n_sources: int, tasks: Mapping[str, Task]) -> PublishedSet:
    return PublishedSet(
        folder=folder,
        n_sources=n_sources,
        n_mixtures={"tr": 20_000, "cv": 5_000, "tt": 3_000},
        tasks=tasks,
        utterances=lambda name: name.split("_")[::2],  # 447o0303_0.14_441c0212_-0.14: each with its level
        speaker=lambda utterance: utterance[:3],
        shared_speakers=frozenset({"tr", "cv"}),
    )


def _librimix(n_sources: int, n_train_100: int, n_train_360: int) -> PublishedSet:
    return PublishedSet(
        folder=f"Libri{n_sources}Mix",
        n_sources=n_sources,
        n_mixtures={"train-100": n_train_100, "train-360": n_train_360, "dev": 3_000, "test": 3_000},
        tasks={"clean": Task("mix_clean"), "noisy": Task("mix_both", noise="noise")},
        utterances=lambda name: name.split("_"),  # 4077-13754-0001_5142-33396-0065
        speaker=lambda utterance: utterance.split("-")[0],
    )


PUBLISHED_SETS: Mapping[str, PublishedSet] = MappingProxyType(
    {
        "wsj0-2mix": _wsj0("2speakers", 2, {"clean": Task("mix")}),
        "wsj0-3mix": _wsj0("3speakers", 3, {"clean": Task("mix")}),
        "wham": _wsj0("", 2, {"noisy": Task("mix_both", noise="noise"), "clean": Task("mix_clean")}),
        "whamr": _wsj0(
            "",
            2,
            {
                "noisy-reverberant": Task("mix_both_reverb", "s{}_anechoic", "s{}_reverb", "noise"),
                "reverberant": Task("mix_clean_reverb", "s{}_anechoic", "s{}_reverb"),
                "noisy": Task("mix_both_anechoic", "s{}_anechoic", "s{}_anechoic", "noise"),
                "clean": Task("mix_clean_anechoic", "s{}_anechoic", "s{}_anechoic"),
            },
        ),
        "libri2mix": _librimix(2, 13_900, 50_800),
        "libri3mix": _librimix(3, 9_300, 33_900),
    }
)
"""By the name that `flasepformer prepare` takes."""


class Finding(NamedTuple):
    """Something that is not as it should be."""

    kind: str
    """Findings of one kind are reported together: "silent source"."""
    what: str
    """The file or the thing, and what is the matter with it."""


@dataclass(frozen=True)
class SetReport:
    """What a check found."""

    task: str
    mixtures: Mapping[str, Sequence[MixtureFiles]]
    """By split, those without a problem of their own."""
    problems: Sequence[Finding]
    """What makes numbers wrong."""
    notes: Sequence[Finding]
    """What is worth knowing and does no harm."""

    def write(self, folder: str | Path) -> list[Path]:
        """Write one manifest per split into a folder, `SPLIT.csv`; return their paths."""
        paths = []
        Path(folder).mkdir(parents=True, exist_ok=True)
        for split, mixtures in self.mixtures.items():
            if mixtures:
                paths.append(Path(folder) / f"{split}.csv")
                write_mixture_manifest(mixtures, paths[-1])
        return paths


def check_published_set(
    name: str,
    root: str | Path,
    *,
    sample_rate: int = 8000,
    mode: str = "min",
    task: str | None = None,
    splits: Sequence[str] | None = None,
    partial: bool = False,
    n_threads: int | None = None,
    progress: bool = False,
) -> SetReport:
    """Check every file of a published set that a task needs.

    Args:
        name: Key of `PUBLISHED_SETS`.
        root: The set's folder.
        sample_rate: 8000 or 16000 Hz.
        mode: "min" (mixtures cut to the shortest source) or "max" (filled up to the longest).
        task: Key of the set's tasks; the first one by default.
        splits: Only these.
        partial: Let mixtures and splits be missing.
        n_threads: Files read at a time; one per core by default.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        FileNotFoundError: The set's layout is not found under the root. ValueError: An unknown task or split.
    """
    published = PUBLISHED_SETS[name]
    task = task or next(iter(published.tasks))
    chosen = published.tasks.get(task)
    unknown = [split for split in splits or () if split not in published.n_mixtures]
    if chosen is None or unknown:
        raise ValueError(
            f"{name} has the tasks {', '.join(published.tasks)} and the splits "
            f"{', '.join(published.n_mixtures)}, not {task if chosen is None else ', '.join(unknown)}"
        )
    check = _Check(published, chosen, _base(published, Path(root), sample_rate, mode), sample_rate)
    names = check.list_names(splits, partial)
    jobs = [(split, mixture) for split in names for mixture in names[split]]
    pool = ThreadPoolExecutor(n_threads or os.cpu_count())
    try:
        found = pool.map(lambda job: check.mixture(*job), jobs)
        results = list(tqdm(found, "checking", len(jobs), disable=None if progress else True))
    finally:
        pool.shutdown(cancel_futures=True)
    mixtures: dict[str, list[MixtureFiles]] = {split: [] for split in names}
    for (split, _), (files, problems, notes) in zip(jobs, results, strict=True):
        check.problems += problems
        check.notes += notes
        if files is not None:
            mixtures[split].append(files)
    check.speakers(names)
    check.metadata(names)
    return SetReport(task, mixtures, tuple(check.problems), tuple(check.notes))


def _base(published: PublishedSet, root: Path, sample_rate: int, mode: str) -> Path:
    inner = Path(f"wav{sample_rate // 1000}k") / mode
    candidates = [root / inner, root / published.folder / inner]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no folder {' or '.join(map(str, dict.fromkeys(candidates)))}")


class _Check:
    """A check under way; see `check_published_set`."""

    def __init__(self, published: PublishedSet, task: Task, base: Path, sample_rate: int) -> None:
        self.published, self.base, self.task, self.sample_rate = published, base, task, sample_rate
        talkers = range(1, published.n_sources + 1)
        self.sources = [task.source.format(talker) for talker in talkers]
        self.parts = [task.part.format(talker) for talker in talkers] + ([task.noise] if task.noise else [])
        self.tracks = list(dict.fromkeys([task.mixture, *self.sources, *self.parts]))
        self.problems: list[Finding] = []
        self.notes: list[Finding] = []
        self._seen: dict[str, set[str]] = {}  # in any track of a split

    def list_names(self, splits: Sequence[str] | None, partial: bool) -> dict[str, list[str]]:
        """Return the mixtures of every split that have all their tracks; note what lacks."""
        expected = self.published.n_mixtures
        present = {split for split in expected if (self.base / split).is_dir()}
        complete = {}
        for split in splits or expected:
            if split not in present:
                twin = any(other.startswith("train-") for other in present) and split.startswith("train-")
                if splits or not (partial or twin):
                    self.problems.append(Finding("missing split", str(self.base / split)))
                continue
            files = {track: _wav_names(self.base / split / track) for track in self.tracks}
            self._seen[split] = set().union(*files.values())
            for track, name in itertools.product(self.tracks, sorted(self._seen[split])):
                if name not in files[track]:
                    self.problems.append(Finding("missing file", f"{split}/{track}/{name}.wav"))
            n_found = len(files[self.task.mixture])
            if n_found != expected[split] and not partial:
                self.problems.append(
                    Finding(
                        "wrong number of mixtures",
                        f"{split}/{self.task.mixture} holds {n_found:,}, published are {expected[split]:,}",
                    )
                )
            complete[split] = sorted(set.intersection(*files.values()))
        return complete

    def mixture(self, split: str, name: str) -> tuple[MixtureFiles | None, list[Finding], list[Finding]]:
        """Return where a mixture lies, None when it is not sound; its problems; and notes about it."""
        problems, notes = [], []
        recordings: dict[str, Recording] = {}
        for track in self.tracks:
            label = f"{split}/{track}/{name}.wav"
            try:
                recordings[track] = read_audio(self.base / label)
            except (AudioError, OSError) as error:
                problems.append(Finding("unreadable file", f"{label}: {error}"))
            else:
                notes += [
                    Finding("odd recording", f"{label}: {warning}") for warning in recordings[track].warnings
                ]
        if not problems:
            problems += self._faults(split, name, recordings)
        if problems:
            return None, problems, notes
        utterances = tuple(self.published.utterances(name))
        folder = self.base / split
        files = MixtureFiles(
            name=name,
            mixture=folder / self.task.mixture / f"{name}.wav",
            sources=tuple(folder / track / f"{name}.wav" for track in self.sources),
            speakers=tuple(map(self.published.speaker, utterances)),
            utterances=utterances,
            n_samples=recordings[self.task.mixture].samples.shape[1],
            sample_rate=self.sample_rate,
            noise=folder / self.task.noise / f"{name}.wav" if self.task.noise else None,
        )
        return files, problems, notes

    def _faults(self, split: str, name: str, recordings: Mapping[str, Recording]) -> Iterator[Finding]:
        for track, recording in recordings.items():
            label = f"{split}/{track}/{name}.wav"
            n_channels = len(recording.samples)
            if recording.sample_rate != self.sample_rate or n_channels != 1:
                yield Finding(
                    "wrong sample rate or channels", f"{label}: {recording.sample_rate} Hz, {n_channels}"
                )
            elif track in {*self.sources, *self.parts} - {self.task.noise} and not recording.samples.any():
                yield Finding("silent source", label)
        utterances = self.published.utterances(name)
        speakers = set(map(self.published.speaker, utterances))
        if len(utterances) != self.published.n_sources:
            yield Finding("name without its speakers", f"{split}/{name}")
        elif len(speakers) < len(utterances):
            yield Finding("one speaker twice in a mixture", f"{split}/{name}")
        lengths = {track: recording.samples.shape[-1] for track, recording in recordings.items()}
        if len(set(lengths.values())) > 1:
            yield Finding("lengths differ", f"{split}/{name}: {lengths} samples")
        elif len({recording.samples.shape for recording in recordings.values()}) == 1:
            rest = sum(recordings[part].samples.astype(np.float64) for part in self.parts)
            difference = float(np.abs(recordings[self.task.mixture].samples - rest).max())
            if difference > (len(self.parts) + 1) * _STEP:
                yield Finding(
                    f"{self.task.mixture} is not the sum of {' + '.join(self.parts)}",
                    f"{split}/{name}: off by up to {difference:.2g} of full scale",
                )

    def speakers(self, names: Mapping[str, Sequence[str]]) -> None:
        """Find speakers that are in two splits."""
        speakers = {
            split: {
                self.published.speaker(u) for name in names[split] for u in self.published.utterances(name)
            }
            for split in names
        }
        for one, other in itertools.combinations(speakers, 2):
            shared = sorted(speakers[one] & speakers[other])
            if not shared:
                continue
            finding = Finding("speaker in two splits", f"{one} and {other} share {_first(shared)}")
            if {one, other} <= self.published.shared_speakers:
                self.notes.append(finding._replace(kind="speaker in two splits by the set's design"))
            else:
                self.problems.append(finding)

    def metadata(self, names: Mapping[str, Sequence[str]]) -> None:
        """Compare with LibriMix's own CSV files, by names alone: their paths are absolute."""
        for split in names:
            path = self.base / "metadata" / f"mixture_{split}_{self.task.mixture}.csv"
            if not path.is_file():
                continue
            with path.open(newline="", encoding="utf-8") as file:
                rows = {row["mixture_ID"]: row["mixture_path"] for row in csv.DictReader(file)}
            lost = sorted(rows.keys() - self._seen[split])
            if lost:
                self.problems.append(Finding("in the metadata, not on disk", f"{split}: {_first(lost)}"))
            moved = [name for name, old in rows.items() if not Path(old).is_file()]
            if len(moved) > len(lost):
                self.notes.append(
                    Finding("metadata of a folder that was moved (not used here)", f"{path}: {_first(moved)}")
                )


def _wav_names(folder: Path) -> set[str]:
    """Return the names of the recordings of a folder, without ".wav"; empty when there is no such folder."""
    return {path.stem for path in folder.glob("*.wav")} if folder.is_dir() else set()


def _first(names: Sequence[str], n: int = 5) -> str:
    """Return how many there are and the first few."""
    return f"{len(names)}: {', '.join(names[:n])}{', ...' if len(names) > n else ''}"


def grouped(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Return what was found by its kind, in the order of first appearance."""
    groups: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding.what)
    return dict(groups)
