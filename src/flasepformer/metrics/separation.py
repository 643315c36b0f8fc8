"""All scores of a separation at once, after the best permutation."""

from dataclasses import dataclass

from torch import Tensor

from flasepformer.metrics.permutation import best_permutation, pairwise, reorder
from flasepformer.metrics.ratios import sdr, sdr_improvement, si_snr, si_snr_improvement


@dataclass(frozen=True)
class SeparationScores:
    """One value for each source, (..., source), in dB; nan where the source is silent."""

    permutation: Tensor
    """Index of the estimate given to each source."""
    si_snr: Tensor
    si_snr_improvement: Tensor
    sdr: Tensor | None
    sdr_improvement: Tensor | None


def separation_scores(
    estimates: Tensor, sources: Tensor, mixture: Tensor, *, with_sdr: bool = True
) -> SeparationScores:
    """Score estimates against the sources they fit best by SI-SNR.

    Args:
        estimates: (..., source, time), in any order.
        sources: Same shape as `estimates`.
        mixture: (..., time).
        with_sdr: Also compute the SDR, which takes far longer and needs torchmetrics.

    Raises:
        ValueError: There are not as many estimates as sources, or the lengths differ.
    """
    permutation = best_permutation(pairwise(si_snr, estimates, sources))
    estimates = reorder(estimates, permutation)
    return SeparationScores(
        permutation,
        si_snr(estimates, sources),
        si_snr_improvement(estimates, sources, mixture),
        sdr(estimates, sources) if with_sdr else None,
        sdr_improvement(estimates, sources, mixture) if with_sdr else None,
    )
