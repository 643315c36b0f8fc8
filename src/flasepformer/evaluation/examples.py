"""Mixtures to look at and to listen to: which ones, and their tracks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from flasepformer.data import MixtureSet
from flasepformer.evaluation.comparison import check_same_mixtures
from flasepformer.evaluation.rows import EvaluationRow
from flasepformer.evaluation.scoring import at_mixture_level, score_estimates, with_missing_sources
from flasepformer.evaluation.separating import Separate, separation_by
from flasepformer.inference import RunOptions, Separator
from flasepformer.metrics import best_permutation, pairwise, reorder, si_snr
from flasepformer.models import SeparationNetwork

MAX_SECONDS = 20.0
"""Longest excerpt: enough to hear a fault, and a page that a browser opens."""


@dataclass(frozen=True)
class Example:
    """One mixture with its sources and the estimates of one or several models, cut to an excerpt."""

    name: str
    why: str
    """Why it was chosen: "best", ..."""
    sample_rate: int
    seconds: float
    """Length of the whole mixture."""
    mixture: Tensor
    """(time,)"""
    sources: Tensor
    """(source, time)"""
    estimates: tuple[Tensor, ...]
    """One (source, time) for each model, in the order of the sources; see `at_mixture_level`."""
    improvements: tuple[tuple[float, ...], ...]
    """SI-SNRi of each estimate, of the whole mixture, in dB."""


def choose_examples(evaluations: Sequence[Sequence[EvaluationRow]], n_each: int) -> list[tuple[str, str]]:
    """Choose the mixtures to show: (why, name), each name once.

    Of one evaluation the best, the median and the worst by SI-SNRi; of several, those in which the last
    differs most from the first, either way, and those in between.

    Raises:
        ValueError: The mixtures are not the same.
    """
    first, last = evaluations[0], {row.name: row.mean("si_snr_improvement") for row in evaluations[-1]}
    if len(evaluations) == 1:
        reasons: tuple[str | None, ...] = ("Best", "Median", "Worst")
        value = last
    else:
        check_same_mixtures(first, evaluations[-1])
        reasons = (None, "Median difference", None)
        value = {row.name: last[row.name] - row.mean("si_snr_improvement") for row in first}
    order = sorted(
        (name for name in value if not math.isnan(value[name])), key=value.__getitem__, reverse=True
    )
    middle = max(0, (len(order) - n_each) // 2)
    chosen = (order[:n_each], order[middle : middle + n_each], order[max(0, len(order) - n_each) :])
    reason_of: dict[str, str] = {}
    for reason, names in zip(reasons, chosen, strict=True):
        for name in names:
            reason_of.setdefault(name, reason or _against_first(value[name]))
    return [(reason, name) for name, reason in reason_of.items()]


def _against_first(difference: float) -> str:
    if difference == 0:
        return "As good as the first"
    return "Better than the first" if difference > 0 else "Worse than the first"


def make_examples(
    chosen: Sequence[tuple[str, str]],
    models: Sequence[Separator | SeparationNetwork],
    mixtures: MixtureSet,
    run_options: Sequence[RunOptions | None] | None = None,
) -> list[Example]:
    """Separate the chosen mixtures again.

    Args:
        chosen: Reason and name of each; see `choose_examples`.
        models: Separators or networks.
        mixtures: The set that was evaluated.
        run_options: Of each model, as they were given to `evaluate`; by default none.

    Raises:
        ValueError: A mixture is not in the set, or cannot be read or separated.
    """
    index = {name: k for k, name in enumerate(mixtures.names)}
    if missing := [name for _, name in chosen if name not in index]:
        raise ValueError(f"the set has no mixture {missing[0]!r}; give the set that was evaluated")
    ways = [
        separation_by(model, options)
        for model, options in zip(models, run_options or [None] * len(models), strict=True)
    ]
    return [_example(why, index[name], ways, mixtures) for why, name in chosen]


def _example(why: str, index: int, ways: Sequence[Separate], mixtures: MixtureSet) -> Example:
    item = mixtures[index]
    end = round(MAX_SECONDS * item.sample_rate)
    estimates, improvements = [], []
    for separate in ways:
        tracks = separate(item).estimates
        improvements.append(score_estimates(tracks, item)["si_snr_improvement"])
        order = best_permutation(pairwise(si_snr, tracks, with_missing_sources(item.sources, len(tracks))))
        tracks = at_mixture_level(reorder(tracks, order), item.mixture)
        estimates.append(tracks[:, :end])
    return Example(
        name=item.name,
        why=why,
        sample_rate=item.sample_rate,
        seconds=len(item.mixture) / item.sample_rate,
        mixture=item.mixture[:end],
        sources=item.sources[:, :end],
        estimates=tuple(estimates),
        improvements=tuple(improvements),
    )
