"""The scores of a whole set: means with their intervals, for all mixtures and for each group of them."""

import json
import math
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flasepformer.evaluation.rows import EvaluationRow, write_scores
from flasepformer.evaluation.scoring import METRICS
from flasepformer.evaluation.statistics import bootstrap_interval, known, mean
from flasepformer.inference import growing_folder

TABLE_FILE = "scores.csv"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Scores of many mixtures: each averaged over its talkers first, then over the mixtures."""

    n_mixtures: int
    """Those that were scored."""
    mean: dict[str, float]
    """By the keys of `METRICS`; nan if no mixture has that score."""
    interval: dict[str, tuple[float, float]]
    """Of each mean, at 95 %, by the bootstrap over mixtures; nan for fewer than two of them."""
    median: dict[str, float]
    not_applicable: dict[str, int]
    """Number of scores that were left out, of talkers or mixtures without one; only where there are any."""
    share_worse: float
    """Share of the mixtures whose SI-SNRi is below 0 dB: better left alone."""
    real_time_factor: float
    """Time that the model took, against the length of the audio."""


def summarise(rows: list[EvaluationRow]) -> Summary:
    """Summarise the rows that were scored."""
    rows = [row for row in rows if not row.error]
    metrics = [metric for metric in METRICS if any(metric in row.scores for row in rows)]
    scores = {metric: [row.mean(metric) for row in rows] for metric in metrics}
    missing = {
        metric: sum(math.isnan(score) for row in rows for score in row.scores.get(metric, (math.nan,)))
        for metric in metrics
    }
    improvements = known(scores.get("si_snr_improvement", ()))
    seconds = sum(known(row.seconds for row in rows))
    return Summary(
        n_mixtures=len(rows),
        mean={metric: mean(values) for metric, values in scores.items()},
        interval={metric: bootstrap_interval(values) for metric, values in scores.items()},
        median={
            metric: statistics.median(known(values)) if known(values) else math.nan
            for metric, values in scores.items()
        },
        not_applicable={metric: number for metric, number in missing.items() if number},
        share_worse=mean(float(improvement < 0) for improvement in improvements),
        real_time_factor=sum(known(row.compute_seconds for row in rows)) / seconds if seconds else math.nan,
    )


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on a set of mixtures."""

    rows: tuple[EvaluationRow, ...]
    """One for each mixture, in the order of the set."""

    @property
    def failures(self) -> tuple[tuple[str, str], ...]:
        """Name of each mixture that could not be scored, and the reason."""
        return tuple((row.name, row.error) for row in self.rows if row.error)

    @property
    def notes(self) -> dict[str, int]:
        """Why a metric has no value, in sentences, with the number of mixtures that each is about."""
        return dict(Counter(note for row in self.rows for note in row.notes))

    def summary(self, **group: str) -> Summary:
        """Summarise all rows, or those of one group: `summary(sexes="F-M")`."""
        return summarise([row for row in self.rows if group.items() <= row.labels.items()])

    def grouped(self) -> dict[str, dict[str, Summary]]:
        """Summarise by all that the rows can be grouped by: {"sexes": {"F-M": Summary(...), ...}, ...}."""
        values: dict[str, set[str]] = {}
        for row in self.rows:
            for key, value in row.labels.items():
                values.setdefault(key, set()).add(value)
        return {
            key: {value: self.summary(**{key: value}) for value in sorted(found, key=lambda v: (v == "", v))}
            for key, found in values.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return summary, groups, notes and failures as plain values for JSON; None stands for nan."""
        return without_nan(
            {
                **asdict(self.summary()),
                "groups": {
                    key: {value: asdict(summary) for value, summary in summaries.items()}
                    for key, summaries in self.grouped().items()
                },
                "notes": self.notes,
                "failures": dict(self.failures),
            }
        )

    def write(self, folder: str | Path, **facts: Any) -> tuple[Path, Path]:
        """Write `scores.csv`, a row for each mixture, and `summary.json`; each appears when it is complete.

        Args:
            folder: Made if missing.
            **facts: Put before the summary, e.g. `model="default"`.

        Returns:
            The two paths.

        Raises:
            OutputError: The folder cannot be written in.
        """
        folder = Path(folder)
        table, summary = folder / TABLE_FILE, folder / SUMMARY_FILE
        with growing_folder(folder) as growing:
            write_scores(growing / table.name, self.rows)
            content = json.dumps({**facts, **self.as_dict()}, indent=2)
            (growing / summary.name).write_text(content + "\n", encoding="utf-8")
            for path in (table, summary):
                (growing / path.name).replace(path)
        return table, summary


def without_nan(value: Any) -> Any:
    """Return the same with None in place of every nan, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
