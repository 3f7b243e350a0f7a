"""Reader for the reports of OpenVINO's benchmark_app: `-report_type no_counters`, as CSV or (`-json_stats`) as JSON.

Source: openvinotoolkit/openvino, tools/benchmark_tool (Python) and samples/cpp/benchmark_app (C++), version 2026.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from u2export.benchmarks.imports.text import read_json
from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds, nanoseconds

SECTIONS = {"Command line parameters": "cmd_options", "Configuration setup": "configuration_setup",
            "Execution results": "execution_results"}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """The names that one form of the report has for its values."""

    mean: str
    least: str
    most: str
    read: str
    compile: str
    first: str
    iterations: str
    device: str
    api: str
    requests: str


# The Python tool has the same names in CSV and JSON. The CSV of the C++ tool differs from them in the latencies, and
# its JSON differs in all.
PYTHON = Dialect(
    "avg latency", "min latency", "max latency", "read model time (ms)", "compile model time (ms)",
    "first inference time (ms)", "total number of iterations", "target device", "API",
    "number of parallel infer requests",
)  # fmt: skip
CPP_CSV = replace(PYTHON, mean="Average latency (ms)", least="Min latency (ms)", most="Max latency (ms)")
CPP_JSON = Dialect(
    "latency_avg", "latency_min", "latency_max", "read_model_time", "compile_model_time", "first_inference_time",
    "iterations_num", "target_device", "api", "nireq",
)  # fmt: skip


def benchmark_app(text: str, log: str) -> list[TimedModel]:
    """Return the model in a report of benchmark_app; `log` is the text that benchmark_app printed."""
    report = read_json(text) if text.lstrip().startswith("{") else _sections(text)
    if "execution_results" not in report:
        raise ValueError("no execution results; give the report of -report_type no_counters")
    results = report["execution_results"]
    options = {name.lstrip("-"): value for name, value in report.get("cmd_options", {}).items()}
    setup = {**options, **report.get("configuration_setup", {})}
    dialect = _dialect({**setup, **results})
    model = _model(setup, dialect, log)
    if error := _text(results, "error"):
        return [replace(model, problem=f"benchmark_app: {' '.join(error.split())}")]
    first = _text(results, dialect.first)
    opening = {"read": _text(results, dialect.read), "compile": _text(results, dialect.compile)}
    return [
        replace(
            model,
            stated=_latencies(results, dialect),
            opening_ns={stage: (nanoseconds(ms),) for stage, ms in opening.items() if ms},
            first_ns=nanoseconds(first) if first else 0,
            timed=_timed(setup, results, dialect),
        )
    ]


def _dialect(values: Mapping[str, Any]) -> Dialect:
    """Return the dialect that has most of its names among these."""
    return max((PYTHON, CPP_CSV, CPP_JSON), key=lambda dialect: len(set(asdict(dialect).values()) & values.keys()))


def _model(setup: Mapping[str, Any], dialect: Dialect, log: str) -> TimedModel:
    """Return what the report says about the model and the runtime."""
    version = re.search(r"Build \.+ (\S+)", log)
    build = version[1] if version else ""
    path = _text(setup, "m") or _text(setup, "model") or _text(setup, "topology")
    runtime = {"runtime": f"OpenVINO {build}".strip(), "device": _text(setup, dialect.device)}
    return TimedModel(
        "benchmark_app",
        Path(path.replace("\\", "/")).name,
        runtime={name: value for name, value in runtime.items() if value},
        version=build,
    )


def _latencies(results: Mapping[str, Any], dialect: Dialect) -> dict[str, float]:
    """Return the statistics in ms. Every form of the report holds one percentile, which is the median by default."""
    stated = {name: results.get(key) for name, key in
              (("mean", dialect.mean), ("min", dialect.least), ("max", dialect.most)) if key in results}  # fmt: skip
    for key, value in results.items():
        if key in ("latency (ms)", "Median latency (ms)"):
            stated["p50"] = value
        elif key == "latency_median":  # the only name in the JSON of the C++ tool, whatever the percentile is
            stated[f"p{int(float(_text(results, 'percentile_boundary') or 50))}"] = value
        elif found := re.fullmatch(r"latency \((\d+) percentile\) \(ms\)", key):
            stated[f"p{found[1]}"] = value
    if not stated:
        raise ValueError("no latency among the execution results")
    return {name: milliseconds(value) for name, value in stated.items()}


def _timed(setup: Mapping[str, Any], results: Mapping[str, Any], dialect: Dialect) -> str:
    api = _text(setup, dialect.api) or _text(setup, "api") or "async"
    requests = _text(setup, dialect.requests) or _text(setup, "nireq") or "?"
    iterations = _text(results, dialect.iterations) or "?"
    return (
        f"{api} inference, {requests} requests at a time, inputs filled before, random values; {iterations} iterations"
    )


def _sections(text: str) -> dict[str, dict[str, str]]:
    """Return a CSV report in the form of a JSON report. The CSV has headings, and below them lines of key;value."""
    sections: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if line.strip() in SECTIONS:
            current = sections.setdefault(SECTIONS[line.strip()], {})
        elif ";" in line:
            key, _, value = line.partition(";")
            current[key] = value.strip()
    return sections


def _text(values: Mapping[str, Any], name: str) -> str:
    """Return a value as text; "" if it is missing or empty."""
    value = values.get(name)
    return "" if value is None else str(value)
