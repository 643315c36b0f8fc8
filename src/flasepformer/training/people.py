"""Measure how voices differ between and within people (`flasepformer.conversation.people`).

Usage: python -m flasepformer.training.people SPEECH.csv OUT.safetensors

Takes 14 s of every talker of the split `train` in pieces of 2 s, and prints the equal error rate on the
talkers of `valid`, by the angle of two voices and by the odds of the two covariances.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flasepformer.conversation.people import VoiceSpace
from flasepformer.conversation.voice import voice_of
from flasepformer.data import read_utterances
from flasepformer.training.voices import crops_of, equal_error_rate, error_rate_of, mels_of, some_of_each

PIECE_SECONDS = 2.0
SECONDS_EACH = 14.0
LEAST_PIECES = 3


def space_of(voices: NDArray[np.floating], talkers: Sequence[str]) -> VoiceSpace:
    """Return the two covariances of voices (voice, n_dims) whose talkers are known.

    Differences within a talker are made white; then the directions are those in which people differ.
    """
    _, who = np.unique(talkers, return_inverse=True)
    n_each = np.bincount(who)
    means = np.zeros((len(n_each), voices.shape[-1]))
    np.add.at(means, who, voices)
    means /= n_each[:, None]
    kept = n_each >= LEAST_PIECES
    own = voices[kept[who]] - means[who[kept[who]]]
    within = own.T @ own / (len(own) - kept.sum())
    between = np.cov(means[kept].T) - within * np.mean(1 / n_each[kept])
    whiten = np.linalg.cholesky(np.linalg.inv(within))
    variances, turn = np.linalg.eigh(whiten.T @ between @ whiten)
    order = np.argsort(-variances)
    return VoiceSpace(means[kept].mean(0), (whiten @ turn)[:, order], np.maximum(variances[order], 0))


def odds_error_rate(
    space: VoiceSpace,
    voices: NDArray[np.floating],
    talkers: Sequence[str],
    sources: Sequence[int],
    seconds: float,
) -> float:
    """Return the equal error rate of all pairs of pieces from different utterances."""
    observed = space.observed(voices, seconds)
    odds = np.stack([space.gain(one, observed) for one in observed])
    names, files = np.array(talkers), np.array(sources)
    pairs = np.triu(np.ones(odds.shape, bool), 1) & (files[:, None] != files[None])
    same = names[:, None] == names[None]
    return equal_error_rate(odds[pairs & same], odds[pairs & ~same])


def voices_of(pieces: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the voices (piece, n_dims)."""
    return np.stack([voice_of(torch.from_numpy(piece)) for piece in pieces])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    mels, talkers = mels_of(some_of_each(read_utterances(options.speech, "train"), SECONDS_EACH))
    pieces, names, _ = crops_of(mels, talkers, PIECE_SECONDS)
    space = space_of(voices_of(pieces), names)
    stored = {"mean": space.mean, "transform": space.transform, "between": space.between}
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in stored.items()}, options.out)
    mels, talkers = mels_of(read_utterances(options.speech, "valid"))
    for seconds in (1.0, 2.0, 4.0):
        pieces, names, sources = crops_of(mels, talkers, seconds)
        voices = voices_of(pieces)
        by_angle = error_rate_of(voices, names, sources)
        by_odds = odds_error_rate(space, voices, names, sources, seconds)
        print(f"valid, {seconds:g} s: {by_angle:.1%} by angle, {by_odds:.1%} by odds", flush=True)


if __name__ == "__main__":
    main()
