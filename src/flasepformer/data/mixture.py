"""One mixture with its known sources, and what a set of them offers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flasepformer.audio import read_audio
from flasepformer.data.speech_store import mono


class Mixture(NamedTuple):
    """One mixture with its known sources."""

    name: str
    mixture: Tensor
    """(time,)"""
    sources: Tensor
    """(source, time)"""
    sample_rate: int
    groups: Mapping[str, str] = {}
    """What results can be grouped by: {"sexes": "F-M", "corpora": "librispeech-vctk"}; empty if not known."""
    turns: Sequence[tuple[int, int, int]] = ()
    """Talker, first sample, and the sample after the last, where nobody interrupts; else empty."""


class MixtureSet(Protocol):
    """A fixed set of mixtures; each is read or made when it is asked for."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def n_sources(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mixture: ...


def read_mixture(
    name: str, mixture_path: Path, source_paths: Sequence[Path], groups: Mapping[str, str] | None = None
) -> Mixture:
    """Read one mixture and its sources from their files.

    Raises:
        ValueError: A file cannot be read, or the files differ in length.
    """
    recordings = [read_audio(path) for path in (mixture_path, *source_paths)]
    sample_rate = recordings[0].sample_rate
    mixture, *sources = (torch.from_numpy(mono(recording, sample_rate)) for recording in recordings)
    lengths = [len(mixture), *map(len, sources)]
    if len(set(lengths)) > 1:
        raise ValueError(f"mixture {mixture_path.name} and its sources differ in length: {lengths} samples")
    return Mixture(name, mixture, torch.stack(sources), sample_rate, groups or {})


def talker_groups(sexes: Sequence[str], corpora: Sequence[str]) -> dict[str, str]:
    """Return the sexes and the corpora of the talkers, in alphabetic order; empty where not all are known."""
    labels = {"sexes": tuple(map(sex_letter, sexes)), "corpora": tuple(corpora)}
    return {key: "-".join(sorted(values)) if all(values) else "" for key, values in labels.items()}


def sex_letter(label: str) -> str:
    """Return F or M, also for the children's labels Fc and Mc; empty where it is not known."""
    return label[:1].upper()
