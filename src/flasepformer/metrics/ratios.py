"""How much of the source, against everything else, an estimate holds: SI-SNR and SDR, in dB.

Both have a value for every input. They are clipped at +-100 dB, so an exact copy scores 100 and a silent
estimate -100; a silent source is nan, which stands for "not applicable": leave it out with `nanmean`.
"""

import torch
from torch import Tensor

from flasepformer.installing import how_to_install

LIMIT_DB = 100.0
_FLOOR = 10 ** (-LIMIT_DB / 10)  # the same as a ratio of powers
_TINY = 1e-24  # mean square; 0 for every practical signal, and keeps the logarithm off 0
FILTER_LENGTH = 512  # taps of BSSEval version 3


def si_snr(estimates: Tensor, sources: Tensor) -> Tensor:
    """Compute the scale-invariant signal-to-noise ratio of zero-mean signals.

    It is differentiable in the estimates, with a finite gradient everywhere: fit for a loss.

    Args:
        estimates: (..., time).
        sources: Same shape as `estimates`.

    Returns:
        (...), dB, higher is better; float32 or better whatever came in.

    Raises:
        ValueError: The shapes differ, or there is no sample.
    """
    estimates, sources = _comparable(estimates, sources)
    estimates = estimates - estimates.mean(-1, keepdim=True)
    silent = _is_constant(sources)
    sources = sources - sources.mean(-1, keepdim=True)
    sources = sources / sources.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
    target = (estimates * sources).mean(-1, keepdim=True) * sources
    target_power, noise_power = target.square().mean(-1), (estimates - target).square().mean(-1)
    ratio_db = _decibels(target_power, noise_power, estimates.square().mean(-1))
    return ratio_db.masked_fill(silent, torch.nan)


def si_snr_of_means(products: Tensor, source_powers: Tensor, estimate_powers: Tensor) -> Tensor:
    """Compute the SI-SNR of signals of which only means are known, without their constant offsets.

    Args:
        products: (...), mean of estimate times source, in double precision.
        source_powers: (...), mean square.
        estimate_powers: (...), mean square.
    """
    target_power = products.square() / source_powers.clamp_min(1e-60)
    return _decibels(target_power, (estimate_powers - target_power).clamp_min(0), estimate_powers)


def _decibels(target_power: Tensor, noise_power: Tensor, power: Tensor) -> Tensor:
    floor = _FLOOR * power
    return 10 * ((target_power + floor + _FLOOR * _TINY).log10() - (noise_power + floor + _TINY).log10())


def sdr(estimates: Tensor, sources: Tensor) -> Tensor:
    """Compute the signal-to-distortion ratio of BSSEval version 3: any filter of 512 taps is forgiven.

    Needs torchmetrics (`pip install "flasepformer[evaluation]"`).

    Args:
        estimates: (..., time).
        sources: Same shape as `estimates`.

    Returns:
        (...), dB, higher is better.

    Raises:
        ValueError: The shapes differ, or there is no sample.

    Reference: Vincent, Gribonval and Fevotte, "Performance measurement in blind audio source separation".
    """
    try:
        from torchmetrics.functional.audio import signal_distortion_ratio
    except ImportError as error:
        raise ImportError(f"the SDR needs torchmetrics: {how_to_install('evaluation')}") from error
    estimates, sources = _comparable(estimates, sources)
    silent = sources.abs().amax(-1) == 0
    impulse = torch.zeros_like(sources)
    impulse[..., 0] = 1.0  # in place of a silent source, whose equations have no solution
    sources = torch.where(silent.unsqueeze(-1), impulse, sources)
    # One by one: oneMKL gets several systems at once wrong after `torch.set_num_threads` went from 1 to more.
    pairs = zip(*(_at_peak_1(s).reshape(-1, s.shape[-1]) for s in (estimates, sources)), strict=True)
    ratios_db = [signal_distortion_ratio(*pair, filter_length=FILTER_LENGTH) for pair in pairs]
    ratio_db = torch.stack(ratios_db).reshape(silent.shape)
    # rounding takes the coherence of an exact copy to 1 or just above: infinite, or a logarithm below 0
    ratio_db = ratio_db.nan_to_num(nan=LIMIT_DB).clamp(-LIMIT_DB, LIMIT_DB)
    return ratio_db.masked_fill(silent, torch.nan).to(estimates.dtype)


def si_snr_improvement(estimates: Tensor, sources: Tensor, mixture: Tensor) -> Tensor:
    """Compute the SI-SNR of the estimates less that of the mixture against the same sources (SI-SNRi).

    Args:
        estimates: (..., source, time).
        sources: Same shape as `estimates`.
        mixture: (..., time), without the axis of the sources.

    Returns:
        (..., source), dB.
    """
    return si_snr(estimates, sources) - si_snr(_for_each_source(mixture, sources), sources)


def sdr_improvement(estimates: Tensor, sources: Tensor, mixture: Tensor) -> Tensor:
    """Compute the SDR of the estimates less that of the mixture (SDRi); shapes as in `si_snr_improvement`."""
    return sdr(estimates, sources) - sdr(_for_each_source(mixture, sources), sources)


def _comparable(estimates: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Check the shapes and widen half precision."""
    if estimates.shape != sources.shape:
        raise ValueError(
            f"estimates and sources must have the same shape (..., time), "
            f"got {tuple(estimates.shape)} and {tuple(sources.shape)}"
        )
    if estimates.ndim == 0 or estimates.shape[-1] == 0:
        raise ValueError(f"signals must have at least one sample, got shape {tuple(estimates.shape)}")
    dtype = torch.promote_types(torch.promote_types(estimates.dtype, sources.dtype), torch.float32)
    return estimates.to(dtype), sources.to(dtype)


def _at_peak_1(signals: Tensor) -> Tensor:
    """Scale up what torchmetrics would take for silence; silence stays."""
    peak = signals.abs().amax(-1, keepdim=True)
    return signals.double() / peak.double().masked_fill(peak == 0, 1.0)


def _is_constant(signals: Tensor) -> Tensor:
    """Tell silence, and a constant offset, which is silence once the mean is taken off."""
    return signals.amax(-1) == signals.amin(-1)


def _for_each_source(mixture: Tensor, sources: Tensor) -> Tensor:
    if mixture.shape != sources.shape[:-2] + sources.shape[-1:]:
        raise ValueError(
            "the mixture must have the same shape as the sources but without their axis, "
            f"got {tuple(mixture.shape)} for sources {tuple(sources.shape)}"
        )
    return mixture.unsqueeze(-2).expand_as(sources)
