"""A picture of who spoke when, over the spectrogram of the recording."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flasepformer.conversation.segments import Segment
from flasepformer.inference.finishing import Passed
from flasepformer.installing import how_to_install

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""That people with any sight of colours tell apart (Okabe and Ito)."""

_N_COLUMNS, _N_FFT, _RANGE_DB = 1200, 512, 70.0


def can_draw() -> bool:
    """Tell whether matplotlib is there, which pictures need."""
    return find_spec("matplotlib") is not None


def check_can_draw() -> None:
    """Raise `ModuleNotFoundError`, with the extra that is missing, unless pictures can be drawn."""
    if not can_draw():
        raise ModuleNotFoundError(f"a timeline needs matplotlib: {how_to_install('plot')}")


def spectrogram(passed: Passed) -> NDArray[np.float64]:
    """Return powers in dB (bin, column) of what the model heard, however long in as many columns."""
    n = passed.n_estimate_samples
    n_columns = max(1, min(_N_COLUMNS, n // (_N_FFT // 2)))
    window = np.hanning(_N_FFT)
    columns = []
    for column in range(n_columns):
        first, last = column * n // n_columns, (column + 1) * n // n_columns
        starts = np.unique(np.linspace(first, max(first, last - _N_FFT), 4).astype(int))  # some of a long one
        powers = []
        for start in starts:
            piece = passed.mixture(int(start), min(int(start) + _N_FFT, n))
            piece = np.pad(piece, (0, _N_FFT - len(piece)))
            powers.append(np.abs(np.fft.rfft(piece * window)) ** 2)
        columns.append(np.mean(powers, 0))
    return np.asarray(10 * np.log10(np.stack(columns, -1) + 1e-12))


def draw_timeline(
    path: Path, passed: Passed, segments: Sequence[Segment], talkers: Sequence[str], seconds: float
) -> None:
    """Draw the spectrogram, and below it a bar for every segment, as PNG."""
    check_can_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    powers = spectrogram(passed)
    figure = Figure(figsize=(12, 3.2 + 0.35 * max(1, len(talkers))), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [3.0, 0.35 * max(1, len(talkers)) + 0.1]}
    )
    top = powers.max()
    above.imshow(
        powers, origin="lower", aspect="auto", cmap="magma", vmin=top - _RANGE_DB, vmax=top,
        extent=(0, seconds, 0, passed.estimate_rate / 2000), interpolation="nearest",
    )  # fmt: skip
    above.set_ylabel("kHz")
    for row, talker in enumerate(talkers):
        bars = [(s.start, s.end - s.start) for s in segments if s.talker == talker]
        below.broken_barh(bars, (row - 0.4, 0.8), facecolors=COLOURS[row % len(COLOURS)])
    below.set_yticks(range(len(talkers)), talkers)
    below.set_ylim(len(talkers) - 0.4, -0.6)
    below.set_xlim(0, seconds)
    below.set_xlabel("seconds")
    figure.savefig(path, format="png", dpi=100)
