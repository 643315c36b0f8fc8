"""What else an estimate holds: other talkers (SIR), and what is of no talker at all (SAR), in dB."""

import torch
from torch import Tensor

from flasepformer.metrics.ratios import FILTER_LENGTH, LIMIT_DB

_RIDGE = 1e-13  # of the mean diagonal: makes the equations of pure tones solvable, changes no fourth decimal


def sir_sar(
    estimates: Tensor, sources: Tensor, *, filter_length: int = FILTER_LENGTH
) -> tuple[Tensor, Tensor]:
    """Compute the source-to-interference and source-to-artefacts ratios of BSSEval version 3.

    An estimate is split into what a filter of `filter_length` taps makes of its own source, what such filters
    make of the other sources (interference), and the rest (artefacts).

    Args:
        estimates: (..., source, time), in the order of the sources.
        sources: Same shape.
        filter_length: Taps that are forgiven.

    Returns:
        SIR and SAR, each (..., source), dB, clipped at +-100 dB. Both are nan for a silent source; the SIR
        also where no other source sounds.

    Raises:
        ValueError: The shapes differ.

    Reference: Vincent, Gribonval and Fevotte, "Performance measurement in blind audio source separation".
    """
    if estimates.shape != sources.shape or estimates.ndim < 2:
        raise ValueError(
            "estimates and sources must have the same shape (..., source, time), "
            f"got {tuple(estimates.shape)} and {tuple(sources.shape)}"
        )
    estimates, sources = _unit_energy(estimates), _unit_energy(sources)
    n_fft = sources.shape[-1] + filter_length
    source_spectra = torch.fft.rfft(sources, n_fft)
    estimate_spectra = torch.fft.rfft(estimates, n_fft)
    correlation = torch.fft.irfft(source_spectra.conj().unsqueeze(-2) * source_spectra.unsqueeze(-3), n_fft)
    products = torch.fft.irfft(source_spectra.conj().unsqueeze(-3) * estimate_spectra.unsqueeze(-2), n_fft)
    energies = sources.square().sum(-1), estimates.square().sum(-1)
    return ratios_of_correlations(correlation, products[..., :filter_length], *energies, filter_length)


def ratios_of_correlations(
    correlation: Tensor, products: Tensor, energies: Tensor, estimate_energies: Tensor, filter_length: int
) -> tuple[Tensor, Tensor]:
    """Compute `sir_sar` of signals of energy 1, or silent, of which only correlations are known.

    Args:
        correlation: (..., source, source, lag), double precision: the second one later by a lag of 0 to
            `filter_length` - 1; the negative lags stand at the end, -1 last.
        products: (..., estimate, source, lag), the estimate later by a lag of 0 to `filter_length` - 1.
        energies: (..., source), of the sources.
        estimate_energies: (..., source), of the estimates.
        filter_length: Taps that are forgiven.
    """
    own, taps = torch.arange(energies.shape[-1]), torch.arange(filter_length)
    gram = correlation[..., taps[:, None] - taps].movedim(-2, -3)  # (..., source, tap, source, tap)
    of_source = _projected_power(gram[..., own, :, own, :].movedim(0, -3), products[..., own, own, :])
    whole_gram = gram.flatten(-2).flatten(-3, -2).unsqueeze(-3)  # (..., 1, source x tap, source x tap)
    of_all = _projected_power(whole_gram, products.flatten(-2)).maximum(of_source)
    sounding = energies > 0
    alone = sounding.sum(-1, keepdim=True) < 2
    sir = _decibels(of_source, of_all - of_source).masked_fill(~sounding | alone, torch.nan)
    sar = _decibels(of_all, estimate_energies - of_all).masked_fill(~sounding, torch.nan)
    return sir.float(), sar.float()


def _unit_energy(signals: Tensor) -> Tensor:
    """Scale to energy 1 in double precision, which changes neither ratio; silence stays."""
    signals = signals.double()
    signals = signals / signals.abs().amax(-1, keepdim=True).clamp_min(1e-300)
    return signals / signals.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def _projected_power(gram: Tensor, products: Tensor) -> Tensor:
    """Return the energy of the projection, products' x inverse Gram matrix x products."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    silent = diagonal == 0  # delays of a silent source: any value solves them, as their products are 0
    ridge = _RIDGE * diagonal.mean(-1, keepdim=True) + silent
    factor = torch.linalg.cholesky(gram + torch.diag_embed(ridge))
    half = torch.linalg.solve_triangular(factor, products.unsqueeze(-1), upper=False)
    return half.square().sum((-2, -1))


def _decibels(wanted: Tensor, unwanted: Tensor) -> Tensor:
    ratio = wanted.clamp_min(1e-60) / unwanted.clamp_min(1e-30)  # a silent estimate scores the least
    return (10 * ratio.log10()).clamp(-LIMIT_DB, LIMIT_DB)
