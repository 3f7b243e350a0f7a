"""The columns of a table of results, and the cells of a report under these columns.

Every value is measured here, imported, or published by others. An empty cell holds a code that says why (`BLANKS` in
legend.py). Estimates never enter a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from u2export.benchmarks.report import IN_BROWSER, MEASURED, Report, Row
from u2export.benchmarks.statistics import Interval
from u2export.reference.fidelity import Fidelity

Cell = Callable[[Report, Row], str]
NONE = "–"
BUSY = "!"  # behind a ratio from a machine that did other work too
MARKS = {MEASURED: "M", IN_BROWSER: "B", "imported": "I", "published": "P"}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: the head of the column.
        cell: writes the cell of a row; "" if the row has no value.
        right: whether the column holds numbers, which stand right.
        kind: "fidelity", "class", "truth", "ratio", "interval" or "other"; it decides the code of an empty cell.
    """

    title: str
    cell: Cell
    right: bool = True
    kind: str = "other"


@dataclass(frozen=True)
class Table:
    """The cells of one report.

    Attributes:
        report: the report.
        columns: the columns of this table, in the order of COLUMNS.
        rows: the text of every cell; one tuple for each row of the report, as long as `columns`. No cell is "".
    """

    report: Report
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def by_title(self) -> dict[str, list[str]]:
        """Return the cells of each column under its title."""
        return {column.title: [row[i] for row in self.rows] for i, column in enumerate(self.columns)}


def table_of(report: Report, titles: Sequence[str] = ()) -> Table:
    """Return the table of a report.

    Args:
        report: its rows become the rows of the table.
        titles: the columns to show. Without titles the table holds every column in which a row has a value.
    """
    wanted = [column for column in COLUMNS if not titles or column.title in titles]
    filled = [(column, [column.cell(report, row) for row in report.rows]) for column in wanted]
    shown = [(column, cells) for column, cells in filled if titles or any(cells)]
    rows = (
        tuple(cells[i] or blank(column, report, row) for column, cells in shown) for i, row in enumerate(report.rows)
    )
    return Table(report, tuple(column for column, _ in shown), tuple(rows))


def blank(column: Column, report: Report, row: Row) -> str:
    """Return the code of an empty cell; a dash in columns of words, and if the note of the row states the reason."""
    if row.reason or not column.right:
        return NONE
    measured = row.is_measured
    if column.kind == "class" and row.fidelity:
        return "n/c"
    if column.kind in ("fidelity", "class"):
        return "n/r" if measured else "n/m"
    if column.kind == "truth":
        return "n/g"
    if column.kind in ("ratio", "interval"):
        return "n/i" if column.kind == "interval" and speedup(report, row) else "n/b"
    return "n/a" if measured else "n/t"


# How values are written


def milliseconds(value: float) -> str:
    """Return a time in ms with three digits; a measurement here is not more precise."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def small(value: float) -> str:
    """Return a difference of masks with five decimals; below 0.00001 as one digit and its power of ten."""
    return f"{value:.5f}" if value >= 1e-5 else "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def unit(row: Row) -> str:
    """Return the compute unit that really ran: the device or the provider that the runtime reported."""
    provider = row.runtime.get("provider", "").removesuffix("ExecutionProvider")
    return row.runtime.get("device", "") or provider


def statistic(row: Row, name: str) -> float | None:
    """Return a statistic of the latency in ms: from the samples, or the value that the source states; else None."""
    if row.latency.ns:
        return row.latency.summary().get(name)
    return row.stated.get(name)


def speedup(report: Report, row: Row) -> Interval | None:
    """Return how many times faster the row is than the compared row; None without samples of both."""
    return report.speedup(row) if row.latency.ns else None


def busy(report: Report) -> float | None:
    """Return the load of the machine before the bench, where it kept half of the cores or more busy; else None."""
    before = report.environment.get("before")
    load = before.get("load") if isinstance(before, dict) else None
    return load if isinstance(load, float) and load > report.device.cores / 2 else None


def note(row: Row) -> str:
    """Return the note of a row: why it has no numbers, where it comes from, and what is unusual; "" if nothing is."""
    parts = [f"{row.reason}: {row.problem}" if row.reason else ""]
    parts += [row.provenance if row.provenance != MEASURED else ""]
    if "tool" in row.source:
        parts += [f"{row.source['tool']} {row.source.get('version', '')}".strip()]
    if row.source.get("timed") and not row.reason:
        parts += [f"timed: {row.source['timed']}"]
    if row.fidelity and not row.fidelity.finite:
        parts += ["NaN or infinite values in d0"]
    return "; ".join(filter(None, (*parts, *row.notes, row.source.get("url", ""))))


# How the cells of a column are made


def _fidelity(pick: Callable[[Fidelity], str]) -> Cell:
    def cell(report: Report, row: Row) -> str:
        if row.name in {r.reference for r in report.rows}:
            return "ref"
        return pick(row.fidelity) if row.fidelity else ""

    return cell


def _area(fidelity: Fidelity) -> str:
    return f"{fidelity.area_worst:.3f}" if math.isfinite(fidelity.area_worst) else "inf"


def _worst_class(report: Report, row: Row) -> str:
    """The IoU of the worst class; "" for networks with one map."""
    if any(r.reference == row.name and r.fidelity and r.fidelity.class_ious for r in report.rows):
        return "ref"
    ious = row.fidelity.class_ious if row.fidelity else {}
    return f"{min(ious.values()):.4f}" if ious else ""


def _time(name: str) -> Cell:
    def cell(_: Report, row: Row) -> str:
        value = statistic(row, name)
        return milliseconds(value) if value is not None else ""

    return cell


def _p50(_: Report, row: Row) -> str:
    """The median with its marks; for sources without a median, the statistic that they state, with its name."""
    if row.latency.ns:
        marks = ("~" if row.latency.unstable else "") + ("?" if row.latency.indicative else "")
        return milliseconds(row.latency.p50) + marks
    stated = {name: milliseconds(value) for name, value in row.stated.items()}
    if "p50" in stated:
        return stated["p50"]
    if "single" in stated:
        return f"{stated['single']}¹"
    if "mean" in stated:
        return f"{stated['mean']} mean"
    return f"{stated['min']}–{stated['max']}" if {"min", "max"} <= stated.keys() else ""


def _against_the_compared_row(write: Callable[[Report, Interval], str]) -> Cell:
    def cell(report: Report, row: Row) -> str:
        if row.latency.ns and row.name == report.baseline:
            return "base"
        ratio = speedup(report, row)
        return write(report, ratio) if ratio else ""

    return cell


def _ratio(report: Report, ratio: Interval) -> str:
    return f"{ratio.value:.2f}x{BUSY if busy(report) else ''}"


def _interval(_: Report, ratio: Interval) -> str:
    return f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio.known else ""


def _accuracy(key: str) -> Cell:
    return lambda _, row: f"{row.accuracy[key]:.3f}" if key in row.accuracy else ""


def _stage(name: str) -> Cell:
    return lambda _, row: milliseconds(row.stages[name]) if name in row.stages else ""


def _load(_: Report, row: Row) -> str:
    return milliseconds(min(row.load_ns) / 1e6) if row.load_ns else ""


def _first(_: Report, row: Row) -> str:
    return milliseconds(row.first_ns / 1e6) if row.first_ns else ""


def _memory(key: str) -> Cell:
    return lambda _, row: f"{row.memory[key] / 2**20:.0f}" if row.memory.get(key) else ""


def _throughput(_: Report, row: Row) -> str:
    return f"{row.latency.throughput:.1f}" if row.scenario == "throughput" and row.latency.ns else ""


def _knee(_: Report, row: Row) -> str:
    return f"{row.sustained.knee:.2f}" if row.sustained.slices.ns else ""


def _energy(_: Report, row: Row) -> str:
    return f"{row.joules:.3g}" if row.joules is not None else ""


COLUMNS = (
    Column("artifact", lambda _, row: row.title, right=False),
    Column("runs as", lambda _, row: row.ran_as, right=False),
    Column("unit", lambda _, row: unit(row), right=False),
    Column("by", lambda _, row: MARKS.get(row.provenance, row.provenance), right=False),
    Column("MB", lambda _, row: f"{row.size / 1e6:.1f}" if row.size else ""),
    Column("MAE", _fidelity(lambda f: small(f.mae)), kind="fidelity"),
    Column("MAE worst", _fidelity(lambda f: small(f.mae_worst)), kind="fidelity"),
    Column("IoU", _fidelity(lambda f: f"{f.iou:.4f}"), kind="fidelity"),
    Column("IoU worst", _fidelity(lambda f: f"{f.iou_worst:.4f}"), kind="fidelity"),
    Column("boundary F", _fidelity(lambda f: f"{f.boundary_f:.3f}"), kind="fidelity"),
    Column("boundary F worst", _fidelity(lambda f: f"{f.boundary_f_worst:.3f}"), kind="fidelity"),
    Column("area worst", _fidelity(_area), kind="fidelity"),
    Column("class IoU worst", _worst_class, kind="class"),
    Column("p50 ms", _p50),
    Column("p90 ms", _time("p90")),
    Column("p99 ms", _time("p99")),
    Column("speed-up", _against_the_compared_row(_ratio), kind="ratio"),
    Column("95 % interval", _against_the_compared_row(_interval), kind="interval"),
    Column("pictures/s", _throughput),
    Column("knee", _knee),
    Column("J", _energy),
    Column("load ms", _load),
    Column("first ms", _first),
    Column("pre ms", _stage("preprocess")),
    Column("infer ms", _stage("inference")),
    Column("post ms", _stage("postprocess")),
    Column("peak MB", _memory("peak")),
    Column("device MB", _memory("device")),
    Column("maxF", _accuracy("maxf"), kind="truth"),
    Column("MAE to truth", _accuracy("mae"), kind="truth"),
    Column("S", _accuracy("s"), kind="truth"),
    Column("note", lambda _, row: note(row), right=False),
)
