"""The parent's end of a worker: start it, ask it, and outlive it whatever happens to it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

WORKER = (sys.executable, "-m", "u2export.benchmarks.measuring.worker")


class WorkerFailed(Exception):
    """A worker's answer that is none: a reason code of `u2export.benchmarks.report.REASONS` and a sentence."""

    def __init__(self, reason: str, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem


class WorkerProcess:
    """A running worker.

    Args:
        log: file that takes what the worker and its native libraries print.
        timeout: seconds to wait for each line of an answer.
        command: what to run.
    """

    def __init__(self, log: Path, timeout: float, command: Sequence[str] = WORKER) -> None:
        self.log = log
        self.timeout = timeout
        self.pending = b""
        with log.open("wb") as errors:
            # A session of its own: Ctrl-C is the parent's to handle.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
            )
        assert self.process.stdin and self.process.stdout
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.replies, selectors.EVENT_READ)

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()

    def ask(self, do: str, wait: float = 0.0, **fields: Any) -> dict[str, Any]:
        """The first line of the answer to a request; `wait` seconds more than the timeout are granted.

        Raises:
            WorkerFailed: an error answer, no answer in time, or the end of the process; it is dead then in the last two.
        """
        return next(self.stream(do, wait, **fields))

    def stream(self, do: str, wait: float = 0.0, **fields: Any) -> Iterator[dict[str, Any]]:
        """The lines of the answer, for as long as the caller wants any; raises as `ask`."""
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
            if error := reply.get("error"):
                hint = f" ({error['hint']})" if error["hint"] else ""
                raise WorkerFailed(error["kind"], error["problem"] + hint)
            yield reply

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
            return WorkerFailed("crashed", f"its process was killed, perhaps for want of memory{said}")
        how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerFailed("crashed", f"its process {how}{said}")

    def exit_code(self) -> int:
        """How the worker ended, once it has: as `subprocess.Popen.returncode`."""
        return self.process.wait()

    def kill(self) -> None:
        """End the process now, and what it started; does nothing to one that has ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self, patience: float = 5.0) -> None:
        """Let the worker close what it has open; kill it if that takes too long."""
        with suppress(OSError):
            self.requests.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        self.kill()
        self.selector.close()
        self.replies.close()
