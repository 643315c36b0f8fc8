"""Our score of published weights beside the score that was published for them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flasepformer.data import PUBLISHED_SETS, MixtureFolder, MixtureManifest, MixtureSet
from flasepformer.evaluation.summary import Summary
from flasepformer.models import PublishedScore

_COMPARED = (("SI-SNRi", "si_snr_improvement", "si_snri"), ("SDRi", "sdr_improvement", "sdri"))


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """One metric, here and as published, in dB."""

    metric: str
    here: float
    published: float

    @property
    def difference(self) -> float:
        return self.here - self.published


def find_published_score(scores: Iterable[PublishedScore], mixtures: MixtureSet) -> PublishedScore | None:
    """Return the score that was published for the set at hand, None if there is none.

    A set is known by its folders, as they were published: of the split, of the mixtures, of the targets.
    """
    found = _folders(mixtures)
    for score in scores:
        published = PUBLISHED_SETS[score.set]
        task, talkers = published.tasks[score.task], range(1, published.n_sources + 1)
        if found == (score.split, task.mixture, tuple(task.source.format(talker) for talker in talkers)):
            return score
    return None


def n_published_mixtures(score: PublishedScore) -> int:
    """Return how many mixtures a published score is the mean over."""
    return PUBLISHED_SETS[score.set].n_mixtures[score.split]


def compare_with_published(score: PublishedScore, summary: Summary) -> list[Reproduction]:
    """Return each metric that was computed and has a published value."""
    compared = []
    for metric, ours, theirs in _COMPARED:
        here, published = summary.mean.get(ours, math.nan), getattr(score, theirs)
        if published is not None and not math.isnan(here):
            compared.append(Reproduction(metric=metric, here=here, published=published))
    return compared


def _folders(mixtures: MixtureSet) -> tuple[str, str, tuple[str, ...]] | None:
    """Return the folders of split, mixtures and targets."""
    if isinstance(mixtures, MixtureFolder):
        return Path(mixtures.root).resolve().name, mixtures.mix_dir, tuple(mixtures.source_dirs)
    if isinstance(mixtures, MixtureManifest):
        first = mixtures.files[0]
        targets = tuple(source.parent.name for source in first.sources)
        return first.mixture.parent.parent.name, first.mixture.parent.name, targets
    return None
