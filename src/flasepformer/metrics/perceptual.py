"""What listeners would say, by models of hearing: PESQ (quality) and ESTOI (intelligibility)."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

PESQ_MAX_SECONDS = 30.0
"""Longest recording that PESQ is meant for; the reference code overruns its tables far above it."""

_HINT = 'pip install "flasepformer[perceptual]"'


def pesq(estimates: Tensor, sources: Tensor, sample_rate: int) -> Tensor:
    """Compute PESQ: narrow band (ITU-T P.862.1) at 8 kHz, wide band (P.862.2) at 16 kHz.

    Needs the package pesq (`pip install "flasepformer[perceptual]"`).

    Args:
        estimates: (..., time).
        sources: Same shape.
        sample_rate: 8000 or 16000 Hz.

    Returns:
        (...), a mean opinion score from 1 to 4.6; nan where it is not defined: no speech is found in the
        source, silence, shorter than a quarter of a second, longer than `PESQ_MAX_SECONDS`.

    Raises:
        ValueError: The shapes differ, or PESQ is not defined at this rate.
    """
    try:
        import pesq as package
    except ImportError as error:
        raise ImportError(f"PESQ needs the package pesq: {_HINT}") from error
    if sample_rate not in (8000, 16000):
        raise ValueError(f"PESQ is defined at 8000 and 16000 Hz, got {sample_rate} Hz")
    band = "nb" if sample_rate == 8000 else "wb"
    too_long = sources.shape[-1] > PESQ_MAX_SECONDS * sample_rate

    def score(estimate: Tensor, source: Tensor) -> float:
        if too_long or not estimate.any() or not source.any():
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
        (...), at most 1, which stands for a perfect copy; nan where it is not defined: silence, or less than
        0.4 s of speech.

    Raises:
        ValueError: The shapes differ.

    Reference: Jensen and Taal, "An algorithm for predicting the intelligibility of speech masked by modulated
    noise maskers".
    """
    try:
        from pystoi import stoi
    except ImportError as error:
        raise ImportError(f"ESTOI needs the package pystoi: {_HINT}") from error

    def score(estimate: Tensor, source: Tensor) -> float:
        if not estimate.any() or not source.any():
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
