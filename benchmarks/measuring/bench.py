"""The run of a bench: it plans the rows, has their masks compared (`judging`), and has them timed (`timing`).

Each row lives in a process of its own (`worker`). First the masks of every row are compared, one worker at a time. Then
all workers are alive together and take turns in random order, so that a slow spell of the machine falls on all rows.
The report is saved after every row and every round.

The rows may live on another machine (`ssh`). The workers there take the times; the reference's masks are made here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from u2export.benchmarks.measuring.judging import Judged, Judging
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.photos import Photos, readable
from u2export.benchmarks.measuring.plan import Plan, Progress
from u2export.benchmarks.measuring.results import Results, failed
from u2export.benchmarks.measuring.rows import (
    PlannedRow,
    ReferenceChoice,
    chosen_output,
    groups,
    in_scenario,
    missing_references,
    named,
    planned_artifact,
)
from u2export.benchmarks.measuring.timing import Timing
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.measuring.workers import Workers
from u2export.benchmarks.report import Report, Row
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact

# Seconds. A small board may take half an hour to build an engine.
BUILD_SECONDS = 3600.0
WITHOUT_REFERENCE = "not compared with PyTorch: its weights were not found"
log = logging.getLogger(__name__)


class Bench:
    """One run of a plan.

    Args:
        plan: what to do.
        scratch: folder for logs and maps, which must exist as long as `judged` is used.
        saved: receives the report after every step.
        progress: receives the stage, the steps done and the steps in all.
        earlier: the report of an interrupted run of the same plan, to continue; None for a new run.

    Raises:
        UserError: no photo can be read, a photo is broken and the plan is strict, or `earlier` is of something else.
    """

    def __init__(
        self, plan: Plan, scratch: Path, saved: Callable[[Report], None], progress: Progress, earlier: Report | None
    ) -> None:
        self._plan, self._progress, self._earlier = plan, progress, earlier
        self._choice = ReferenceChoice(plan.reference, plan.output_name)
        self._workers = Workers(plan, scratch)
        self._machine = self._workers.machine
        self._without_reference = missing_references(plan.artifacts, self._choice)
        for remark in self._without_reference.values():
            log.warning("%s", remark)
        report = _empty_report(plan, self._machine)
        channels = {artifact.contract.channels for artifact in plan.artifacts}
        self.photos = self._readable(channels.pop() if len(channels) == 1 else 0)
        report = _with_photos(report, self.photos, plan)
        if earlier:
            _check_same_bench(earlier, report)
        self._results = Results(report, saved)
        self._judging = self._new_judging(scratch)

    def _readable(self, channels: int) -> Photos:
        """Return the photos of the plan that can be read; `.npy` pictures must have `channels`, or any number if 0."""
        return readable(self._plan.photos, self._plan.strict, self._progress, channels)

    def _new_judging(self, scratch: Path) -> Judging:
        """Return what compares the masks of the rows."""
        return Judging(self._plan, self.photos, self._results, self._workers, scratch, self._progress)

    @property
    def judged(self) -> Sequence[Judged]:
        """The maps of the groups of rows, as long as the scratch folder exists."""
        return self._judging.judged

    def run(self) -> Report:
        """Measure all rows and return the complete report.

        Raises:
            UserError: the reference does not fit, or no row has the name of the baseline.
        """
        by_reference = groups(self._planned_rows(), self._choice)
        by_reference = [[in_scenario(p, self._plan.settings) for p in group] for group in by_reference]
        inside = []
        for planned in (p for group in by_reference for p in group):
            if self._workers.runs_outside(planned):
                self._results.outside[planned.row.name] = replace(planned.row, reason="not-measured")
            else:
                inside.append(planned)
        self._machine.send_photos(self.photos.paths.values())
        self._choose_baseline([planned.row.name for planned in inside])
        for planned in inside:
            self._results.save(self._first_state(planned))
        for group in by_reference:
            self._judging.judge(group)
        if self._plan.latency:
            photo = next(iter(self.photos.paths.values()))
            timing = Timing(self._plan, photo, self._earlier, self._results, self._workers, self._progress)
            timing.run([p for p in inside if self._results.row(p.row.name).runtime])
        environment = {**self._results.report.environment, "after": self._machine.state()}
        self._results.save(complete=True, environment=environment)
        return self._results.report

    def _planned_rows(self) -> list[PlannedRow]:
        """Send every artifact to the machine, and return the rows of its arithmetics there."""
        found: list[PlannedRow] = []
        if self._choice.kind == "artifact":
            self._machine.send_artifact(self._choice.artifact)
        for i, (name, artifact) in enumerate(named(self._plan.artifacts).items()):
            self._progress("looking at artifacts", i, len(self._plan.artifacts))
            self._machine.send_artifact(artifact)
            found += self._rows_of(name, artifact)
        return found

    def _rows_of(self, name: str, artifact: Artifact) -> Iterator[PlannedRow]:
        """Yield a row for each arithmetic in which the machine runs an artifact; one row with a reason if it cannot."""
        first = planned_artifact(name, artifact)
        first = replace(first, row=replace(first.row, provenance=self._machine.provenance))
        if artifact.weights.sha256 in self._without_reference:
            first = replace(first, row=replace(first.row, notes=(*first.row.notes, WITHOUT_REFERENCE)))
        path, workshop = self._machine.path(artifact.path), self._machine.workshop()
        try:
            with self._workers.start() as worker:
                wait = BUILD_SECONDS if workshop else 0.0
                answer = worker.ask("describe", wait, artifact=path, workshop=workshop, **chosen_output(artifact))
        except WorkerFailed as failure:
            yield replace(first, row=failed(first.row, failure, path))
            return
        if built := answer.get("built", ""):
            notes = (*first.row.notes, "built on the device")
            opening = {**first.opening, "built": built}
            first = replace(first, row=replace(first.row, size=answer["size"], notes=notes), opening=opening)
        arithmetics = answer["modes"]
        for arithmetic in arithmetics if self._plan.arithmetics == "all" else arithmetics[:1]:
            default = arithmetic == arithmetics[0]
            row = replace(first.row, name=name if default else f"{name} {arithmetic}", arithmetic=arithmetic)
            yield replace(first, row=row, opening={**first.opening, "mode": arithmetic}, default=default)

    def _choose_baseline(self, names: Sequence[str]) -> None:
        if self._plan.baseline and self._plan.baseline not in names:
            raise UserError(f"no row named {self._plan.baseline!r}", f"rows: {', '.join(names)}")
        self._results.report = replace(self._results.report, baseline=self._plan.baseline or names[0])

    def _first_state(self, planned: PlannedRow) -> Row:
        """Return the row of the earlier report where that is of the same file, else a row that is not measured yet."""
        old = self._earlier.row(planned.row.name) if self._earlier else None
        if old and not old.reason and _same_file(old, planned.row):
            return old
        if planned.row.reason:
            return planned.row
        return replace(planned.row, reason="not-measured", problem="interrupted before its turn")


def _same_file(one: Row, other: Row) -> bool:
    return (one.digest, one.arithmetic) == (other.digest, other.arithmetic)


def _empty_report(plan: Plan, machine: Machine) -> Report:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    environment = {**machine.environment(), "before": machine.state()}
    return Report(machine.device(), plan.settings, environment, created=created)


def _with_photos(report: Report, photos: Photos, plan: Plan) -> Report:
    without_mask = tuple(name for name, path in photos.paths.items() if plan.masks and path not in plan.masks)
    return replace(
        report,
        photos=tuple(photos.paths),
        photos_digest=photos.digest,
        broken=photos.broken,
        without_mask=without_mask,
    )


def _check_same_bench(earlier: Report, report: Report) -> None:
    """Check that the report of an interrupted run may be continued.

    Raises:
        UserError: the earlier report is of another device, of other runtimes, photos or settings.
    """
    hint = "measure anew, without resuming"
    if earlier.device.fingerprint != report.device.fingerprint:
        raise UserError("the results to resume are of another device", hint)
    if earlier.fingerprint != report.fingerprint:
        raise UserError("the results to resume were measured with other versions of the runtimes", hint)
    if earlier.photos_digest != report.photos_digest:
        raise UserError("the results to resume are of other photos", hint)
    if earlier.settings != report.settings:
        raise UserError("the results to resume were measured with other settings", hint)


def measure(
    plan: Plan,
    saved: Callable[[Report], None] = lambda report: None,
    progress: Progress = lambda stage, done, total: None,
    earlier: Report | None = None,
    look: Callable[[Report, Mapping[str, Path], Sequence[Judged]], None] | None = None,
    kind: type[Bench] = Bench,
) -> Report:
    """Run a plan and return the complete report.

    Args:
        plan: what to do.
        saved: receives the report after every step. The report that it received last is what an interruption leaves.
        progress: receives the stage, the steps done and the steps in all.
        earlier: the report of an interrupted run of the same plan, to continue.
        look: receives the report, the photos by name, and the maps, before the maps are deleted.
        kind: the kind of bench that the plan's machine needs.

    Raises:
        UserError: see `Bench` and `Bench.run`, and `u2export.benchmarks.measuring.ssh.SshMachine` for another machine.
    """
    machine = plan.machine or Machine(plan.worker)

    def show(stage: str, done: int, total: int) -> None:
        progress(stage, done, total)
        machine.show(stage, done, total)

    if plan.machine:
        progress("connecting", 0, 1)
    with tempfile.TemporaryDirectory(prefix="u2export-bench-") as scratch, machine:
        bench = kind(plan, Path(scratch), saved, show, earlier)
        report = bench.run()
        if look:
            look(report, bench.photos.paths, bench.judged)
        return report
