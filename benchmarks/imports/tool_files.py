"""Latencies that other tools measured: each file is read by the reader of the tool that wrote it.

A reader returns what the file says and nothing else. It raises one of `WRONG` on a file of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from u2export.benchmarks.imports.ai_hub import ai_hub
from u2export.benchmarks.imports.benchmark_app import benchmark_app
from u2export.benchmarks.imports.device_json import device_json
from u2export.benchmarks.imports.executorch_runner import executorch_runner
from u2export.benchmarks.imports.litert_benchmark import litert_benchmark
from u2export.benchmarks.imports.onnxruntime_perf import onnxruntime_perf
from u2export.benchmarks.imports.text import read_text
from u2export.benchmarks.imports.timed_model import WRONG, TimedModel, reason
from u2export.benchmarks.imports.trtexec import trtexec
from u2export.errors import UserError

FORMATS: Mapping[str, Callable[[str, str], list[TimedModel]]] = {
    "trtexec": trtexec,
    "benchmark_app": benchmark_app,
    "onnxruntime-perf": onnxruntime_perf,
    "litert-benchmark": litert_benchmark,
    "executorch": executorch_runner,
    "coreml": device_json,
    "kit": device_json,
    "aihub": ai_hub,
}


def read(path: Path, form: str, log: Path | None = None) -> list[TimedModel]:
    """Return what a tool's file says, one entry for each timed model.

    Args:
        path: the file.
        form: one of FORMATS.
        log: the text that the tool printed; some files do not hold everything.

    Raises:
        UserError: a file is missing or too large, or the tool does not write such files.
        Unavailable: the file is YAML, and PyYAML is not installed.
    """
    text, printed = read_text(path), read_text(log) if log else ""
    try:
        return FORMATS[form](text, printed)
    except WRONG as error:
        problem = f"{path} is not a file that {form} writes: {reason(error)}"
        raise UserError(problem, "see docs/tables.md for the commands that write such files") from None
