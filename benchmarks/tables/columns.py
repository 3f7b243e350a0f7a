"""Reports as tables: for the terminal, Markdown, CSV and HTML; made from the JSON alone.

Every cell is measured here, imported, published by others, or says by a code why it is empty; estimates never enter.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports import published
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.report import REASONS, Report, Row
from u2export.benchmarks.statistics import Interval
from u2export.errors import UserError
from u2export.files import read_json
from u2export.reference.fidelity import Fidelity

WIDTH = 120
FORMATS = ("term", "md", "csv", "html")
Cell = Callable[[Report, Row], str]
NONE = "–"
TRUTH = ("maxf", "mae", "s", "images")
STAGES = ("import", "read", "compile", "preprocess", "inference", "postprocess")
MARKS = {"measured": "M", "imported": "I", "published": "P"}
LEGEND = "by: " + ", ".join(f"{mark} {name}" for name, mark in MARKS.items())
# Why a cell of a row that otherwise has numbers is empty. Rows without numbers carry a code of REASONS instead.
BLANKS = {
    "n/m": "no mask came back, so fidelity is not known",
    "n/r": "there was no reference to compare masks with",
    "n/t": "its source does not tell",
    "n/b": "no baseline in the same rounds",
    "n/i": "no interval from fewer than five rounds",
    "n/g": "no ground truth was given",
    "n/a": "not asked for, or the system does not tell",
}


@dataclass(frozen=True)
class Column:
    """One column: its title, how a row's cell is written, whether it holds numbers, and what kind of cell is empty."""

    title: str
    cell: Cell
    right: bool = True
    kind: str = "other"


def blank(column: Column, report: Report, row: Row) -> str:
    """The code for an empty cell; a dash where the row's note says why, and in columns of words."""
    if row.reason or not column.right:
        return NONE
    if column.kind == "fidelity":
        return "n/r" if row.provenance == "measured" else "n/m"
    if column.kind == "truth":
        return "n/g"
    if column.kind == "ratio":
        return "n/b"
    if column.kind == "interval":
        return "n/i" if _ratio(report, row) else "n/b"
    return "n/a" if row.provenance == "measured" else "n/t"


def _fidelity(pick: Callable[[Fidelity], str]) -> Cell:
    def cell(report: Report, row: Row) -> str:
        if row.name in {r.reference for r in report.rows}:
            return "ref"
        return pick(row.fidelity) if row.fidelity else ""

    return cell


def statistic(row: Row, name: str) -> float | None:
    """A latency in ms: of the samples where there are any, else what the source states; None if neither."""
    if row.latency.ns:
        return row.latency.summary().get(name)
    return row.stated.get(name)


def _time(name: str) -> Cell:
    def cell(_: Report, row: Row) -> str:
        value = statistic(row, name)
        return _ms(value) if value is not None else ""

    return cell


def _accuracy(key: str) -> Cell:
    return lambda _, row: f"{row.accuracy[key]:.3f}" if key in row.accuracy else ""


def _stage(name: str) -> Cell:
    return lambda _, row: _ms(row.stages[name]) if name in row.stages else ""


def _ms(value: float) -> str:
    """Milliseconds to three digits, as many as a measurement here is worth."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def small(value: float) -> str:
    """A difference of masks: five decimals, and below that its power of ten."""
    return f"{value:.5f}" if value >= 1e-5 else "0" if value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _area(fidelity: Fidelity) -> str:
    return f"{fidelity.area_worst:.3f}" if math.isfinite(fidelity.area_worst) else "inf"


def _p50(_: Report, row: Row) -> str:
    """The median; of sources that state something else, that, and what it is."""
    if row.latency.ns:
        marks = ("~" if row.latency.unstable else "") + ("?" if row.latency.indicative else "")
        return _ms(row.latency.p50) + marks
    s = row.stated
    if "p50" in s:
        return _ms(s["p50"])
    if "single" in s:
        return f"{_ms(s['single'])}¹"
    if "mean" in s:
        return f"{_ms(s['mean'])} mean"
    return f"{_ms(s['min'])}–{_ms(s['max'])}" if {"min", "max"} <= s.keys() else ""


def _ratio(report: Report, row: Row) -> Interval | None:
    return report.speedup(row) if row.latency.ns else None


def _speedup(report: Report, row: Row) -> str:
    if row.latency.ns and row.name == report.baseline:
        return "base"
    ratio = _ratio(report, row)
    return f"{ratio.value:.2f}x" if ratio else ""


def _interval(report: Report, row: Row) -> str:
    ratio = _ratio(report, row)
    if row.latency.ns and row.name == report.baseline:
        return "base"
    return f"{ratio.low:.2f}–{ratio.high:.2f}" if ratio and not math.isnan(ratio.low) else ""


def _load(_: Report, row: Row) -> str:
    return _ms(min(row.load_ns) / 1e6) if row.load_ns else ""


def _memory(key: str) -> Cell:
    return lambda _, row: f"{row.memory[key] / 2**20:.0f}" if row.memory.get(key) else ""


def _throughput(_: Report, row: Row) -> str:
    return f"{row.latency.throughput:.1f}" if row.scenario == "throughput" and row.latency.ns else ""


def _knee(_: Report, row: Row) -> str:
    return f"{row.sustained.knee:.2f}" if row.sustained.slices.ns else ""


def _energy(_: Report, row: Row) -> str:
    return f"{row.joules:.3g}" if row.joules is not None else ""


def unit(row: Row) -> str:
    """The compute unit that really ran: provider or device as the runtime told."""
    provider = row.runtime.get("provider", "").removesuffix("ExecutionProvider")
    return row.runtime.get("device", "") or provider or ""


def _mark(_: Report, row: Row) -> str:
    return MARKS.get(row.provenance, row.provenance)


def _note(_: Report, row: Row) -> str:
    why = [f"{row.reason}: {row.problem}"] if row.reason else []
    source = [f"{row.source['tool']} {row.source.get('version', '')}".strip()] if "tool" in row.source else []
    timed = [f"timed: {row.source['timed']}"] if row.source.get("timed") and not row.reason else []
    marks = [row.provenance] if row.provenance != "measured" else []
    odd = ["" if not row.fidelity or row.fidelity.finite else "NaN or infinite values in d0"]
    origin = [row.source["url"]] if row.source.get("url") else []
    return "; ".join(filter(None, (*why, *marks, *source, *timed, *odd, *row.notes, *origin)))


COLUMNS = (
    Column("artifact", lambda _, row: row.title, right=False),
    Column("runs as", lambda _, row: row.ran_as, right=False),
    Column("unit", lambda _, row: unit(row), right=False),
    Column("by", _mark, right=False),
    Column("MB", lambda _, row: f"{row.size / 1e6:.1f}" if row.size else ""),
    Column("MAE", _fidelity(lambda f: small(f.mae)), kind="fidelity"),
    Column("MAE worst", _fidelity(lambda f: small(f.mae_worst)), kind="fidelity"),
    Column("IoU", _fidelity(lambda f: f"{f.iou:.4f}"), kind="fidelity"),
    Column("IoU worst", _fidelity(lambda f: f"{f.iou_worst:.4f}"), kind="fidelity"),
    Column("boundary F", _fidelity(lambda f: f"{f.boundary_f:.3f}"), kind="fidelity"),
    Column("boundary F worst", _fidelity(lambda f: f"{f.boundary_f_worst:.3f}"), kind="fidelity"),
    Column("area worst", _fidelity(_area), kind="fidelity"),
    Column("p50 ms", _p50),
    Column("p90 ms", _time("p90")),
    Column("p99 ms", _time("p99")),
    Column("speed-up", _speedup, kind="ratio"),
    Column("95 % interval", _interval, kind="interval"),
    Column("pictures/s", _throughput),
    Column("knee", _knee),
    Column("J", _energy),
    Column("load ms", _load),
    Column("first ms", lambda _, row: _ms(row.first_ns / 1e6) if row.first_ns else ""),
    Column("pre ms", _stage("preprocess")),
    Column("infer ms", _stage("inference")),
    Column("post ms", _stage("postprocess")),
    Column("peak MB", _memory("peak")),
    Column("device MB", _memory("device")),
    Column("maxF", _accuracy("maxf"), kind="truth"),
    Column("MAE to truth", _accuracy("mae"), kind="truth"),
    Column("S", _accuracy("s"), kind="truth"),
    Column("note", _note, right=False),
)
# On a terminal two values share a cell, one above the other, so that a row fits 120 columns.
STACKED = (
    ("artifact", "runs as"), ("MB", "peak MB"), ("MAE", "MAE worst"), ("IoU", "IoU worst"),
    ("boundary F", "boundary F worst"), ("area worst", "knee"), ("p50 ms", "p90 ms"), ("speed-up", "95 % interval"),
    ("load ms", "first ms"), ("pictures/s", "J"), ("maxF", "MAE to truth", "S"),
)  # fmt: skip
SHORT = {"boundary F": "bound. F", "boundary F worst": "worst", "MAE worst": "worst", "IoU worst": "worst",
         "area worst": "area", "95 % interval": "95 % int.", "MAE to truth": "MAE"}  # fmt: skip
# What a reader compares devices by; the rest is in each device's own table.
OVERVIEW = ("artifact", "runs as", "unit", "by", "MAE", "MAE worst", "IoU worst", "p50 ms", "p90 ms", "speed-up", "MB",
            "peak MB", "load ms", "note")  # fmt: skip


def cells(report: Report, always: Sequence[str] = ()) -> list[tuple[Column, list[str]]]:
    """Columns with their cells, empty ones with their code; those left out that no row has anything for."""
    filled = [(column, [column.cell(report, row) for row in report.rows]) for column in COLUMNS]
    return [
        (column, [value or blank(column, report, row) for value, row in zip(values, report.rows, strict=True)])
        for column, values in filled
        if any(values) or column.title in always
    ]


def label(device: Device) -> str:
    """A device in one line; imported ones are known by name alone."""
    if device.cores:
        return device.label
    return ", ".join(filter(None, (device.model, device.cpu, device.soc, device.os)))


def about(report: Report) -> list[str]:
    """What a reader must know to make sense of the numbers, a line each."""
    ours = [row for row in report.rows if row.provenance == "measured"]
    lines = [
        f"device: {label(report.device)} [{report.device.fingerprint}]",
        *(_measured(report, ours) if ours else []),
    ]
    lines += _sources(report.rows)
    if any("single" in row.stated for row in report.rows):
        lines.append("¹ one number, its source does not say which statistic")
    lines += [f"{code}: {BLANKS[code]}" for code in _codes([report])]
    lines.append(LEGEND)
    lines.append("" if report.complete else "incomplete: the run was interrupted; continue it with --resume")
    return list(filter(None, lines))


def _measured(report: Report, rows: Sequence[Row]) -> list[str]:
    s, versions = report.settings, report.environment
    known = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "coremltools", "tensorrt")
    tools = [f"{name} {versions[name]}" for name in known if name in versions]
    lines = [f"with: {', '.join(tools)}" if tools else "", *_references(report)]
    timed = any(row.latency.ns for row in rows)
    threads = f"{s.threads} thread" + "s" * (s.threads != 1) if s.threads else "all processors"
    lines.append(
        f"timed: network input to d0, {_scenario(report)}, tier {s.tier}: at least {s.samples} samples and "
        f"{s.seconds:g} s in {s.rounds} interleaved rounds, {threads}; speed-up: paired by round, against "
        f"{report.baseline}"
        if timed
        else ""
    )
    masks = next((int(row.accuracy.get("images", 0)) for row in rows if row.accuracy), 0)
    counts = [f"{len(report.photos)} photos", f"{masks} with ground truth" if masks else ""]
    counts += [f"{len(report.broken)} could not be read" if report.broken else ""]
    counts += [f"{len(report.without_mask)} without a mask" if report.without_mask else ""]
    lines.append("photos: " + ", ".join(filter(None, counts)))
    if timed and any(row.latency.ns and row.latency.unstable for row in rows):
        lines.append("~ unstable: deviation of 10 % or more, or an extreme 50 % off the mean; trust the ratio")
    if timed and any(row.latency.ns and row.latency.indicative for row in rows):
        lines.append("? indicative: fewer samples or less time than the quick tier")
    if any(row.sustained.slices.ns for row in rows):
        lines.append("knee: median of the last 30 s of the sustained run over that of the first 30 s")
    before = versions.get("before")
    load = before.get("load") if isinstance(before, dict) else None
    if timed and isinstance(load, float) and load > report.device.cores / 2:
        lines.append(f"the machine was busy: load {load:g} on {report.device.cores} cores before the start")
    return lines


def _scenario(report: Report) -> str:
    s = report.settings
    if s.scenario == "latency":
        return "one at a time"
    return f"as many as go: batches of {s.batch}, {s.streams} at the same time"


def _sources(rows: Iterable[Row]) -> list[str]:
    """Where imported and published rows come from."""
    lines = []
    for row in rows:
        s = row.source
        if row.provenance == "measured" or not (s.get("file") or s.get("tool")):
            continue  # a row's own note tells its address
        what = " ".join(filter(None, (s.get("title") or s.get("tool", ""), s.get("url", ""), s.get("file", ""))))
        digest = f"sha256 {s['sha256'][:16]}…" if s.get("sha256") else ""
        read = f"read {s['read']}" if s.get("read") else ""
        lines.append(f"{row.provenance}: " + ", ".join(filter(None, (what, digest, read))))
    return list(dict.fromkeys(lines))


def _codes(reports: Sequence[Report], titles: Sequence[str] = ()) -> list[str]:
    """The codes of empty cells that these tables show."""
    used = {
        value
        for report in reports
        for column, values in cells(report, titles)
        if not titles or column.title in titles
        for value in values
    }
    return [code for code in BLANKS if code in used]


def _references(report: Report) -> list[str]:
    """One line for each reference, in what it ran: PyTorch or, plainly, something else."""
    lines = []
    for name in dict.fromkeys(row.reference for row in report.rows if row.reference):
        row = report.row(name)
        elsewhere = report.environment.get("reference")
        ran = elsewhere.get(name) if isinstance(elsewhere, dict) and not row else None
        what = f"{row.ran_as} ({name})" if row else name
        plainly = "" if row and row.exporter == "pytorch" else ", not PyTorch on this machine"
        if isinstance(ran, dict):
            what, plainly = (
                f"{ran.get('runtime', 'failed')} ({name})",
                ", on the machine that the device was measured from",
            )
        lines.append(f"reference of the masks: {what}{plainly}")
    return lines or ["reference of the masks: none; neither PyTorch with the weights nor an fp32 ONNX was there"]


def markdown(reports: Sequence[Report]) -> str:
    """GitHub Markdown: a table for each device, others' published figures last."""
    return "\n\n".join(_markdown(report) for report in ordered(reports)) + "\n"


def ordered(reports: Sequence[Report]) -> list[Report]:
    """Own and imported results first, published ones after them."""
    return sorted(reports, key=is_published)


def is_published(report: Report) -> bool:
    """Whether all its rows are others' figures."""
    return bool(report.rows) and all(row.provenance == "published" for row in report.rows)


def _markdown(report: Report) -> str:
    columns = cells(report)
    rows = [[values[i] for _, values in columns] for i in range(len(report.rows))]
    text = pipes([c for c, _ in columns], rows)
    return "\n".join((text, "", *(f"- {line}" for line in about(report))))


def pipes(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table in GitHub Markdown."""
    lines = [[c.title for c in columns], ["--:" if c.right else ":--" for c in columns], *rows]
    return "\n".join("| " + " | ".join(v.replace("|", "\\|").replace("\n", " ") for v in row) + " |" for row in lines)


def overview(reports: Sequence[Report]) -> str:
    """Markdown: one line for each device and artifact; below, apart, what others published."""
    ours = [r for r in ordered(reports) if not is_published(r)]
    theirs = [r for r in ordered(reports) if is_published(r)]
    parts = [_overview(ours, OVERVIEW)] if ours else ["Nothing has been measured yet."]
    if theirs:
        titles = ("artifact", "runs as", "unit", "p50 ms", "peak MB", "note")
        parts += ["Published by others, not measured by this project:", _overview(theirs, titles)]
    return "\n\n".join(parts) + "\n"


def _overview(reports: Sequence[Report], titles: Sequence[str]) -> str:
    columns = [c for c in COLUMNS if c.title in titles]
    heads = [c if "p90 ms" in titles else replace(c, title=c.title.replace("p50 ", "")) for c in columns]
    rows = []
    for report in reports:
        shown = {c.title: values for c, values in cells(report, titles)}
        name = report.device.model or report.device.cpu
        rows += [[name, *(shown[c.title][i] for c in columns)] for i in range(len(report.rows))]
    text = pipes([Column("device", lambda _r, _m: "", right=False), *heads], rows)
    codes = [f"- {code}: {BLANKS[code]}" for code in _codes(reports, titles)]
    lines = [line for r in reports for line in about(r) if line.partition(":")[0] not in (*BLANKS, "by")]
    notes = dict.fromkeys(f"- {line}" for line in lines if not is_published(reports[0]) or line[0] in "p¹")
    return "\n".join((text, "", *notes, *([f"- {LEGEND}"] if "by" in titles else []), *codes))


def comma_separated(reports: Sequence[Report]) -> str:
    """CSV (RFC 4180): one line per row and device, times in ms, memory and sizes in bytes, nothing rounded."""
    records = [_record(report, row) for report in reports for row in report.rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(report: Report, row: Row) -> dict[str, object]:
    fidelity, latency, ratio = row.fidelity or Fidelity(()), row.latency, _ratio(report, row)
    faithful = fidelity.summary() if fidelity.images else dict.fromkeys(fidelity.summary(), "")
    faster = (ratio.value, ratio.low, ratio.high) if ratio else ("", "", "")
    return {
        "device": report.device.fingerprint, "device_name": label(report.device),
        "artifact": row.name, "exporter": row.exporter, "precision": row.precision,
        "runtime": row.runtime.get("runtime", ""), "arithmetic": row.runtime.get("arithmetic", row.arithmetic),
        "weights": row.weights.name, "random_weights": row.weights.random, "bytes": row.size,
        "reference": row.reference, "photos": len(fidelity.images), "baseline": report.baseline,
        **faithful, **_times(latency),
        **dict(zip(("speedup", "speedup_low", "speedup_high"), faster, strict=True)),
        **{f"stated_{k}_ms": v for k, v in row.stated.items()},
        "scenario": row.scenario, "batch": row.batch, "streams": row.streams,
        "load_ms": min(row.load_ns, default=0) / 1e6 or "", "first_ms": row.first_ns / 1e6 or "",
        **{f"{k}_ms": row.stages.get(k, "") for k in STAGES},
        "peak_bytes": row.memory.get("peak", ""), "device_bytes": row.memory.get("device", ""),
        "joules": "" if row.joules is None else row.joules,
        "knee": row.sustained.knee if row.sustained.slices.ns else "", "unit": unit(row),
        **{f"truth_{k}": row.accuracy.get(k, "") for k in TRUTH},
        "provenance": row.provenance, "reason": row.reason, "problem": row.problem,
        **{f"source_{k}": row.source.get(k, "") for k in ("file", "sha256", "tool", "version", "timed", "url")},
    }  # fmt: skip


def _times(latency: Latency) -> dict[str, object]:
    there = bool(latency.ns)
    values = latency if there else Latency(((0,),))
    times: dict[str, object] = {k if k == "samples" else f"{k}_ms": v for k, v in values.summary().items()}
    times.update(unstable=values.unstable, indicative=values.indicative)
    return times if there else dict.fromkeys(times, "")


STYLE = """
:root { color-scheme: light dark; --line: #d8dbe0; --pale: #6b7078; --head: #f3f4f6; --warn: #a15c00 }
@media (prefers-color-scheme: dark) { :root { --line: #3a3d42; --pale: #9aa0a8; --head: #24272b; --warn: #f0a840 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; padding: 0 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top }
th { background: var(--head); white-space: nowrap } .n { text-align: right; white-space: nowrap }
td { white-space: nowrap } tr.note td { padding-top: 0; white-space: normal }
tr.note span { display: block; max-width: 70rem; position: sticky; left: .6rem }
.code, ul, tr.note { color: var(--pale) } ul { font-size: 13px; padding-left: 1.2rem }
tr.empty td, tr.empty + tr.note td { color: var(--warn) } tr.row td, tr.empty td { border-top: 1px solid var(--line) }
"""


def page(reports: Sequence[Report]) -> str:
    """One HTML page that needs nothing else: a table for each device, others' published figures last."""
    sections = "\n".join(_section(report) for report in ordered(reports))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>u2export results</title><style>{STYLE}</style></head>\n<body><h1>Mask fidelity and latency</h1>\n"
        f"{sections}\n</body></html>\n"
    )


def _section(report: Report) -> str:
    columns = [(c, values) for c, values in cells(report) if c.title != "note"]
    head = "".join(f"<th{' class=n' if c.right else ''}>{html.escape(c.title)}</th>" for c, _ in columns)
    body = "\n".join(_tr(report, row, [(c, v[i]) for c, v in columns]) for i, row in enumerate(report.rows))
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in about(report))
    title = html.escape(label(report.device)) + (" (published by others)" if is_published(report) else "")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f"<h2>{title}</h2>\n<div class=wide>{table}</div>\n<ul>{lines}</ul>"


def _tr(report: Report, row: Row, values: Sequence[tuple[Column, str]]) -> str:
    """A row; its note below it, across the table."""
    kinds = [" ".join(filter(None, ("n" if c.right else "", "code" if v in BLANKS else ""))) for c, v in values]
    tds = "".join(
        f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{html.escape(value)}</td>"
        for kind, (_, value) in zip(kinds, values, strict=True)
    )
    said = html.escape(_note(report, row))
    note = f'<tr class="note"><td colspan="{len(values)}"><span>{said}</span></td></tr>' if said else ""
    return f'<tr class="{"empty" if row.reason else "row"}">{tds}</tr>{note}'


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
    titles = [row.title for row in report.rows]
    notes = [
        Text.assemble(
            (row.title if titles.count(row.title) == 1 else f"{row.title}, {row.ran_as}", "bold"),
            ": ",
            f"{note}" + (f" [{REASONS[row.reason]}]" if row.reason in REASONS else ""),
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
    if form == "html":
        return page(reports)
    out = io.StringIO()
    plain = Console(file=out, width=WIDTH)
    for report in ordered(reports):
        plain.print(terminal(report))
    return out.getvalue()


# What results come from, and where tables go


def gather(paths: Iterable[Path]) -> list[Report]:
    """The reports in files, and in all .json files below folders: results of benches, and published figures.

    Raises:
        UserError: a file is neither, or there are none.
    """
    paths = list(paths)
    files = [(file, not path.is_dir()) for path in paths for file in _files(path)]
    found = [report for file, named in files for report in _reports(file, named)]
    if not found:
        where = ", ".join(map(str, paths))
        raise UserError(f"no results in {where}", "give files that `u2export bench --json` or `import` wrote")
    return found


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.json")) if path.is_dir() else [path]


def _reports(file: Path, always: bool) -> list[Report]:
    """A folder may hold other JSON files (artifacts' records, summaries), which are passed over."""
    data = read_json(file, "results")
    if published.is_published(data):
        return published.load(file)
    if always or (isinstance(data, dict) and {"schema", "device", "rows", "settings"} <= data.keys()):
        return [Report.load(file)]
    return []


BEGIN, END = "<!-- table: begin", "<!-- table: end -->"


def inserted(text: str, table: str, where: str) -> str:
    """The text with the table between its two marks.

    Raises:
        UserError: the marks are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    mark, closing, rest = rest.partition("-->\n")
    _, end, after = rest.partition(END)
    if not (begin and closing and end):
        raise UserError(f"{where} has no place for a table", f"put the lines {BEGIN} --> and {END} where it shall be")
    return f"{before}{begin}{mark}{closing}\n{table}\n{end}{after}"
