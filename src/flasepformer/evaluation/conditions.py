"""The conditions in which a model is measured: the same recordings for every model and day."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flasepformer.data import (
    Mixture,
    MixtureList,
    MixtureSet,
    MixtureSpec,
    PlannedMixture,
    SetConfig,
    SpeechStore,
    TurnTaking,
    Utterance,
    make_mixture_list,
    make_set,
    open_mixtures,
    plan_conversations,
    plan_mixtures,
    read_utterances,
)
from flasepformer.data.acoustics import Noise, recordings_of, rms

CONDITIONS = ("clean", "noise", "rooms", "single", "conversations", "turns")
COUNTS = {"clean": 500, "noise": 200, "rooms": 200, "conversations": 10, "turns": 100}
"""Recordings of each condition but `single`, which takes every one there is."""
SEED = 0
"""Of every set, so that figures of different models and days compare."""
NOISE_SNR_DB = (5.0, 15.0)
DECAY_SECONDS = (0.2, 0.6)
OVERLAP = 0.3
"""Share of the speech in conversations that two say at once."""


@dataclass(frozen=True)
class NoisyMixtures:
    """Mixtures with noise added; each is the same whenever it is asked for."""

    clean: MixtureSet
    noise: Noise
    snr_db: tuple[float, float]
    """Range of the level of all talkers together above the noise, uniform."""
    seed: int

    @property
    def names(self) -> Sequence[str]:
        """Name of every mixture."""
        return self.clean.names

    @property
    def n_sources(self) -> int:
        """Speakers in each mixture."""
        return self.clean.n_sources

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> Mixture:
        item = self.clean[index]
        rng = np.random.default_rng([self.seed, index])
        noise = self.noise.draw(rng, len(item.mixture))
        snr = 10 ** (rng.uniform(*self.snr_db) / 20)
        if not noise.any():
            raise ValueError(f"the noise drawn for {item.name} is silent")
        level = rms(item.mixture.numpy()) / (snr * rms(noise))
        return item._replace(mixture=item.mixture + torch.from_numpy(noise * np.float32(level)))


def single_talkers(utterances: Sequence[Utterance], sample_rate: int) -> MixtureList:
    """Return every recording alone, as a set of mixtures of one talker."""
    specs = [
        MixtureSpec(
            name=f"{number:04d}_{utterance.path.stem}",
            paths=(utterance.path,),
            speakers=(utterance.speaker,),
            gains_db=(0.0,),
            starts_seconds=(0.0,),
            sexes=(utterance.sex,),
            corpora=(utterance.corpus,),
        )
        for number, utterance in enumerate(utterances)
    ]
    return MixtureList(specs, sample_rate)


def load_noise(folders: Sequence[Path], sample_rate: int) -> Noise:
    """Decode every recording under some folders."""
    paths = [path for folder in folders for path in recordings_of(folder)]
    if not paths:
        raise ValueError(
            f"no recordings of noise in {', '.join(map(str, folders)) or 'no folder: give --noise'}"
        )
    return Noise(SpeechStore.load([Utterance(path, "", 0.0) for path in paths], sample_rate))


@dataclass(frozen=True)
class MeasuredSpeech:
    """What the recordings of all conditions are made of."""

    speech: Path
    """CSV manifest or folder of single talkers that no training has heard."""
    split: str = "test"
    noise: Sequence[Path] = ()
    """Folders of noise, for the condition of that name."""
    conversation_seconds: float = 120.0
    """Length of a conversation."""

    def mixtures(
        self, condition: str, count: int, sample_rate: int, folder: Path, n_threads: int = 1
    ) -> tuple[MixtureSet, dict[str, Any]]:
        """Return the recordings of a condition, and what they are as plain values.

        Args:
            condition: One of `CONDITIONS`.
            count: How many; of no meaning for `single`.
            sample_rate: In Hz.
            folder: Where recordings are made that have to lie on the disk; it must outlive them.
            n_threads: Recordings made at a time.

        Raises:
            ValueError: There is no speech or noise, or a recording could not be made.
        """
        utterances = read_utterances(self.speech, self.split)
        facts: dict[str, Any] = {"split": self.split, "sample_rate": sample_rate}
        if condition == "single":
            return single_talkers(utterances, sample_rate), facts
        if condition == "turns":
            turns = TurnTaking(SpeechStore.load(utterances, sample_rate), count)
            facts |= {"seconds": turns.seconds, "turn_seconds": turns.turn_seconds,
                      "pause_seconds": list(turns.pause_seconds), "overlap": 0.0}  # fmt: skip
            return turns, facts
        facts["seed"] = SEED
        if condition == "rooms":
            config = SetConfig(
                sample_rate=sample_rate, reverberant=True, decay_seconds=DECAY_SECONDS, seed=SEED
            )
            facts |= {"decay_seconds": list(DECAY_SECONDS), "targets": "the dry talkers"}
            return _made(plan_mixtures(utterances, count, SEED), folder, config, n_threads), facts
        if condition == "conversations":
            plans = plan_conversations(
                utterances, count, SEED, n_sources=2, seconds=self.conversation_seconds, overlap=OVERLAP
            )
            facts |= {"seconds": self.conversation_seconds, "overlap": OVERLAP}
            config = SetConfig(sample_rate=sample_rate, seed=SEED)
            return _made(plans, folder, config, n_threads), facts
        clean = MixtureList(make_mixture_list(utterances, count, SEED), sample_rate)
        if condition == "clean":
            return clean, facts
        noise = load_noise(self.noise, sample_rate)
        facts |= {"noise": sorted(folder.name for folder in self.noise), "snr_db": list(NOISE_SNR_DB)}
        return NoisyMixtures(clean, noise, NOISE_SNR_DB, SEED), facts


def _made(plans: Sequence[PlannedMixture], folder: Path, config: SetConfig, n_threads: int) -> MixtureSet:
    manifests, failures = make_set(plans, folder, config, n_threads=n_threads, progress=True)
    if failures:
        raise ValueError(f"{len(failures)} mixtures could not be made, {failures[0]}")
    return open_mixtures(manifests[0], config.sample_rate)
