"""Conversations in which nobody interrupts: does a model keep each talker on a track of their own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flasepformer.data.acoustics import rms
from flasepformer.data.dynamic_mixing import monologue
from flasepformer.data.mixture import Mixture
from flasepformer.data.speech_store import SpeechStore

_SEED = 1  # the same conversations for every model and day
_LEVEL = 0.05  # of every turn, -26 dB


@dataclass(frozen=True)
class TurnTaking:
    """Conversations of two talkers in turns, without overlap, each the same whenever it is asked for.

    Its mixtures name their turns, for `metrics.wrong_turns`.
    """

    store: SpeechStore
    """At least two speakers, clean."""
    count: int
    """Conversations."""
    seconds: float = 45.0
    """Length of a conversation; the last turn is whole."""
    turn_seconds: float = 4.0
    """Length of every turn."""
    pause_seconds: tuple[float, float] = (0.0, 10.0)
    """Between two turns, from least to most."""

    @property
    def names(self) -> Sequence[str]:
        """Name of every conversation."""
        return [f"turns_{index:04d}" for index in range(self.count)]

    @property
    def n_sources(self) -> int:
        """Speakers in each conversation."""
        return 2

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mixture:
        if not 0 <= index < self.count:
            raise IndexError(f"there are {self.count} conversations, not one of number {index}")
        store, rng = self.store, np.random.default_rng([_SEED, index])
        by_speaker: dict[str, list[int]] = {}
        for i, utterance in enumerate(store.utterances):
            by_speaker.setdefault(utterance.speaker, []).append(i)
        if len(by_speaker) < 2:
            raise ValueError("a conversation needs two speakers, and there is one at most")
        pair = rng.choice(sorted(by_speaker), 2, replace=False)
        n_samples, n_turn = (
            round(length * store.sample_rate) for length in (self.seconds, self.turn_seconds)
        )
        sources = np.zeros((2, n_samples), np.float32)
        turns: list[tuple[int, int, int]] = []
        start = 0
        while start + n_turn <= n_samples:
            talker = len(turns) % 2
            speech = monologue(store, rng, by_speaker[pair[talker]], n_turn)
            sources[talker, start : start + n_turn] = _LEVEL * speech / max(float(rms(speech)), 1e-9)
            turns.append((talker, start, start + n_turn))
            start += n_turn + round(rng.uniform(*self.pause_seconds) * store.sample_rate)
        tracks = torch.from_numpy(sources)
        return Mixture(self.names[index], tracks.sum(0), tracks, store.sample_rate, turns=turns)
