"""Pictures for the report: histograms and scatter plots as SVG text, spectrograms as PNG bytes.

The SVGs take their colours from the style of the page, so that they fit a dark one, too.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flasepformer.installing import how_to_install

WIDTH, HEIGHT = 640, 200
_LEFT, _BOTTOM, _TOP, _RIGHT = 44, 38, 12, 12
_N_COLUMNS = 600
_LEVELS_DB = 60


def histogram(values: Sequence[float], bounds: tuple[float, float], unit: str = "dB") -> str:
    """Draw how often which value comes, one bar for each whole number of units, and the mean.

    Args:
        values: Without nan, at least one.
        bounds: Ends of the axis, the same for histograms that are to be compared.
        unit: Of the values.
    """
    step = max(1, math.ceil((bounds[1] - bounds[0]) / 60))
    edges = list(range(step * math.floor(bounds[0] / step), math.floor(bounds[1]) + step + 1, step))
    counts = np.histogram(values, edges)[0].tolist()
    x = _scale((edges[0], edges[-1]), (_LEFT, WIDTH - _RIGHT))
    y = _scale((0, max(counts)), (HEIGHT - _BOTTOM, _TOP))
    bars = [
        f'<rect class="{"bar" if start >= 0 else "bar worse"}" x="{x(start) + 0.5:.1f}" y="{y(count):.1f}" '
        f'width="{x(end) - x(start) - 1:.1f}" height="{y(0) - y(count):.1f}">'
        f"<title>{start:g} to {end:g} {escape(unit)}: {count}</title></rect>"
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    mean = float(np.mean(values))
    line = f'<line class="mean" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{_TOP}" y2="{y(0):.1f}"/>'
    label = f"{len(values)} mixtures, mean {mean:.2f} {unit}"
    axes = _axes(HEIGHT, x, y, _ticks(edges[0], edges[-1]), _ticks(0, max(counts), whole=True))
    title = _axis_title(f"SI-SNRi in {unit}; the line is the mean", HEIGHT)
    return _svg(HEIGHT, label, [*axes, *bars, line, title])


def scatter(points: Iterable[tuple[str, float, float]], labels: tuple[str, str]) -> str:
    """Draw named points, and the line on which both values are the same.

    Args:
        points: Name, value across, value upwards.
        labels: What is across, what is upwards.
    """
    points = list(points)
    height = WIDTH * 3 // 4
    both = [value for _, *pair in points for value in pair]
    ends = (math.floor(min(both)), max(math.ceil(max(both)), math.floor(min(both)) + 1))
    x, y = _scale(ends, (_LEFT, WIDTH - _RIGHT)), _scale(ends, (height - _BOTTOM, _TOP))
    ticks = _ticks(*ends)
    (x1, x2), (y1, y2) = map(x, ends), map(y, ends)
    line = f'<line class="mean" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    dots = [
        f'<circle class="dot" cx="{x(first):.1f}" cy="{y(second):.1f}" r="3">'
        f"<title>{escape(name)}: {first:.2f}, {second:.2f} dB</title></circle>"
        for name, first, second in points
    ]
    title = f"SI-SNRi in dB: across {labels[0]}, upwards {labels[1]}"
    return _svg(height, title, [*_axes(height, x, y, ticks, ticks), line, *dots, _axis_title(title, height)])


def spectrogram(waveform: Tensor, sample_rate: int, top_db: float) -> bytes:
    """Draw the levels of a waveform (time,) over time and frequency as a PNG, high frequencies on top.

    Args:
        waveform: Samples.
        sample_rate: In Hz.
        top_db: Level that gets the brightest colour; `_LEVELS_DB` below it is black. See `peak_level_db`.

    Raises:
        ImportError: Matplotlib is missing.
    """
    try:
        from matplotlib import colormaps
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"spectrograms need matplotlib: {how_to_install('evaluation')}") from error
    levels = (_level_db(waveform, sample_rate) - top_db) / _LEVELS_DB + 1
    indices = (levels.clip(0, 1) * 63).round().astype(np.uint8)[::-1]
    picture = Image.fromarray(np.ascontiguousarray(indices)).convert("P")
    picture.putpalette((colormaps["magma"](np.linspace(0, 1, 64))[:, :3] * 255).astype(np.uint8).tobytes())
    content = BytesIO()
    picture.save(content, "png", optimize=True)
    return content.getvalue()


def peak_level_db(waveform: Tensor, sample_rate: int) -> float:
    """Return the level that all but one in a hundred cells of the spectrogram stay below."""
    return float(np.percentile(_level_db(waveform, sample_rate), 99))


def _level_db(waveform: Tensor, sample_rate: int) -> NDArray[np.float32]:
    """Return the spectrogram (frequency, column), at most as wide as the picture, in dB."""
    window = min(round(0.032 * sample_rate), 2 * len(waveform) - 1)
    hop = max(window // 4, len(waveform) // _N_COLUMNS)
    spectrum = torch.stft(waveform, window, hop, window=torch.hann_window(window), return_complex=True)
    return (20 * (spectrum.abs() + 1e-8).log10()).numpy()


class _scale:
    """Map a range of values to a range of pixels."""

    def __init__(self, values: tuple[float, float], pixels: tuple[float, float]) -> None:
        self.start, self.pixel = values[0], pixels[0]
        self.factor = (pixels[1] - pixels[0]) / (values[1] - values[0])

    def __call__(self, value: float) -> float:
        return self.pixel + (value - self.start) * self.factor


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return about six round numbers in a range."""
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    step = max(step, 1.0) if whole else step
    return [round(step * k, 9) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _axes(height: int, x: _scale, y: _scale, x_ticks: Iterable[float], y_ticks: Iterable[float]) -> list[str]:
    bottom = height - _BOTTOM
    across = [
        f'<text class="tick" x="{x(t):.1f}" y="{bottom + 16}" text-anchor="middle">{t:g}</text>'
        for t in x_ticks
    ]
    upwards = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in y_ticks
    ]
    return [*upwards, *across]


def _axis_title(text: str, height: int) -> str:
    middle = (WIDTH + _LEFT) // 2
    return f'<text class="tick" x="{middle}" y="{height - 4}" text-anchor="middle">{escape(text)}</text>'


def _svg(height: int, label: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
