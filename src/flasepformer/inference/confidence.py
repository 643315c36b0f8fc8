"""How sure a track is to be one talker alone, told without knowing the talkers.

A track of which much lies in time-frequency bins that another track shares, that moves together with another
one, or that is far louder or quieter, is seldom well separated; and a track that falls in two when the model
separates it once more holds more than a talker. A logistic model over such figures gives the probability that
the SI-SNR of the track is at least `GOOD_DB`. It was fitted, by `flasepformer.evaluation.calibrating`, to
what the default model makes of mixtures of unheard talkers: pairs of equal and of very different level,
three talkers, noise, music, and nobody at all. It knows nothing of talkers who change tracks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flasepformer.inference.chunks import Signals

GOOD_DB = 5.0
"""SI-SNR from which on a track counts as separated."""

SURE, UNSURE = 0.8, 0.4
"""Probabilities from which on a track is called sure, and below which unsure."""

WINDOW_SECONDS = 5.0
"""Length of the pieces that are looked at."""

MAX_WINDOWS = 1000
"""Pieces that are looked at, at most; in a long recording they lie apart."""

_N_WITHOUT_GAPS = 12  # pieces one after the other; from there on every second one, which costs half

AGAIN_WINDOWS = 4
"""Pieces of which each track is separated again, at most; the others take what the nearest of them has."""

AGAIN_EVERY = 8
"""Pieces of which one is separated again, so that this takes less than the separation itself."""

FEATURES = (
    "shared", "shared_of_other", "coherence", "correlation", "rest", "level", "level_difference", "again",
)  # fmt: skip
"""The last one is not always known: see `confidence_of`."""

# Of the features in their order, and the constant, and the same without the last feature; printed by
# flasepformer.evaluation.calibrating.
_WEIGHTS = np.array([-0.429, 0.412, -0.803, -3.596, -1.359, 0.448, -0.14, -0.557])
_CONSTANT = -8.377
_WEIGHTS_BEFORE = np.array([-0.719, 0.156, -1.086, -2.194, -1.209, 0.482, -0.121])
_CONSTANT_BEFORE = -7.267

SeparateAgain = Callable[[NDArray[np.float32]], float]
"""Separates a track (time,) again and returns the share of its energy that is not in the loudest part."""

_WINDOW_MS = 32
_FLOOR = 1e-3
_LEAST_REST = 0.02  # the tracks of a model hardly ever explain more of a mixture: less says nothing
_SILENCE = 1e-9  # mean square below which nobody is heard


@dataclass(frozen=True)
class Confidence:
    """Of every track, and over time."""

    tracks: tuple[float | None, ...]
    """Probability that a track is separated, averaged over its energy; None for a silent one."""
    starts: tuple[float, ...]
    """Seconds at which the pieces begin."""
    over_time: tuple[tuple[float | None, ...], ...]
    """The same for each piece: (track, piece)."""

    @property
    def unsure(self) -> tuple[int, ...]:
        """The tracks, from 1, that are probably not separated."""
        return tuple(n for n, share in enumerate(self.tracks, 1) if share is not None and share < UNSURE)

    def as_dict(self) -> dict[str, Any]:
        """Return it for a report."""
        return {
            "good_db": GOOD_DB, "calibrated_for": "default", "tracks": self.tracks,
            "window_seconds": WINDOW_SECONDS, "starts": self.starts, "over_time": self.over_time,
        }  # fmt: skip


def confidence_of(
    mixture: Signals, tracks: Signals, sample_rate: int, separate_again: SeparateAgain | None = None
) -> Confidence:
    """Judge tracks piece by piece.

    Args:
        mixture: One signal, at any level.
        tracks: At their levels, so that they add up to the mixture as well as they can.
        sample_rate: Of both, in Hz.
        separate_again: By the model that made the tracks; without it less is known of them.
    """
    n_samples, length = mixture.n_samples, round(WINDOW_SECONDS * sample_rate)
    apart = 1 if n_samples <= _N_WITHOUT_GAPS * length else 2
    step = max(apart * length, -(-n_samples // MAX_WINDOWS))
    starts = range(0, max(n_samples - length // 2, 1), step)
    features, energies, again = [], [], {}
    n_again = min(max(len(starts) // AGAIN_EVERY, 1), AGAIN_WINDOWS)
    with_again = ((np.arange(n_again) + 0.5) * len(starts) / n_again).astype(int)
    for index, start in enumerate(starts):
        stop = min(start + length, n_samples)
        piece = np.asarray(tracks.read(start, stop))
        feature, energy = examine(mixture.read(start, stop)[0], piece, sample_rate)
        if separate_again is not None and index in with_again:
            heard = np.isfinite(feature[:, 0])
            again[index] = [
                again_feature(separate_again(track)) if sounds else np.nan
                for track, sounds in zip(piece, heard, strict=True)
            ]
        features.append(feature)
        energies.append(energy)
    for index, feature in enumerate(features):
        if again:
            nearest = min(again, key=lambda other: abs(other - index))
            feature[:, -1] = again[nearest]
    probabilities = np.array([probability_of(feature) for feature in features]).T
    weights = np.array(energies).T
    heard = np.isfinite(probabilities)
    totals = np.where(heard, weights, 0).sum(axis=1)
    means = np.where(heard, weights * probabilities, 0).sum(axis=1) / np.maximum(totals, np.finfo(float).tiny)
    return Confidence(
        tuple(_rounded(mean) if total > 0 else None for mean, total in zip(means, totals, strict=True)),
        tuple(round(start / sample_rate, 2) for start in starts),
        tuple(tuple(_rounded(value) for value in row) for row in probabilities),
    )


def probability_of(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability for features (..., feature): nan where they are, save for the last one."""
    before = features[..., :-1] @ _WEIGHTS_BEFORE + _CONSTANT_BEFORE
    logits = features @ _WEIGHTS + _CONSTANT
    return np.asarray(1 / (1 + np.exp(-np.where(np.isfinite(features[..., -1]), logits, before))))


def again_feature(share: float) -> float:
    """Return the last feature."""
    return float(np.log(np.maximum(share, _FLOOR)))


def examine(
    mixture: NDArray[np.float32], tracks: NDArray[np.float32], sample_rate: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the features (track, feature), without the last one, and the energy of each track.

    All features of a silent track are nan.

    Args:
        mixture: (time,).
        tracks: (track, time).
        sample_rate: In Hz.
    """
    energies = np.einsum("st,st->s", tracks, tracks, dtype=np.float64)
    quiet = energies <= _SILENCE * tracks.shape[1] * max(float(np.abs(mixture).max()) ** 2, _SILENCE)
    features = np.full((len(tracks), len(FEATURES)), np.nan)
    if tracks.shape[1] >= sample_rate * _WINDOW_MS // 1000 and not quiet.all():
        features[:, :-1] = np.where(quiet[:, None], np.nan, features_of(mixture, tracks, sample_rate))
    return features, energies


def features_of(
    mixture: NDArray[np.float32], tracks: NDArray[np.float32], sample_rate: int
) -> NDArray[np.float64]:
    """Return (track, feature) of `FEATURES` but the last, for at least two tracks."""
    spectra = _spectra(np.vstack([tracks, mixture]), sample_rate)  # (signal, frame, frequency)
    rest = _power(spectra[-1] - spectra[:-1].sum(axis=0)).sum(dtype=np.float64)
    rest = np.log(max(rest / (_power(spectra[-1]).sum(dtype=np.float64) + 1e-12), _LEAST_REST))
    spectra = spectra[:-1]
    power = _power(spectra) + np.float32(1e-12)
    energy = power.sum(axis=(1, 2), dtype=np.float64)
    own = (power**2 / power.sum(axis=0)).sum(axis=(1, 2), dtype=np.float64)
    shared = np.log(np.maximum(1 - own / energy, _FLOOR))
    level = np.log(energy / energy.sum())
    by_frequency = power.sum(axis=1, dtype=np.float64)
    rows = []
    for index in range(len(tracks)):
        others = [other for other in range(len(tracks)) if other != index]
        cross = [(spectra[index] * spectra[other].conj()).sum(axis=0) for other in others]
        coherence, correlation = [], []
        for other, product in zip(others, cross, strict=True):
            both = by_frequency[index] * by_frequency[other]
            weight = np.sqrt(both)
            coherence.append((np.abs(product) ** 2 / both * weight).sum() / weight.sum())
            correlation.append(product.real.sum() / np.sqrt(energy[index] * energy[other]))
        rows.append([
            shared[index], max(shared[others]), np.log(max(coherence) + _FLOOR), max(correlation), rest,
            level[index], max(np.abs(level[index] - level[others])),
        ])  # fmt: skip
    return np.array(rows, np.float64)


def _spectra(signals: NDArray[np.float32], sample_rate: int) -> NDArray[np.complex64]:
    length = sample_rate * _WINDOW_MS // 1000
    windows = np.lib.stride_tricks.sliding_window_view(signals, length, axis=-1)[:, :: length // 2]
    return np.fft.rfft(windows * np.hanning(length + 1)[:-1].astype(np.float32)).astype(np.complex64)


def _power(spectrum: NDArray[np.complex64]) -> NDArray[np.float32]:
    return spectrum.real**2 + spectrum.imag**2


def _rounded(value: float) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None
