"""The machine where rows are measured. `Machine` is this machine; `SshMachine` is a machine behind ssh."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device, environment, this_device
from u2export.benchmarks.measuring.worker_process import WORKER, WorkerHandle, WorkerProcess
from u2export.benchmarks.sensors import pulse, state
from u2export.exporters.artifact import Artifact


class Machine:
    """This machine, as a place to measure on. It is a context manager: workers run inside the context.

    Args:
        worker: command that starts a worker.

    Attributes:
        here: whether the machine is this machine.
        provenance: where the figures of its rows come from, see `u2export.benchmarks.report.Row`.
    """

    here = True
    provenance = "measured"

    def __init__(self, worker: Sequence[str] = WORKER) -> None:
        self.worker = worker

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def device(self) -> Device:
        """Return what the machine is."""
        return this_device()

    def environment(self) -> dict[str, Any]:
        """Return the versions of what is installed on the machine."""
        return environment()

    def state(self) -> dict[str, Any]:
        """Return clocks, temperatures and power mode; this may take seconds."""
        return state()

    def pulse(self) -> dict[str, Any]:
        """Return clocks and temperatures from the kernel's files only; this takes milliseconds."""
        return pulse()

    def send_artifact(self, artifact: Artifact) -> None:
        """Bring an artifact to the machine; `path` then knows it."""

    def send_photos(self, photos: Iterable[Path]) -> None:
        """Bring photos to the machine; `path` then knows them."""

    def workshop(self) -> str:
        """Return a new folder on the machine, for what must be built there; empty on this machine.

        This machine measures exactly the files that the user gives.
        """
        return ""

    def path(self, local: Path) -> str:
        """Return the path on the machine of a file that was sent."""
        return str(local)

    def show(self, stage: str, done: int, total: int) -> None:
        """Show on the machine how far the bench is, where the machine has a screen of its own."""

    def start_worker(self, log: Path, timeout: float) -> WorkerHandle:
        """Start a worker on the machine; the arguments are those of `WorkerProcess`."""
        return WorkerProcess(log, timeout, self.worker)
