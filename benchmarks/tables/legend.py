"""What a reader must know to understand a table: the device, how it was measured, the sources, marks and codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from u2export.benchmarks.device import Device
from u2export.benchmarks.report import IN_BROWSER, Report, Row
from u2export.benchmarks.tables.columns import BUSY, MARKS, Table, busy

LEGEND = "by: " + ", ".join(f"{mark} {name}" for name, mark in MARKS.items() if name != IN_BROWSER)
# Explained where it is shown.
BROWSER = f"{MARKS[IN_BROWSER]}: measured in a browser; the times are those of the browser, not of a native app"
# Why a cell is empty in a row that otherwise has numbers. A row without numbers carries a code of report.REASONS.
BLANKS = {
    "n/m": "no mask came back, so the fidelity is not known",
    "n/c": "the network has one map, so that it has no classes",
    "n/r": "there was no reference for the masks",
    "n/t": "the source does not state the value",
    "n/b": "there is no compared row in the same rounds",
    "n/i": "there are too few rounds for an interval",
    "n/g": "no ground truth was given",
    "n/a": "the value was not requested, or the system does not report it",
}
KNEE = "knee: median of the last 30 s of the sustained run, divided by the median of its first 30 s"
JOULES = "J: energy of one picture in joules; of the whole processor package where it was measured here"
# The packages whose versions a table names.
TOOLS = (
    "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "coremltools", "tensorrt", "ai-edge-litert", "executorch",
    "onnxruntime-web", "browser",
)  # fmt: skip


def about(table: Table) -> list[str]:
    """Return the lines below a table."""
    return [*facts(table.report), *codes([table]), LEGEND]


def facts(report: Report, name: str = "") -> list[str]:
    """Return the lines on one report: its device, how its rows were measured, and where the other rows come from.

    Args:
        report: the report.
        name: of the device in a table of several devices; it stands in the line on the device if that does not begin
            with it.
    """
    ours = [row for row in report.rows if row.is_measured]
    whole = f"{label(report.device)} [{report.device.fingerprint}]"
    device = f"device: {whole}" if whole.startswith(name) else f"device {name}: {whole}"
    interrupted = [] if report.complete else ["incomplete: the run was interrupted; continue it with --resume"]
    return [device, *(_measured(report, ours) if ours else []), *sources(report.rows), *interrupted]


def codes(tables: Iterable[Table]) -> list[str]:
    """Return one line for each code of an empty cell in these tables, for energies, and for rows of a browser."""
    tables = list(tables)
    shown = {cell for table in tables for row in table.rows for cell in row}
    browser = [BROWSER] if any(row.provenance == IN_BROWSER for table in tables for row in table.report.rows) else []
    joules = [JOULES] if any(row.joules is not None for table in tables for row in table.report.rows) else []
    return [*browser, *joules, *(f"{code}: {reason}" for code, reason in BLANKS.items() if code in shown)]


def label(device: Device) -> str:
    """Return a device in one line. Of a device in an imported or published row only names are known."""
    if device.cores:
        return device.label
    return ", ".join(filter(None, (device.model, device.cpu, device.soc, device.os)))


def sources(rows: Sequence[Row]) -> list[str]:
    """Return one line for each file or tool that imported and published rows come from, and the footnote to ¹."""
    footnote = "¹ a single number; its source does not say which statistic it is"
    lines = [_source(row) for row in rows if not row.is_measured]
    lines += [footnote for row in rows if "single" in row.stated]
    return list(dict.fromkeys(filter(None, lines)))


def _source(row: Row) -> str:
    """Return "" if the source has only an address; the note of the row shows this address."""
    told = row.source
    if not (told.get("file") or told.get("tool")):
        return ""
    what = " ".join(filter(None, (told.get("title") or told.get("tool"), told.get("url"), told.get("file"))))
    digest = f"sha256 {told['sha256'][:16]}…" if told.get("sha256") else ""
    read = f"read {told['read']}" if told.get("read") else ""
    return f"{row.provenance}: " + ", ".join(filter(None, (what, digest, read)))


def _measured(report: Report, rows: Sequence[Row]) -> list[str]:
    """Return the lines on rows that u2export measured itself."""
    timed = [row for row in rows if row.latency.ns]
    tools = ", ".join(f"{name} {report.environment[name]}" for name in TOOLS if name in report.environment)
    return [
        *([f"with: {tools}"] if tools else []),
        *_references(report),
        *(_timing(report) if timed else []),
        _photos(report, rows),
        *_warnings(report, timed),
        *([KNEE] if any(row.sustained.slices.ns for row in rows) else []),
    ]


def _references(report: Report) -> list[str]:
    """Return one line for each reference: the runtime that computed its masks, and a remark unless that is PyTorch."""
    names = dict.fromkeys(row.reference for row in report.rows if row.reference)
    if not names:
        return ["reference of the masks: none; neither PyTorch with the weights nor an fp32 ONNX file was available"]
    return [f"reference of the masks: {_reference(report, name)}" for name in names]


def _reference(report: Report, name: str) -> str:
    row = report.row(name)
    if row:
        remark = "" if row.exporter == "pytorch" else ", not PyTorch on this machine"
        return f"{row.ran_as} ({name}){remark}"
    elsewhere = report.environment.get("reference")
    ran = elsewhere.get(name) if isinstance(elsewhere, dict) else None
    if isinstance(ran, dict):
        return f"{ran.get('runtime', 'failed')} ({name}), on the machine that the device was measured from"
    return f"{name}, not PyTorch on this machine"


def _timing(report: Report) -> list[str]:
    s = report.settings
    if s.scenario == "latency":
        scenario = "one picture at a time"
    else:
        scenario = f"highest throughput: batches of {s.batch}, {s.streams} at the same time"
    threads = f"{s.threads} thread{'' if s.threads == 1 else 's'}" if s.threads else "all processors"
    timed = (
        f"timed: from the input of the network to d0, {scenario}; tier {s.tier}: at least {s.samples} samples and "
        f"{s.seconds:g} s in {s.rounds} interleaved rounds, {threads}"
    )
    compared = f"speed-up: paired by round, compared with {report.baseline} (base)"
    return [timed, compared] if report.baseline else [timed]


def _photos(report: Report, rows: Sequence[Row]) -> str:
    masks = next((int(row.accuracy.get("images", 0)) for row in rows if row.accuracy), 0)
    counts = [f"{len(report.photos)} photos"]
    counts += [f"{masks} with ground truth"] if masks else []
    counts += [f"{len(report.broken)} could not be read"] if report.broken else []
    counts += [f"{len(report.without_mask)} without a mask"] if report.without_mask else []
    return f"photos: {', '.join(counts)}"


def _warnings(report: Report, timed: Sequence[Row]) -> list[str]:
    """Return the lines on times that are less certain than usual; `timed` are the measured rows with samples."""
    lines = []
    if any(row.latency.unstable for row in timed):
        advice = "measure again on an idle machine" if busy(report) else "the ratio is more certain than the times"
        lines.append(f"~ unstable: the deviation is 10 % or more, or an extreme is 50 % off the mean; {advice}")
    if any(row.latency.indicative for row in timed):
        lines.append("? indicative: fewer samples or less time than the quick tier requires")
    if timed and (load := busy(report)):
        cores = f"{report.device.cores} core{'' if report.device.cores == 1 else 's'}"
        lines.append(
            f"{BUSY} the machine was busy: load {load:g} on {cores} before the start; do not rely on these times and "
            "ratios"
        )
    return lines
