"""The table of scores: one row for each mixture, in memory and as CSV."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flasepformer.evaluation.scoring import METRICS, Scores
from flasepformer.evaluation.statistics import mean

NOT_APPLICABLE = "n/a"
"""In the table: no score, e.g. against a silent source."""

N_DECIMALS = 3
"""Of every number in the table. Rows are rounded to as many, so that a table gives the same summary again."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """Scores of one mixture; nan where a score is not applicable."""

    name: str
    seconds: float = math.nan
    """Length of the mixture."""
    compute_seconds: float = math.nan
    """Time that the model took."""
    scores: Scores = field(default_factory=dict)
    """By the keys of `METRICS`: one value for each source in the order of the set, or one for the mixture."""
    groups: dict[str, str] = field(default_factory=dict)
    """What the mixture can be grouped by, e.g. {"sexes": "F-M"}."""
    error: str = ""
    """Why the mixture could not be scored; it has no scores then."""
    warnings: str = ""
    """What may have gone wrong in its separation."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Why a metric has no value for such a recording, in sentences; the table holds only that it has none."""
    live: dict[str, Any] = field(default_factory=dict, compare=False)
    """Of a stream: its delay, and how long its blocks took; not in the table."""

    def mean(self, metric: str) -> float:
        """Average one of `METRICS` over the talkers to whom it applies; nan if there is none."""
        return mean(self.scores.get(metric, ()))

    @property
    def labels(self) -> dict[str, str]:
        """The groups, and whether the talkers are of the same sex; empty where that is not known."""
        if "sexes" not in self.groups:
            return self.groups
        sexes = self.groups["sexes"].split("-")
        pairing = "" if len(sexes) < 2 else "same sex" if len(set(sexes)) == 1 else "mixed sex"
        return {"pairing": pairing, **self.groups}


def write_scores(path: str | Path, rows: Sequence[EvaluationRow]) -> None:
    """Write rows as CSV: for each metric the mean over the talkers, then each talker (`SI-SNR_1`, ...).

    Warnings have a column where there are any.
    """
    there = {metric for row in rows for metric in row.scores} | {"si_snr"}  # even if all have failed
    metrics = [metric for metric in METRICS if metric in there]
    groups = list(dict.fromkeys(key for row in rows for key in row.groups))
    n_sources = max((len(scores) for row in rows for scores in row.scores.values()), default=0)
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = [column for metric in metrics for column in _columns(metric, n_sources)]
        warned = any(row.warnings for row in rows)
        texts = ["error", "warnings"] if warned else ["error"]
        writer.writerow(["name", *groups, "seconds", "compute_seconds", *columns, *texts])
        for row in rows:
            scores = [value for metric in metrics for value in _values(row, metric, n_sources)]
            numbers = [_text(value) for value in (row.seconds, row.compute_seconds, *scores)]
            ends = [row.error, row.warnings] if warned else [row.error]
            writer.writerow([row.name, *(row.groups.get(key, "") for key in groups), *numbers, *ends])


def read_scores(path: str | Path) -> list[EvaluationRow]:
    """Read a table that `write_scores` wrote; columns that are not known are left out.

    Raises:
        ValueError: It is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            records = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of scores: {error}") from error
    if missing := {"name", "seconds", "compute_seconds", METRICS["si_snr"].label} - {*columns}:
        raise ValueError(
            f"{path} is no table of scores: it lacks {', '.join(sorted(missing))}; "
            "`flasepformer evaluate` writes one as scores.csv"
        )
    groups = columns[1 : columns.index("seconds")]
    try:
        return [_parse(record, columns, groups) for record in records]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds something that is no number: {error}") from error


def _columns(metric: str, n_sources: int) -> Iterable[str]:
    label = METRICS[metric].label
    return [label, *(f"{label}_{s + 1}" for s in range(n_sources if METRICS[metric].per_source else 0))]


def _values(row: EvaluationRow, metric: str, n_sources: int) -> Iterable[float]:
    if not METRICS[metric].per_source:
        return [row.mean(metric)]
    return [row.mean(metric), *row.scores.get(metric, (math.nan,) * n_sources)]


def _text(value: float) -> str:
    return NOT_APPLICABLE if math.isnan(value) else f"{value:.{N_DECIMALS}f}"


def _number(text: str) -> float:
    return math.nan if text == NOT_APPLICABLE else float(text)


def _parse(record: dict[str, str], columns: Sequence[str], groups: Sequence[str]) -> EvaluationRow:
    scores = {}
    for key, metric in METRICS.items():
        each = [column for column in columns if column.rpartition("_")[0] == metric.label]
        chosen = each if metric.per_source else [metric.label] * (metric.label in columns)
        if chosen and not record.get("error"):
            scores[key] = tuple(_number(record[column]) for column in chosen)
    return EvaluationRow(
        name=record["name"],
        seconds=_number(record["seconds"]),
        compute_seconds=_number(record["compute_seconds"]),
        scores=scores,
        groups={key: record[key] for key in groups},
        error=record.get("error") or "",
        warnings=record.get("warnings") or "",
    )
