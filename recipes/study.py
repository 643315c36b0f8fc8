"""The small study of the paper's ablation: train every variant, score it, measure its cost, write docs/study.

Usage:
    python recipes/study.py --speech SPEECH --out runs/study

SPEECH has the splits train, valid and test. What is finished in the output folder is not done again, and a
run that was cut short goes on where it was. `--only benchmark` measures time and memory anew, e.g. on a quiet
machine; `--only report` writes tables and pictures again.
"""

import argparse
import csv
import dataclasses
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from flasepformer.benchmark import Case, available_memory, describe_machine, run_case
from flasepformer.data import make_mixture_list, open_mixtures, read_utterances, write_mixture_list
from flasepformer.evaluation import EvaluationRow, bootstrap_interval, evaluate, load_result
from flasepformer.models import count_parameters, load_model, multiply_adds, save_model
from flasepformer.models.registry import FAMILIES
from flasepformer.training import Recipe, load_recipe, save_recipe, train
from flasepformer.training.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes" / "study"
DOCS = ROOT / "docs" / "study"

VARIANTS = {
    "sepreformer": "softmax SepReformer",
    "fla": "FLA-SepReformer",
    "fla-no-gate": "without the gate",
    "fla-no-conv": "without the value convolution",
    "fla-no-gate-no-conv": "without both",
    "linear": "without the focusing function",
}
"""Recipe and what the tables call it; those that are "without" are FLA-SepReformers."""

REFERENCE = "fla"
"""What all others are compared with."""

PAIR = ("sepreformer", REFERENCE)
"""The variants that a second seed is most telling for."""

ROUNDS = {4.0: 40, 16.0: 20, 60.0: 10, 600.0: 3}
"""Lengths of the recordings (s) whose cost is measured, and how often each is timed."""

PLOTTED_SECONDS = 60.0
"""Length behind the time in the picture of the accuracy."""

STEPS = ("train", "evaluate", "benchmark", "report")
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#555555")
TABLES_BEGIN, TABLES_END = "<!-- tables: written by recipes/study.py -->", "<!-- end of the tables -->"


def planned_runs(n_seeds: int, n_pair_seeds: int) -> list[tuple[str, int]]:
    """Return variant and seed of every run, seed by seed, so that an early end leaves whole comparisons."""
    return [
        (variant, seed)
        for seed in range(max(n_seeds, n_pair_seeds))
        for variant in VARIANTS
        if seed < (n_pair_seeds if variant in PAIR else n_seeds)
    ]


def run_name(variant: str, seed: int) -> str:
    """Return the name of a run's folder and of its files in docs."""
    return f"{variant}-seed{seed}"


def parse_run_name(name: str) -> tuple[str, int]:
    """Undo `run_name`."""
    variant, _, seed = name.rpartition("-seed")
    return variant, int(seed)


def train_run(recipe: Recipe, folder: Path, speech_cache: Path) -> None:
    """Train unless that is done; go on with a run that was cut short."""
    run = RunFolder(folder)
    if last_step(run.curve) >= recipe.optimization.n_steps and run.best.is_dir():
        print(f"{folder.name}: trained already")
        return
    can_resume = run.checkpoint is not None
    if not can_resume:  # cut short before the first checkpoint: its rows will be written again
        run.curve.unlink(missing_ok=True)
    print(f"{folder.name}: {'goes on' if can_resume else 'begins'}")
    train(recipe, folder, resume=can_resume, speech_cache=speech_cache)


def last_step(curve: Path) -> int:
    """Return the last step of a curve, 0 where there is none."""
    rows = read_csv(curve) if curve.exists() else []
    return int(rows[-1]["step"]) if rows else 0


def score_runs(speech: Path, out: Path, n_mixtures: int, jobs: int) -> None:
    """Score every trained run on the same mixtures of test speakers, unless that is done."""
    mixture_list = out / "test.csv"
    if not mixture_list.exists():
        specs = make_mixture_list(read_utterances(speech, "test"), n_mixtures, seed=0)
        write_mixture_list(specs, mixture_list)
    for run in trained_runs(out):
        folder = out / "scores" / run.name
        if (folder / "scores.csv").exists():
            print(f"{run.name}: scored already")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        model: Any = load_model(run / "best")
        mixtures = open_mixtures(mixture_list, model.sample_rate)
        journal = folder / "scores.partial.jsonl"
        result = evaluate(model, mixtures, metrics=(), jobs=jobs, journal=journal, progress=True)
        if result.failures:
            raise RuntimeError(f"{run.name}: {len(result.failures)} failed, first {result.failures[0]}")
        result.write(folder, model={"name": run.name})
        journal.unlink()
        print(f"{run.name}: SI-SNRi {result.summary().mean['si_snr_improvement']:.2f} dB")


def trained_runs(out: Path) -> list[Path]:
    """Return the folders of the runs that have reached their last step."""
    runs = sorted(path.parent for path in (out / "runs").glob("*/best"))
    return [
        run
        for run in runs
        if last_step(run / "curve.csv") >= load_recipe(run / "recipe.yaml").optimization.n_steps
    ]


def measure_costs(
    folders: Mapping[str, Path], rounds: Mapping[float, int], reference: str = REFERENCE
) -> list[dict[str, Any]]:
    """Measure time, memory and multiply-adds of networks, with one thread.

    Time is processor time, measured in turns in this one process, so that other work on the machine falls on
    all alike; a ratio is the median over the rounds of the time against the reference's in the same round.
    Memory is the peak above the loaded model in a process of its own, as `flasepformer benchmark` has it.

    Args:
        folders: Checkpoint of each network.
        rounds: How often to time each length (s).
        reference: The network that the others are compared with.

    Returns:
        A row for each network and length.
    """
    models = {name: load_model(folder) for name, folder in folders.items()}
    rows = []
    for seconds, n_rounds in rounds.items():
        taken = time_in_turns(models, seconds, n_rounds)
        for name, model in models.items():
            ratios = [own / other for own, other in zip(taken[name], taken[reference], strict=True)]
            row = {
                "variant": name,
                "parameters": count_parameters(model),
                "seconds": seconds,
                "rounds": n_rounds,
                "giga_multiply_adds": round(multiply_adds(model, seconds) / 1e9, 4),
                "cpu_seconds": round(median(taken[name]), 5),
                "time_ratio": round(median(ratios), 4),
                "time_ratio_low": round(min(ratios), 4),
                "time_ratio_high": round(max(ratios), 4),
                "peak_memory_mb": round(peak_memory(folders[name], seconds) / 1e6, 2),
                "processor": describe_machine()["processor"],
                "torch": torch.__version__,
            }
            rows.append(row)
            print(f"{name} {seconds:g} s: {row['time_ratio']} times, {row['peak_memory_mb']} MB")
    return rows


def time_in_turns(models: Mapping[str, Any], seconds: float, n_rounds: int) -> dict[str, list[float]]:
    """Return the processor time (s) of a pass over one recording for every model, one value a round."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in models}
    try:
        with torch.inference_mode():
            for n_round in range(-1, n_rounds):  # the first round only warms up
                for name, model in models.items():
                    n_samples = round(seconds * model.sample_rate)
                    generator = torch.Generator().manual_seed(n_round + 1)
                    mixture = 0.1 * torch.randn(1, n_samples, generator=generator)
                    started = time.process_time()
                    model(mixture)
                    if n_round >= 0:
                        taken[name].append(time.process_time() - started)
    finally:
        torch.set_num_threads(n_threads)
    return taken


def peak_memory(checkpoint: Path, seconds: float) -> int:
    """Return the peak (bytes) above the loaded model, in a process of its own.

    Raises:
        RuntimeError: If it cannot be measured.
    """
    case = Case(model=str(checkpoint), seconds=seconds)
    measured = run_case(case, time_limit=600.0, memory_limit=available_memory(), count=False)
    if "peak_memories" not in measured:
        raise RuntimeError(f"{checkpoint.name}, {seconds:g} s: {measured['status']}")
    (peak,) = measured["peak_memories"]
    return peak


def untrained_checkpoints(recipes: Mapping[str, Recipe], folder: Path) -> dict[str, Path]:
    """Write every variant with random weights, which cost as much as trained ones; return the folders."""
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        save_model(FAMILIES[recipe.family][1](recipe.model), folder / name)
    return {name: folder / name for name in recipes}


def collect(out: Path, docs: Path) -> None:
    """Copy what the tables and pictures are made of, without the paths of this machine."""
    for kind in ("scores", "curves", "recipes"):
        shutil.rmtree(docs / kind, ignore_errors=True)
        (docs / kind).mkdir(parents=True)
    for run in trained_runs(out):
        scores = out / "scores" / run.name / "scores.csv"
        if not scores.exists():
            print(f"{run.name}: not scored, left out")
            continue
        shutil.copyfile(scores, docs / "scores" / f"{run.name}.csv")
        shutil.copyfile(run / "curve.csv", docs / "curves" / f"{run.name}.csv")
        variant, seed = parse_run_name(run.name)
        if seed == 0:
            recipe = load_recipe(run / "recipe.yaml")
            recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, speech=""))
            save_recipe(recipe, docs / "recipes" / f"{variant}.yaml")
            shutil.copyfile(run / "environment.txt", docs / "environment.txt")
    if (out / "cost.csv").exists():
        shutil.copyfile(out / "cost.csv", docs / "cost.csv")


def accuracy_rows(scores: Mapping[str, Sequence[EvaluationRow]]) -> list[dict[str, Any]]:
    """Summarise the runs of every variant, and its paired difference from the reference.

    Args:
        scores: By the names of the runs.

    Returns:
        A row for each variant. "si_snr_improvement" and "interval" are by seed. Where it shares seeds with
        the reference, "difference", "difference_interval" and "share_better" are of the paired difference,
        which is averaged over the shared seeds first, mixture by mixture.

    Raises:
        ValueError: The runs were scored on different mixtures.
    """
    runs: dict[str, dict[int, dict[str, float]]] = {}  # by variant, seed and mixture
    for name, rows in scores.items():
        variant, seed = parse_run_name(name)
        runs.setdefault(variant, {})[seed] = {row.name: row.mean("si_snr_improvement") for row in rows}
    names = {tuple(sorted(values)) for seeds in runs.values() for values in seeds.values()}
    if len(names) > 1:
        raise ValueError("the runs were scored on different mixtures; score them all on the same list")
    table = []
    for variant in (name for name in VARIANTS if name in runs):
        seeds = dict(sorted(runs[variant].items()))
        row: dict[str, Any] = {
            "variant": variant,
            "si_snr_improvement": {seed: fmean(values.values()) for seed, values in seeds.items()},
            "interval": {seed: bootstrap_interval(list(values.values())) for seed, values in seeds.items()},
            "n_shared_seeds": 0,
        }
        shared = [seed for seed in seeds if seed in runs.get(REFERENCE, {})]
        if shared and variant != REFERENCE:
            differences = [
                fmean(seeds[seed][name] - runs[REFERENCE][seed][name] for seed in shared)
                for name in seeds[shared[0]]
            ]
            row["n_shared_seeds"] = len(shared)
            row["difference"] = fmean(differences)
            row["difference_interval"] = bootstrap_interval(differences)
            row["share_better"] = fmean(float(difference > 0) for difference in differences)
        table.append(row)
    return table


def accuracy_table(rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, int]) -> str:
    """Return the accuracy as Markdown."""
    seeds = sorted({seed for row in rows for seed in row["si_snr_improvement"]})
    header = (
        "model", "parameters", *(f"SI-SNRi, seed {seed}" for seed in seeds), "less FLA-SepReformer", "seeds",
        "better on",
    )  # fmt: skip
    lines = []
    for row in rows:
        scores = [
            f"{row['si_snr_improvement'][seed]:.2f} {interval(row['interval'][seed])}"
            if seed in row["interval"]
            else ""
            for seed in seeds
        ]
        if row["n_shared_seeds"]:
            low, high = row["difference_interval"]
            compared = [
                f"{row['difference']:+.2f} ({low:+.2f} to {high:+.2f})",
                str(row["n_shared_seeds"]),
                f"{row['share_better']:.0%}",
            ]
        else:
            compared = [""] * 3
        lines.append((VARIANTS[row["variant"]], f"{parameters[row['variant']]:,}", *scores, *compared))
    return markdown_table(header, lines)


def cost_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return time and memory as Markdown, from the rows of cost.csv."""
    cells = {(row["variant"], float(row["seconds"])): row for row in rows}
    lengths = sorted({seconds for _, seconds in cells})
    header = (
        "model",
        "multiply-adds per second of audio",
        *(f"time, {seconds:g} s" for seconds in lengths),
        *(f"memory, {seconds:g} s" for seconds in lengths),
    )
    lines = []
    for variant in (name for name in VARIANTS if (name, lengths[0]) in cells):
        own = [cells[variant, seconds] for seconds in lengths]
        counts = [float(row["giga_multiply_adds"]) / float(row["seconds"]) for row in own]
        lines.append(
            (
                VARIANTS[variant],
                f"{counts[0]:.3f} G at {lengths[0]:g} s, {counts[-1]:.3f} G at {lengths[-1]:g} s",
                *(f"{float(row['time_ratio']):.2f}" for row in own),
                *(f"{float(row['peak_memory_mb']):.0f} MB" for row in own),
            )
        )
    return markdown_table(header, lines)


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def tables(docs: Path) -> str:
    """Return all tables as Markdown, from the files in docs."""
    scores = {path.stem: load_result(path).rows for path in sorted((docs / "scores").glob("*.csv"))}
    costs = read_csv(docs / "cost.csv")
    parameters = {row["variant"]: int(row["parameters"]) for row in costs}
    return f"{accuracy_table(accuracy_rows(scores), parameters)}\n\n{cost_table(costs)}"


def write_tables(docs: Path) -> None:
    """Put the tables into the README of the study, between their two marks."""
    readme = docs / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(TABLES_BEGIN)
    _, ended, after = rest.partition(TABLES_END)
    if not (found and ended):
        raise ValueError(
            f"{readme} lacks the lines {TABLES_BEGIN!r} and {TABLES_END!r}, which hold the tables"
        )
    content = f"{before}{TABLES_BEGIN}\n\n{tables(docs)}\n\n{TABLES_END}{after}"
    temporary = readme.with_suffix(".part")
    temporary.write_text(content, encoding="utf-8")
    temporary.replace(readme)


def draw_accuracy(docs: Path, picture: Path) -> None:
    """Draw accuracy against time, and time and memory against the length of the recording."""
    from matplotlib.figure import Figure

    scores = {path.stem: load_result(path).rows for path in sorted((docs / "scores").glob("*.csv"))}
    costs = read_csv(docs / "cost.csv")
    figure = Figure(figsize=(13, 4.6), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
    for row in accuracy_rows(scores):
        variant = row["variant"]
        own = [cost for cost in costs if cost["variant"] == variant]
        (plotted,) = [cost for cost in own if float(cost["seconds"]) == PLOTTED_SECONDS]
        milliseconds = 1000 * float(plotted["cpu_seconds"]) / PLOTTED_SECONDS
        for seed, score in row["si_snr_improvement"].items():
            low, high = row["interval"][seed]
            left.errorbar(
                milliseconds, score, yerr=[[score - low], [high - score]], color=colour(variant), capsize=3,
                marker="os^D"[seed % 4], markersize=7, mfc=colour(variant) if seed == 0 else "white",
                alpha=1.0 if seed == 0 else 0.7, label=VARIANTS[variant] if seed == 0 else None,
            )  # fmt: skip
        seconds = [float(cost["seconds"]) for cost in own]
        per_second = [1000 * float(cost["cpu_seconds"]) / float(cost["seconds"]) for cost in own]
        memory = [float(cost["peak_memory_mb"]) for cost in own]
        middle.plot(seconds, per_second, marker=".", color=colour(variant), label=VARIANTS[variant])
        right.plot(seconds, memory, marker=".", color=colour(variant), label=VARIANTS[variant])
    left.set(
        xlabel=f"processor time per second of audio in ms, recordings of {PLOTTED_SECONDS:g} s",
        ylabel="SI-SNRi in dB, 95 % interval",
        title="filled: seed 0, hollow: further seeds",
    )
    left.margins(x=0.1)
    middle.set(ylabel="processor time per second of audio in ms", ylim=(0, None))
    right.set(ylabel="peak memory above the model in MB", yscale="log")
    for axes in (middle, right):
        lengths = sorted({float(cost["seconds"]) for cost in costs})
        axes.set(xscale="log", xlabel="length of the recording in s")
        axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
        axes.set_xticks([], minor=True)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    handles, labels = middle.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(picture)


def draw_curves(docs: Path, picture: Path) -> None:
    """Draw the validation of every run against the hours of mixtures heard."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    runs = [parse_run_name(path.stem) for path in (docs / "curves").glob("*.csv")]
    for variant, seed in sorted(runs, key=lambda run: (list(VARIANTS).index(run[0]), run[1])):
        rows = read_csv(docs / "curves" / f"{run_name(variant, seed)}.csv")
        points = [
            (float(row["hours_heard"]), float(row["valid_si_snr_improvement_db"]))
            for row in rows
            if row["valid_si_snr_improvement_db"]
        ]
        axes.plot(
            *zip(*points, strict=True), marker=".", color=colour(variant), ls="-" if seed == 0 else "--",
            label=VARIANTS[variant] + (f", seed {seed}" if seed else ""),
        )  # fmt: skip
    axes.set(xlabel="hours of mixtures heard", ylabel="validation SI-SNRi in dB, 100 mixtures")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(picture)


def colour(variant: str) -> str:
    """Return the colour of a variant, the same in all pictures."""
    return COLOURS[list(VARIANTS).index(variant)]


def interval(ends: tuple[float, float]) -> str:
    """Return an interval for a table."""
    return f"({ends[0]:.2f} to {ends[1]:.2f})"


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read all rows of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; it appears when it is complete."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def main() -> None:
    """Do the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder or manifest of single-talker speech")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="folder of runs and results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the README, tables and pictures")
    parser.add_argument("--only", choices=STEPS, help="do a single step")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of every variant")
    parser.add_argument("--pair-seeds", type=int, default=2, help=f"seeds of {' and '.join(PAIR)}")
    parser.add_argument("--mixtures", type=int, default=250, help="test mixtures")
    parser.add_argument("--jobs", type=int, default=1, help="processes that score")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        help="change every recipe, KEY=VALUE; repeatable",
    )
    options = parser.parse_args()
    steps = [options.only] if options.only else STEPS
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.speech is None and {"train", "evaluate"} & {*steps}:
        parser.error("give --speech, which is trained on and scored with")
    if "train" in steps:
        for variant, seed in planned_runs(options.seeds, options.pair_seeds):
            settings = [*options.settings, f"seed={seed}", f"data.speech={options.speech}"]
            recipe = load_recipe(RECIPES / f"{variant}.yaml", settings)
            train_run(recipe, out / "runs" / run_name(variant, seed), out / "speech-cache")
    if "evaluate" in steps:
        score_runs(options.speech, out, options.mixtures, options.jobs)
    if "benchmark" in steps and (options.only or not (out / "cost.csv").exists()):
        recipes = {name: load_recipe(RECIPES / f"{name}.yaml", options.settings) for name in VARIANTS}
        checkpoints = untrained_checkpoints(recipes, out / "untrained")
        write_csv(out / "cost.csv", measure_costs(checkpoints, ROUNDS))
    if "report" in steps:
        if trained_runs(out):  # else the report is made anew of what is in docs
            collect(out, options.docs)
        write_tables(options.docs)
        draw_accuracy(options.docs, options.docs / "accuracy.png")
        draw_curves(options.docs, options.docs / "curves.png")


if __name__ == "__main__":
    main()
