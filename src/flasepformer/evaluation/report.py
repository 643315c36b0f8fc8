"""One page of HTML for an evaluation or for several of the same mixtures: tables, pictures, sounds.

The page holds everything itself, runs no script and fetches nothing: its content policy forbids it.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from torch import Tensor

from flasepformer.evaluation.comparison import Difference, check_same_sets, compare
from flasepformer.evaluation.drawing import histogram, peak_level_db, scatter, spectrogram
from flasepformer.evaluation.examples import MAX_SECONDS, Example
from flasepformer.evaluation.scoring import METRICS
from flasepformer.evaluation.statistics import known
from flasepformer.evaluation.stored import StoredResult
from flasepformer.evaluation.style import STYLE
from flasepformer.evaluation.summary import Summary
from flasepformer.files import write_whole

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def write_report(path: str | Path, results: Sequence[StoredResult], examples: Sequence[Example] = ()) -> None:
    """Write the page; it appears when it is complete.

    Args:
        path: Of the HTML file.
        results: One, or several of the same mixtures: the others are compared with the first.
        examples: Of `make_examples`, with the models in the order of the results.

    Raises:
        ValueError: The mixtures are not the same.
        ImportError: There are examples, and matplotlib is missing.
        OSError: The file cannot be written.
    """
    page = render_report(results, examples)
    write_whole(path, page.encode(errors="surrogateescape"))


def render_report(results: Sequence[StoredResult], examples: Sequence[Example] = ()) -> str:
    """Return the page; takes and raises the same as `write_report`."""
    labels = _distinct([result.label for result in results])
    title = " against ".join(labels)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">Separation of {results[0].summary().n_mixtures} mixtures{_source(results[0])}. '
        "Scores in dB unless said otherwise, higher is better; in brackets the 95 % interval of the mean "
        "(bootstrap over mixtures).</p>",
        _section("Scores", _scores(results, labels)),
        *(
            _section(f"{label} against {labels[0]}", _comparison(results[0], result, (labels[0], label)))
            for result, label in zip(results[1:], labels[1:], strict=True)
        ),
        _section("SI-SNRi of the mixtures", _histograms(results, labels)),
        _section("Groups", _groups(results, labels)),
        _section("Examples", _examples(examples, labels)),
        _section("Not scored", _failures(results, labels)),
        _section("What was evaluated", _facts(results, labels)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _source(result: StoredResult) -> str:
    path = result.facts.get("mixtures")
    return f" of {escape(str(path))}" if path else ""


def _distinct(labels: Sequence[str]) -> list[str]:
    """Number labels that come more than once."""
    return [
        f"{label} ({labels[: k + 1].count(label)})" if labels.count(label) > 1 else label
        for k, label in enumerate(labels)
    ]


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>\n{content}</section>" if content else ""


def _table(rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Return a table of cells that are escaped already; the first row is the header."""
    header, *body = rows
    lines = ["".join(f"<th>{cell}</th>" for cell in header)] if any(header) else []
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    content = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{kind}">{content}</table></div>'


def _score(value: float, interval: tuple[float, float] = (math.nan, math.nan)) -> str:
    if math.isnan(value):
        return "n/a"
    return f"{value:.2f}" + (
        "" if math.isnan(interval[0]) else f" <small>[{interval[0]:.2f}, {interval[1]:.2f}]</small>"
    )


def _mean(summary: Summary, metric: str) -> str:
    return _score(summary.mean[metric], summary.interval[metric]) if metric in summary.mean else ""


def _scores(results: Sequence[StoredResult], labels: Sequence[str]) -> str:
    summaries = [result.summary() for result in results]
    any_missing = any(summary.not_applicable for summary in summaries)
    heads = ["mean"] if len(labels) == 1 else [escape(label) for label in labels]
    per_model = [cell for head in heads for cell in (head, "median", *["n/a"] * any_missing)]
    rows = [["", *per_model, "mixture"]]
    for metric in METRICS:
        if metric.startswith("mixture_") or not any(metric in summary.mean for summary in summaries):
            continue
        row = [escape(METRICS[metric].label + _unit_of(metric))]
        for summary in summaries:
            missing = [str(summary.not_applicable.get(metric, ""))] * any_missing
            row += [_mean(summary, metric), _given(summary.median, metric), *missing]
        rows.append([*row, _given(summaries[0].mean, f"mixture_{metric}")])
    blank = [""] * (1 + any_missing)
    worse = (cell for summary in summaries for cell in (_share(summary.share_worse), *blank))
    factors = (cell for summary in summaries for cell in (_factor(summary.real_time_factor), *blank))
    return _table([*rows, ["SI-SNRi below 0", *worse, ""], ["real-time factor", *factors, ""]])


def _share(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.1%}"


def _factor(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def _given(scores: dict[str, float], metric: str) -> str:
    return "" if math.isnan(scores.get(metric, math.nan)) else _score(scores[metric])


def _unit_of(metric: str) -> str:
    unit, lower = METRICS[metric].unit, ", lower is better" * METRICS[metric].lower_is_better
    text = (unit if unit != "dB" or lower else "") + lower
    return f" ({text})" if text else ""


def _comparison(first: StoredResult, second: StoredResult, labels: tuple[str, str]) -> str:
    check_same_sets(first, second)
    differences = compare(first.rows, second.rows)
    rows = [["Difference", "mean", "mixtures that got better"]]
    rows += [
        [
            escape(METRICS[metric].label + _unit_of(metric)),
            _score(d.mean, d.interval),
            _share(d.share_better),
        ]
        for metric, d in differences.items()
    ]
    improvement = differences.get("si_snr_improvement")
    if improvement is None:
        return _table(rows)
    return _table(rows) + _scatter(first, second, labels) + _largest(first, second, improvement, labels)


def _scatter(first: StoredResult, second: StoredResult, labels: tuple[str, str]) -> str:
    by_name = {row.name: row.mean("si_snr_improvement") for row in second.rows}
    points = [(row.name, row.mean("si_snr_improvement"), by_name[row.name]) for row in first.rows]
    return scatter([point for point in points if not math.isnan(point[1] + point[2])], labels)


def _largest(
    first: StoredResult, second: StoredResult, difference: Difference, labels: tuple[str, str]
) -> str:
    scores = [{row.name: row.mean("si_snr_improvement") for row in result.rows} for result in (first, second)]
    rows = [["The mixtures that differ most (SI-SNRi)", *map(escape, labels), "difference"]]
    rows += [
        [escape(name), _score(scores[0][name]), _score(scores[1][name]), f"{value:+.2f}"]
        for name, value in difference.largest()
    ]
    return _table(rows)


def _histograms(results: Sequence[StoredResult], labels: Sequence[str]) -> str:
    improvements = [known(row.mean("si_snr_improvement") for row in result.rows) for result in results]
    everything = [value for values in improvements for value in values]
    if not everything:
        return ""
    bounds = min(everything), max(everything)
    return "".join(
        (f"<h3>{escape(label)}</h3>" if len(labels) > 1 else "") + histogram(values, bounds)
        for label, values in zip(labels, improvements, strict=True)
        if values
    )


def _groups(results: Sequence[StoredResult], labels: Sequence[str]) -> str:
    heads = ["mean"] if len(labels) == 1 else [escape(label) for label in labels]
    rows = [["SI-SNRi", "mixtures", *heads]]
    grouped = [result.grouped() for result in results]
    for key, summaries in grouped[0].items():
        if len(summaries) < 2:
            continue
        for value, summary in summaries.items():
            others = [groups.get(key, {}).get(value) for groups in grouped]
            cells = [_mean(other, "si_snr_improvement") if other else "" for other in others]
            rows.append([escape(f"{key}: {value or 'not known'}"), str(summary.n_mixtures), *cells])
    return _table(rows) if len(rows) > 1 else ""


def _failures(results: Sequence[StoredResult], labels: Sequence[str]) -> str:
    rows = [
        [escape(label), escape(name), escape(reason)]
        for result, label in zip(results, labels, strict=True)
        for name, reason in result.failures
    ]
    return _table([["model", "mixture", "reason"], *rows], "facts") if rows else ""


def _facts(results: Sequence[StoredResult], labels: Sequence[str]) -> str:
    rows = []
    for result, label in zip(results, labels, strict=True):
        for key in ("model", "separation", "set", "device", "versions", "command"):
            if key in result.facts:
                rows.append([escape(label) if key == "model" else "", key, escape(_flat(result.facts[key]))])
    return _table([[], *rows], "facts") if rows else ""


def _flat(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return "; ".join(
        f"{key.replace('_', ' ')}: {_listed(item)}" for key, item in value.items() if item not in ("", None)
    )


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _examples(examples: Sequence[Example], labels: Sequence[str]) -> str:
    if not examples:
        return ""
    note = (
        '<p class="soft">Estimates are at the levels at which they sum to the mixture best. Spectrograms of '
        f"one mixture share their scale of levels. Excerpts end at {MAX_SECONDS:g} s.</p>"
    )
    return note + "".join(_example(example, labels) for example in examples)


def _example(example: Example, labels: Sequence[str]) -> str:
    tracks = [example.mixture[None], example.sources, *example.estimates]
    peak = max(float(track.abs().max()) for track in tracks)
    gain = min(1.0, 0.99 / peak) if peak > 0 else 1.0
    top_db = peak_level_db(example.mixture, example.sample_rate)

    def figure(caption: str, waveform: Tensor) -> str:
        return _figure(caption, waveform, gain, example.sample_rate, top_db)

    rows = [[figure("Mixture", example.mixture)]]
    rows.append([figure(f"Talker {k + 1} alone", source) for k, source in enumerate(example.sources)])
    for label, estimates, improvements in zip(labels, example.estimates, example.improvements, strict=True):
        rows.append(
            [
                figure(f"{label}: track {k + 1}, SI-SNRi {_score(score)} dB", track)
                for k, (track, score) in enumerate(zip(estimates, improvements, strict=True))
            ]
        )
    extent = f"{example.seconds:.1f} s, 0 to {example.sample_rate / 2000:g} kHz"
    return (
        f'<article><h3>{escape(example.why)}: {escape(example.name)}</h3><p class="soft">{extent}</p>'
        + "".join(f'<div class="tracks">{"".join(row)}</div>' for row in rows)
        + "</article>"
    )


def _figure(caption: str, waveform: Tensor, gain: float, sample_rate: int, top_db: float) -> str:
    picture = _data("image/png", spectrogram(waveform, sample_rate, top_db))
    sound = BytesIO()
    soundfile.write(sound, (waveform * gain).numpy().astype(np.float32), sample_rate, "PCM_16", format="FLAC")
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><img src="{picture}" alt="Spectrogram">'
        f'<audio controls preload="metadata" src="{_data("audio/flac", sound.getvalue())}"></audio></figure>'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
