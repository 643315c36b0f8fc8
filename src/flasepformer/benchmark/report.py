"""Write down what was measured: CSV, Markdown, and JSON with the machine, versions and command."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flasepformer.benchmark.cases import CaseResult
from flasepformer.benchmark.machine import MachineRates
from flasepformer.files import markdown_table, write_whole

CSV_FILE = "benchmark.csv"
MARKDOWN_FILE = "benchmark.md"
JSON_FILE = "benchmark.json"


def fit_slope(lengths: Sequence[float], values: Sequence[float]) -> float | None:
    """Fit the exponent of a power law: 1 is linear, 2 quadratic.

    Args:
        lengths: Of the recordings, in s.
        values: Time or memory at each.

    Returns:
        The slope on log-log axes, None if fewer than two different lengths have a positive value.
    """
    points = [(length, value) for length, value in zip(lengths, values, strict=True) if value > 0]
    if len({length for length, _ in points}) < 2:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of one run and what they were measured on."""

    results: Sequence[CaseResult]
    rates: MachineRates | None = None
    """What the device can do at most; None where that was not measured."""
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Rounds and limits of the run."""
    extra_tables: Sequence[str] = ()
    """Markdown to stand above the results."""

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for every case, with all its settings; numbers that are not known are empty."""
        return [self._row(result) for result in self.results]

    def _row(self, result: CaseResult) -> dict[str, Any]:
        case = result.case
        row: dict[str, Any] = {
            "model": case.label, "seconds": case.seconds, "device": case.device, "precision": case.precision,
            "threads": case.threads, **self.settings, "status": result.status,
        }  # fmt: skip
        numbers: dict[str, Callable[[], float | int | None]] = {
            "rounds_done": lambda: len(result.round_seconds),
            "passes": lambda: result.n_passes,
            "time_median_seconds": lambda: result.seconds,
            "time_min_seconds": lambda: min(result.round_seconds),
            "time_max_seconds": lambda: max(result.round_seconds),
            "cpu_median_seconds": lambda: result.cpu_seconds,
            "real_time_factor": lambda: result.real_time_factor,
            "arithmetic_limit_real_time_factor": lambda: self.limit(result),
            "times_the_limit": lambda: self.times_the_limit(result),
            "peak_memory_mb": lambda: result.peak_memory / 1e6,
            "weights_mb": lambda: result.weight_bytes / 1e6,
            "parameters": lambda: result.n_parameters,
            "multiply_adds_per_second_of_audio": lambda: _per_second(result),
        }
        return row | {name: _rounded(number()) if result.ok else None for name, number in numbers.items()}

    def limit(self, result: CaseResult) -> float | None:
        """Return the real-time factor if only the multiply-adds took time, None where it is not known."""
        flops = self.rates.flops(result.case.precision) if self.rates else None
        if flops is None or result.multiply_adds is None:
            return None
        return 2 * result.multiply_adds / flops / result.case.seconds

    def times_the_limit(self, result: CaseResult) -> float | None:
        """Return how many times the arithmetic limit the measured time is."""
        limit = self.limit(result)
        return None if limit is None else result.real_time_factor / limit

    def slopes(self) -> dict[str, dict[str, float | None]]:
        """Return the exponents with which time and memory of each curve grow with the recording."""
        return {
            name: {
                "time": fit_slope([r.case.seconds for r in curve], [r.seconds for r in curve]),
                "memory": fit_slope([r.case.seconds for r in curve], [r.peak_memory for r in curve]),
            }
            for name, curve in self.curves().items()
        }

    def curves(self) -> dict[str, list[CaseResult]]:
        """Return the measured results of each model, device and precision, shortest first."""
        curves: dict[str, list[CaseResult]] = {}
        mixed = len({result.case.precision for result in self.results}) > 1
        for result in sorted(self.results, key=lambda result: result.case.seconds):
            if result.ok:
                name = result.case.label + (f" {result.case.precision}" if mixed else "")
                curves.setdefault(name, []).append(result)
        return curves

    def as_csv(self) -> str:
        """Return the rows as CSV."""
        rows = self.rows()
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def as_markdown(self) -> str:
        """Return tables for people: the results, then how they grow."""
        results = [
            markdown_table(
                ("model", "recording", "precision", "time (fastest to slowest round)", "real-time factor",
                 "arithmetic limit", "times the limit", "memory above the model", "multiply-adds per second"),
                [self._cells(result) for result in self.results],
            )
        ]  # fmt: skip
        slopes = [
            (name, *map(_cell, slope.values()))
            for name, slope in self.slopes().items()
            if any(slope.values())
        ]
        growth = (
            [markdown_table(("model", "exponent of time", "exponent of memory"), slopes)] if slopes else []
        )
        return "\n\n".join([*self.extra_tables, *results, *growth, self._conditions()]) + "\n"

    def _cells(self, result: CaseResult) -> tuple[str, ...]:
        case = result.case
        name = (case.label, f"{case.seconds:g} s", case.precision)
        if not result.ok:
            return (*name, result.status, *[""] * 5)
        low, high = min(result.round_seconds), max(result.round_seconds)
        count = _per_second(result)
        return (
            *name,
            f"{result.seconds:.3g} s ({low:.3g} to {high:.3g})",
            f"{result.real_time_factor:.3g}",
            _cell(self.limit(result)),
            _cell(self.times_the_limit(result)),
            f"{result.peak_memory / 1e6:.0f} MB",
            f"{count / 1e9:.2f} G" if count else "",
        )

    def _conditions(self) -> str:
        """Return one paragraph that names the machine, its rates, the versions and the command."""
        facts = [f"{name.replace('_', ' ')} {value}" for name, value in self.machine.items()]
        if self.rates:
            products = {"float32": self.rates.float32_flops, "bfloat16": self.rates.bf16_flops}
            facts.append(f"device {self.rates.device}")
            facts += [f"{name} products {rate / 1e9:.0f} GFLOP/s" for name, rate in products.items() if rate]
            facts.append(f"copy {self.rates.bandwidth / 1e9:.1f} GB/s")
        packages = [f"{name} {version}" for name, version in self.versions.items()]
        return f"Machine: {', '.join(facts)}.\nVersions: {', '.join(packages)}.\n\n    {self.command}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "command": self.command,
            "machine": {**self.machine, "rates": asdict(self.rates) if self.rates else None},
            "versions": self.versions,
            "settings": self.settings,
            "slopes": self.slopes(),
            "rows": self.rows(),
            "rounds": {
                f"{r.case.label} {r.case.seconds:g} s {r.case.precision}": {
                    "seconds": r.round_seconds, "cpu_seconds": r.round_cpu_seconds,
                    "peak_bytes": r.peak_memories,
                }
                for r in self.results
            },
        }  # fmt: skip

    def write(self, folder: Path) -> list[Path]:
        """Write the three files, each under its name only when it is complete, and return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            CSV_FILE: self.as_csv(),
            MARKDOWN_FILE: self.as_markdown(),
            JSON_FILE: json.dumps(self.as_dict(), indent=2) + "\n",
        }
        for name, content in contents.items():
            write_whole(folder / name, content)
        return [folder / name for name in contents]


def _per_second(result: CaseResult) -> float | None:
    return None if result.multiply_adds is None else result.multiply_adds / result.case.seconds


def _rounded(number: float | None) -> float | None:
    """Keep whole numbers, and six digits of others."""
    return float(f"{number:.6g}") if isinstance(number, float) else number


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:.3g}"
