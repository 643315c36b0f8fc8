"""The losses of the paper, in dB, lower is better: of the output, and of the auxiliary heads' spectra."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flasepformer.metrics import best_permutation, pairwise, si_snr

AUXILIARY_WINDOW = 512
AUXILIARY_HOP = 128
"""Window and hop in samples of the spectra that the auxiliary loss compares (Shin et al., NeurIPS 2024,
section 3.4)."""


ABSENT_LIMIT_DB = 30.0
"""An estimate of an absent talker that is so far below the others earns little more; a soft threshold, as in
Wisdom et al., "What's all the FUSS about free universal sound separation data?", ICASSP 2021."""

_SILENT_POWER = 1e-18
"""Of estimates that are all silent; its square, which the gradient divides by, is not zero either."""


def si_snr_loss(estimates: Tensor, sources: Tensor, limit_db: float = 0.0) -> Tensor:
    """Return minus the mean SI-SNR under the best permutation of each mixture (PIT), in dB.

    The permutation is that of the whole segment: a talker who changes tracks is separated badly.

    In place of a silent source, which has no SI-SNR, stands how far its estimate is below all estimates
    together.

    Args:
        estimates: (batch, source, time).
        sources: Same shape.
        limit_db: What SI-SNR approaches and never exceeds, softly; 0 sets no limit.
    """

    def limited(estimates: Tensor, sources: Tensor) -> Tensor:
        scores = si_snr(estimates, sources)
        return softly_limited(scores, limit_db) if limit_db else scores

    return _permutation_invariant_loss(limited, estimates.float(), sources.float(), _is_silent(sources))


def softly_limited(scores: Tensor, limit_db: float) -> Tensor:
    """Return scores in dB that approach a limit and never exceed it."""
    return scores - 10 * (1 + 10 ** ((scores - limit_db) / 10)).log10()


def magnitude_loss(estimates: Tensor, sources: Tensor) -> Tensor:
    """Return minus the mean scale-invariant SNR of the magnitude spectra under the best permutation, in dB.

    No mean is taken off: a magnitude has no arbitrary offset.

    Args:
        estimates: (batch, source, time).
        sources: Same shape.
    """
    # Differs from the authors' code, where the scale is that of the waveforms: a head whose phases are wrong
    # has none.
    return _permutation_invariant_loss(
        _scale_invariant_snr, _magnitudes(estimates), _magnitudes(sources), _is_silent(sources)
    )


def multi_stage_loss(
    estimates: Tensor,
    auxiliary_estimates: Sequence[Tensor],
    sources: Tensor,
    auxiliary_weight: float,
    limit_db: float = 0.0,
) -> Tensor:
    """Weigh the output's loss against the mean loss of the auxiliary heads, each with its own permutation.

    Args:
        estimates: (batch, source, time).
        auxiliary_estimates: One tensor of that shape for each auxiliary head.
        sources: Same shape.
        auxiliary_weight: Share of the auxiliary loss, from 0 to 1; the paper starts at 0.4.
        limit_db: Of `si_snr_loss`.
    """
    loss = si_snr_loss(estimates, sources, limit_db)
    if not auxiliary_estimates or auxiliary_weight == 0:
        return loss
    auxiliary = torch.stack([magnitude_loss(estimate, sources) for estimate in auxiliary_estimates]).mean()
    return (1 - auxiliary_weight) * loss + auxiliary_weight * auxiliary


def _permutation_invariant_loss(
    metric: Callable[[Tensor, Tensor], Tensor], estimates: Tensor, sources: Tensor, is_silent: Tensor
) -> Tensor:
    scores = pairwise(metric, estimates, sources)  # (batch, source_estimate, source)
    if is_silent.any():
        scores = torch.where(is_silent.unsqueeze(1), _attenuation(estimates).unsqueeze(2), scores)
    permutation = best_permutation(scores)
    return -scores.gather(1, permutation.unsqueeze(1)).mean()


def _is_silent(sources: Tensor) -> Tensor:
    return sources.abs().amax(-1) == 0  # (batch, source)


def _attenuation(estimates: Tensor) -> Tensor:
    """Return how far each estimate is below all of them together, in dB up to the limit: (batch, source)."""
    power = estimates.square().mean(-1)
    total = power.sum(-1, keepdim=True) + _SILENT_POWER
    return -10 * (power / total + 10 ** (-ABSENT_LIMIT_DB / 10)).log10()


def _scale_invariant_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """Return the SNR in dB, from -100 to 100, of non-zero (..., any) against the sources at their level."""
    scale = (estimates * sources).mean(-1, keepdim=True) / sources.square().mean(-1, keepdim=True)
    target = scale * sources
    floor = 1e-10 * estimates.square().mean(-1)
    noise = (estimates - target).square().mean(-1)
    return 10 * ((target.square().mean(-1) + floor) / (noise + floor)).log10()


def _magnitudes(waveforms: Tensor) -> Tensor:
    """Return the magnitude spectra of (..., time), flattened to (..., frame * frequency)."""
    window = torch.hann_window(AUXILIARY_WINDOW, device=waveforms.device)
    spectra = torch.stft(
        waveforms.float().flatten(0, -2), AUXILIARY_WINDOW, AUXILIARY_HOP, window=window, return_complex=True
    )
    power = spectra.real.square() + spectra.imag.square()
    magnitudes = (power + torch.finfo(power.dtype).eps).sqrt()
    return magnitudes.reshape(*waveforms.shape[:-1], -1)
