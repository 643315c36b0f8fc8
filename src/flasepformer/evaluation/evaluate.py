"""Score a model on a set of mixtures: one row for each, then the summary."""

import csv
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from flasepformer.data import Mixture, MixtureSet
from flasepformer.inference import SeparationError, Separator, growing_folder
from flasepformer.metrics import separation_scores

METRICS = {
    "si_snr": "SI-SNR",
    "si_snr_improvement": "SI-SNRi",
    "sdr": "SDR",
    "sdr_improvement": "SDRi",
}
"""Fields of a row, and how they are printed; all in dB, higher is better."""

NOT_APPLICABLE = "n/a"
"""In the table: a score against a silent source."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """Scores of one mixture, one for each source in the order of the set; nan where a source is silent."""

    name: str
    seconds: float
    """Length of the mixture."""
    compute_seconds: float
    """Time that the model took."""
    si_snr: tuple[float, ...]
    si_snr_improvement: tuple[float, ...]
    sdr: tuple[float, ...] = ()
    """Empty when it was not asked for."""
    sdr_improvement: tuple[float, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Average one of `METRICS` over the talkers whose source is not silent; nan if there is none."""
        return _mean(getattr(self, metric))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Scores of many mixtures: each averaged over its talkers first, then over the mixtures."""

    n_mixtures: int
    mean: dict[str, float]
    """By the keys of `METRICS`, in dB; nan if no mixture has that score."""
    median: dict[str, float]
    share_worse: float
    """Share of the mixtures whose SI-SNRi is below 0 dB: better left alone."""
    real_time_factor: float
    """Time that the model took, against the length of the audio."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on a set of mixtures."""

    rows: tuple[EvaluationRow, ...]
    failures: tuple[tuple[str, str], ...]
    """Name of each mixture that could not be scored, and the reason."""

    def summary(self, **group: str) -> Summary:
        """Summarise all rows, or those of one group: `summary(sexes="F-M")`."""
        rows = [row for row in self.rows if group.items() <= row.groups.items()]
        metrics = [metric for metric in METRICS if any(getattr(row, metric) for row in rows)]
        scores = {metric: [row.mean(metric) for row in rows] for metric in metrics}
        improvements = _known(scores.get("si_snr_improvement", ()))
        return Summary(
            n_mixtures=len(rows),
            mean={metric: _mean(values) for metric, values in scores.items()},
            median={
                metric: statistics.median(_known(values)) if _known(values) else math.nan
                for metric, values in scores.items()
            },
            share_worse=_mean([float(improvement < 0) for improvement in improvements]),
            real_time_factor=_ratio(
                sum(row.compute_seconds for row in rows), sum(row.seconds for row in rows)
            ),
        )

    def grouped(self) -> dict[str, dict[str, Summary]]:
        """Summarise by all that the rows can be grouped by: {"sexes": {"F-M": Summary(...), ...}, ...}."""
        values: dict[str, set[str]] = {}
        for row in self.rows:
            for key, value in row.groups.items():
                values.setdefault(key, set()).add(value)
        return {
            key: {value: self.summary(**{key: value}) for value in sorted(found)}
            for key, found in values.items()
        }

    def as_dict(self) -> dict[str, Any]:
        """Return summary, groups and failures as plain values for JSON; None stands for nan."""
        return _without_nan(
            {
                **asdict(self.summary()),
                "groups": {
                    key: {value: asdict(summary) for value, summary in summaries.items()}
                    for key, summaries in self.grouped().items()
                },
                "failures": dict(self.failures),
            }
        )

    def write(self, folder: str | Path, **facts: Any) -> tuple[Path, Path]:
        """Write `scores.csv`, a row for each mixture, and `summary.json`; each appears when it is complete.

        Args:
            folder: Made if missing.
            **facts: Added to the summary, e.g. `model="default"`.

        Returns:
            The two paths.

        Raises:
            OutputError: The folder cannot be written in.
        """
        folder = Path(folder)
        table, summary = folder / "scores.csv", folder / "summary.json"
        with growing_folder(folder) as growing:
            self._write_table(growing / table.name)
            content = json.dumps({**facts, **self.as_dict()}, indent=2)
            (growing / summary.name).write_text(content + "\n", encoding="utf-8")
            for path in (table, summary):
                (growing / path.name).replace(path)
        return table, summary

    def _write_table(self, path: Path) -> None:
        metrics = [metric for metric in METRICS if any(getattr(row, metric) for row in self.rows)]
        keys = list(dict.fromkeys(key for row in self.rows for key in row.groups))
        n_sources = max((len(row.si_snr) for row in self.rows), default=0)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            columns = [
                column
                for metric in metrics
                for column in (METRICS[metric], *(f"{METRICS[metric]}_{s + 1}" for s in range(n_sources)))
            ]
            writer.writerow(["name", *keys, "seconds", "compute_seconds", *columns])
            for row in self.rows:
                scores = [score for metric in metrics for score in (row.mean(metric), *getattr(row, metric))]
                writer.writerow(
                    [
                        row.name,
                        *(row.groups.get(key, "") for key in keys),
                        f"{row.seconds:.3f}",
                        f"{row.compute_seconds:.3f}",
                        *(NOT_APPLICABLE if math.isnan(score) else f"{score:.3f}" for score in scores),
                    ]
                )


def evaluate(
    model: Separator | nn.Module,
    mixtures: MixtureSet,
    *,
    with_sdr: bool = True,
    limit: int | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Separate every mixture of a set and score the estimates, in their best order.

    At the model's own sample rate the mixture goes straight through the network, as in published results;
    at another rate, through `Separator.separate`. What cannot be read or scored is listed as a failure.

    Args:
        model: A separator, or a network of `flasepformer.models`.
        mixtures: What to separate; see `open_mixtures`.
        with_sdr: Also compute the SDR (`pip install "flasepformer[evaluation]"`).
        limit: Score only the first so many mixtures.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        ValueError: The model gives another number of talkers than the mixtures have.
    """
    if model.n_sources != mixtures.n_sources:
        raise ValueError(
            f"the model separates {model.n_sources} talkers, but the mixtures have {mixtures.n_sources}"
        )
    rows: list[EvaluationRow] = []
    failures: list[tuple[str, str]] = []
    names = mixtures.names[:limit]
    with tqdm(names, "evaluating", disable=None if progress else True) as bar:
        for index, name in enumerate(bar):
            try:
                rows.append(_score(model, mixtures[index], with_sdr))
            except (ValueError, OSError, SeparationError) as error:
                failures.append((name, str(error)))
            else:
                bar.set_postfix_str(
                    f"SI-SNRi {_mean([row.mean('si_snr_improvement') for row in rows]):.2f} dB"
                )
    return EvaluationResult(tuple(rows), tuple(failures))


def _score(model: Separator | nn.Module, item: Mixture, with_sdr: bool) -> EvaluationRow:
    started = time.perf_counter()
    estimates = _separate(model, item)
    compute_seconds = time.perf_counter() - started
    if not estimates.isfinite().all():
        raise ValueError("the model's estimates are not finite")
    scores = separation_scores(estimates, item.sources, item.mixture, with_sdr=with_sdr)
    values = {metric: getattr(scores, metric) for metric in METRICS}
    return EvaluationRow(
        name=item.name,
        seconds=len(item.mixture) / item.sample_rate,
        compute_seconds=compute_seconds,
        groups=dict(item.groups),
        **{metric: tuple(value.tolist()) for metric, value in values.items() if value is not None},
    )


def _separate(model: Separator | nn.Module, item: Mixture) -> Tensor:
    """Return the estimates (source, time) on the CPU."""
    if item.sample_rate != model.sample_rate:
        if isinstance(model, Separator):
            return model.separate(item.mixture, item.sample_rate)
        raise ValueError(
            f"the mixture is at {item.sample_rate} Hz, but the model works at {model.sample_rate} Hz; "
            "give a Separator, which resamples"
        )
    network = model.model if isinstance(model, Separator) else model.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        return network(item.mixture[None].to(device))[0].float().cpu()


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Sequence[float]) -> float:
    known = _known(values)
    return sum(known) / len(known) if known else math.nan


def _ratio(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
