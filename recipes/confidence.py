"""Fit and check the confidence of tracks, `flasepformer.inference.confidence`.

    python recipes/confidence.py MANIFEST.csv

Mixtures are made of the speech of a manifest (columns path, split, speaker): of "valid" to fit, of "test" to
see how often the result is right. Prints the weights for the module, and tables.
"""

import csv
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flasepformer.audio import read_audio, resample
from flasepformer.inference import Separator
from flasepformer.inference.confidence import FEATURES, GOOD_DB, features_of
from flasepformer.metrics import si_snr

RATE = 8000
KINDS = (
    ["two"] * 10
    + ["three"] * 2
    + ["music"]
    + ["20 dB"] * 2
    + ["one", "noise", "two and music"]
    + ["noisy"] * 2
)
N_TALKERS = {"three": 3, "one": 1, "music": 0, "noise": 0}
RIDGE = 3.0
"""Penalty on the squares of the weights, of features with a variance of one."""


def load(path: Path, n_samples: int) -> np.ndarray:
    """Return the beginning of a recording (time,)."""
    recording = read_audio(path)
    waveform = resample(recording.samples[0], recording.sample_rate, RATE)[:n_samples]
    return np.pad(waveform, (0, n_samples - len(waveform)))


def at_level(waveform: np.ndarray, gain_db: float) -> np.ndarray:
    """Return a waveform with that level against a talker's usual one."""
    return 0.05 * 10 ** (gain_db / 20) * waveform / np.sqrt(np.square(waveform).mean() + 1e-12)


def music(rng: np.random.Generator, n_samples: int) -> np.ndarray:
    """Return chords and beats."""
    waveform, beat = np.zeros(n_samples), round(RATE * rng.uniform(0.25, 0.6))
    scale = 220 * 2 ** (np.array([0, 2, 4, 5, 7, 9, 11, 12]) / 12) * rng.choice([0.5, 1, 1.5])
    for start in range(0, n_samples, beat):
        times = np.arange(min(2 * beat, n_samples - start)) / RATE
        for frequency, partial in itertools.product(
            rng.choice(scale, rng.integers(1, 4), False), range(1, 6)
        ):
            tone = np.exp(-3 * times) * np.sin(2 * np.pi * frequency * partial * times) / partial**1.3
            waveform[start : start + len(times)] += tone
        n_click = min(RATE // 10, n_samples - start)
        click = rng.standard_normal(n_click) * np.exp(-np.arange(n_click) / 80)
        waveform[start : start + n_click] += 0.5 * click
    return waveform


def examples(
    files: dict[str, dict[str, list[Path]]], split: str, n: int, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield kind, mixture (time,) and talkers (talker, time)."""
    rng, speakers = np.random.default_rng(seed), sorted(files[split])
    noises = [path for paths in files["noise"].values() for path in paths]
    for index in range(n):
        kind, n_samples = KINDS[index % len(KINDS)], round(rng.uniform(4, 12) * RATE)
        n_talkers = N_TALKERS.get(kind, 2)
        talkers = np.zeros((n_talkers, n_samples))
        for talker, speaker in zip(talkers, rng.choice(speakers, max(n_talkers, 1), False), strict=False):
            talker[:] = at_level(load(rng.choice(files[split][speaker]), n_samples), rng.uniform(-2.5, 2.5))
        if kind == "20 dB":
            talkers[1] *= 10 ** (-rng.uniform(15, 22) / 20)
        mixture = talkers.sum(axis=0)
        if "music" in kind:
            mixture += at_level(music(rng, n_samples), 0 if kind == "music" else -rng.uniform(0, 8))
        if kind in ("noise", "noisy"):
            white = rng.random() < 0.3 or not noises
            noise = rng.standard_normal(n_samples) if white else load(rng.choice(noises), n_samples)
            mixture += at_level(noise, 0 if kind == "noise" else -rng.uniform(0, 15))
        yield kind, mixture.astype(np.float32), talkers.astype(np.float32)


def qualities(tracks: np.ndarray, talkers: np.ndarray) -> list[float]:
    """Return the SI-SNR of each of two tracks, in the best order; minus infinity for one without a talker."""
    scores = np.full((2, max(len(talkers), 2)), -np.inf)
    for index, talker in itertools.product(range(2), range(len(talkers))):
        scores[index, talker] = si_snr(
            torch.from_numpy(tracks[index]), torch.from_numpy(talkers[talker])
        ).item()
    orders = itertools.permutations(range(scores.shape[1]), 2)
    best = max(orders, key=lambda order: np.clip(scores[[0, 1], order], -100, 100).sum())
    return list(scores[[0, 1], best])


def fitted(features: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights and the constant of a logistic regression."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    x = np.column_stack([np.ones(len(features)), (features - mean) / spread])
    weights, penalty = np.zeros(x.shape[1]), RIDGE * np.eye(x.shape[1])
    penalty[0, 0] = 0
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ weights))
        weights -= np.linalg.solve(x.T * (p * (1 - p)) @ x + penalty, x.T @ (p - good) + penalty @ weights)
    return weights[1:] / spread, float(weights[0] - (weights[1:] * mean / spread).sum())


def main() -> None:
    """Fit on valid, check on test."""
    manifest = Path(sys.argv[1])
    files: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    with manifest.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            files[row["split"]][row["speaker"]].append(manifest.parent / row["path"])
    separator = Separator.from_pretrained(device="cpu")
    seen = {}
    for split, n, seed in (("valid", 300, 1), ("test", 160, 2)):
        kinds, features, good = [], [], []
        for kind, mixture, talkers in examples(files, split, n, seed):
            tracks = separator.separate(mixture, RATE)
            kinds += 2 * [kind]
            features.append(features_of(mixture, tracks, RATE))
            good += [score >= GOOD_DB for score in qualities(tracks, talkers)]
        seen[split] = np.array(kinds), np.concatenate(features), np.array(good)
    weights, constant = fitted(*seen["valid"][1:])
    print(
        "weights", dict(zip(FEATURES, weights.round(4).tolist(), strict=True)), "constant", round(constant, 4)
    )
    kinds, features, good = seen["test"]
    p = 1 / (1 + np.exp(-(features @ weights + constant)))
    print(f"| said | tracks | at least {GOOD_DB:g} dB |\n| --- | --- | --- |")
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)):
        chosen = (p >= low) & (p <= high)
        print(f"| {low:.0%} to {high:.0%} | {chosen.sum()} | {good[chosen].mean():.0%} |")
    print("| mixtures | tracks | said | at least 5 dB |\n| --- | --- | --- | --- |")
    for kind in dict.fromkeys(KINDS):
        chosen = kinds == kind
        print(f"| {kind} | {chosen.sum()} | {p[chosen].mean():.0%} | {good[chosen].mean():.0%} |")


if __name__ == "__main__":
    main()
