"""Compare two evaluations of the same mixtures, mixture by mixture."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from flasepformer.evaluation.rows import EvaluationRow
from flasepformer.evaluation.scoring import METRICS
from flasepformer.evaluation.statistics import bootstrap_interval, known, mean
from flasepformer.evaluation.stored import StoredResult
from flasepformer.evaluation.summary import without_nan
from flasepformer.inference import growing_folder
from flasepformer.installing import how_to_install


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second evaluation less the first, by one metric."""

    metric: str
    """A key of `METRICS`."""
    values: dict[str, float]
    """By the names of the mixtures that have the score in both, in the order of the set."""
    mean: float
    interval: tuple[float, float]
    """Of the mean, at 95 %, by the bootstrap over mixtures."""
    share_better: float
    """Share of the mixtures in which the second is better."""

    def largest(self, n: int = 10) -> list[tuple[str, float]]:
        """Return the mixtures that differ most, either way, with their differences."""
        return sorted(self.values.items(), key=lambda item: -abs(item[1]))[:n]


def compare(first: Sequence[EvaluationRow], second: Sequence[EvaluationRow]) -> dict[str, Difference]:
    """Take the paired difference of two evaluations, by every metric that both have.

    Args:
        first: Rows, e.g. of `read_scores`.
        second: Rows of the same mixtures, in any order.

    Returns:
        By the keys of `METRICS`; the scores of the mixtures themselves are left out, as they are the same.

    Raises:
        ValueError: The mixtures are not the same.
    """
    check_same_mixtures(first, second)
    by_name = {row.name: row for row in second}
    differences = {}
    for metric in METRICS:
        if metric.startswith("mixture_"):
            continue
        pairs = {row.name: by_name[row.name].mean(metric) - row.mean(metric) for row in first}
        values = {name: difference for name, difference in pairs.items() if not math.isnan(difference)}
        if not values:
            continue
        sign = -1 if METRICS[metric].lower_is_better else 1
        differences[metric] = Difference(
            metric=metric,
            values=values,
            mean=mean(values.values()),
            interval=bootstrap_interval(list(values.values())),
            share_better=mean(float(sign * value > 0) for value in values.values()),
        )
    return differences


def write_comparison(folder: str | Path, first: StoredResult, second: StoredResult) -> None:
    """Write `comparison.json`, `differences.csv` (a row for each mixture) and `scatter.png`.

    Args:
        folder: Made if missing.
        first: Of `load_result`.
        second: Of the same mixtures.

    Raises:
        ValueError: The mixtures are not the same.
        ImportError: Matplotlib is missing.
        OutputError: The folder cannot be written in.
    """
    folder = Path(folder)
    check_same_sets(first, second)
    differences = compare(first.rows, second.rows)
    content = {
        "first": first.facts.get("model", first.label),
        "second": second.facts.get("model", second.label),
        "separation": {"first": first.separation, "second": second.separation},
    }
    content |= comparison_as_dict(differences)
    picture = scatter_plot(first, second)
    with growing_folder(folder) as growing:
        _write_differences(growing / "differences.csv", first.rows, differences)
        (growing / "scatter.png").write_bytes(picture)
        (growing / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for path in sorted(
            growing.iterdir(), reverse=True
        ):  # comparison.json last: it tells that all is there
            path.replace(folder / path.name)


def _write_differences(path: Path, rows: Sequence[EvaluationRow], differences: dict[str, Difference]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *(METRICS[metric].label for metric in differences)])
        for row in rows:
            values = (difference.values.get(row.name) for difference in differences.values())
            writer.writerow([row.name, *("n/a" if value is None else f"{value:.3f}" for value in values)])


def comparison_as_dict(differences: dict[str, Difference]) -> dict[str, Any]:
    """Return the comparison as plain values for JSON, without the single mixtures."""
    return without_nan(
        {
            metric: {
                **{
                    key: value for key, value in asdict(difference).items() if key not in ("metric", "values")
                },
                "n_mixtures": len(difference.values),
                "largest": dict(difference.largest()),
            }
            for metric, difference in differences.items()
        }
    )


def scatter_plot(first: StoredResult, second: StoredResult) -> bytes:
    """Draw the SI-SNRi of every mixture, one evaluation against the other, as a PNG.

    Raises:
        ImportError: Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"the scatter plot needs matplotlib: {how_to_install('evaluation')}") from error
    by_name = {row.name: row.mean("si_snr_improvement") for row in second.rows}
    x = [row.mean("si_snr_improvement") for row in first.rows]
    y = [by_name[row.name] for row in first.rows]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    ends = [min(known([*x, *y]), default=0.0) - 1, max(known([*x, *y]), default=1.0) + 1]
    axes.plot(ends, ends, color="0.6", linewidth=1, zorder=0)  # where both are equal
    axes.scatter(x, y, s=12, alpha=0.6, linewidths=0)
    axes.set(xlim=ends, ylim=ends, aspect="equal",
             xlabel=f"SI-SNRi in dB, {first.label}", ylabel=f"SI-SNRi in dB, {second.label}")  # fmt: skip
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


_SET_FACTS = {"mixture": "mixtures", "targets": "targets", "sample_rate": "sample rate in Hz"}
_TOLERANCE_DB = 0.01  # tables have three decimals, and the same arithmetic rounds otherwise elsewhere


def check_same_sets(first: StoredResult, second: StoredResult) -> None:
    """Refuse evaluations of other mixtures, targets or sample rates, as summaries and tables show them.

    Raises:
        ValueError: They are not of the same set.
    """
    noted = [result.facts.get("set") for result in (first, second)]
    facts = [fact if isinstance(fact, dict) else {} for fact in noted]
    for key, what in _SET_FACTS.items():
        one, other = (fact.get(key) for fact in facts)
        if one is not None and other is not None and one != other:
            raise ValueError(
                f"the two evaluations are of different sets: {what}: {_listed(one)} in one and "
                f"{_listed(other)} in the other. Score both models on the same mixtures"
            )
    check_same_mixtures(first.rows, second.rows)


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def check_same_mixtures(first: Sequence[EvaluationRow], second: Sequence[EvaluationRow]) -> None:
    """Refuse evaluations that cannot be compared mixture by mixture.

    The SI-SNR of a mixture itself has nothing to do with the model: where it differs, the mixture or its
    targets do.

    Raises:
        ValueError: Names, lengths or SI-SNRs of the mixtures differ.
    """
    lengths = [{row.name: row.seconds for row in rows} for rows in (first, second)]
    both = lengths[0].keys() & lengths[1].keys()
    if only_one := (lengths[0].keys() | lengths[1].keys()) - both:
        raise ValueError(
            f"the two evaluations are of different sets: {len(lengths[0])} and {len(lengths[1])} mixtures, "
            f"{len(both)} of them in both; {min(only_one)!r} is only in one. "
            "Score both models on the same mixtures"
        )
    for name in both:
        seconds = lengths[0][name], lengths[1][name]
        if abs(seconds[0] - seconds[1]) > 0.002:  # nan, for a mixture that failed, passes
            raise ValueError(
                f"the two evaluations are of different sets: {name!r} is {seconds[0]:.3f} s long in one "
                f"and {seconds[1]:.3f} s in the other"
            )
    scores = [{row.name: row.scores.get("mixture_si_snr", ()) for row in rows} for rows in (first, second)]
    for name in lengths[0]:
        for talker, pair in enumerate(zip(scores[0][name], scores[1][name], strict=False), 1):
            if abs(pair[0] - pair[1]) > _TOLERANCE_DB:  # nan, for a source that is silent, passes
                raise ValueError(
                    f"the two evaluations are of different sets: without any model, talker {talker} of "
                    f"{name!r} has an SI-SNR of {pair[0]:.3f} dB in one and {pair[1]:.3f} dB in the other; "
                    "noise, targets or sample rate differ. Score both models on the same mixtures"
                )
