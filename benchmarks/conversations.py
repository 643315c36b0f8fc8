"""Make the tables of `conversations.sh`: python benchmarks/conversations.py WORK OUT [COMMAND].

WORK holds `sets/MINUTES/timeline.csv` and `scores/MINUTES/MODE/`; OUT receives `conversations.md`,
`conversations.csv` (a row for each length and mode) and `scores.csv` (a row for each conversation and mode).
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flasepformer.evaluation import METRICS, StoredResult, bootstrap_interval, compare, load_result

MODES = ("whole", "chunks")
SCORES = ("si_snr_improvement", "sdr_improvement", "confusion", "si_snr", "mixture_si_snr")
SHOWN = SCORES[:3]
"""In the table, with their intervals."""
TICKS_PER_SECOND = 100
"""Of a timeline, when overlap is counted."""


class Speech(NamedTuple):
    """What is said in the conversations of one length; means over conversations or talkers."""

    overlap: float
    """Share of the time with speech in which both speak."""
    pauses: float
    """Share of the time in which nobody speaks."""
    talking_seconds: float
    """Of a talker."""
    repetitions: float
    """How often a talker says the same."""


def read_speech(timeline: Path, minutes: float) -> Speech:
    """Read who speaks when, of the `timeline.csv` of a set."""
    with timeline.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    n_ticks = round(60 * minutes * TICKS_PER_SECOND)
    n_speaking = {row["mixture"]: [0] * n_ticks for row in rows}
    said: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    n_turns: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        start, end = float(row["start_s"]), float(row["end_s"])
        for tick in range(round(start * TICKS_PER_SECOND), min(round(end * TICKS_PER_SECOND), n_ticks)):
            n_speaking[row["mixture"]][tick] += 1
        talker = row["mixture"], row["speaker"]
        said[talker][row["path"]] += end - start
        n_turns[talker] += 1
    heard = [sum(map(bool, ticks)) for ticks in n_speaking.values()]
    both = [sum(tick > 1 for tick in ticks) for ticks in n_speaking.values()]
    return Speech(
        overlap=_mean(b / h for b, h in zip(both, heard, strict=True)),
        pauses=_mean(1 - h / n_ticks for h in heard),
        talking_seconds=_mean(sum(paths.values()) for paths in said.values()),
        repetitions=_mean(n_turns[talker] / len(paths) for talker, paths in said.items()),
    )


def summarise(minutes: str, mode: str, result: StoredResult, speech: Speech) -> dict[str, Any]:
    """Return a row of `conversations.csv`."""
    row: dict[str, Any] = {"minutes": minutes, "mode": mode, "conversations": result.summary().n_mixtures}
    for metric in SCORES:
        values = [scored.mean(metric) for scored in result.rows]
        label = METRICS[metric].label
        row[label] = _mean(values)
        row[f"{label}_low"], row[f"{label}_high"] = bootstrap_interval(values)
    row["with_doubtful_joins"] = sum(bool(scored.warnings) for scored in result.rows)
    return row | speech._asdict()


def write_tables(work: Path, out: Path, command: str) -> None:
    """Read all that `conversations.sh` made and write the tables."""
    lengths = sorted((path.name for path in (work / "scores").iterdir()), key=float)
    results = {(m, mode): load_result(work / "scores" / m / mode) for m in lengths for mode in MODES}
    for (minutes, mode), result in results.items():
        if result.failures:
            raise ValueError(f"{minutes} minutes, {mode}: {result.failures[0]}")
    speech = {m: read_speech(work / "sets" / m / "timeline.csv", float(m)) for m in lengths}
    rows = [summarise(m, mode, result, speech[m]) for (m, mode), result in results.items()]
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "conversations.csv", rows)
    _write_csv(
        out / "scores.csv",
        [
            {"minutes": m, "mode": mode, "name": row.name}
            | {METRICS[metric].label: row.mean(metric) for metric in SCORES}
            | {"warnings": row.warnings}
            for (m, mode), result in results.items()
            for row in result.rows
        ],
    )
    facts = results[lengths[0], "chunks"].facts
    chunk, overlap = (facts["separation"][f"{name}_seconds"] for name in ("chunk", "overlap"))
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    text = [
        f"Model `{facts['model']['name']}`, weights {facts['model']['weights_sha256'][:12]}. "
        f"Chunks of {chunk:g} s, {overlap:g} s in common. "
        "Means over the conversations, in brackets their 95 % interval (bootstrap over conversations). "
        "Scores in dB, higher is better; in the wrong track: share of the talking time, lower is better.",
        _score_table(rows),
        "The same conversations, chunks less whole:",
        _difference_table({m: (results[m, "whole"], results[m, "chunks"]) for m in lengths}),
        "What the conversations are made of:",
        _speech_table(speech),
        f"Versions: {versions}.",
        f"    {command}",
    ]
    (out / "conversations.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")


def _score_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["SI-SNRi", "SDRi", "in the wrong track", "SI-SNR of the mixture"]
    table = [["length", "conversations", "mode", *heads, "with doubtful joins"]]
    for row in rows:
        labels = [METRICS[metric].label for metric in SHOWN]
        cells = [
            _with_interval(label, row[label], (row[f"{label}_low"], row[f"{label}_high"])) for label in labels
        ]
        doubtful = str(row["with_doubtful_joins"]) if row["mode"] == "chunks" else ""
        table.append(
            [f"{row['minutes']} min", str(row["conversations"]), row["mode"], *cells,
             _text("", row["mixture SI-SNR"]), doubtful]
        )  # fmt: skip
    return _markdown(table)


def _difference_table(pairs: Mapping[str, tuple[StoredResult, StoredResult]]) -> str:
    table = [["length", "SI-SNRi", "SDRi", "in the wrong track"]]
    for minutes, (whole, chunks) in pairs.items():
        differences = compare(whole.rows, chunks.rows)
        cells = []
        for metric in SHOWN:
            difference = differences.get(metric)
            label = METRICS[metric].label
            cells.append(
                _with_interval(label, difference.mean, difference.interval, sign="+") if difference else "n/a"
            )
        table.append([f"{minutes} min", *cells])
    return _markdown(table)


def _speech_table(speech: Mapping[str, Speech]) -> str:
    table = [["length", "both speak", "nobody speaks", "a talker speaks", "and says each utterance"]]
    for minutes, said in speech.items():
        shares = (f"{100 * share:.0f} %" for share in (said.overlap, said.pauses))
        seconds, times = f"{said.talking_seconds:.0f} s", f"{said.repetitions:.1f} times"
        table.append([f"{minutes} min", *shares, seconds, times])
    return _markdown(table)


def _with_interval(label: str, value: float, interval: tuple[float, float], sign: str = "") -> str:
    text = _text(label, value, sign)
    if math.isnan(interval[0]):
        return text
    return f"{text} [{_text(label, interval[0], sign)}, {_text(label, interval[1], sign)}]"


def _text(label: str, value: float, sign: str = "") -> str:
    """Write shares as per cent, and scores with the digits that an interval leaves."""
    if math.isnan(value):
        return "n/a"
    return f"{100 * value:{sign}.1f} %" if label == METRICS["confusion"].label else f"{value:{sign}.2f}"


def _markdown(table: Sequence[Sequence[str]]) -> str:
    header, *rows = table
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _plain(value) for key, value in row.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "n/a" if math.isnan(value) else f"{value:.3f}"
    return value


def _mean(values: Iterable[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan


if __name__ == "__main__":
    work, out, *command = sys.argv[1:]
    write_tables(Path(work), Path(out), " ".join(command) or "sh benchmarks/conversations.sh")
