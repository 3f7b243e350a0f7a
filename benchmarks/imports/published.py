"""Figures that others published: a short JSON becomes reports, whose rows are marked as published and name a source.

A file holds `{"schema": 1, "source": {…}, "rows": [{…}, …]}`. A row needs `device`, `model`, `runtime`, `precision`,
and either `ms` (one number, or two for a range) or `fps`. It may have `statistic` (p50, p90, mean …; without it the
statistic is not known), `compute`, `peak_mb`, `timed`, `url`, `version` and `note`. `source` holds what all rows share:
`title`, `url`, `read` (the day), `file`, `sha256`, `timed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.timed_model import WRONG, bytes_of, milliseconds, reason
from u2export.benchmarks.report import Report, Row, Settings
from u2export.errors import UserError
from u2export.files import read_json
from u2export.reference.weights import Identity

SCHEMA = 1
STATISTICS = ("single", "p50", "p90", "p95", "p99", "mean")


def load(path: Path) -> list[Report]:
    """Return one report for each device in a file of published figures.

    Raises:
        UserError: the file is missing, is not JSON, or has another form; or a row has no source or no number.
    """
    data = read_json(path, "published figures")
    try:
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r:.40}, this u2export reads {SCHEMA}")
        shared = {str(k): str(v) for k, v in data["source"].items()}
        by_device: dict[str, list[Row]] = {}
        for row in data["rows"]:
            by_device.setdefault(str(row["device"]), []).append(_row(row, shared))
    except WRONG as error:
        raise UserError(
            f"{path}: not published figures ({reason(error)})", "see docs/tables.md for the form of such files"
        ) from None
    return [
        Report(Device(device, "", "", 0), Settings("custom", 0, 0.0, 0), rows=tuple(rows), complete=True)
        for device, rows in by_device.items()
    ]


def is_published(data: Any) -> bool:
    """Return whether JSON data has the form of published figures."""
    return isinstance(data, dict) and {"schema", "source", "rows"} <= data.keys()


def _row(row: Mapping[str, Any], shared: Mapping[str, str]) -> Row:
    source = {**shared, **{str(k): str(v) for k, v in row.items() if k in ("url", "timed", "version")}}
    if not source.get("url", "").startswith("https://"):
        raise ValueError(f"the row of {row['device']!r:.60} names no source")
    model, precision = str(row["model"]), str(row["precision"])
    info = {"runtime": str(row["runtime"]), "arithmetic": precision, "device": str(row.get("compute", ""))}
    known = ("url", "title", "read", "file", "sha256", "timed", "version")
    return Row(
        model, str(row["runtime"]), precision, precision, model, Identity(model, ""), {},
        memory={"peak": bytes_of(round(float(row["peak_mb"]) * 2**20))} if "peak_mb" in row else {},
        runtime={k: v for k, v in info.items() if v},
        notes=(str(row["note"]),) if row.get("note") else (),
        provenance="published",
        stated=_stated(row),
        source={k: source[k] for k in known if source.get(k)},
    )  # fmt: skip


def _stated(row: Mapping[str, Any]) -> dict[str, float]:
    """Return milliseconds by statistic: one number, or the ends of a range. Frames per second become milliseconds."""
    given = row["ms"] if "ms" in row else row["fps"]
    values = [milliseconds(v) for v in (given if isinstance(given, list) else [given])]
    if "ms" not in row:
        values = [1000 / v for v in values]
    name = str(row.get("statistic", "single"))
    if name not in STATISTICS:
        raise ValueError(f"unknown statistic {name!r:.40}")
    return {name: values[0]} if len(values) == 1 else {"min": min(values), "max": max(values)}
