"""`flasepformer evaluate`: how well a model separates mixtures whose sources are known."""

import json
import math
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.cores import n_cores
from flasepformer.cli.places import check_place
from flasepformer.cli.published import AcceptLicence, obtain_published
from flasepformer.cli.words import checked_device

if TYPE_CHECKING:
    from flasepformer.data import MixtureSet
    from flasepformer.evaluation import EvaluationResult, Reproduction, StreamOptions, Summary
    from flasepformer.inference import RunOptions, Separator

JOURNAL_FILE = "scores.partial.jsonl"
MIXTURES_PER_JOB = 8  # fewer are done sooner than another process starts


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(help="Name or checkpoint of the model, see `flasepformer models`; default: default."),
    ] = None,
    mixture_set: Annotated[
        Path | None,
        typer.Argument(
            metavar="SET",
            help="CSV list or manifest of mixtures, or a folder that holds mix*/, s1/, s2/, ...",
        ),
    ] = None,
    model_option: Annotated[str | None, typer.Option("--model", "-m", help="The same as MODEL.")] = None,
    set_option: Annotated[Path | None, typer.Option("--mixtures", help="The same as SET.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for scores.csv and summary.json.")] = Path(
        "results"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Score only the first so many mixtures.")] = None,
    sdr: Annotated[bool, typer.Option("--sdr/--no-sdr", help="Compute the SDR, too.")] = True,
    metrics: Annotated[
        str, typer.Option(help="More to compute, with commas: sir, sar, pesq, estoi, confusion, leakage.")
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", "-j", min=1, help="Processes, of one thread each; all cores by default, one on a GPU."
        ),
    ] = None,
    mode: Annotated[
        Literal["auto", "whole", "chunks"] | None,
        typer.Option(
            help="Separate every mixture as `flasepformer separate` does a recording: whole, in overlapping "
            "chunks, or (auto) what suits the model, whatever memory is free. By default it goes straight "
            "through the network, as in published results.",
            show_default=False,
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="With --mode: most memory for a recording, such as 800M or 4G; by default half of what is "
            "free, over the number of jobs."
        ),
    ] = None,
    chunk_seconds: Annotated[
        float | None, typer.Option(min=1.0, help="With --mode: length of a chunk. [default: 30]")
    ] = None,
    overlap_seconds: Annotated[
        float | None, typer.Option(help="With --mode: what two chunks have in common. [default: 5]")
    ] = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, max=8, help="With --mode: how often each goes through the model. [default: 1]"),
    ] = None,
    also: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --mode: a second model, with a quarter in the mean."),
    ] = None,
    post_filter: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="With --mode: share of a filter. [default: the model's]"),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Score what a live listener would have heard, delay taken away.")
    ] = False,
    block: Annotated[
        float | None,
        typer.Option(min=0.001, max=10.0, help="With --stream: seconds in a block. [default: 0.02]"),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(help="With --stream: seconds that a model which hears the future lags. [default: 0.5]"),
    ] = None,
    mix_dir: Annotated[
        str | None, typer.Option(help="Which folder holds the mixtures, where several do.")
    ] = None,
    accept_licence: AcceptLicence = False,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N, mps: where the model runs.")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that exist, finished or not.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object, not as a table.")
    ] = False,
) -> None:
    """Separate mixtures with known sources and score the estimates: SI-SNR, SDR and their improvements.

    A metric that has no value for a recording, such as PESQ at 44.1 kHz, is n/a and the others count.
    confusion is the share of the talking time that is in the wrong track, for conversations; leakage the
    level of the other tracks, for recordings of a single talker. An evaluation that was cut short goes on
    where it was.

    Exit codes: 0 all done, 1 some mixtures failed, 2 wrong usage, 3 no usable model, device, disk or package,
    130 interrupted.
    """
    if model and mixture_set is None and set_option is None and _is_a_set(Path(model)):
        mixture_set, model = Path(model), None  # one argument, which is no model
    name = _either(model, model_option, "MODEL") or "default"
    path = _either(mixture_set, set_option, "SET")
    if path is None or not path.exists():
        given = "none" if path is None else f"{path}, which does not exist"
        raise typer.BadParameter(f"give a SET of mixtures, after the MODEL or with --mixtures; got {given}")
    if (out / "scores.csv").exists() and not overwrite:
        raise typer.BadParameter(f"{out / 'scores.csv'} exists; give --overwrite, or another --out")
    wanted = [*(["sdr"] if sdr else []), *(metric.strip() for metric in metrics.split(",") if metric.strip())]
    run_options = _run_options(mode, memory, chunk_seconds, overlap_seconds, passes, also, post_filter)
    if not stream and (block, delay) != (None, None):
        raise typer.BadParameter("--block and --delay need --stream")
    if stream and run_options is not None:
        raise typer.BadParameter("--mode is for recordings, --stream for streams; give one of them")

    from flasepformer.evaluation import StreamOptions, describe_run, label_run, summarise_blocks
    from flasepformer.inference import DeviceError, OutputError
    from flasepformer.models import CheckpointError

    streams = StreamOptions(block_seconds=0.02 if block is None else block, delay=delay) if stream else None
    try:
        for one in filter(None, (name, also)):
            obtain_published(one, accept_licence=accept_licence)
        result, table, run_options, reproduced = _score(
            name, path, wanted, out, limit, run_options, streams, jobs, mix_dir, device, overwrite
        )
    except (CheckpointError, DeviceError, OutputError, ModuleNotFoundError) as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    except KeyboardInterrupt:
        print_message("interrupted; the same command goes on where it was")
        raise typer.Exit(130) from None
    for mixture, reason in result.failures:
        print_message(f"error: {mixture}: {reason}")
    for row in result.rows:
        if row.warnings:
            print_message(f"warning: {row.name}: {row.warnings}")
    for note, n_mixtures in result.notes.items():
        print_message(f"note: {note}; n/a in {n_mixtures} of {len(result.rows)} mixtures")
    blocks = summarise_blocks(result.rows)
    if as_json:
        way_taken = describe_run(run_options) if streams is None else streams.describe()
        live = {"live": blocks} if blocks else {}
        content = {"separation": way_taken, "published": reproduced, **live, **result.as_dict()}
        print_result(json.dumps(content, indent=2))
    else:
        for line in _table(result):
            print_result(line)
        if reproduced is not None:
            for line in _beside(reproduced):
                print_result(line)
        if blocks:
            print_result(_blocks(blocks))
        if way := label_run(describe_run(run_options)):
            print_result(f"mode: {way}")
        print_result(str(table))
    raise typer.Exit(1 if result.failures else 0)


def _is_a_set(path: Path) -> bool:
    return (path.suffix.lower() == ".csv" and path.is_file()) or (path / "s1").is_dir()


def _either(argument: Any, option: Any, name: str) -> Any:
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(f"{name} is given twice: {argument} and {option}")
    return option if argument is None else argument


def _run_options(
    mode: Literal["auto", "whole", "chunks"] | None,
    memory: str | None,
    chunk_seconds: float | None,
    overlap_seconds: float | None,
    passes: int | None,
    also: str | None,
    post_filter: float | None,
) -> "RunOptions | None":
    if mode is None:
        given = (memory, chunk_seconds, overlap_seconds, passes, also, post_filter)
        if any(option is not None for option in given):
            raise typer.BadParameter(
                "--memory, --chunk-seconds, --overlap-seconds, --passes, --also and --post-filter "
                "need a --mode"
            )
        return None
    return {
        "mode": mode, "memory": memory, "chunk_seconds": 30.0 if chunk_seconds is None else chunk_seconds,
        "overlap_seconds": 5.0 if overlap_seconds is None else overlap_seconds,
        **({"passes": passes} if passes else {}), **({"also": also} if also else {}),
        **({} if post_filter is None else {"post_filter": post_filter}),
    }  # fmt: skip


def _score(
    name: str,
    path: Path,
    metrics: list[str],
    out: Path,
    limit: int | None,
    run_options: "RunOptions | None",
    streams: "StreamOptions | None",
    jobs: int | None,
    mix_dir: str | None,
    device: str,
    overwrite: bool,
) -> tuple["EvaluationResult", Path, "RunOptions | None", dict[str, Any] | None]:
    """Evaluate, write the results; return them, the table's path, the way taken, and what was published."""
    from flasepformer.data import open_mixtures
    from flasepformer.evaluation import (
        check_metrics,
        describe_run,
        describe_set,
        fix_options,
        summarise_blocks,
        versions,
        weights_digest,
    )
    from flasepformer.evaluation import evaluate as score

    check_place(out)
    check_metrics(metrics)
    separator = load_separator(name, device)
    run_options = fix_options(separator, run_options)
    mixtures = open_mixtures(path, separator.sample_rate, mix_dir)
    if jobs is None:
        n_mixtures = min(len(mixtures), limit or len(mixtures))
        jobs = min(n_cores(), -(-n_mixtures // MIXTURES_PER_JOB)) if separator.device.type == "cpu" else 1
    journal = out / JOURNAL_FILE
    if overwrite:
        journal.unlink(missing_ok=True)
    result = score(
        separator, mixtures, metrics=metrics, limit=limit, run_options=run_options, stream=streams, jobs=jobs,
        journal=journal, progress=True,
    )  # fmt: skip
    reproduced = _published(name, mixtures, result)
    table, _ = result.write(
        out,
        model={**separator.description, "weights_sha256": weights_digest(separator.model)},
        separation=describe_run(run_options) if streams is None else streams.describe(),
        live=summarise_blocks(result.rows),
        published=reproduced,
        mixtures=str(path),
        set={**describe_set(mixtures, path), "mix_dir": mix_dir, "limit": limit},
        command=shlex.join(["flasepformer", *sys.argv[1:]]),
        versions=versions(metrics),
        device=str(separator.device),
    )
    journal.unlink()
    return result, table, run_options, reproduced


def _published(name: str, mixtures: "MixtureSet", result: "EvaluationResult") -> dict[str, Any] | None:
    """Return our scores beside those that were published for this model and set; None if none were."""
    from flasepformer.evaluation import compare_with_published, find_published_score, n_published_mixtures
    from flasepformer.models import find_published

    model = find_published(name)
    score = find_published_score(model.scores, mixtures) if model else None
    if model is None or score is None:
        return None
    n_published = n_published_mixtures(score)
    if len(result.rows) != n_published:
        print_message(f"note: the published score is the mean over {n_published:,} mixtures, this over "
                      f"{len(result.rows):,}")  # fmt: skip
    rows = compare_with_published(score, result.summary())
    return {
        "model": model.name, "set": score.set, "task": score.task, "split": score.split,
        "n_mixtures": n_published, "scores": {row.metric: _as_dict(row) for row in rows},
    }  # fmt: skip


def _as_dict(row: "Reproduction") -> dict[str, float]:
    return {"here": row.here, "published": row.published, "difference": row.difference}


def _beside(reproduced: dict[str, Any]) -> list[str]:
    """Return the table of our scores beside the published ones."""
    where = f"{reproduced['set']} {reproduced['task']}, {reproduced['split']}"
    rows = [[where, "HERE", "PUBLISHED", "DIFFERENCE"]]
    for metric, scores in reproduced["scores"].items():
        values = f"{scores['here']:.2f}", f"{scores['published']:.1f}", f"{scores['difference']:+.2f}"
        rows.append([f"{metric} (dB)", *values])
    return ["", *aligned(rows), ""]


def load_separator(name: str, device: str) -> "Separator":
    """Load a model for a command that scores it; what there is to say of it goes to stderr."""
    from flasepformer.inference import Separator

    with warnings.catch_warnings(record=True) as cautions:
        warnings.simplefilter("always")
        separator = Separator.from_pretrained(name, device)
    for caution in cautions:
        print_message(f"warning: {caution.message}")
    return separator


def _table(result: "EvaluationResult") -> list[str]:
    """Return the summary of everything, a line for each metric, then a line for each group."""
    from flasepformer.evaluation import METRICS

    whole = result.summary()
    rows = [["dB", "MEAN", "95 %", "MEDIAN", "MIXTURE", "N/A"]]
    for metric, value in whole.mean.items():
        if not metric.startswith("mixture_"):
            label, unit = METRICS[metric].label, METRICS[metric].unit
            low, high = whole.interval[metric]
            cells = [value, whole.median[metric], whole.mean.get(f"mixture_{metric}", math.nan)]
            mean, median, mixture = map(_decibels, cells)
            mean = mean or "n/a"
            rows.append(
                [
                    label if unit in ("dB", "") else f"{label} ({unit})",
                    *(mean, "" if math.isnan(low) else f"{low:.2f} .. {high:.2f}", median),
                    *(mixture, str(whole.not_applicable.get(metric, ""))),
                ]
            )
    groups = [["GROUP", "MIXTURES", "SI-SNRi", "SDRi", "MEDIAN SI-SNRi", "WORSE", "RTF"], _line("all", whole)]
    for key, summaries in result.grouped().items():
        if len(summaries) > 1:
            groups += [_line(f"{key} {value or 'unknown'}", summary) for value, summary in summaries.items()]
    return [*aligned(rows), "", *aligned(groups)]


def _line(label: str, summary: "Summary") -> list[str]:
    means = [summary.mean.get(metric, math.nan) for metric in ("si_snr_improvement", "sdr_improvement")]
    scores = [*means, summary.median.get("si_snr_improvement", math.nan)]
    worse = "" if math.isnan(summary.share_worse) else f"{summary.share_worse:.1%}"
    factor = "" if math.isnan(summary.real_time_factor) else f"{summary.real_time_factor:.3f}"
    return [label, str(summary.n_mixtures), *map(_decibels, scores), worse, factor]


def _blocks(blocks: dict[str, float]) -> str:
    """Say how a stream kept the time."""
    p50, p99, longest = (1000 * blocks[f"{name}_seconds"] for name in ("p50", "p99", "longest"))
    return (
        f"stream: delay {1000 * blocks['delay_seconds']:.0f} ms; time per block p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, longest {longest:.1f} ms; real-time factor of the worst block "
        f"{blocks['worst_real_time_factor']:.2f}; {blocks['late_share']:.2%} of {blocks['n_blocks']:.0f} "
        "blocks late"
    )


def _decibels(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def aligned(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table whose first column is text and whose others are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
