"""Measure how voices differ between and within people (`flasepformer.conversation.people`).

Usage: python -m flasepformer.training.people SPEECH.csv OUT.safetensors

Takes some seconds of every talker of the split `train` in pieces of 2 s, each of them of the whole band and
once more without what is above 4 kHz, as estimates are, so that the band is no property of a voice. Prints
the equal error rate on the talkers of `valid`, by the angle of two voices and by the odds of the two
covariances.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from flasepformer.conversation.people import VoiceSpace
from flasepformer.conversation.voice import load_voice_network
from flasepformer.data import read_utterances
from flasepformer.training.voices import Pieces, error_rate_of

PIECE_SECONDS = 2.0
SECONDS_EACH = 6.0
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
    return error_rate_of(odds, talkers, sources)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, store and score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    network = load_voice_network()
    pieces = Pieces(read_utterances(options.speech, "train"), PIECE_SECONDS, SECONDS_EACH)
    voices = np.concatenate([pieces.voices(network), pieces.voices(network, narrow=True)])
    space = space_of(voices, 2 * pieces.talkers)
    stored = {"mean": space.mean, "transform": space.transform, "between": space.between}
    save_file({name: np.ascontiguousarray(value, np.float16) for name, value in stored.items()}, options.out)
    for seconds in (1.0, 2.0, 4.0):
        pieces = Pieces(read_utterances(options.speech, "valid"), seconds)
        for narrow in (False, True):
            voices = pieces.voices(network, narrow=narrow)
            by_angle = error_rate_of(voices @ voices.T, pieces.talkers, pieces.sources)
            by_odds = odds_error_rate(space, voices, pieces.talkers, pieces.sources, seconds)
            band = "below 4 kHz" if narrow else "whole band"
            print(f"valid, {seconds:g} s, {band}: {by_angle:.1%} by angle, {by_odds:.1%} by odds", flush=True)


if __name__ == "__main__":
    main()
