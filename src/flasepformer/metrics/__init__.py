"""Pure tensor functions: how well estimates match known sources, in dB unless their names say otherwise."""

from flasepformer.metrics.bss_eval import sir_sar
from flasepformer.metrics.conversation import (
    HOP_SECONDS,
    leakage_db,
    leakage_of_powers,
    talker_confusion,
    wrong_turns,
)
from flasepformer.metrics.in_blocks import ScoresInBlocks
from flasepformer.metrics.perceptual import PESQ_MAX_SECONDS, estoi, pesq, why_no_estoi, why_no_pesq
from flasepformer.metrics.permutation import best_permutation, pairwise, reorder
from flasepformer.metrics.ratios import LIMIT_DB, sdr, sdr_improvement, si_snr, si_snr_improvement
from flasepformer.metrics.separation import SeparationScores, separation_scores

__all__ = [
    "HOP_SECONDS",
    "LIMIT_DB",
    "PESQ_MAX_SECONDS",
    "ScoresInBlocks",
    "SeparationScores",
    "best_permutation",
    "estoi",
    "leakage_db",
    "leakage_of_powers",
    "pairwise",
    "pesq",
    "reorder",
    "sdr",
    "sdr_improvement",
    "separation_scores",
    "si_snr",
    "si_snr_improvement",
    "sir_sar",
    "talker_confusion",
    "why_no_estoi",
    "why_no_pesq",
    "wrong_turns",
]
