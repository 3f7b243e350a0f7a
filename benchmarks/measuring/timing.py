"""The times of the rows. All workers are alive together and take turns, so that a slow spell falls on all rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from u2export.benchmarks.latency import Latency, Sustained
from u2export.benchmarks.measuring.plan import Plan, Progress
from u2export.benchmarks.measuring.results import Results, failed, with_notes
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerHandle
from u2export.benchmarks.measuring.workers import Workers
from u2export.benchmarks.report import Report, Row

# Seconds. Thread pools keep processors busy for a while after a call; the next row's turn begins after that.
PAUSE = 0.1
# Seconds, least and most. A machine that never gets steady must not warm up for longer than it is measured.
WARMUP_SECONDS = (2.0, 20.0)
# Seconds. A sustained run is taken in slices; after each slice the state of the machine is noted.
SLICE = 10.0


class Timing:
    """Times the rows of one run in turns.

    Args:
        plan: the settings.
        photo: the photo that all rows are timed on.
        earlier: the report of an interrupted run to continue, if there is one.
        results: receives the samples.
        workers: starts one worker for each row.
        progress: receives the stage, the steps done and the steps in all.
        losers: is asked after each round for the rows, among those alive, that need no more rounds; None for no row.
    """

    def __init__(
        self,
        plan: Plan,
        photo: Path,
        earlier: Report | None,
        results: Results,
        workers: Workers,
        progress: Progress,
        losers: Callable[[Report, Collection[str]], Collection[str]] | None = None,
    ) -> None:
        self._plan, self._settings, self._photo, self._earlier = plan, plan.settings, photo, earlier
        self._results, self._workers, self._progress, self._losers = results, workers, progress, losers

    def run(self, rows: Sequence[PlannedRow]) -> None:
        """Warm up all rows, time them in rounds, run each alone for minutes where asked, and read the peak memory."""
        with ExitStack() as stack:
            live: dict[str, WorkerHandle] = {}
            for i, planned in enumerate(rows):
                self._progress("warming up", i, len(rows))
                worker = stack.enter_context(self._workers.start())
                if self._warm_up(planned, worker):
                    live[planned.row.name] = worker
            if live and self._results.report.baseline not in live and not self._plan.baseline:
                self._results.save(baseline=next(iter(live)))
            for number in range(self._complete_rounds(live), self._settings.rounds):
                self._round(live, number)
                self._results.save(states=(*self._results.report.states, self._workers.machine.pulse()))
                for name in self._losers(self._results.report, live.keys()) if self._losers else ():
                    live.pop(name).kill()
            if self._settings.sustained:
                self._run_sustained(live)
            for name, worker in live.items():
                self._ask(name, worker, "memory", _with_peak)
            self._results.save()

    def _warm_up(self, planned: PlannedRow, worker: WorkerHandle) -> bool:
        """Open a row and warm it up; return False where that failed, and the row then tells the reason."""
        row, opening = self._results.row(planned.row.name), self._workers.opening(planned)
        try:
            opened = worker.ask("open", batch=self._settings.batch, streams=self._settings.streams, **opening)
            limit = min(max(self._settings.seconds, WARMUP_SECONDS[0]), WARMUP_SECONDS[1])
            warm = worker.ask("warm", limit, photo=self._workers.machine.path(self._photo), limit=limit)
        except WorkerFailed as failure:
            self._results.save(failed(row, failure, opening.get("artifact", "")))
            return False
        sleep(PAUSE)
        self._results.save(
            replace(
                with_notes(with_notes(row, opened), warm),
                load_ns=(*row.load_ns, opened["load_ns"]),
                opening_ns={k: (*row.opening_ns.get(k, ()), ns) for k, ns in opened["opening_ns"].items()},
                memory={"start": opened["memory"]} if "memory" in opened else {},
                first_ns=warm["first_ns"],
                warmup_ns=tuple(warm["warmup_ns"]),
                steady=warm["steady"],
            )
        )
        return True

    def _complete_rounds(self, names: Iterable[str]) -> int:
        """Return how many rounds of an earlier run all rows have, and drop further rounds that only some rows have."""
        rows = [self._results.row(name) for name in names]
        done = min((len(row.latency.rounds) for row in rows), default=0)
        for row in rows:
            common = replace(row.latency, rounds=row.latency.rounds[:done], spans=row.latency.spans[:done])
            self._results.save(replace(row, latency=common, energy_uj=row.energy_uj[:done]))
        if self._earlier:
            self._results.save(states=self._earlier.states[:done])
        return done

    def _round(self, live: dict[str, WorkerHandle], number: int) -> None:
        """Give every row one turn, in random order. A row that fails leaves `live`."""
        wanted = self._settings
        order = sorted(live)
        random.Random(f"{wanted.seed}-{number}").shuffle(order)
        turn = {"samples": math.ceil(wanted.samples / wanted.rounds), "seconds": wanted.seconds / wanted.rounds}
        for i, name in enumerate(order):
            self._progress("timing", number * len(order) + i, wanted.rounds * len(order))
            usual = median(self._results.row(name).warmup_ns) / 1e9
            wait = 10 * (turn["seconds"] + turn["samples"] * usual)
            if not self._ask(name, live[name], "time", _with_turn, wait, **turn):
                live.pop(name).kill()
            sleep(PAUSE)

    def _run_sustained(self, live: dict[str, WorkerHandle]) -> None:
        """Run each row alone for as long as the settings say. An interrupted run starts anew, on a cool device."""
        slices = math.ceil(self._settings.sustained / SLICE)
        for name in list(live):
            row = self._results.row(name)
            if len(row.sustained.slices.rounds) == slices:
                continue
            self._progress(f"letting the device cool down before {name}", 0, 1)
            sleep(self._settings.cooldown)
            self._results.save(replace(row, sustained=Sustained()))
            for i in range(slices):
                self._progress(f"sustained run of {name}", i, slices)
                turn = {"samples": 1, "seconds": min(SLICE, self._settings.sustained - i * SLICE)}
                if not self._ask(name, live[name], "time", self._with_slice, SLICE, **turn):
                    live.pop(name).kill()
                    break
                self._results.save()

    def _with_slice(self, row: Row, answer: dict[str, Any]) -> Row:
        so_far = row.sustained
        slices = Latency((*so_far.slices.rounds, tuple(answer["ns"])))
        return replace(row, sustained=Sustained(slices, (*so_far.states, self._workers.machine.pulse())))

    def _ask(
        self,
        name: str,
        worker: WorkerHandle,
        do: str,
        change: Callable[[Row, dict[str, Any]], Row],
        wait: float = 0.0,
        **request: Any,
    ) -> bool:
        """Ask a worker, and put the answer into its row; return False where the worker failed.

        The row then tells the reason.
        """
        row = self._results.row(name)
        try:
            answer = worker.ask(do, wait, **request)
            row = with_notes(change(row, answer), answer)
        except WorkerFailed as failure:
            row = failed(row, failure)
        self._results.put(row)
        return not row.reason


def _with_turn(row: Row, answer: dict[str, Any]) -> Row:
    spans = (*row.latency.spans, *([answer["span_ns"]] if "span_ns" in answer else []))
    energy = (*row.energy_uj, *([answer["energy_uj"]] if "energy_uj" in answer else []))
    latency = Latency((*row.latency.rounds, tuple(answer["ns"])), spans, row.batch)
    return replace(row, latency=latency, energy_uj=energy)


def _with_peak(row: Row, answer: dict[str, Any]) -> Row:
    return replace(row, memory={**row.memory, **answer["memory"]})
