"""Measure the whole family on one CUDA GPU, in under ten minutes, from a bare checkout.

Needs PyTorch, numpy and safetensors, no installation:

    PYTHONPATH=src python benchmarks/gpu.py --out results/

The paper's experiment comes first, then the other lengths, then bfloat16, then TF-Locoformer; what the time
does not suffice for is marked in the tables. Writes benchmark.csv, benchmark.md and benchmark.json, and
plots if matplotlib is installed.
"""

import argparse
import os
import sys
from pathlib import Path

from flasepformer.benchmark import (
    PAPER_MODELS,
    PAPER_SECONDS,
    Case,
    CaseResult,
    cases_for,
    draw_plots,
    run_benchmark,
)

LINEAR_MODELS = [name for name in PAPER_MODELS if name.startswith("fla-")]
TFLOCOFORMERS = [f"{family}-{size}" for size in "sml" for family in ("fla-tflocoformer", "tflocoformer")]


def gpu_cases(device: str, lengths: list[float], threads: int) -> list[Case]:
    """Return the cases, the most telling first."""
    wanted = [
        (PAPER_MODELS, [PAPER_SECONDS] if PAPER_SECONDS in lengths else [], "float32"),
        (PAPER_MODELS, lengths, "float32"),
        (LINEAR_MODELS, lengths, "bfloat16"),
        (TFLOCOFORMERS, lengths, "float32"),
    ]
    cases = [
        case
        for models, seconds, precision in wanted
        for case in (
            cases_for(models, seconds, device=device, precision=precision, threads=threads) if seconds else []
        )
    ]
    return list(dict.fromkeys(cases))


def print_progress(result: CaseResult) -> None:
    """Print one measurement."""
    case = result.case
    outcome = f"{result.seconds:.4g} s, {result.peak_memory / 1e6:.0f} MB" if result.ok else result.status
    print(
        f"{case.label} {case.seconds:g} s {case.precision}: {outcome}\n{result.error}".rstrip(),
        file=sys.stderr,
    )


def main() -> None:
    """Measure, write, print the tables."""
    parser = argparse.ArgumentParser(description="Measure the whole family on one GPU.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", type=float, nargs="+", default=[4.0, 30.0, 60.0, 120.0], help="seconds")
    parser.add_argument("--minutes", type=float, default=8.5, help="no measurement starts after that")
    arguments = parser.parse_args()
    report, paths = run_benchmark(
        gpu_cases(arguments.device, arguments.lengths, threads=os.cpu_count() or 1),
        arguments.out,
        n_rounds=1,
        time_limit=60.0 if arguments.device == "cuda" else 600.0,
        time_budget=60 * arguments.minutes,
        command=f"python benchmarks/gpu.py --device {arguments.device} --minutes {arguments.minutes:g} "
        f"--lengths {' '.join(f'{length:g}' for length in arguments.lengths)}",
        report=print_progress,
    )
    try:
        paths += draw_plots(report, arguments.out)
    except ImportError as error:
        print(f"note: {error}", file=sys.stderr)
    print(report.as_markdown(), *paths, sep="\n")
    sys.exit(1 if any(result.broken for result in report.results) else 0)


if __name__ == "__main__":
    main()
