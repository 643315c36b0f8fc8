"""What listeners would say, by models of hearing: PESQ (quality) and ESTOI (intelligibility)."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from flasepformer.installing import how_to_install

PESQ_MAX_SECONDS = 30.0
"""Longest recording that PESQ is meant for; the reference code overruns its tables far above it."""

PESQ_MIN_SECONDS = 0.25
"""Shortest recording that the reference code takes."""
ESTOI_MIN_SECONDS = 0.4
"""Shortest recording with the 30 frames that the measure looks at together."""

_PESQ_RATES = (8000, 16000)
_HINT = f"{how_to_install('perceptual')}"


def why_no_pesq(n_samples: int, sample_rate: int) -> str:
    """Say in a sentence why PESQ has no value for recordings like this, however they sound; empty if it has.

    >>> why_no_pesq(80_000, 44_100)
    'PESQ is defined at 8000 and 16000 Hz, got 44100 Hz'
    """
    if sample_rate not in _PESQ_RATES:
        return f"PESQ is defined at 8000 and 16000 Hz, got {sample_rate} Hz"
    if not PESQ_MIN_SECONDS <= n_samples / sample_rate <= PESQ_MAX_SECONDS:
        return f"PESQ is defined for recordings of {PESQ_MIN_SECONDS:g} s to {PESQ_MAX_SECONDS:g} s"
    return ""


def why_no_estoi(n_samples: int, sample_rate: int) -> str:
    """Say in a sentence why ESTOI has no value for recordings like this, however they sound; empty if it has.

    >>> why_no_estoi(10, 8000), why_no_estoi(8000, 8000)
    ('ESTOI is defined for recordings of 0.4 s and more', '')
    """
    if n_samples < ESTOI_MIN_SECONDS * sample_rate:
        return f"ESTOI is defined for recordings of {ESTOI_MIN_SECONDS:g} s and more"
    return ""


def pesq(estimates: Tensor, sources: Tensor, sample_rate: int) -> Tensor:
    """Compute PESQ: narrow band (ITU-T P.862.1) at 8 kHz, wide band (P.862.2) at 16 kHz.

    Needs the package pesq (`pip install "flasepformer[perceptual]"`).

    Args:
        estimates: (..., time).
        sources: Same shape.
        sample_rate: 8000 or 16000 Hz.

    Returns:
        (...), a mean opinion score from 1 to 4.6; nan where it is not defined: no speech is found in the
        source, silence, shorter than `PESQ_MIN_SECONDS`, longer than `PESQ_MAX_SECONDS`.

    Raises:
        ValueError: The shapes differ, or PESQ is not defined at this rate.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise ImportError(f"PESQ needs the package pesq: {_HINT}") from error
    reason = why_no_pesq(sources.shape[-1], sample_rate)
    if sample_rate not in _PESQ_RATES:
        raise ValueError(reason)
    band = "nb" if sample_rate == 8000 else "wb"

    def score(estimate: Tensor, source: Tensor) -> float:
        if reason or not estimate.any() or not source.any():
            return torch.nan
        try:
            return package.pesq(sample_rate, source.numpy(), estimate.numpy(), band)
        except (package.NoUtterancesError, package.BufferTooShortError):
            return torch.nan

    return _one_by_one(score, estimates, sources)


def estoi(estimates: Tensor, sources: Tensor, sample_rate: int) -> Tensor:
    """Compute the extended short-time objective intelligibility.

    Needs the package pystoi (`pip install "flasepformer[perceptual]"`).

    Args:
        estimates: (..., time).
        sources: Same shape.
        sample_rate: In Hz.

    Returns:
        (...), at most 1, which stands for a perfect copy; nan where it is not defined: silence, or less
        speech than `ESTOI_MIN_SECONDS`.

    Raises:
        ValueError: The shapes differ.

    Reference: Jensen and Taal, "An algorithm for predicting the intelligibility of speech masked by modulated
    noise maskers".
    """
    try:
        from pystoi import stoi
    except ImportError as error:
        raise ImportError(f"ESTOI needs the package pystoi: {_HINT}") from error

    reason = why_no_estoi(sources.shape[-1], sample_rate)

    def score(estimate: Tensor, source: Tensor) -> float:
        if reason or not estimate.any() or not source.any():
            return torch.nan
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", RuntimeWarning
            )  # the package's way to say that there is too little
            try:
                return float(stoi(source.numpy(), estimate.numpy(), sample_rate, extended=True))
            except RuntimeWarning:
                return torch.nan

    return _one_by_one(score, estimates, sources)


def _one_by_one(score: Callable[[Tensor, Tensor], float], estimates: Tensor, sources: Tensor) -> Tensor:
    if estimates.shape != sources.shape:
        raise ValueError(
            f"estimates and sources must have the same shape (..., time), "
            f"got {tuple(estimates.shape)} and {tuple(sources.shape)}"
        )
    pairs = zip(
        *(signals.flatten(0, -2).double().cpu() for signals in (estimates[None], sources[None])), strict=True
    )
    return torch.tensor([score(*pair) for pair in pairs]).reshape(estimates.shape[:-1])
