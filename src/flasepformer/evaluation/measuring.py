"""Measure models as a model card states it: in every condition, side by side, and as tables.

Every condition has a folder in the results and in it one for each model, with a row for each recording;
`measured.md`, `measured.csv` and `measured.json` are made of all that are there. So conditions can be
measured one at a time, and a run that was cut short goes on where it was.
"""

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flasepformer.data import MixtureSet
from flasepformer.evaluation.conditions import CONDITIONS, COUNTS, MeasuredSpeech
from flasepformer.evaluation.evaluate import evaluate
from flasepformer.evaluation.provenance import names_digest, versions
from flasepformer.evaluation.separating import describe_run, fix_options
from flasepformer.evaluation.statistics import bootstrap_interval
from flasepformer.evaluation.stored import StoredResult, load_result
from flasepformer.evaluation.summary import TABLE_FILE, Summary
from flasepformer.files import markdown_table, write_whole
from flasepformer.inference import RunOptions, Separator, weights_digest
from flasepformer.temporary import temporary_folder

MODELS_FILE = "models.json"
"""Labels of the models that were measured last; the tables are about these."""
PERCENTILES = (10, 25, 50, 75, 90)
"""Of the level of the other track."""
_METRICS: dict[str, tuple[str, ...]] = {
    "single": ("leakage",),
    "conversations": ("sdr", "confusion"),
    "turns": ("turns",),
}
_RUN_OPTIONS: RunOptions = {"mode": "whole"}
"""Everything is separated as users' recordings are."""
_PAIRINGS = {"same sex": "same sex", "mixed sex": "mixed sex", "": "sex not known of one or both"}


def measure(
    models: Mapping[str, Separator],
    speech: MeasuredSpeech,
    out: str | Path,
    *,
    conditions: Sequence[str] = CONDITIONS,
    counts: Mapping[str, int] = COUNTS,
    jobs: int = 1,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Score every model in every condition and write the tables.

    What is in the folder already, of the same weights and recordings, is not measured again.

    Args:
        models: What is measured, by label: the model, and at will others to put it beside.
        speech: What the recordings are made of.
        out: Folder for the results; made if missing.
        conditions: Of `CONDITIONS`.
        counts: Recordings of each condition.
        jobs: Processes, of one thread each.
        overwrite: Measure again what is there.
        tell: Called with what is done.

    Returns:
        The files of the tables: Markdown, CSV, JSON.

    Raises:
        ValueError: There is no such condition, the models differ in their sample rates, the folder holds
            results of other weights or another set, or a recording could not be made or scored.
    """
    if unknown := set(conditions) - set(CONDITIONS):
        raise ValueError(f"there are no conditions {sorted(unknown)}, only {', '.join(CONDITIONS)}")
    rates = {model.sample_rate for model in models.values()}
    if len(rates) != 1:
        raise ValueError(f"the models must have the same sample rate to be put side by side, got {rates}")
    (sample_rate,) = rates
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / MODELS_FILE, json.dumps(list(models)) + "\n")
    try:
        for condition in conditions:
            with temporary_folder() as folder:
                mixtures, settings = speech.mixtures(
                    condition, counts.get(condition, 0), sample_rate, folder, jobs
                )
                facts = {
                    "condition": condition,
                    **settings,
                    "n_mixtures": len(mixtures),
                    "names_sha256": names_digest(mixtures.names),
                }
                for label, model in models.items():
                    tell(f"{condition}, {label}")
                    if not _score(label, model, condition, mixtures, facts, out, jobs, overwrite):
                        tell(f"{condition}, {label}: measured already")
    finally:
        paths = write_tables(out)
    return paths


def _score(
    label: str,
    separator: Separator,
    condition: str,
    mixtures: MixtureSet,
    facts: dict[str, Any],
    out: Path,
    jobs: int,
    overwrite: bool,
) -> bool:
    """Score a model in a condition; return False if that was done before."""
    folder = out / condition / label
    weights = weights_digest(separator.model)
    if (folder / TABLE_FILE).exists() and not overwrite:
        known = load_result(folder).facts
        if known["model"]["weights_sha256"] == weights and known["set"] == facts:
            return False
        raise ValueError(
            f"{folder} holds results of other weights or another set; give --overwrite or another --out"
        )
    metrics, run_options = _METRICS.get(condition, ("sdr",)), fix_options(separator, _RUN_OPTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / "scores.partial.jsonl"
    if overwrite:
        journal.unlink(missing_ok=True)
    result = evaluate(
        separator, mixtures, metrics=metrics, run_options=run_options, jobs=jobs, journal=journal,
        progress=True,
    )  # fmt: skip
    if result.failures:
        raise ValueError(f"{condition}, {label}: {len(result.failures)} failed, {result.failures[0]}")
    model = {**separator.description, "name": label, "weights_sha256": weights}
    separation = describe_run(run_options)
    result.write(
        folder, model=model, separation=separation, set=facts, versions=versions(metrics), device="cpu"
    )
    journal.unlink()
    return True


def write_tables(out: Path) -> list[Path]:
    """Write everything that lies in a folder of results as tables; return their paths."""
    order = json.loads((out / MODELS_FILE).read_text(encoding="utf-8"))
    stored = {
        condition: [load_result(out / condition / label) for label in order]
        for condition in CONDITIONS
        if all((out / condition / label / TABLE_FILE).is_file() for label in order)
    }
    groups = {name: [_groups(name, result) for result in results] for name, results in stored.items()}
    rows = [row for name, results in stored.items() for row in _rows(name, results, groups[name])]
    tables = []
    if "conversations" in stored:
        tables.append(_confusion_table(stored["conversations"]))
    if "turns" in stored:
        tables.append(_turns_table(stored["turns"]))
    if pairs := {key: value for key, value in stored.items() if key not in ("single", "turns")}:
        tables.append(_pairs_table(pairs, groups))
    if "single" in stored:
        tables.append(_single_table(stored["single"]))
    facts = {
        condition: {**results[0].facts["set"], "models": [result.facts["model"] for result in results]}
        for condition, results in stored.items()
    }
    columns = list(dict.fromkeys(column for row in rows for column in row))
    paths = [out / f"measured.{suffix}" for suffix in ("md", "csv", "json")]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    content = {"sets": facts, "rows": rows}
    texts = ("\n\n".join(tables) + "\n", table.getvalue(), json.dumps(content, indent=2) + "\n")
    for path, text in zip(paths, texts, strict=True):
        write_whole(path, text)
    return paths


def _groups(condition: str, result: StoredResult) -> dict[str, Summary]:
    """Return the summary of everything, then of each pairing of sexes that there is."""
    pairings = result.grouped().get("pairing", {}) if condition not in ("single", "turns") else {}
    named = {label: pairings[key] for key, label in _PAIRINGS.items() if key in pairings}
    return {"all": result.summary(), **named}


def _rows(
    condition: str, results: Sequence[StoredResult], groups: Sequence[Mapping[str, Summary]]
) -> list[dict[str, Any]]:
    """Return a row for each group and model, with numbers as they are."""
    rows = []
    for result, summaries in zip(results, groups, strict=True):
        for group, summary in summaries.items():
            row: dict[str, Any] = {
                "condition": condition,
                "group": group,
                "model": result.facts["model"]["name"],
                "n_mixtures": summary.n_mixtures,
            }
            if condition == "single":
                row |= _leak(result)
            elif condition == "turns":
                row |= _turns(result)
            else:
                low, high = summary.interval["si_snr_improvement"]
                mean = summary.mean
                row |= {
                    "mixture_si_snr": mean["mixture_si_snr"],
                    "mixture_sdr": mean["mixture_sdr"],
                    "si_snr": mean["si_snr"],
                    "si_snr_improvement": mean["si_snr_improvement"],
                    "si_snr_improvement_low": low,
                    "si_snr_improvement_high": high,
                    "si_snr_improvement_median": summary.median["si_snr_improvement"],
                    "sdr": mean["sdr"],
                    "sdr_improvement": mean["sdr_improvement"],
                    "share_worse": summary.share_worse,
                }
                if "confusion" in mean:
                    row["confusion"] = mean["confusion"]
            rows.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return rows


def _leak(result: StoredResult) -> dict[str, float]:
    """Return how loud the other track is against the input, and how well the talker's own is kept, in dB."""
    leaks = [row.scores["leakage"][0] for row in result.rows]
    kept = [score for row in result.rows for score in row.scores["si_snr"] if not math.isnan(score)]
    levels = {f"leak_{p}_percent": float(np.percentile(leaks, p)) for p in PERCENTILES}
    return {
        **levels,
        "leak_loudest": max(leaks),
        "share_of_leaks_above_minus_20": statistics.mean(leak > -20 for leak in leaks),
        "own_track_si_snr_median": statistics.median(kept),
    }


def _turns(result: StoredResult) -> dict[str, float]:
    """Return the share of the turns on the wrong track, and of the conversations without such a turn."""
    wrong = [row.mean("turns") for row in result.rows]
    low, high = bootstrap_interval(wrong)
    return {
        "wrong_turns": statistics.mean(wrong),
        "wrong_turns_low": low,
        "wrong_turns_high": high,
        "share_without_wrong_turns": statistics.mean(share == 0 for share in wrong),
    }


def _pairs_table(
    stored: Mapping[str, Sequence[StoredResult]], groups: Mapping[str, Sequence[Mapping[str, Summary]]]
) -> str:
    labels = [result.label for result in next(iter(stored.values()))]
    header = ["mixtures", "number", "mixture SI-SNR", "mixture SDR"]
    for label in labels:
        header += [f"{label}: SI-SNRi", "95 %", "SDRi", "below 0 dB"]
    lines = []
    for condition in stored:
        for group, first in groups[condition][0].items():
            mixture = [first.mean[f"mixture_{metric}"] for metric in ("si_snr", "sdr")]
            cells = [f"{condition}, {group}", str(first.n_mixtures), *map(_decibels, mixture)]
            for summaries in groups[condition]:
                summary = summaries[group]
                low, high = summary.interval["si_snr_improvement"]
                cells += [
                    _decibels(summary.mean["si_snr_improvement"]),
                    "" if math.isnan(low) else f"{low:.2f} to {high:.2f}",
                    _decibels(summary.mean["sdr_improvement"]),
                    f"{summary.share_worse:.0%}",
                ]
            lines.append(cells)
    return f"Means in dB, with the 95 % interval of the SI-SNRi:\n\n{markdown_table(header, lines)}"


def _single_table(results: Sequence[StoredResult]) -> str:
    header = ["one talker alone", "number", *(f"{p} %" for p in PERCENTILES), "loudest", "above -20 dB",
              "own track, SI-SNR"]  # fmt: skip
    lines = []
    for result in results:
        leak = _leak(result)
        levels = [leak[f"leak_{p}_percent"] for p in PERCENTILES]
        lines.append([
            result.label, str(len(result.rows)), *map(_decibels, [*levels, leak["leak_loudest"]]),
            f"{leak['share_of_leaks_above_minus_20']:.0%}", _decibels(leak["own_track_si_snr_median"]),
        ])  # fmt: skip
    note = (
        "Level of the other track against the input in dB, percentiles over the recordings (lower is better);"
        " in the last column, the median of how well the talker's own track is kept:"
    )
    return f"{note}\n\n{markdown_table(header, lines)}"


def _confusion_table(results: Sequence[StoredResult]) -> str:
    header = ["conversations, in one pass", "number", "SI-SNRi", "in the wrong track"]
    lines = []
    for result in results:
        summary = result.summary()
        mean = summary.mean
        cells = [_decibels(mean["si_snr_improvement"]), f"{mean['confusion']:.1%}"]
        lines.append([result.facts["model"]["name"], str(summary.n_mixtures), *cells])
    return markdown_table(header, lines)


def _turns_table(results: Sequence[StoredResult]) -> str:
    header = ["conversations in turns, without overlap", "number", "turns on the wrong track", "95 %",
              "conversations with none"]  # fmt: skip
    lines = []
    for result in results:
        turns = _turns(result)
        low, high = turns["wrong_turns_low"], turns["wrong_turns_high"]
        interval = "" if math.isnan(low) else f"{low:.1%} to {high:.1%}"
        shares = [f"{turns['wrong_turns']:.1%}", interval, f"{turns['share_without_wrong_turns']:.0%}"]
        lines.append([result.facts["model"]["name"], str(len(result.rows)), *shares])
    return markdown_table(header, lines)


def _decibels(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
