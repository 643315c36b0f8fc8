"""Draw time and memory against the length of the recording."""

from collections.abc import Callable
from pathlib import Path

from flasepformer.benchmark.cases import CaseResult
from flasepformer.benchmark.report import Report
from flasepformer.installing import how_to_install

PLOTS: dict[str, tuple[str, Callable[[CaseResult], float]]] = {
    "time": ("time of a pass in s", lambda result: result.seconds),
    "memory": ("peak memory above the loaded model in MB", lambda result: result.peak_memory / 1e6),
}
"""File name, axis and value of each plot."""


def draw_plots(report: Report, folder: Path) -> list[Path]:
    """Draw one picture for each of `PLOTS` on log-log axes, the fitted slope of each curve in the legend.

    Returns:
        The paths of the PNG files.

    Raises:
        ImportError: If matplotlib is missing; the message names the extra that brings it.
    """
    try:
        import matplotlib.figure  # not pyplot: nothing is to be shown, and no window system is needed
        from matplotlib.ticker import LogFormatter, StrMethodFormatter
    except ImportError as error:
        raise ImportError(f"plots need matplotlib: {how_to_install('plot')}") from error
    slopes = report.slopes()
    paths = []
    for name, (axis, value) in PLOTS.items():
        figure = matplotlib.figure.Figure(figsize=(8, 5), dpi=120, layout="constrained")
        axes = figure.add_subplot(
            xlabel="length of the recording in s", ylabel=axis, xscale="log", yscale="log"
        )
        for curve, results in report.curves().items():
            points = [(r.case.seconds, value(r)) for r in results if value(r) > 0]
            slope = slopes[curve][name]
            label = curve if slope is None else f"{curve}, slope {slope:.2f}"
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
        lengths = sorted({result.case.seconds for result in report.results})
        axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.grid(which="both", alpha=0.3)
        if report.curves():
            axes.legend(fontsize="small")
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
