"""A worker as its parent sees it: the parent starts it, asks it, and survives whatever happens to it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

WORKER = (sys.executable, "-m", "u2export.benchmarks.measuring.worker")


class WorkerFailed(Exception):
    """A worker gave no answer.

    Attributes:
        reason: a code of `u2export.benchmarks.report.REASONS`.
        problem: a sentence that says what happened.
    """

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem


class WorkerHandle(ABC):
    """A running worker, wherever it runs. It is a context manager, which ends the worker."""

    def __enter__(self) -> WorkerHandle:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()

    def ask(self, do: str, wait: float = 0.0, **fields: Any) -> dict[str, Any]:
        """Return the first line of the answer to a request.

        Args:
            do: the request's name. wait: seconds to wait in addition to the timeout. fields: the request's fields.

        Raises:
            WorkerFailed: the worker answers with an error, gives no answer in time, or ends. The worker is dead in the
                last two cases.
        """
        return next(self.stream(do, wait, **fields))

    @abstractmethod
    def stream(self, do: str, wait: float = 0.0, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the lines of the answer to a request; arguments and errors are those of `ask`."""

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once; do nothing if it has ended."""

    @abstractmethod
    def end(self) -> None:
        """Let the worker close what it has open, and end it."""


def answered(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a line of an answer that tells no error.

    Raises:
        WorkerFailed: the line tells an error.
    """
    if error := reply.get("error"):
        hint = f" ({error['hint']})" if error["hint"] else ""
        raise WorkerFailed(error["kind"], error["problem"] + hint)
    return reply


class WorkerProcess(WorkerHandle):
    """A running worker in a process of its own.

    Args:
        log: file that receives what the worker and its native libraries print.
        timeout: seconds to wait for each line of an answer.
        command: command that starts the worker.
    """

    def __init__(self, log: Path, timeout: float, command: Sequence[str] = WORKER) -> None:
        self.log = log
        self.timeout = timeout
        self.pending = b""
        with log.open("wb") as errors:
            # The worker has a session of its own, so that Ctrl-C reaches the parent only.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.replies, selectors.EVENT_READ)

    def stream(self, do: str, wait: float = 0.0, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the lines of the answer to a request; arguments and errors are those of `ask`."""
        try:
            self.requests.write(json.dumps({"do": do, **fields}).encode() + b"\n")
            self.requests.flush()
        except OSError:
            raise self._died() from None
        while True:
            line = self._line(do, self.timeout + wait)
            try:
                reply = json.loads(line)
            except ValueError:
                raise WorkerFailed("failed", f"answered {do!r} with {line[:80]!r}") from None
            yield answered(reply)

    def _line(self, do: str, timeout: float) -> bytes:
        end = monotonic() + timeout
        while b"\n" not in self.pending:
            if not self.selector.select(max(0.0, end - monotonic())):
                self.kill()
                raise WorkerFailed("timeout", f"no answer to {do!r} within {timeout:.0f} s")
            block = os.read(self.replies.fileno(), 1 << 16)
            if not block:
                raise self._died()
            self.pending += block
        line, _, self.pending = self.pending.partition(b"\n")
        return line

    def _died(self) -> WorkerFailed:
        code = self.exit_code()
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        said = f": {last[0][:200]}" if last else ""
        if code == -signal.SIGKILL:
            return WorkerFailed("crashed", f"its process was killed, perhaps because memory ran out{said}")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerFailed("crashed", f"its process {how}{said}")

    def exit_code(self) -> int:
        """Wait for the end of the worker, and return its exit code as `subprocess.Popen.returncode` gives it."""
        return self.process.wait()

    def kill(self) -> None:
        """Kill the process and the processes that it started; do nothing if it has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self, patience: float = 5.0) -> None:
        """Let the worker close what it has open; kill it if this takes more than `patience` seconds."""
        with suppress(OSError):
            self.requests.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.kill()
        self.selector.close()
        self.replies.close()
