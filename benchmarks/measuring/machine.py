"""Where rows are measured: this machine. `u2export.benchmarks.measuring.ssh` has the other kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device, environment, this_device
from u2export.benchmarks.measuring.worker_process import WORKER, WorkerProcess
from u2export.benchmarks.sensors import pulse, state
from u2export.exporters.artifact import Artifact


class Machine:
    """A machine with workers; this one. Use as a context manager.

    Args:
        worker: command of a worker here.
    """

    here = True

    def __init__(self, worker: Sequence[str] = WORKER) -> None:
        self.worker = worker

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def device(self) -> Device:
        """Which machine it is."""
        return this_device()

    def environment(self) -> dict[str, Any]:
        """What is installed on it."""
        return environment()

    def state(self) -> dict[str, Any]:
        """Clocks, temperatures, power mode; may take seconds."""
        return state()

    def pulse(self) -> dict[str, Any]:
        """The same in short; takes milliseconds."""
        return pulse()

    def send_artifact(self, artifact: Artifact) -> None:
        """Bring an artifact there, before `path` is asked for it."""

    def send_photos(self, photos: Iterable[Path]) -> None:
        """Bring photos there, before `path` is asked for them."""

    def workshop(self) -> str:
        """Folder there to build in what must be built there; empty here, where what is given is what is measured."""
        return ""

    def path(self, local: Path) -> str:
        """How the machine calls what was sent to it."""
        return str(local)

    def start_worker(self, log: Path, timeout: float) -> WorkerProcess:
        """Start a worker; arguments as of `WorkerProcess`."""
        return WorkerProcess(log, timeout, self.worker)
