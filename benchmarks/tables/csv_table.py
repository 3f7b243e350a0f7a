"""Reports as CSV (RFC 4180) for other programs: every value without rounding, and why a value is missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from u2export.benchmarks.latency import Latency
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables.columns import speedup, unit
from u2export.benchmarks.tables.legend import label
from u2export.reference.fidelity import Fidelity
from u2export.text import csv_cell

STAGES = ("import", "read", "compile", "preprocess", "inference", "postprocess")
TRUTH = ("maxf", "mae", "s", "images")
SOURCE = ("file", "sha256", "tool", "version", "timed", "url")


def comma_separated(reports: Iterable[Report]) -> str:
    """Return one line for each row of each report; times in ms, memory and sizes in bytes."""
    records = [_record(report, row) for report in reports for row in report.rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in record.items()} for record in records)
    return out.getvalue()


def _record(report: Report, row: Row) -> dict[str, object]:
    ratio = speedup(report, row)
    faster = (ratio.value, ratio.low, ratio.high) if ratio else ("", "", "")
    return {
        "device": report.device.fingerprint, "device_name": label(report.device),
        "artifact": row.name, "exporter": row.exporter, "precision": row.precision,
        "runtime": row.runtime.get("runtime", ""), "arithmetic": row.runtime.get("arithmetic", row.arithmetic),
        "weights": row.weights.name, "random_weights": row.weights.random, "bytes": row.size,
        "reference": row.reference, "photos": len(row.images), "baseline": report.baseline,
        **_fidelity(row), **_times(row.latency),
        **dict(zip(("speedup", "speedup_low", "speedup_high"), faster, strict=True)),
        **{f"stated_{name}_ms": value for name, value in row.stated.items()},
        "scenario": row.scenario, "batch": row.batch, "streams": row.streams,
        "load_ms": min(row.load_ns, default=0) / 1e6 or "", "first_ms": row.first_ns / 1e6 or "",
        **{f"{name}_ms": row.stages.get(name, "") for name in STAGES},
        "peak_bytes": row.memory.get("peak", ""), "device_bytes": row.memory.get("device", ""),
        "joules": "" if row.joules is None else row.joules,
        "knee": row.sustained.knee if row.sustained.slices.ns else "", "unit": unit(row),
        **{f"truth_{name}": row.accuracy.get(name, "") for name in TRUTH},
        "provenance": row.provenance, "reason": row.reason, "problem": row.problem,
        **{f"source_{name}": row.source.get(name, "") for name in SOURCE},
    }  # fmt: skip


def _fidelity(row: Row) -> dict[str, object]:
    return dict(row.fidelity.summary()) if row.fidelity else dict.fromkeys(Fidelity(()).summary(), "")


def _times(latency: Latency) -> dict[str, object]:
    """Return the statistics of the samples; without samples the same names with empty values."""
    shown = latency if latency.ns else Latency(((0,),))
    times: dict[str, object] = {
        name if name == "samples" else f"{name}_ms": value for name, value in shown.summary().items()
    }
    times.update(unstable=shown.unstable, indicative=shown.indicative)
    return times if latency.ns else dict.fromkeys(times, "")
