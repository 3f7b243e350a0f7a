"""Where the rows of one run are opened: on the machine under test, or here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.worker_process import WorkerHandle


class Workers:
    """Starts the worker processes of one run.

    Args:
        plan: the machine, the worker's command, the timeout and the number of threads.
        scratch: folder for the logs of the workers.

    Attributes:
        machine: the machine that the report is about.
    """

    def __init__(self, plan: Plan, scratch: Path) -> None:
        self.machine = plan.machine or Machine(plan.worker)
        self._here = Machine(plan.worker)
        self._timeout, self._threads = plan.timeout, plan.settings.threads
        self._scratch = scratch
        self._started = 0

    def start(self, machine: Machine | None = None) -> WorkerHandle:
        """Start a worker on a machine; on `self.machine` by default."""
        self._started += 1
        return (machine or self.machine).start_worker(self._scratch / f"{self._started}.log", self._timeout)

    def machine_of(self, planned: PlannedRow) -> Machine:
        """Return the machine that a row runs on."""
        return self._here if self.runs_outside(planned) else self.machine

    def runs_outside(self, planned: PlannedRow) -> bool:
        """Tell whether a row is the PyTorch reference, run on this machine, for a report about another machine."""
        return planned.is_pytorch and not self.machine.here

    def opening(self, planned: PlannedRow) -> dict[str, Any]:
        """Return the fields of the request "open" for a row, with the artifact's path on the row's machine."""
        opening = {"threads": self._threads, **planned.opening}
        if "artifact" in opening:
            opening["artifact"] = opening.pop("built", "") or self.machine.path(Path(opening["artifact"]))
        return opening
