"""Which processors a test uses.

Runtimes start a thread for each processor that they may use, and their waiting threads spin. Each worker of
pytest-xdist keeps to its own part of the processors, so that the workers do not take them from each other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Those that this process may use; empty where the system does not tell. Imported before they are divided.
ALL = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else set()


def divide() -> None:
    """Keep a worker of pytest-xdist, and all that it starts, on its part of the processors."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if worker and (mine := sorted(ALL)[int(worker) :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]):
        os.sched_setaffinity(0, mine)


@contextmanager
def all_processors() -> Iterator[None]:
    """Let this thread, and all that it starts, use all processors: for tests of several threads."""
    if not ALL:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
