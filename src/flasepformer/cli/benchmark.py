"""`flasepformer benchmark`: what models cost against the length of the recording."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flasepformer.cli.console import print_message, print_result
from flasepformer.cli.cores import n_cores
from flasepformer.cli.words import checked_device

if TYPE_CHECKING:
    from flasepformer.benchmark import Case, CaseResult

DEFAULT_LENGTHS = "4,16,30"


def benchmark(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Names or checkpoints; see `flasepformer models`."),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help=f"Lengths of the recordings in seconds.  [default: {DEFAULT_LENGTHS}]")
    ] = None,
    peers: Annotated[
        str, typer.Option(help="Other public models, with commas; `all`, or see docs/benchmarks.md.")
    ] = "",
    paper: Annotated[
        bool,
        typer.Option("--paper", help="FLA-SepReformer against softmax SepReformer at 30 s, as in the paper."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch.  [default: one for each core]")
    ] = None,
    device: Annotated[
        str, typer.Option(callback=checked_device, help="auto, cpu, cuda, cuda:N: where the models run.")
    ] = "cpu",
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16 (by autocast), or both with a comma.")
    ] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds over all cases; the medians count.")] = 3,
    time_limit: Annotated[
        float, typer.Option(min=1.0, help="Seconds that one measurement may take, loading included.")
    ] = 600.0,
    memory_limit: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="GB that one measurement on the CPU may take.  [default: 80 % of what is free]"
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and plots.")] = Path(
        "benchmark"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
) -> None:
    """Measure time, real-time factor, peak memory and multiply-adds against the length of the recording.

    Each measurement runs in a process of its own, one after the other. A case that runs out of memory or time
    is a row that says so.

    Exit codes: 0 all done, 1 a case broke, 2 wrong usage, 3 no usable model, device or disk, 130 interrupted;
    what was measured is written.
    """
    import torch  # here, so that --help is instant

    from flasepformer.benchmark import draw_plots, run_benchmark
    from flasepformer.models import CheckpointError

    if (out / "benchmark.csv").exists() and not overwrite:
        raise typer.BadParameter(f"{out / 'benchmark.csv'} exists; give --overwrite, or another --out")
    kind, _, index = device.partition(":")
    if kind == "mps":
        raise typer.BadParameter("--device must be auto, cpu or cuda: memory can be measured on those")
    if index:
        os.environ["CUDA_VISIBLE_DEVICES"] = index  # the only one that the measuring processes see
    device = ("cuda" if torch.cuda.is_available() else "cpu") if kind == "auto" else kind
    if device == "cuda" and not torch.cuda.is_available():
        print_message("error: there is no CUDA device that works on this machine; give --device cpu")
        raise typer.Exit(3)
    n_threads = threads or n_cores()
    try:
        cases = _cases(models or [], lengths, peers, paper, device, _precisions(precision), n_threads)
    except CheckpointError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        report, paths = run_benchmark(
            cases,
            out,
            n_rounds=repeats,
            time_limit=time_limit,
            memory_limit=None if memory_limit is None else int(memory_limit * 1e9),
            command=_command(cases, peers, paper, ",".join(_precisions(precision, quiet=True)), repeats),
            report=_print_progress,
        )
    except OSError as error:
        print_message(f"error: {error.filename or out}: {error.strerror or error}")
        raise typer.Exit(3) from error
    except RuntimeError as error:
        print_message(f"error: {error}")
        raise typer.Exit(3) from error
    except KeyboardInterrupt:
        print_message(f"interrupted; what was measured is in {out}")
        raise typer.Exit(130) from None
    try:
        paths += draw_plots(report, out)
    except ImportError as error:
        print_message(f"note: {error}")
    print_result(report.as_markdown())
    for path in paths:
        print_result(str(path))
    raise typer.Exit(1 if any(result.broken for result in report.results) else 0)


def _cases(
    models: list[str],
    lengths: str | None,
    peers: str,
    paper: bool,
    device: str,
    precisions: list[str],
    threads: int,
) -> list["Case"]:
    """Return the cases in the order to run them; a model that is not there is said at once."""
    from flasepformer.benchmark import PAPER_MODELS, PAPER_SECONDS, cases_for, peer_cases
    from flasepformer.models import model_info

    if paper and (models or lengths):
        raise ValueError("--paper has its own models and length; give neither MODEL nor --lengths with it")
    if not (paper or models or peers):
        raise ValueError("give at least one MODEL, --peers or --paper")
    models = list(PAPER_MODELS) if paper else models
    for model in models:
        model_info(model)
    names = peers.split(",") if peers else []
    seconds = [PAPER_SECONDS] if paper else _seconds(lengths or DEFAULT_LENGTHS)
    cases = [
        case
        for precision in precisions
        for case in (
            *cases_for(models, seconds, device=device, precision=precision, threads=threads),
            *peer_cases(names, seconds, device=device, precision=precision, threads=threads),
        )
    ]
    return sorted(cases, key=lambda case: case.seconds)


def _seconds(lengths: str) -> list[float]:
    try:
        return [float(part) for part in lengths.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--lengths must be numbers with commas, such as {DEFAULT_LENGTHS}, got {lengths!r}"
        ) from error


def _precisions(names: str, *, quiet: bool = False) -> list[str]:
    if "bf16" in names.split(",") and not quiet:
        print_message("note: bf16 is called bfloat16 now; the old name still works")
    precisions = list(dict.fromkeys("bfloat16" if name == "bf16" else name for name in names.split(",")))
    if not {*precisions} <= {"float32", "bfloat16"}:
        raise ValueError(f"--precision must be float32, bfloat16 or float32,bfloat16, got {names!r}")
    return precisions


def _command(cases: list["Case"], peers: str, paper: bool, precision: str, repeats: int) -> str:
    """Return the command that repeats the run, without the folders of this machine."""
    words = ["flasepformer", "benchmark"]
    if paper:
        words.append("--paper")
    else:
        words += dict.fromkeys(case.label for case in cases if case.is_own)
        words += ["--lengths", ",".join(dict.fromkeys(f"{case.seconds:g}" for case in cases))]
    words += ["--peers", peers] if peers else []
    words += ["--device", cases[0].device, "--precision", precision]
    words += ["--threads", str(cases[0].threads), "--repeats", str(repeats)]
    return shlex.join(words)


def _print_progress(result: "CaseResult") -> None:
    case = result.case
    if result.error:
        print_message(result.error.rstrip())
    outcome = (
        f"real-time factor {result.real_time_factor:.3g}, {result.peak_memory / 1e6:.0f} MB"
        if result.ok
        else result.status
    )
    print_message(f"{case.label} {case.seconds:g} s {case.precision}: {outcome}")
