"""Pure tensor functions in dB, higher is better: how well estimates match known sources."""

from flasepformer.metrics.permutation import best_permutation, pairwise, reorder
from flasepformer.metrics.ratios import LIMIT_DB, sdr, sdr_improvement, si_snr, si_snr_improvement
from flasepformer.metrics.separation import SeparationScores, separation_scores

__all__ = [
    "LIMIT_DB",
    "SeparationScores",
    "best_permutation",
    "pairwise",
    "reorder",
    "sdr",
    "sdr_improvement",
    "separation_scores",
    "si_snr",
    "si_snr_improvement",
]
