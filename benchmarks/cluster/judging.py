"""The masks of the rows, judged on a cluster: a task compares some photos of all rows of a group with the reference.

The maps stay on the workers; only the fidelity of each photo comes back.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from u2export.benchmarks.cluster.gathered import Gathered, GatheredRow
from u2export.benchmarks.cluster.machine import ClusterMachine
from u2export.benchmarks.cluster.on_worker import judge_photos
from u2export.benchmarks.cluster.window import Again, LostScheduler
from u2export.benchmarks.measuring.judging import BLIND, NO_TRUTH, Judging
from u2export.benchmarks.measuring.results import failed
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.report import Row
from u2export.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """Rows that one task judges; the first one is the reference if there is one."""

    rows: Sequence[PlannedRow]
    reference: bool
    key: str


class ClusterJudging(Judging):
    """Compares the masks of the rows on a cluster. Arguments and attributes are those of `Judging`."""

    def judge(self, group: Sequence[PlannedRow]) -> None:
        """Compare the rows of a group with the first reference that works; see `Judging.judge`.

        Raises:
            UserError: no worker can take part, or the scheduler is lost; what was judged is in the journal.
        """
        rows = self._without_maps(group, None)
        while rows:
            reference = self._choice.is_reference(rows[0], group)
            gathered = self._gather(self._group(rows, reference))
            taken = rows[:1] if gathered.reference_failed else rows
            name = rows[0].row.name if reference else ""
            for planned, found in zip(taken, gathered.rows, strict=False):
                self._results.save(self._row(planned, found, "" if planned is rows[0] else name))
            if not gathered.reference_failed:
                if reference and not group[0].row.weights.random and not gathered.rows[0].seen:
                    self._note_blind(name, rows)
                break
            rows = rows[1:]
        environment = {**self._results.report.environment, "cluster": self._cluster.census.to_json()}
        self._results.save(environment=environment)

    @property
    def _cluster(self) -> ClusterMachine:
        machine = self._workers.machine
        assert isinstance(machine, ClusterMachine)
        return machine

    def _group(self, rows: Sequence[PlannedRow], reference: bool) -> _Group:
        what = [[p.row.name, p.row.digest, p.row.arithmetic, p.row.weights.sha256] for p in rows]
        about = [self._photos.digest, what, reference, sorted(map(str, self._plan.masks)), self._cluster.kind]
        return _Group(rows, reference, hashlib.sha256(json.dumps(about).encode()).hexdigest())

    def _gather(self, group: _Group) -> Gathered:
        """Have a group judged, except for what the journal of an earlier run holds."""
        photos, journal = len(self._photos.paths), self._cluster.journal
        gathered = Gathered(len(group.rows), photos, group.reference)
        for line in journal.lines(group.key):
            if not gathered.has(line["start"], line["count"]):
                gathered.add(line["start"], line["count"], line["rows"], line["told"])
        stage = f"judging {len(group.rows)} rows" if len(group.rows) > 1 else f"masks of {group.rows[0].row.name}"

        def verdict(key: tuple[int, int, list[int]], result: dict[str, Any]) -> Again | None:
            return gathered.verdict(key[0], key[2], result["rows"])

        self._progress(stage, gathered.done, photos)
        tasks = self._tasks(group, gathered)
        try:
            for (start, count, rows), result in self._cluster.window.results(judge_photos, tasks, verdict):
                gathered.add(start, count, rows, result["rows"])
                journal.add(group.key, start=start, count=count, rows=rows, told=result["rows"])
                self._progress(stage, gathered.done, photos)
                if gathered.reference_failed:
                    break
        except LostScheduler as lost:
            kept = f"what was judged is in {journal.path}; start a scheduler, and use --resume" if journal.path else ""
            hint = kept or "nothing was kept; with --json FILE the next run can be continued by --resume"
            raise UserError(f"{lost.problem}, after {gathered.done} of {photos} photos", hint) from None
        return gathered

    def _tasks(self, group: _Group, gathered: Gathered) -> Iterator[tuple[tuple[int, int, list[int]], dict[str, Any]]]:
        """Yield the tasks that are left: (first photo, number of photos, numbers of the rows) and the task."""
        machine, paths = self._cluster, list(self._photos.paths.values())
        specs = [machine.row(planned, self._workers.opening(planned)) for planned in group.rows]
        for start, count in gathered.chunks(machine.chunk(paths)):
            rows = gathered.wanted(start)
            some, end = paths[start : start + count], start + count
            yield (
                (start, count, rows),
                {
                    **machine.about(),
                    "photos": machine.photos(some, self._photos.digests[start:end]),
                    "truths": self._truths(some),
                    "rows": [specs[i] for i in rows],
                    "reference": group.reference,
                },
            )

    def _truths(self, photos: Sequence[Path]) -> list[dict[str, Any] | None]:
        """Return a mask or None for each photo; nothing where no accuracy is asked for."""
        masks = self._plan.masks
        files = iter(self._cluster.files([masks[photo] for photo in photos if photo in masks]))
        return [next(files) if photo in masks else None for photo in photos] if masks else []

    def _row(self, planned: PlannedRow, found: GatheredRow, reference: str) -> Row:
        """Return a row with what was gathered; `reference` is empty for the reference itself and without one."""
        row = replace(self._results.row(planned.row.name), reference=reference)
        if found.failure:
            return failed(row, WorkerFailed(*found.failure[1:]))
        names = zip(self._photos.paths, found.images, strict=True)
        untrue = bool(self._plan.masks) and found.maps > 1
        notes = (*row.notes, *found.notes, *([NO_TRUTH] if untrue else []))
        return replace(
            row,
            images={name: image for name, image in names if image is not None},
            accuracy=found.accuracy.result(),
            notes=tuple(dict.fromkeys(notes)),
            runtime=found.runtime,
            reason="",
            problem="",
        )

    def _note_blind(self, reference: str, rows: Sequence[PlannedRow]) -> None:
        log.warning("%s %s; check the weights, the size and the normalisation", reference, BLIND)
        for row in (self._results.row(planned.row.name) for planned in rows):
            if not row.reason:
                self._results.save(replace(row, notes=tuple(dict.fromkeys((*row.notes, f"the reference {BLIND}")))))
