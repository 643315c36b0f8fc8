"""What is measured: the metrics with their names, and all scores of one mixture."""

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from flasepformer.audio import BLOCK_LENGTH, explaining_gains, gains_of, regular_blocks, silent_blocks
from flasepformer.data import LONG_SECONDS, LongMixture, Mixture
from flasepformer.inference.tracks import Tracks
from flasepformer.installing import how_to_install
from flasepformer.metrics import (
    HOP_SECONDS,
    LIMIT_DB,
    ScoresInBlocks,
    best_permutation,
    estoi,
    leakage_db,
    leakage_of_powers,
    pesq,
    reorder,
    sdr,
    separation_scores,
    sir_sar,
    talker_confusion,
    why_no_estoi,
    why_no_pesq,
    wrong_turns,
)

Scores = dict[str, tuple[float, ...]]
"""By the keys of `METRICS`: one value for each source, or a single one for the whole mixture."""


@dataclass(frozen=True)
class Metric:
    """How a metric is printed."""

    label: str
    unit: str = "dB"
    lower_is_better: bool = False
    per_source: bool = True
    """One value for each source; otherwise one for the mixture."""


METRICS = {
    "si_snr": Metric("SI-SNR"),
    "si_snr_improvement": Metric("SI-SNRi"),
    "sdr": Metric("SDR"),
    "sdr_improvement": Metric("SDRi"),
    "sir": Metric("SIR"),
    "sar": Metric("SAR"),
    "pesq": Metric("PESQ", "MOS"),
    "estoi": Metric("ESTOI", ""),
    "confusion": Metric("confusion", "share", lower_is_better=True, per_source=False),
    "turns": Metric("wrong turns", "share", lower_is_better=True, per_source=False),
    "leakage": Metric("leakage", "dB", lower_is_better=True, per_source=False),
    "mixture_si_snr": Metric("mixture SI-SNR"),
    "mixture_sdr": Metric("mixture SDR"),
    "mixture_sir": Metric("mixture SIR"),
    "mixture_sar": Metric("mixture SAR"),
    "mixture_pesq": Metric("mixture PESQ", "MOS"),
    "mixture_estoi": Metric("mixture ESTOI", ""),
}
"""Everything a row can hold; `mixture_...` is the score of the mixture itself, taken for every estimate."""

EXTRA_METRICS = ("sdr", "sir", "sar", "pesq", "estoi", "confusion", "turns", "leakage")
"""What can be asked for beside the SI-SNR."""

_PACKAGES = {
    "sdr": ("torchmetrics", "evaluation"),
    "pesq": ("pesq", "perceptual"),
    "estoi": ("pystoi", "perceptual"),
}
_PERFECT_DB = LIMIT_DB - 1  # a mixture above it holds nothing that is unwanted


def check_metrics(metrics: Collection[str]) -> None:
    """Make sure that metrics are known and their packages there, before any work.

    Raises:
        ValueError: There is no such metric.
        ModuleNotFoundError: A package is missing; the message names the extra to install.
    """
    if unknown := [metric for metric in metrics if metric not in EXTRA_METRICS]:
        raise ValueError(f"no metric is called {', '.join(unknown)}; there are {', '.join(EXTRA_METRICS)}")
    for metric in metrics:
        package, extra = _PACKAGES.get(metric, ("", ""))
        try:
            if package:
                importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{metric} needs {package}: {how_to_install(extra)}, or leave {metric} out",
                name=error.name,
            ) from error


def package_of(metric: str) -> str:
    """Return the package that computes a metric; empty if we do."""
    return _PACKAGES.get(metric, ("", ""))[0]


def why_not_applicable(metric: str, item: Mixture) -> str:
    """Say in a sentence why one of `EXTRA_METRICS` has no value for a mixture of this rate and length.

    Empty if nothing stands against it.
    """
    if metric == "turns" and not item.turns:
        return "the set does not say who speaks when"
    why = {"pesq": why_no_pesq, "estoi": why_no_estoi}.get(metric)
    return why(len(item.mixture), item.sample_rate) if why else ""


def score_estimates(estimates: Tensor, item: Mixture, metrics: Collection[str] = ()) -> Scores:
    """Score estimates against the sources of a mixture, in the order that has the highest SI-SNR.

    A source that is silent or missing is "not applicable": nan. So is a score of the mixture that is
    infinite, and the improvement over it: one talker alone is separated already. So is a metric that has no
    value at this rate or length, see `why_not_applicable`; the others have theirs.

    Args:
        estimates: (source, time).
        item: The mixture; it may have fewer sources than there are estimates.
        metrics: Of `EXTRA_METRICS`.

    Raises:
        ValueError: There are more sources than estimates, or the lengths differ.
    """
    sources = with_missing_sources(item.sources, len(estimates))
    scored = separation_scores(estimates, sources, item.mixture, with_sdr=False)
    estimates = reorder(estimates, scored.permutation)
    unprocessed = item.mixture.expand_as(sources)
    scores = {"si_snr": scored.si_snr, "mixture_si_snr": scored.si_snr - scored.si_snr_improvement}
    for prefix, signals in (("", estimates), ("mixture_", unprocessed)):
        if "sdr" in metrics:
            scores[f"{prefix}sdr"] = sdr(signals, sources)
        if {"sir", "sar"} & {*metrics}:
            ratios = dict(zip(("sir", "sar"), sir_sar(signals, sources), strict=True))
            scores |= {prefix + name: ratio for name, ratio in ratios.items() if name in metrics}
        for name, perceptual in (("pesq", pesq), ("estoi", estoi)):
            if name in metrics and why_not_applicable(name, item):
                scores[prefix + name] = torch.full_like(scored.si_snr, torch.nan)
            elif name in metrics:
                scores[prefix + name] = perceptual(signals, sources, item.sample_rate)
    _improve(scores)
    if {"confusion", "turns", "leakage"} & {*metrics}:
        tracks = at_mixture_level(estimates, item.mixture)
    if "confusion" in metrics:
        scores["confusion"] = talker_confusion(tracks, sources, item.sample_rate)[None]
    if "turns" in metrics:
        wrong = wrong_turns(tracks, item.turns) / len(item.turns) if item.turns else torch.nan
        scores["turns"] = torch.tensor([wrong])
    if "leakage" in metrics:
        one_talker = int(sources.any(-1).sum()) == 1
        scores["leakage"] = leakage_db(tracks, item.mixture)[None].where(torch.tensor(one_talker), torch.nan)
    return _in_order(scores)


def why_not_in_blocks(metric: str) -> str:
    """Say in a sentence why one of `EXTRA_METRICS` has no value for a `LongMixture`; empty if it has."""
    if metric == "turns":
        return "the set does not say who speaks when"
    if metric in ("pesq", "estoi"):
        return f"{METRICS[metric].label} is not computed of recordings beyond {LONG_SECONDS / 60:g} minutes"
    return ""


def score_in_blocks(tracks: Tracks, item: LongMixture, metrics: Collection[str] = ()) -> Scores:
    """Score as `score_estimates` does, though neither tracks nor sources ever stand in memory as a whole.

    Args:
        tracks: As many as the mixture has sources, or more.
        item: The mixture.
        metrics: Of `EXTRA_METRICS`; see `why_not_in_blocks`.

    Raises:
        ValueError: There are more sources than tracks, or the lengths differ.
    """
    n_sources, rate = tracks.n_tracks, item.sample_rate
    n_missing = n_sources - len(item.sources)
    if n_missing < 0:
        raise ValueError(f"the mixture has {len(item.sources)} sources, but there are {n_sources} tracks")
    n_samples, hop = item.n_samples, max(1, round(HOP_SECONDS * rate))
    with_filters = bool({"sdr", "sir", "sar"} & {*metrics})
    sums = ScoresInBlocks(n_sources, 2 * n_sources + 1, hop, with_filters=with_filters)
    length = hop * max(1, BLOCK_LENGTH // hop)
    streams = [source.blocks(length) for source in item.sources]
    streams += [regular_blocks(silent_blocks(1, n_samples), length) for _ in range(n_missing)]
    streams += [regular_blocks(tracks.blocks(index), length) for index in range(n_sources)]
    streams.append(item.mixture.blocks(length))
    for blocks in zip(*streams, strict=True):
        sums.add(torch.from_numpy(np.concatenate(blocks)))
    own = torch.arange(n_sources)
    unprocessed = torch.full_like(own, 2 * n_sources)
    pairs = torch.stack([sums.si_snr(torch.full_like(own, n_sources + index)) for index in range(n_sources)])
    estimates = n_sources + best_permutation(pairs)
    scores = {}
    for prefix, signals in (("", estimates), ("mixture_", unprocessed)):
        scores[f"{prefix}si_snr"] = sums.si_snr(signals)
        if "sdr" in metrics:
            scores[f"{prefix}sdr"] = sums.sdr(signals)
        if {"sir", "sar"} & {*metrics}:
            ratios = dict(zip(("sir", "sar"), sums.sir_sar(signals), strict=True))
            scores |= {prefix + name: ratio for name, ratio in ratios.items() if name in metrics}
        for name in {"pesq", "estoi"} & {*metrics}:
            scores[prefix + name] = torch.full((n_sources,), torch.nan)
    _improve(scores)
    gains = torch.from_numpy(gains_of(sums.gram[n_sources:, n_sources:].numpy()))
    if "confusion" in metrics:
        order = estimates - n_sources
        scores["confusion"] = sums.talker_confusion(estimates, gains[order])[None]
    if "turns" in metrics:
        scores["turns"] = torch.tensor([torch.nan])
    if "leakage" in metrics:
        energies = sums.gram.diagonal()
        one_talker = int((energies[:n_sources] > 0).sum()) == 1
        powers = gains.square() * energies[n_sources:-1]
        leak = leakage_of_powers(powers, energies[-1])
        scores["leakage"] = leak[None].where(torch.tensor(one_talker), torch.nan)
    return _in_order(scores)


def _improve(scores: dict[str, Tensor]) -> None:
    """Leave out what says nothing of a mixture, and add what an estimate is better by."""
    for metric, score in scores.items():
        if metric.startswith("mixture_") and METRICS[metric].unit == "dB":  # a clipped infinity is no number
            scores[metric] = score.masked_fill(score > _PERFECT_DB, torch.nan)
    for metric in {"si_snr", "sdr"} & scores.keys():
        scores[f"{metric}_improvement"] = scores[metric] - scores[f"mixture_{metric}"]


def _in_order(scores: Mapping[str, Tensor]) -> Scores:
    return {metric: tuple(scores[metric].tolist()) for metric in METRICS if metric in scores}


def at_mixture_level(estimates: Tensor, mixture: Tensor) -> Tensor:
    """Return the estimates (source, time) at the levels at which they sum to the mixture (time,) best.

    A model that is trained for SI-SNR gives them any level.
    """
    gains = explaining_gains(mixture.numpy(), estimates.numpy())
    return torch.from_numpy(gains).to(estimates.dtype).unsqueeze(-1) * estimates


def with_missing_sources(sources: Tensor, n_sources: int) -> Tensor:
    """Return the sources (source, time) with silence in place of those that are missing."""
    return pad(sources, (0, 0, 0, max(n_sources - len(sources), 0)))
