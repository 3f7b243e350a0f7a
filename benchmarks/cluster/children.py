"""The worker processes of a Dask worker: artifacts stay open from task to task, each in a process of its own.

A crash of a runtime ends its process and not the Dask worker, and its row says the same as on one machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from u2export.benchmarks.measuring.worker_process import WORKER, WorkerHandle, WorkerProcess

# Processes that a Dask worker keeps open between tasks. Those that were not used for the longest time end first.
MOST = 8


@dataclass
class Child:
    """A worker process with an open artifact, and its answer to the request "open"."""

    process: WorkerHandle
    opened: Mapping[str, Any]


class Children:
    """Worker processes that wait for their next use. Threads may use it at the same time."""

    def __init__(self) -> None:
        self._idle: list[tuple[str, Child]] = []
        self._lock = Lock()
        self._logs = tempfile.TemporaryDirectory(prefix="u2export-logs-")
        self._started = 0

    @contextmanager
    def opened(self, opening: Mapping[str, Any], command: Sequence[str], timeout: float, run: str) -> Iterator[Child]:
        """The context of a process in which an artifact is open; after a failure the process is ended.

        Args:
            opening: the fields of the request "open".
            command: the command that starts a worker process; empty for this Python.
            timeout: seconds to wait for each line of an answer.
            run: only processes of the same run are used again, because files may change between runs.

        Raises:
            WorkerFailed: the artifact cannot be opened.
        """
        key = json.dumps([run, opening, command, timeout], sort_keys=True)
        child = self._taken(key)
        if child is None:
            process = self.start(command, timeout)
            try:
                child = Child(process, process.ask("open", **opening))
            except BaseException:
                process.end()
                raise
        try:
            yield child
        except BaseException:
            child.process.kill()
            child.process.end()
            raise
        self._put_back(key, child)

    def start(self, command: Sequence[str], timeout: float) -> WorkerHandle:
        """Start a process without an artifact; the caller ends it."""
        with self._lock:
            self._started += 1
            log = Path(self._logs.name) / f"{self._started}.log"
        return WorkerProcess(log, timeout, tuple(command) or WORKER)

    def _taken(self, key: str) -> Child | None:
        with self._lock:
            at = next((i for i, (other, _) in enumerate(self._idle) if other == key), None)
            return self._idle.pop(at)[1] if at is not None else None

    def _put_back(self, key: str, child: Child) -> None:
        with self._lock:
            self._idle.append((key, child))
            oldest = [self._idle.pop(0)[1] for _ in range(len(self._idle) - MOST)]
        for one in oldest:
            one.process.end()

    def close(self) -> None:
        """End all processes that wait."""
        with self._lock:
            waiting, self._idle = self._idle, []
        for _, child in waiting:
            child.process.end()
