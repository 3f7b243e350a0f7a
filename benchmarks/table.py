"""Reports as tables: for the terminal, Markdown and CSV; made from the JSON alone."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.fidelity import Fidelity
from u2export.benchmarks.report import REASONS, Latency, Measurement, Ratio, Report

WIDTH = 120
FORMATS = ("term", "md", "csv")
Cell = Callable[[Report, Measurement], str]
NONE = "–"
TRUTH = ("maxf", "mae", "s", "images")


@dataclass(frozen=True)
class Column:
    """One column: its title, how a row's cell is written, and whether it holds numbers."""

    title: str
    cell: Cell
    right: bool = True


def _fidelity(pick: Callable[[Fidelity], str]) -> Cell:
    def cell(report: Report, row: Measurement) -> str:
        if row.name in {r.reference for r in report.rows}:
            return "ref"
        return pick(row.fidelity) if row.fidelity else ""

    return cell


def _latency(pick: Callable[[Measurement], float]) -> Cell:
    return lambda _, row: _ms(pick(row)) if row.latency.ns else ""


def _accuracy(key: str) -> Cell:
    return lambda _, row: f"{row.accuracy[key]:.3f}" if key in row.accuracy else ""


def _ms(value: float) -> str:
    """Milliseconds to three digits, as many as a measurement here is worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def small(value: float) -> str:
    """A difference of masks: five decimals, and below that its power of ten."""
    return f"{value:.5f}" if value >= 1e-5 else "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _area(fidelity: Fidelity) -> str:
    return f"{fidelity.area_worst:.3f}" if math.isfinite(fidelity.area_worst) else "inf"


def _p50(row: Measurement) -> str:
    marks = ("~" if row.latency.unstable else "") + ("?" if row.latency.indicative else "")
    return _ms(row.latency.p50) + marks


def _ratio(report: Report, row: Measurement) -> Ratio | None:
    return report.speedup(row) if row.latency.ns else None


def _speedup(report: Report, row: Measurement) -> str:
    if row.latency.ns and row.name == report.baseline:
        return "base"
    ratio = _ratio(report, row)
    return f"{ratio.value:.2f}x" if ratio else ""


def _interval(report: Report, row: Measurement) -> str:
    ratio = _ratio(report, row)
    return f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio and not math.isnan(ratio.low) else ""


def _load(_: Report, row: Measurement) -> str:
    return _ms(min(row.load_ns) / 1e6) if row.load_ns else ""


def _peak(_: Report, row: Measurement) -> str:
    return f"{row.memory['peak'] / 2**20:.0f}" if row.memory.get("peak") else ""


def _note(_: Report, row: Measurement) -> str:
    why = [f"{row.reason}: {row.problem}"] if row.reason else []
    marks = [row.provenance] if row.provenance != "measured" else []
    odd = ["" if not row.fidelity or row.fidelity.finite else "NaN or infinite values in d0"]
    return "; ".join(filter(None, (*why, *marks, *odd, *row.notes)))


COLUMNS = (
    Column("artifact", lambda _, row: row.title, right=False),
    Column("runs as", lambda _, row: row.ran_as, right=False),
    Column("MB", lambda _, row: f"{row.size / 1e6:.1f}" if row.size else ""),
    Column("MAE", _fidelity(lambda f: small(f.mae))),
    Column("MAE worst", _fidelity(lambda f: small(f.mae_worst))),
    Column("IoU", _fidelity(lambda f: f"{f.iou:.4f}")),
    Column("IoU worst", _fidelity(lambda f: f"{f.iou_worst:.4f}")),
    Column("boundary F", _fidelity(lambda f: f"{f.boundary_f:.3f}")),
    Column("boundary F worst", _fidelity(lambda f: f"{f.boundary_f_worst:.3f}")),
    Column("area worst", _fidelity(_area)),
    Column("p50 ms", lambda _, row: _p50(row) if row.latency.ns else ""),
    Column("p90 ms", _latency(lambda row: row.latency.p90)),
    Column("speed-up", _speedup),
    Column("95 % interval", _interval),
    Column("load ms", _load),
    Column("first ms", lambda _, row: _ms(row.first_ns / 1e6) if row.first_ns else ""),
    Column("peak MB", _peak),
    Column("maxF", _accuracy("maxf")),
    Column("MAE to truth", _accuracy("mae")),
    Column("S", _accuracy("s")),
    Column("note", _note, right=False),
)
# On a terminal two values share a cell, one above the other, so that a row fits 120 columns.
STACKED = (
    ("artifact", "runs as"), ("MB", "peak MB"), ("MAE", "MAE worst"), ("IoU", "IoU worst"),
    ("boundary F", "boundary F worst"), ("area worst",), ("p50 ms", "p90 ms"), ("speed-up", "95 % interval"),
    ("load ms", "first ms"), ("maxF", "MAE to truth", "S"),
)  # fmt: skip
SHORT = {"boundary F": "bound. F", "boundary F worst": "worst", "MAE worst": "worst", "IoU worst": "worst",
         "area worst": "area", "95 % interval": "95 % int.", "MAE to truth": "MAE"}  # fmt: skip


def cells(report: Report) -> list[tuple[Column, list[str]]]:
    """Columns with their cells, those left out that no row has anything for."""
    filled = [(column, [column.cell(report, row) for row in report.rows]) for column in COLUMNS]
    return [(column, values) for column, values in filled if any(values)]


def about(report: Report) -> list[str]:
    """What a reader must know to make sense of the numbers, a line each."""
    s, versions = report.settings, report.environment
    known = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "coremltools", "tensorrt")
    tools = [f"{name} {versions[name]}" for name in known if name in versions]
    lines = [
        f"device: {report.device.label} [{report.device.fingerprint}]",
        f"with: {', '.join(tools)}" if tools else "",
    ]
    lines += _references(report)
    timed = any(row.latency.ns for row in report.rows)
    threads = f"{s.threads} threads" if s.threads else "all processors"
    lines.append(
        f"timed: network input to d0, one at a time, tier {s.tier}: at least {s.samples} samples and {s.seconds:g} s "
        f"in {s.rounds} interleaved rounds, {threads}; speed-up: paired by round, against {report.baseline}"
        if timed
        else ""
    )
    masks = next((int(row.accuracy.get("images", 0)) for row in report.rows if row.accuracy), 0)
    counts = [f"{len(report.photos)} photos", f"{masks} with ground truth" if masks else ""]
    counts += [f"{len(report.broken)} could not be read" if report.broken else ""]
    counts += [f"{len(report.without_mask)} without a mask" if report.without_mask else ""]
    lines.append("photos: " + ", ".join(filter(None, counts)))
    if timed and any(row.latency.ns and row.latency.unstable for row in report.rows):
        lines.append("~ unstable: deviation of 10 % or more, or an extreme 50 % off the mean; trust the ratio")
    if timed and any(row.latency.ns and row.latency.indicative for row in report.rows):
        lines.append("? indicative: fewer samples or less time than the quick tier")
    before = versions.get("before")
    load = before.get("load") if isinstance(before, dict) else None
    if timed and isinstance(load, float) and load > report.device.cores / 2:
        lines.append(f"the machine was busy: load {load:g} on {report.device.cores} cores before the start")
    lines.append("" if report.complete else "incomplete: the run was interrupted; continue it with --resume")
    return list(filter(None, lines))


def _references(report: Report) -> list[str]:
    """One line for each reference, in what it ran: PyTorch or, plainly, something else."""
    lines = []
    for name in dict.fromkeys(row.reference for row in report.rows if row.reference):
        row = report.row(name)
        what = f"{row.ran_as} ({name})" if row else name
        plainly = "" if row and row.exporter == "pytorch" else ", not PyTorch on this machine"
        lines.append(f"reference of the masks: {what}{plainly}")
    return lines or ["reference of the masks: none; neither PyTorch with the weights nor an fp32 ONNX was there"]


def markdown(reports: Sequence[Report]) -> str:
    """GitHub Markdown: a table for each device."""
    return "\n\n".join(_markdown(report) for report in reports) + "\n"


def _markdown(report: Report) -> str:
    columns = cells(report)
    rows = [[c.title for c, _ in columns], ["--:" if c.right else ":--" for c, _ in columns]]
    rows += [[values[i] or NONE for _, values in columns] for i in range(len(report.rows))]
    text = "\n".join("| " + " | ".join(v.replace("|", "\\|").replace("\n", " ") for v in row) + " |" for row in rows)
    return "\n".join((text, "", *(f"- {line}" for line in about(report))))


def comma_separated(reports: Sequence[Report]) -> str:
    """CSV (RFC 4180): one line per row and device, times in ms, memory and sizes in bytes, nothing rounded."""
    records = [_record(report, row) for report in reports for row in report.rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(report: Report, row: Measurement) -> dict[str, object]:
    fidelity, latency, ratio = row.fidelity or Fidelity(()), row.latency, _ratio(report, row)
    faithful = fidelity.summary() if fidelity.images else dict.fromkeys(fidelity.summary(), "")
    faster = (ratio.value, ratio.low, ratio.high) if ratio else ("", "", "")
    return {
        "device": report.device.fingerprint, "artifact": row.name, "exporter": row.exporter, "precision": row.precision,
        "runtime": row.runtime.get("runtime", ""), "arithmetic": row.runtime.get("arithmetic", row.mode),
        "weights": row.weights.name, "random_weights": row.weights.random, "bytes": row.size,
        "reference": row.reference, "photos": len(fidelity.images), "baseline": report.baseline,
        **faithful, **_times(latency),
        **dict(zip(("speedup", "speedup_low", "speedup_high"), faster, strict=True)),
        "load_ms": min(row.load_ns, default=0) / 1e6 or "", "first_ms": row.first_ns / 1e6 or "",
        "peak_bytes": row.memory.get("peak", ""), **{f"truth_{k}": row.accuracy.get(k, "") for k in TRUTH},
        "provenance": row.provenance, "reason": row.reason, "problem": row.problem,
    }  # fmt: skip


def _times(latency: Latency) -> dict[str, object]:
    there = bool(latency.ns)
    values = latency if there else Latency(((0,),))
    times: dict[str, object] = {k if k == "samples" else f"{k}_ms": v for k, v in values.summary().items()}
    times.update(unstable=values.unstable, indicative=values.indicative)
    return times if there else dict.fromkeys(times, "")


def terminal(report: Report) -> RenderableType:
    """A table for rich, two lines a row, at home in 120 columns."""
    found = {column.title: values for column, values in cells(report)}
    stacks = [tuple(t for t in stack if t in found) for stack in STACKED]
    stacks = [stack for stack in stacks if stack]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for stack in stacks:
        left = stack[0] == "artifact"
        title = "\n".join(SHORT.get(t, t) for t in stack)
        table.add_column(
            title, justify="left" if left else "right", overflow="fold", no_wrap=not left, min_width=24 if left else 0
        )
    for i, row in enumerate(report.rows):
        table.add_row(*(_stack([found[t][i] for t in stack]) for stack in stacks), end_section=True)
        if row.reason:
            table.rows[-1].style = "yellow"
    notes = [
        Text.assemble(
            (f"{row.title}: ", "bold"), f"{note}" + (f" [{REASONS[row.reason]}]" if row.reason in REASONS else "")
        )
        for row in report.rows
        if (note := _note(report, row))
    ]
    return Group(table, Text(), *notes, *(Text(line, style="dim") for line in about(report)))


def _stack(values: Sequence[str]) -> Text:
    first, *rest = values
    return Text("\n".join((first or NONE, *rest))) if not rest else Text.assemble(
        first or NONE, *(part for v in rest for part in ("\n", (v or "", "dim")))
    )  # fmt: skip


def console() -> Console:
    """Standard output; as wide as the table wants where it is no terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


def render(reports: Sequence[Report], form: str) -> str:
    """Reports as text in one of FORMATS; "term" without colours, as wide as it needs."""
    if form == "md":
        return markdown(reports)
    if form == "csv":
        return comma_separated(reports)
    out = io.StringIO()
    page = Console(file=out, width=WIDTH)
    for report in reports:
        page.print(terminal(report))
    return out.getvalue()
