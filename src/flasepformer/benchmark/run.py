"""One benchmark from cases to files."""

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

from flasepformer.benchmark.cases import Case, CaseResult
from flasepformer.benchmark.harness import MEMORY_SHARE, available_memory, measure_machine, run_cases
from flasepformer.benchmark.machine import describe_machine, versions
from flasepformer.benchmark.paper import paper_table
from flasepformer.benchmark.report import Report

PEER_PACKAGES = ("modelscope", "speechbrain", "asteroid")


def run_benchmark(
    cases: Sequence[Case],
    out: Path,
    *,
    n_rounds: int = 3,
    time_limit: float = 600.0,
    memory_limit: int | None = None,
    time_budget: float = inf,
    command: str = "",
    report: Callable[[CaseResult], None] = lambda result: None,
) -> tuple[Report, list[Path]]:
    """Measure the machine, then the cases, and write CSV, Markdown and JSON, of an interrupted run too.

    Args:
        cases: At least one, all on the same device and with the same threads.
        out: Folder for the files, made if missing.
        n_rounds: Measurements of each case.
        time_limit: Seconds that one measurement may take.
        memory_limit: Bytes that a measurement on the CPU may take; by default `MEMORY_SHARE` of what is free.
        time_budget: Seconds after which no further measurement starts.
        command: How to repeat the run, kept with the results.
        report: Called after every measurement.

    Returns:
        The report and the paths of its files.

    Raises:
        RuntimeError: If the device cannot be used.
        OSError: If the folder cannot be written to.
    """
    out.mkdir(parents=True, exist_ok=True)
    limit = int(MEMORY_SHARE * available_memory()) if memory_limit is None else memory_limit
    settings = {"rounds": n_rounds, "time_limit_seconds": time_limit, "memory_limit_mb": round(limit / 1e6)}
    results = [CaseResult(case=case) for case in cases]
    rates = measure_machine(cases[0].device, cases[0].threads)
    try:
        run_cases(
            results,
            n_rounds=n_rounds,
            time_limit=time_limit,
            memory_limit=limit,
            time_budget=time_budget,
            report=report,
        )
    finally:
        table = paper_table(results)
        done = Report(
            results=results,
            rates=rates,
            machine=describe_machine(),
            versions=versions(*PEER_PACKAGES),
            command=command,
            settings=settings,
            extra_tables=[table] if table else [],
        )
        paths = done.write(out)
    return done, paths
