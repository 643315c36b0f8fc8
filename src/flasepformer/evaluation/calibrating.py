"""How often the confidence of tracks is right, and the weights that make it so.

    python -m flasepformer.evaluation.calibrating SPEECH --noise FOLDER

Mixtures are made of single talkers: of the split "valid" to fit, of "test" to see how often it is right.
Prints the weights for `flasepformer.inference.confidence`, and the tables of docs/confidence.md.
"""

import argparse
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flasepformer.audio import read_audio
from flasepformer.data import Utterance, read_utterances
from flasepformer.data.acoustics import Noise
from flasepformer.data.speech_store import mono
from flasepformer.files import markdown_table
from flasepformer.inference import Separator
from flasepformer.inference.confidence import (
    FEATURES,
    GOOD_DB,
    SURE,
    UNSURE,
    again_feature,
    examine,
    probability_of,
)
from flasepformer.metrics import pairwise, si_snr

KINDS = (
    "three talkers", *(["two talkers"] * 10), "three talkers", "music alone", *(["15 to 22 dB apart"] * 2),
    "one alone", "noise alone", "two with music", *(["two in noise"] * 2),
)  # fmt: skip
"""Of twenty mixtures."""

_N_TALKERS = {"three talkers": 3, "one alone": 1, "music alone": 0, "noise alone": 0}
_SECONDS = (4.0, 12.0)
_RIDGE = 3.0  # penalty on the squares of the weights, of features with a variance of one
_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """Tracks whose quality is known."""

    kinds: NDArray[np.str_]
    """(track,), of `KINDS`."""
    features: NDArray[np.float64]
    """(track, feature), of `FEATURES`."""
    good: NDArray[np.bool_]
    """(track,): whether the SI-SNR is at least `GOOD_DB`."""


def music(rng: np.random.Generator, n_samples: int, sample_rate: int) -> Samples:
    """Return chords and beats (time,)."""
    waveform, beat = np.zeros(n_samples), round(sample_rate * rng.uniform(0.25, 0.6))
    scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12) * rng.choice([0.5, 1, 1.5])
    for start in range(0, n_samples, beat):
        times = np.arange(min(2 * beat, n_samples - start)) / sample_rate
        chord = rng.choice(scale, rng.integers(1, 4), replace=False)
        for frequency, partial in itertools.product(chord, range(1, 6)):
            tone = np.exp(-3 * times) * np.sin(2 * np.pi * frequency * partial * times) / partial**1.3
            waveform[start : start + len(times)] += tone
        n_click = min(sample_rate // 10, n_samples - start)
        click = rng.standard_normal(n_click) * np.exp(-np.arange(n_click) / (sample_rate / 100))
        waveform[start : start + n_click] += 0.5 * click
    return waveform.astype(np.float32)


def draw_mixtures(
    utterances: Sequence[Utterance], noise: Noise | None, n: int, seed: int, sample_rate: int
) -> Iterator[tuple[str, Samples, Samples]]:
    """Yield kind, mixture (time,) and talkers (talker, time), the same for the same seed.

    Args:
        utterances: Single talkers.
        noise: For the mixtures with noise; white noise without it, and in a third of them.
        n: How many; the kinds take turns.
        seed: Of what is drawn.
        sample_rate: In Hz.

    Raises:
        ValueError: There are fewer than three talkers.
    """
    by_speaker: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_speaker[utterance.speaker].append(utterance)
    speakers = sorted(by_speaker)
    if len(speakers) < 3:
        raise ValueError(f"mixtures of three need as many talkers, got {len(speakers)}")
    rng = np.random.default_rng(seed)
    for index in range(n):
        kind, n_samples = KINDS[index % len(KINDS)], round(rng.uniform(*_SECONDS) * sample_rate)
        chosen = rng.choice(speakers, _N_TALKERS.get(kind, 2), replace=False)
        talkers = np.zeros((len(chosen), n_samples), np.float32)
        for talker, speaker in zip(talkers, chosen, strict=True):
            said = by_speaker[speaker][rng.integers(len(by_speaker[speaker]))]
            waveform = mono(read_audio(said.path), sample_rate)[:n_samples]
            talker[: len(waveform)] = waveform
            talker[:] = _at_level(talker, rng.uniform(-2.5, 2.5))
        if kind == "15 to 22 dB apart":
            talkers[1] *= 10 ** (-rng.uniform(15, 22) / 20)
        mixture = talkers.sum(axis=0, dtype=np.float32)
        if "music" in kind:
            level = 0.0 if kind == "music alone" else -rng.uniform(0, 8)
            mixture += _at_level(music(rng, n_samples, sample_rate), level)
        if "noise" in kind:
            white = noise is None or rng.random() < 0.3
            drawn = rng.standard_normal(n_samples) if noise is None or white else noise.draw(rng, n_samples)
            level = 0.0 if kind == "noise alone" else -rng.uniform(0, 15)
            mixture += _at_level(drawn.astype(np.float32), level)
        yield kind, mixture, talkers


def judge_tracks(separator: Separator, mixtures: Iterator[tuple[str, Samples, Samples]]) -> Judged:
    """Separate mixtures, and find out what is known of the tracks without and with the talkers."""
    kinds, features, good = [], [], []
    for kind, mixture, talkers in mixtures:
        tracks = separator.separate(mixture, separator.sample_rate)
        feature, _ = examine(mixture, tracks, separator.sample_rate)
        feature[:, -1] = [again_feature(separator.share_again(track)) for track in tracks]
        scores = qualities(tracks, talkers)
        for row, score in zip(feature, scores, strict=True):
            if np.isfinite(row[:-1]).all():  # a silent track has no confidence
                kinds.append(kind)
                features.append(row)
                good.append(score >= GOOD_DB)
    return Judged(np.array(kinds), np.array(features), np.array(good))


def qualities(tracks: Samples, talkers: Samples) -> list[float]:
    """Return the SI-SNR of each track in the best order, minus infinity for one without a talker.

    Args:
        tracks: (track, time).
        talkers: (talker, time), more or fewer.
    """
    n_tracks, n_talkers = len(tracks), len(talkers)
    scores = np.full((n_tracks, n_talkers + n_tracks), -np.inf)
    if n_talkers:
        pairs = pairwise(si_snr, torch.from_numpy(tracks), torch.from_numpy(talkers))
        scores[:, :n_talkers] = pairs.numpy()
    own = range(n_tracks)
    best = max(
        itertools.permutations(range(n_talkers + n_tracks), n_tracks),
        key=lambda order: np.clip(scores[own, order], -100, 100).sum(),
    )
    return [float(score) for score in scores[own, best]]


def fit(features: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Return the weights and the constant of a logistic regression.

    Args:
        features: (track, feature).
        good: (track,).
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    x = np.column_stack([np.ones(len(features)), (features - mean) / spread])
    weights, penalty = np.zeros(x.shape[1]), _RIDGE * np.eye(x.shape[1])
    penalty[0, 0] = 0
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        gradient = x.T @ (p - good) + penalty @ weights
        weights -= np.linalg.solve(x.T * (p * (1 - p)) @ x + penalty, gradient)
    return weights[1:] / spread, float(weights[0] - (weights[1:] * mean / spread).sum())


def area_under_curve(said: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """Return how often a good track gets more than one that is not; ties count half.

    >>> area_under_curve(np.array([0.1, 0.9, 0.5, 0.9]), np.array([False, True, True, False]))
    0.625
    """
    wins = said[good][:, None] - said[~good]
    return float(((wins > 0) + 0.5 * (wins == 0)).mean()) if wins.size else math.nan


def tables(judged: Judged, said: NDArray[np.float64]) -> str:
    """Return how often what is said (track,) is right, in Markdown."""
    rows = []
    for low, high in itertools.pairwise(_EDGES):
        chosen = (said >= low) & ((said < high) | (high == 1))
        rows.append([f"{100 * low:.0f} to {high:.0%}", str(chosen.sum()), _share(judged.good[chosen])])
    first = markdown_table(["said", "tracks", f"at least {GOOD_DB:g} dB"], rows)
    rows = []
    for kind in dict.fromkeys(KINDS):
        chosen = judged.kinds == kind
        shares = [_share(said[chosen]), _share(judged.good[chosen]), _share(said[chosen] < UNSURE)]
        rows.append([kind, str(chosen.sum()), *shares])
    header = ["mixtures", "tracks", "said, mean", f"at least {GOOD_DB:g} dB", "called unsure"]
    sure = judged.good[said >= SURE]
    return "\n\n".join([
        first, markdown_table(header, rows),
        f"sure is right in {_share(sure)} of {len(sure)} tracks; area under the curve "
        f"{area_under_curve(said, judged.good):.2f}",
    ])  # fmt: skip


def _share(values: NDArray[np.bool_] | NDArray[np.float64]) -> str:
    return f"{values.mean():.0%}" if len(values) else ""


def _at_level(waveform: Samples, gain_db: float) -> Samples:
    """Return a waveform with that level against a talker's usual one."""
    rms = np.sqrt(np.square(waveform, dtype=np.float64).mean() + 1e-12)
    return waveform * np.float32(0.05 * 10 ** (gain_db / 20) / rms)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit on valid, check on test."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("speech", type=Path, help="Single talkers, as for `flasepformer measure`.")
    parser.add_argument(
        "--noise", type=Path, action="append", default=[], help="Folder of noise; repeatable."
    )
    parser.add_argument("--count", type=int, default=300, help="Mixtures to fit on.")
    parser.add_argument("--test-count", type=int, default=160, help="Mixtures to check on.")
    given = parser.parse_args(arguments)
    separator = Separator.from_pretrained(device="cpu", post_filter=0.0)
    rate = separator.sample_rate
    noise = Noise.load(given.noise, rate) if given.noise else None
    fitted, checked = (
        judge_tracks(separator, draw_mixtures(read_utterances(given.speech, split), noise, n, seed, rate))
        for split, n, seed in (("valid", given.count, 1), ("test", given.test_count, 2))
    )
    for features in (FEATURES, FEATURES[:-1]):
        weights, constant = fit(fitted.features[:, : len(features)], fitted.good)
        print(f"weights of {', '.join(features)}: {weights.round(3).tolist()}, constant {constant:.3f}")
        said = 1 / (1 + np.exp(-(checked.features[:, : len(features)] @ weights + constant)))
        print(tables(checked, said), end="\n\n")
    print("what is said now:", tables(checked, probability_of(checked.features)), sep="\n\n")


if __name__ == "__main__":
    main()
