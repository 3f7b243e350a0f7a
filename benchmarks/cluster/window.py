"""Tasks on a cluster: only a few are there at a time, and their results come as they are done.

The number of tasks is bounded, so the memory of the client and of the scheduler does not grow with the work. Dask does
the tasks of a killed worker again. A task whose workers were killed again and again is given up.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from u2export.benchmarks.cluster.standing import Census
from u2export.errors import UserError

log = logging.getLogger(__name__)
Task = dict[str, Any]
# Tasks for each thread of the cluster. A thread that has finished one finds the next one waiting.
FOR_EACH_THREAD = 2
# Seconds between two looks at the cluster, which may grow or shrink.
LOOK = 2.0
# How often a task is sent again after Dask gave it up, because all workers that had it were killed.
PATIENT = 3


@dataclass(frozen=True)
class Again:
    """What a caller says of a result that another worker should make again; `why` refuses the worker, if given."""

    why: str = ""


Verdict = Callable[[Any, Task], Again | None]


class LostScheduler(UserError):
    """The scheduler does not answer any more."""


class Window:
    """Sends tasks to the workers of a cluster, a few at a time.

    Args:
        client: the client of Dask.
        address: the scheduler, for messages.
        patience: seconds to wait while no worker is there.

    Attributes:
        census: the workers that took part, and those that are refused.
    """

    def __init__(self, client: Any, address: str, patience: float) -> None:
        self.census = Census()
        self._client, self._address, self._patience = client, address, patience
        self._threads: dict[str, int] = {}
        self._looked = 0.0
        self._alone = monotonic()

    def refuse(self, worker: str, why: str) -> None:
        """Give no more tasks to a worker; say so once."""
        if worker not in self.census.refused:
            self.census.refused[worker] = why
            log.warning("worker %s takes no part: %s", worker, why)

    @property
    def threads(self) -> int:
        """The number of threads of all workers that take part; at least 1."""
        self._look()
        return max(1, sum(n for worker, n in self._threads.items() if worker not in self.census.refused))

    def one(self, function: Callable[[Task], Task], task: Task) -> Task:
        """Return the result of a single task."""
        return next(result for _, result in self.results(function, [(0, task)]))

    def results(
        self, function: Callable[[Task], Task], tasks: Iterable[tuple[Any, Task]],
        verdict: Verdict = lambda key, result: None,
    ) -> Iterator[tuple[Any, Task]]:  # fmt: skip
        """Yield the key and the result of every task, in the order in which they are done.

        Args:
            function: an importable function that takes and returns plain data. Its results have {worker, standing}, and
                {refused} where the worker is of another kind.
            tasks: keys, and what the function receives. They are taken one by one, as the window moves on.
            verdict: tells whether a result must be made again.

        Raises:
            UserError: the function raised it; or a task was given up; or no worker is left.
            LostScheduler: the scheduler does not answer any more.
        """
        running = _Running(self, function)
        try:
            yield from running.run(iter(tasks), verdict)
        finally:
            running.cancel()

    def submitted(self, function: Callable[[Task], Task], task: Task) -> Any:
        """Submit one task to the workers that take part, if possible to the one that its field "near" names."""
        chosen: dict[str, Any] = {}
        if self.census.refused:
            chosen = {"workers": list(self.allowed()), "allow_other_workers": False}
        elif near := task.get("near"):
            chosen = {"workers": [near], "allow_other_workers": True}
        # No retries: what the function raises is an error of the user or of this package.
        return self._client.submit(function, task, pure=False, retries=0, **chosen)

    def allowed(self) -> set[str]:
        """Return the addresses of the workers that take part.

        Raises:
            UserError: all workers are refused.
        """
        self._look()
        found = self._threads.keys() - self.census.refused.keys()
        if self._threads and not found:
            why = next(iter(self.census.refused.values()))
            raise UserError(f"no worker can take part: {why}", "install the same versions on all workers")
        return set(found)

    def _look(self, force: bool = False) -> None:
        """Ask the scheduler which workers it has, now and then.

        Raises:
            LostScheduler: it does not answer.
            UserError: it has had no worker for too long.
        """
        if not force and self._threads and monotonic() < self._looked + LOOK:
            return
        try:
            self._threads = dict(self._client.nthreads())
        except (OSError, RuntimeError, TimeoutError):  # Dask's CommClosedError is an OSError
            raise self.lost() from None
        self._looked = monotonic()
        if self._threads:
            self._alone = self._looked
        elif self._looked > self._alone + self._patience:
            raise UserError(
                f"the cluster at {self._address} has had no worker for {self._patience:.0f} s", "start workers"
            )

    @property
    def connected(self) -> bool:
        """Whether the client still talks to the scheduler."""
        return bool(self._client.status == "running")

    def lost(self) -> LostScheduler:
        """Return the error of a lost scheduler."""
        return LostScheduler(f"the scheduler at {self._address} does not answer any more", "start it again")

    def cancelled(self, futures: list[Any]) -> None:
        """Take tasks back, as far as the scheduler is there."""
        if futures and self.connected:
            with suppress(Exception):
                self._client.cancel(futures, force=True)


@dataclass
class _Sent:
    """A task that is on the cluster, how often it was sent, and the workers that it may run on; none for all."""

    key: Any
    task: Task
    attempt: int
    workers: set[str]


class _Running:
    """The tasks of one call."""

    def __init__(self, window: Window, function: Callable[[Task], Task]) -> None:
        self._window, self._function = window, function
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._sent: dict[Any, _Sent] = {}

    def run(self, tasks: Iterator[tuple[Any, Task]], verdict: Verdict) -> Iterator[tuple[Any, Task]]:
        again: deque[_Sent] = deque()
        more = True
        while True:
            while len(self._sent) < FOR_EACH_THREAD * self._window.threads and (again or more):
                if again:
                    one = again.popleft()
                elif (given := next(tasks, None)) is None:
                    more = False
                    break
                else:
                    one = _Sent(*given, attempt=1, workers=set())
                self._send(one)
            if not self._sent:
                return
            if (future := self._next()) is None:
                continue
            one = self._sent.pop(future)
            result = self._result(future, one)
            future.release()
            if result is None:
                again.append(one)
                continue
            if wrong := result.get("refused"):
                self._window.refuse(result["worker"], wrong)
                again.append(one)
                continue
            self._window.census.add(result["worker"], result["standing"])
            if (told := verdict(one.key, result)) is not None:
                if told.why:
                    self._window.refuse(result["worker"], told.why)
                again.append(one)
                continue
            yield one.key, result

    def _send(self, one: _Sent) -> None:
        one.workers = self._window.allowed() if self._window.census.refused else set()
        future = self._window.submitted(self._function, one.task)
        self._sent[future] = one
        future.add_done_callback(self._done.put)

    def _next(self) -> Any | None:
        """Return a future that is done; None after a while, so that the caller looks around."""
        try:
            return self._done.get(timeout=LOOK)
        except Empty:
            self._look_after()
            return None

    def _look_after(self) -> None:
        """Send tasks again that wait for workers which have gone."""
        there = self._window.allowed()
        for future, one in list(self._sent.items()):
            if one.workers and not one.workers & there:
                self._window.cancelled([future])
                del self._sent[future]
                self._send(one)

    def _result(self, future: Any, one: _Sent) -> Task | None:
        """Return the result of a future that is done; None if its workers were killed and it must be sent again."""
        from distributed import KilledWorker

        if future.status == "finished":
            result: Task = future.result()
            return result
        if future.status != "error":
            if not self._window.connected:  # the client gave up all tasks
                raise self._window.lost()
            self._window.cancelled([future])  # the worker was killed before it gave the result away
            return None
        error = future.exception()
        if not isinstance(error, KilledWorker):
            raise error
        one.attempt += 1
        if one.attempt > PATIENT:
            raise UserError(
                f"every worker that had task {one.key} was killed", "give the workers more memory; --resume goes on"
            )
        return None

    def cancel(self) -> None:
        """Take all tasks back."""
        self._window.cancelled(list(self._sent))
        self._sent.clear()
