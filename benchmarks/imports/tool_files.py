"""Latencies that other tools measured: each file is read by the reader of the tool that wrote it.

A reader returns what the file says and nothing else. It raises one of `WRONG` on a file of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from u2export.benchmarks.imports.ai_hub import ai_hub
from u2export.benchmarks.imports.benchmark_app import benchmark_app
from u2export.benchmarks.imports.device_json import device_json
from u2export.benchmarks.imports.onnxruntime_perf import onnxruntime_perf
from u2export.benchmarks.imports.timed_model import WRONG, TimedModel
from u2export.benchmarks.imports.trtexec import trtexec
from u2export.errors import UserError

LARGEST = 256 * 2**20  # bytes; a larger file does not hold samples
FORMATS: Mapping[str, Callable[[str, str], list[TimedModel]]] = {
    "trtexec": trtexec,
    "benchmark_app": benchmark_app,
    "onnxruntime-perf": onnxruntime_perf,
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
    text, printed = _text(path), _text(log) if log else ""
    try:
        return FORMATS[form](text, printed)
    except WRONG as error:
        problem = f"{path} is not a file that {form} writes: {_reason(error)}"
        raise UserError(problem, "see docs/tables.md for the commands that write such files") from None


def _reason(error: Exception) -> str:
    """Return in words why a reader failed: its own message, or what Python's exception means for the file."""
    if isinstance(error, ValueError):
        return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return f"{error.args[0]!r:.60} is missing" if isinstance(error, KeyError) else "its content has another form"


def _text(path: Path) -> str:
    hint = "give the file that the tool wrote"
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MiB", hint)
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", hint) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", hint) from None
