"""The report of one run while it grows, and what a row looks like after its worker has failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.report import Report, Row


class Results:
    """The report of one run while it grows.

    Args:
        report: the report at the start, without rows.
        saved: receives the report after every step.

    Attributes:
        report: the report so far.
        outside: rows that are no part of the report, by name. The PyTorch reference is such a row while the report is
            of another machine; the report's environment tells what it ran in, or why it did not run.
    """

    def __init__(self, report: Report, saved: Callable[[Report], None]) -> None:
        self.report = report
        self.outside: dict[str, Row] = {}
        self._saved = saved

    def row(self, name: str) -> Row:
        """Return the row of that name, which must exist."""
        row = self.outside.get(name) or self.report.row(name)
        assert row is not None
        return row

    def put(self, row: Row) -> None:
        """Add a row, or replace the row of the same name."""
        if row.name not in self.outside:
            self.report = self.report.with_row(row)
            return
        self.outside[row.name] = row
        told = {"reason": row.reason, "problem": row.problem} if row.reason else row.runtime
        environment = self.report.environment
        references = {**environment.get("reference", {}), row.name: told}
        self.report = replace(self.report, environment={**environment, "reference": references})

    def save(self, row: Row | None = None, **changes: Any) -> None:
        """Put a row, change fields of the report, and hand the report to `saved`."""
        self.report = replace(self.report, **changes)
        if row:
            self.put(row)
        self._saved(self.report)


def failed(row: Row, failure: WorkerFailed, artifact: Path | str = "") -> Row:
    """Return the row with the reason of a failure, without folder names."""
    return replace(row, reason=failure.reason, problem=without_folders(failure.problem, artifact))


def without_folders(problem: str, artifact: Path | str = "") -> str:
    """Return a problem without the artifact's folder and the user's own folder, which tell about the user."""
    short = problem.replace(f"{Path(artifact).parent}/", "") if artifact else problem
    return short.replace(f"{Path.home()}/", "~/")


def with_notes(row: Row, answer: Mapping[str, Any]) -> Row:
    """Return the row with the notes of a worker's answer, each once."""
    return replace(row, notes=tuple(dict.fromkeys((*row.notes, *answer.get("notes", ())))))
