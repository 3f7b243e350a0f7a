"""Masks at the size of the photos, and times in rounds: a bench whose rows come one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.benchmarks.fitting.choice import Limits, losers
from u2export.benchmarks.fitting.full_size import FullSize
from u2export.benchmarks.measuring.bench import Bench
from u2export.benchmarks.measuring.judging import Judging
from u2export.benchmarks.measuring.photos import Photos
from u2export.benchmarks.measuring.plan import Plan, Progress
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.timing import Timing
from u2export.benchmarks.report import Report, Row
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.reference.fidelity import ImageFidelity, image_json
from u2export.reference.source import Source
from u2export.reference.spread import evenly_spread

if TYPE_CHECKING:
    from u2export.benchmarks.cluster.full_size import ClusterFullSize
    from u2export.benchmarks.cluster.machine import ClusterMachine

# Photos of which the device makes the masks where a cluster judges all of them: their times tell what is hopeless.
HERE = 8


class Stopped(UserError):
    """An error that ends the search: every further candidate would meet it too."""


class Trial(Bench):
    """Judges artifacts one after another, then times those that are worth it.

    Args:
        plan, scratch, saved, progress: as of `Bench`; the plan's artifacts are those known from the start.
        source: the reference.
        limits: end the rounds of rows that cannot win any more.
        cluster: judges the masks on all photos; this machine then makes those of a few photos. None for this machine.

    Raises:
        UserError: as of `Bench`, or the workers of the cluster are not like this machine.
    """

    def __init__(
        self,
        plan: Plan,
        scratch: Path,
        saved: Callable[[Report], None],
        progress: Progress,
        source: Source,
        limits: Limits,
        cluster: ClusterMachine | None = None,
    ) -> None:
        self._few = HERE if cluster else 0
        super().__init__(plan, scratch, saved, progress, None)
        self._limits = limits
        self._here = self._judged_here()
        self.reference = FullSize(source, list(self._here.paths.values()), progress)
        self.planned: dict[str, PlannedRow] = {}
        self.stopped: dict[str, str] = {}
        self._machine.send_photos(self._here.paths.values())
        self._everywhere = self._on(cluster, source) if cluster else None
        self._cluster = cluster

    def _on(self, cluster: ClusterMachine, source: Source) -> ClusterFullSize:
        from u2export.benchmarks.cluster.full_size import ClusterFullSize
        from u2export.benchmarks.cluster.standing import standing

        cluster.check_like(standing())
        return ClusterFullSize(cluster, source, self.photos, self._plan.settings.threads or 1, self._progress)

    def _judged_here(self) -> Photos:
        """Return the photos whose masks this machine makes: all, or a few where a cluster judges all."""
        if not self._few:
            return self.photos
        chosen = evenly_spread(list(zip(self.photos.paths.items(), self.photos.digests, strict=True)), self._few)
        return Photos(dict(pair for pair, _ in chosen), tuple(digest for _, digest in chosen), {})

    def _new_judging(self, scratch: Path) -> Judging:
        return Judging(self._plan, self._judged_here(), self._results, self._workers, scratch, self._progress)

    @property
    def report(self) -> Report:
        """The report so far."""
        return self._results.report

    def judge(self, name: str, artifact: Artifact) -> list[Row]:
        """Compare the masks of an artifact, in each arithmetic of the device; `name` is that of its rows."""
        self._machine.send_artifact(artifact)
        rows = []
        for planned in self._rows_of(name, artifact):
            row = planned.row
            self._results.save(row if row.reason else replace(row, reason="not-measured"))
            if not row.reason:
                row = self._judged(planned)
                self._results.save(row)
            self.planned[row.name] = planned
            rows.append(row)
        return rows

    def _judged(self, planned: PlannedRow) -> Row:
        row, maps = self._judging.row_with_masks(planned, None)
        if row.reason or maps is None:
            return row
        images = {photo: self.reference.compare(i, maps[i]) for i, photo in enumerate(self._here.paths)}
        row = replace(row, images=images, reference=self.reference.name)
        return self._judged_everywhere(planned, row) if self._everywhere else row

    def _judged_everywhere(self, planned: PlannedRow, row: Row) -> Row:
        """Return a row with the fidelity of all photos, by the workers of the cluster.

        Raises:
            Stopped: the cluster is lost, or the masks of its workers are not those of this machine.
        """
        assert self._everywhere
        try:
            judged = self._everywhere.judge(planned, row)
        except UserError as error:
            raise Stopped(error.problem, error.hint, error.option) from None
        if judged.reason:
            return judged
        if other := next((name for name, one in row.images.items() if _text(one) != _text(judged.images[name])), ""):
            raise Stopped(
                f"the workers of the cluster make another mask of {other} with {row.name} than this machine",
                "give workers like this machine, or judge the masks here",
                "cluster",
            )
        return judged

    def time(self, names: Sequence[str]) -> None:
        """Time rows in rounds; the rows that cannot win any more leave early."""
        if not names:
            return
        photo = next(iter(self.photos.paths.values()))
        self._results.save(baseline=next((n for n in names if self.planned[n].row.precision == "fp32"), names[0]))
        timing = Timing(self._plan, photo, None, self._results, self._workers, self._progress, self._losers)
        timing.run([self.planned[name] for name in names])

    def _losers(self, report: Report, live: Collection[str]) -> Mapping[str, str]:
        found = losers(report, live, self._limits)
        self.stopped.update(found)
        return found

    def finish(self) -> Report:
        """Complete the report."""
        environment = {**self.report.environment, "after": self._machine.state()}
        if self._cluster:
            environment["cluster"] = self._cluster.census.to_json()
        self._results.save(complete=True, environment=environment)
        return self.report


def _text(image: ImageFidelity) -> str:
    return json.dumps(image_json(image))
