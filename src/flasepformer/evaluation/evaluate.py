"""Score a model on a set of mixtures: one row for each, in parallel, to be continued after a kill."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from flasepformer.data import LongMixture, MixtureFolder, MixtureManifest, MixtureSet
from flasepformer.evaluation.journal import Journal
from flasepformer.evaluation.provenance import set_digest, versions
from flasepformer.evaluation.rows import N_DECIMALS, EvaluationRow
from flasepformer.evaluation.scoring import (
    Scores,
    check_metrics,
    score_estimates,
    score_in_blocks,
    why_not_applicable,
    why_not_in_blocks,
)
from flasepformer.evaluation.separating import (
    AsRecording,
    Separate,
    describe_run,
    fix_options,
    separation_by,
    share_memory,
)
from flasepformer.evaluation.statistics import mean
from flasepformer.evaluation.streams import StreamedSeparation, StreamOptions
from flasepformer.evaluation.summary import EvaluationResult
from flasepformer.inference import RunOptions, SeparationError, Separator, weights_digest
from flasepformer.inference.workers import WorkerDied, map_in_processes
from flasepformer.models import SeparationNetwork


def evaluate(
    model: Separator | SeparationNetwork,
    mixtures: MixtureSet,
    *,
    metrics: Collection[str] = ("sdr",),
    limit: int | None = None,
    run_options: RunOptions | None = None,
    stream: StreamOptions | None = None,
    jobs: int = 1,
    journal: str | Path | None = None,
    progress: bool = False,
) -> EvaluationResult:
    """Separate every mixture of a set and score the estimates, in their best order.

    By default a mixture at the model's own sample rate goes straight through the network, as in published
    results; at another rate, through `Separator.separate`. With `run_options` every mixture goes that way, as
    users' recordings do: brought to the model's level, whole in pieces of time, or in chunks. What cannot be
    read, separated or scored is a row with its error. The scores do not depend on the number of jobs. With
    `run_options`, files of more than `LONG_SECONDS` are gone through block by block, sources and tracks, too.

    Args:
        model: A separator, or a network of `flasepformer.models`.
        mixtures: What to separate; see `open_mixtures`.
        metrics: What to compute beside the SI-SNR, of `EXTRA_METRICS`.
        limit: Score only the first so many mixtures.
        run_options: How recordings go through the model, e.g. `{"mode": "chunks"}`. Several jobs share the
            memory that one recording may take when nobody says how much.
        stream: Play every mixture as a stream, instead; scored is what a live listener would have heard, with
            the delay taken away.
        jobs: Processes, of one thread each. With 1, this process does the work.
        journal: File that takes each row as soon as it is known. If it holds rows of the same evaluation, cut
            short, they are not computed again; the files of the set must be as they were.
        progress: Show a progress bar when stderr is a terminal.

    Raises:
        ValueError: The model gives another number of talkers than the mixtures have, there is no such metric,
            an option makes no sense, or the journal belongs to another evaluation.
        ModuleNotFoundError: A metric needs a package that is missing; the message names the extra.
        OutputError: The journal cannot be written.
    """
    if mixtures.n_sources not in (1, model.n_sources):  # one talker alone: what does the other track do?
        raise ValueError(
            f"the model separates {model.n_sources} talkers, but the mixtures have {mixtures.n_sources}"
        )
    check_metrics(metrics)
    names = list(mixtures.names[:limit])
    if stream is not None and run_options is not None:
        raise ValueError("a mixture goes through the model as a stream or as a recording, not both")
    run_options = fix_options(model, run_options)
    if stream is not None:
        separate: Separate = StreamedSeparation(
            model.model if isinstance(model, Separator) else model, stream
        )
    else:
        separate = separation_by(model, share_memory(run_options, min(jobs, len(names))))
    rows: list[EvaluationRow] = []
    written = None
    if journal is not None:
        network = model.model if isinstance(model, Separator) else model
        identity: dict[str, Any] = {
            "weights": weights_digest(network),
            "config": repr(getattr(network, "config", None)),  # not all of it shows in the weights
            "mixtures or files": set_digest(mixtures),
            "metrics": sorted(metrics),
            "mode": describe_run(run_options) if stream is None else stream.describe(),
            "device": next(network.parameters()).device.type,
            "versions": versions(metrics),
        }
        written = Journal(Path(journal), identity)
        rows += written.rows[: len(names)]
    score = partial(_score, separate, mixtures, metrics)
    with tqdm(
        total=len(names), initial=len(rows), desc="evaluating", disable=None if progress else True
    ) as bar:
        for row in _scored(score, names, len(rows), jobs):
            rows.append(row)
            if written is not None:
                written.append(row)
            bar.update()
            bar.set_postfix_str(f"SI-SNRi {mean(row.mean('si_snr_improvement') for row in rows):.2f} dB")
    return EvaluationResult(tuple(rows))


def _scored(
    score: "partial[EvaluationRow]", names: Sequence[str], start: int, jobs: int
) -> Iterator[EvaluationRow]:
    items = list(enumerate(names))[start:]
    if jobs == 1 or len(items) < 2:
        n_threads = torch.get_num_threads()
        # Sums in other pieces round otherwise: the scores would depend on the machine.
        torch.set_num_threads(1)
        try:
            yield from map(score, items)
        finally:
            torch.set_num_threads(n_threads)
        return
    for (_, name), row in zip(items, map_in_processes(score, items, jobs), strict=True):
        yield EvaluationRow(name=name, error=str(row)) if isinstance(row, WorkerDied) else row


def _score(
    separate: Separate, mixtures: MixtureSet, metrics: Collection[str], numbered: tuple[int, str]
) -> EvaluationRow:
    index, name = numbered
    try:
        if isinstance(separate, AsRecording) and isinstance(mixtures, MixtureFolder | MixtureManifest):
            with mixtures.open_long(index) as long:
                if long.is_long:
                    return _score_in_blocks(separate, long, metrics)
        item = mixtures[index]
        started = time.perf_counter()
        estimates, warnings, live = separate(item)
        compute_seconds = time.perf_counter() - started
        scores = score_estimates(estimates, item, metrics)
        notes = (why_not_applicable(metric, item) for metric in metrics)
        seconds = len(item.mixture) / item.sample_rate
        return _row(name, seconds, compute_seconds, scores, item.groups, warnings, notes, live)
    except (ValueError, OSError, SeparationError) as error:
        return EvaluationRow(name=name, error=str(error))


def _score_in_blocks(separate: AsRecording, item: LongMixture, metrics: Collection[str]) -> EvaluationRow:
    started = time.perf_counter()
    tracks, warnings = separate.in_blocks(item)
    compute_seconds = time.perf_counter() - started
    scores = score_in_blocks(tracks, item, metrics)
    notes = (why_not_in_blocks(metric) for metric in metrics)
    seconds = item.n_samples / item.sample_rate
    return _row(item.name, seconds, compute_seconds, scores, item.groups, warnings, notes, {})


def _row(
    name: str,
    seconds: float,
    compute_seconds: float,
    scores: Scores,
    groups: Mapping[str, str],
    warnings: Sequence[str],
    notes: Iterable[str],
    live: Mapping[str, Any],
) -> EvaluationRow:
    return EvaluationRow(
        name=name,
        seconds=round(seconds, N_DECIMALS),
        compute_seconds=round(compute_seconds, N_DECIMALS),
        scores={key: tuple(round(value, N_DECIMALS) for value in values) for key, values in scores.items()},
        groups=dict(groups),
        warnings="; ".join(warnings),
        live=dict(live),
        notes=tuple(filter(None, notes)),
    )
