"""Charts of a page as plain values: the page's library (Observable Plot) draws them in the browser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables import charts
from u2export.benchmarks.tables.columns import milliseconds, small
from u2export.text import one_line

MOST_SAMPLES = 160  # of one row
# Plot's symbols with a surface. Their number differs from that of the colours, so 56 rows look different.
SYMBOLS = ("circle", "square", "diamond", "triangle", "cross", "star", "wye")


@dataclass(frozen=True)
class Mark:
    """How a row looks in every chart: its name, its colour and its symbol."""

    name: str
    colour: str
    symbol: str


@dataclass(frozen=True)
class Point:
    """A row in the chart of the front: milliseconds, their 10th and 90th percentile, and what it says.

    `best` is true where no other row is both faster and closer to the reference.
    """

    name: str
    ms: float
    low: float
    high: float
    mae: float
    best: bool
    text: str


@dataclass(frozen=True)
class Front:
    """Latency against fidelity."""

    marks: tuple[Mark, ...]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Sample:
    """One inference, or one photo: its row, its value, and what it says; an inference says nothing."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class Strip:
    """A row's `middle` is the median or the mean of its samples, `high` the 90th percentile or the worst value."""

    name: str
    middle: float
    high: float
    text: str


@dataclass(frozen=True)
class Distribution:
    """The samples of all rows, one strip below the other; `log` asks for a logarithmic axis."""

    log: bool
    marks: tuple[Mark, ...]
    strips: tuple[Strip, ...]
    samples: tuple[Sample, ...]


def front(report: Report) -> Front | None:
    """Return the chart of latency against fidelity; None where no row has both."""
    found = sorted(charts.drawable(report), key=lambda one: one[1])
    best = charts.front([(ms, mae) for _, ms, mae in found])
    points = tuple(_point(report, row, ms, mae, i in best) for i, (row, ms, mae) in enumerate(found))
    return Front(_marks(report, [row for row, _, _ in found]), points) if found else None


def _point(report: Report, row: Row, ms: float, mae: float, best: bool) -> Point:
    low, high = (row.latency.percentile(10), row.latency.p90) if row.latency.ns else (ms, ms)
    worst = f", worst photo {small(row.fidelity.mae_worst)}" if row.fidelity else ""
    mask = "the reference of the masks" if mae <= charts.FLOOR and not row.fidelity else f"MAE {small(mae)}{worst}"
    text = f"{one_line(row.title)}: {milliseconds(ms)} ms, {mask}"
    return Point(_name(report, row), _rounded(ms), _rounded(low), _rounded(high), _rounded(mae), best, text)


def latencies(report: Report) -> tuple[str, Distribution] | None:
    """Return what the axis shows, and the samples of the latency of each row; None without samples."""
    rows = [row for row in report.rows if row.latency.ns]
    if not rows:
        return None
    # The slowest samples would squeeze all others together. They lie outside, and the axis tells their number.
    right = 1.15 * max(row.latency.percentile(99) for row in rows)
    strips, samples, outside = [], [], 0
    for row in rows:
        name, ms = _name(report, row), np.asarray(row.latency.ns) / 1e6
        p50, p90 = row.latency.p50, row.latency.p90
        text = f"median {milliseconds(p50)} ms, 90th percentile {milliseconds(p90)} ms, {len(ms)} samples"
        strips.append(Strip(name, _rounded(p50), _rounded(min(p90, right)), f"{name}: {text}"))
        outside += int((ms > right).sum())
        samples += [Sample(name, value, "") for value in _evenly(ms[ms <= right])]
    beyond = f"; {outside} slower samples lie outside" if outside else ""
    axis = f"Latency of one inference in ms; thick: median, thin: 90th percentile{beyond}."
    return axis, Distribution(False, _marks(report, rows), tuple(strips), tuple(samples))


def fidelities(report: Report) -> tuple[str, Distribution] | None:
    """Return what the axis shows, and the difference of each photo's mask for each row; None without masks."""
    rows = [row for row in report.rows if row.images]
    if not rows:
        return None
    strips, samples = [], []
    for row in rows:
        name = _name(report, row)
        by_photo = {one_line(photo): max(image.mae, charts.FLOOR) for photo, image in row.images.items()}
        worst = max(by_photo, key=lambda photo: by_photo[photo])
        mean = sum(by_photo.values()) / len(by_photo)
        text = f"mean {small(mean)}, worst {small(by_photo[worst])} ({worst})"
        strips.append(Strip(name, _rounded(mean), _rounded(by_photo[worst]), f"{name}: {text}"))
        samples += [Sample(name, _rounded(mae), f"{photo}: MAE {small(mae)}") for photo, mae in by_photo.items()]
    axis = "Mean absolute difference of one photo's mask (log); thick: mean, thin: the worst photo."
    return axis, Distribution(True, _marks(report, rows), tuple(strips), tuple(samples))


def _name(report: Report, row: Row) -> str:
    """Return a short name of a row, or its title where another row has the same short name."""
    alike = [r for r in report.rows if charts.short(r) == charts.short(row)]
    return one_line(charts.short(row) if len(alike) == 1 else row.title)


def _marks(report: Report, rows: Iterable[Row]) -> tuple[Mark, ...]:
    names = [row.name for row in report.rows]
    symbols = {name: SYMBOLS[i % len(SYMBOLS)] for i, name in enumerate(names)}
    return tuple(Mark(_name(report, row), charts.style(report, row)["color"], symbols[row.name]) for row in rows)


def _evenly(values: NDArray[np.float64]) -> list[float]:
    """Return the values, or as many of them as a chart can show, evenly over their order."""
    ordered = np.sort(values)
    if len(ordered) > MOST_SAMPLES:
        ordered = ordered[np.linspace(0, len(ordered) - 1, MOST_SAMPLES).round().astype(int)]
    return [_rounded(float(value)) for value in ordered]


def _rounded(value: float) -> float:
    """Return a value with the digits that a screen can show, so that the page stays small."""
    return float(f"{value:.5g}")
