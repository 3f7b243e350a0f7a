"""Charts of a page as plain numbers: the template draws them as SVG, so they work without a script and in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables import charts
from u2export.benchmarks.tables.columns import milliseconds, small

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 64, 16, 12, 44
STRIP = 34  # height of a row in a chart of distributions
MOST_DOTS = 160  # of one row


@dataclass(frozen=True)
class Tick:
    """A line of the grid: where it stands, and its label."""

    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """A row in the chart of the front: place, range of its times, whether nothing beats it, and what it says."""

    x: float
    y: float
    low: float
    high: float
    colour: str
    best: bool
    name: str
    text: str


@dataclass(frozen=True)
class Front:
    """Latency against fidelity."""

    points: tuple[Point, ...]
    line: str
    xs: tuple[Tick, ...]
    ys: tuple[Tick, ...]


@dataclass(frozen=True)
class Dot:
    """One sample, or one photo: its place in a strip, and what it says."""

    x: float
    text: str


@dataclass(frozen=True)
class Strip:
    """The values of one row: `middle` is their median or mean, `high` the 90th percentile or the worst value."""

    name: str
    colour: str
    y: float
    dots: tuple[Dot, ...]
    middle: float
    high: float
    text: str


@dataclass(frozen=True)
class Distribution:
    """The values of all rows, one strip below the other."""

    title: str
    axis: str
    strips: tuple[Strip, ...]
    xs: tuple[Tick, ...]
    height: float


def label(report: Report, row: Row) -> str:
    """Return a short name of a row, or its title where another row has the same short name."""
    alike = [r for r in report.rows if charts.short(r) == charts.short(row)]
    return charts.short(row) if len(alike) == 1 else row.title


def front(report: Report) -> Front | None:
    """Return the chart of latency against fidelity; None where no row has both."""
    found = charts.drawable(report)
    if not found:
        return None
    best = charts.front([(ms, mae) for _, ms, mae in found])
    widest = 1.08 * max(max(ms, row.latency.p90 if row.latency.ns else 0) for row, ms, _ in found)
    x = _linear(0, widest)
    low, high = _decades([mae for _, _, mae in found])
    y = _logarithmic(low, high, HEIGHT - BOTTOM, TOP)
    points = tuple(_point(report, row, ms, mae, i in best, x, y) for i, (row, ms, mae) in enumerate(found))
    return Front(points, _steps([points[i] for i in best]), _ticks(0, widest, x), _powers(low, high, y))


def _point(report: Report, row: Row, ms: float, mae: float, best: bool, x: Scale, y: Scale) -> Point:
    low, high = (row.latency.percentile(10), row.latency.p90) if row.latency.ns else (ms, ms)
    worst = f", worst photo {small(row.fidelity.mae_worst)}" if row.fidelity else ""
    mask = "the reference of the masks" if mae <= charts.FLOOR and not row.fidelity else f"MAE {small(mae)}{worst}"
    text = f"{row.title}: {milliseconds(ms)} ms, {mask}"
    colour = str(charts.style(report, row)["color"])
    return Point(x(ms), y(mae), x(low), x(high), colour, best, label(report, row), text)


def latencies(report: Report) -> Distribution | None:
    """Return the samples of the latency of each row; None without samples."""
    rows = [row for row in report.rows if row.latency.ns]
    if not rows:
        return None
    right = 1.15 * max(row.latency.percentile(99) for row in rows)
    x = _linear(0, right)
    strips = []
    for i, row in enumerate(rows):
        ms = np.asarray(row.latency.ns) / 1e6
        shown = [value for value in _spread(ms) if value <= right]
        text = f"median {milliseconds(row.latency.p50)} ms, 90th percentile {milliseconds(row.latency.p90)} ms"
        dots = tuple(Dot(x(value), f"{milliseconds(value)} ms") for value in shown)
        middle, high = x(row.latency.p50), x(min(row.latency.p90, right))
        strips.append(_strip(report, row, i, dots, middle, high, f"{text}, {len(ms)} samples"))
    axis = "latency of one inference in ms; thick: median, thin: 90th percentile"
    return Distribution("Latency", axis, tuple(strips), _ticks(0, right, x), _height(rows))


def fidelities(report: Report) -> Distribution | None:
    """Return the mean absolute difference of each photo's mask for each row; None without compared masks."""
    rows = [row for row in report.rows if row.images]
    if not rows:
        return None
    low, high = _decades([max(image.mae, charts.FLOOR) for row in rows for image in row.images.values()])
    x = _logarithmic(low, high, LEFT_OF_STRIPS, WIDTH - RIGHT)
    strips = []
    for i, row in enumerate(rows):
        by_photo = {photo: max(image.mae, charts.FLOOR) for photo, image in row.images.items()}
        worst = max(by_photo, key=lambda photo: by_photo[photo])
        mean = sum(by_photo.values()) / len(by_photo)
        dots = tuple(Dot(x(mae), f"{photo}: MAE {small(mae)}") for photo, mae in by_photo.items())
        text = f"mean {small(mean)}, worst {small(by_photo[worst])} ({worst})"
        strips.append(_strip(report, row, i, dots, x(mean), x(by_photo[worst]), text))
    axis = "mean absolute difference of one photo's mask (log); thick: mean, thin: the worst photo"
    return Distribution("Fidelity of each photo", axis, tuple(strips), _powers(low, high, x), _height(rows))


LEFT_OF_STRIPS = 190


class Scale:
    """A map from values to places."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.start + (at - low) / ((high - low) or 1) * (self.end - self.start), 1)


def _linear(low: float, high: float) -> Scale:
    return Scale(low, high, LEFT_OF_STRIPS, WIDTH - RIGHT, False)


def _logarithmic(low: float, high: float, start: float, end: float) -> Scale:
    return Scale(low, high, start, end, True)


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** (high if high > low else low + 1)


def _powers(low: float, high: float, scale: Scale) -> tuple[Tick, ...]:
    exponents = range(round(math.log10(low)), round(math.log10(high)) + 1)
    return tuple(Tick(scale(10.0**e), "1" if e == 0 else f"1e{e}") for e in exponents)


def _ticks(low: float, high: float, scale: Scale) -> tuple[Tick, ...]:
    """Return about six round numbers between two values."""
    step = 10.0 ** math.floor(math.log10((high - low) / 5))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 7)
    return tuple(Tick(scale(step * i), f"{step * i:g}") for i in range(int(high / step) + 1))


def _steps(points: Sequence[Point]) -> str:
    """Return the path of a staircase through points, for an SVG."""
    if not points:
        return ""
    return f"M{points[0].x} {points[0].y}" + "".join(f"H{p.x}V{p.y}" for p in points[1:])


def _spread(values: NDArray[np.float64]) -> list[float]:
    """Return the values, or as many of them as a chart can show, evenly over their order."""
    ordered = np.sort(values)
    if len(ordered) > MOST_DOTS:
        ordered = ordered[np.linspace(0, len(ordered) - 1, MOST_DOTS).round().astype(int)]
    return [float(value) for value in ordered]


def _strip(report: Report, row: Row, i: int, dots: tuple[Dot, ...], middle: float, high: float, text: str) -> Strip:
    colour = str(charts.style(report, row)["color"])
    return Strip(label(report, row), colour, TOP + STRIP * (i + 0.5), dots, middle, high, text)


def _height(rows: Sequence[Row]) -> float:
    return TOP + STRIP * len(rows) + BOTTOM
