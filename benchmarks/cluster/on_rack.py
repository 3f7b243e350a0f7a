"""What runs on the workers that time: who they are, and a bench of their machine."""

from __future__ import annotations

import socket
from dataclasses import asdict
from typing import Any

from u2export.benchmarks.cluster.on_worker import folder_in
from u2export.benchmarks.device import this_device
from u2export.benchmarks.run import BenchRequest, bench
from u2export.version import __version__


def who(dask_worker: Any) -> dict[str, Any]:
    """Return what a Dask worker is: {u2export, host, device, threads, resources}; Dask gives the worker itself."""
    return {
        "u2export": __version__, "host": socket.gethostname(), "device": asdict(this_device()),
        "threads": dask_worker.state.nthreads, "resources": dict(dask_worker.state.total_resources),
    }  # fmt: skip


def bench_here(task: dict[str, Any]) -> dict[str, Any]:
    """Measure artifacts on this machine and return the report as plain data.

    Args:
        task: {run, artifacts, masks, options, reference}: names of files in the folder of the run, and options of a
            `BenchRequest`.
    """
    from distributed import get_worker

    home = folder_in(get_worker().local_directory, task["run"]) / "files"
    reference = task["reference"]
    request = BenchRequest(
        [home / name for name in task["artifacts"]],
        home / "photos",
        masks=home / "masks" if task["masks"] else None,
        reference=str(home / reference["sent"]) if "sent" in reference else reference["given"],
        **task["options"],
    )
    return bench(request).to_json()
