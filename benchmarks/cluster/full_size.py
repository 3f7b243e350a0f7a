"""The masks of `fit`, judged on a cluster: at the size of the photos, candidate after candidate.

Times are those of the device. The device also makes the masks of a few photos, which must be those of the workers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from u2export.benchmarks.cluster.gathered import Gathered, GatheredRow
from u2export.benchmarks.cluster.machine import ClusterMachine
from u2export.benchmarks.cluster.on_fit import judge_full_size
from u2export.benchmarks.cluster.window import Again
from u2export.benchmarks.fitting.full_size import BLIND
from u2export.benchmarks.measuring.photos import Photos
from u2export.benchmarks.measuring.plan import Progress
from u2export.benchmarks.measuring.results import failed
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.report import Row
from u2export.reference.source import Source

log = logging.getLogger(__name__)
Data = dict[str, Any]


class ClusterFullSize:
    """Judges rows on all photos of a search.

    Args:
        machine: the cluster, whose context exists.
        source: the reference, at its own input size.
        photos: the photos.
        threads: threads of each runtime.
        progress: receives the stage, the photos done and the photos in all.
    """

    def __init__(
        self, machine: ClusterMachine, source: Source, photos: Photos, threads: int, progress: Progress
    ) -> None:
        self._machine, self._photos, self._threads, self._progress = machine, photos, threads, progress
        self._source = source
        self._reference = machine.reference(source)
        self._near: dict[int, str] = {}
        self._told_blind = False

    def judge(self, planned: PlannedRow, row: Row) -> Row:
        """Return a row with the fidelity of all photos; with a reason where it fails on the workers.

        Raises:
            UserError: no worker can take part, or the scheduler is lost.
        """
        found = self._gather(planned)
        if found.failure:
            return failed(row, WorkerFailed(*found.failure[1:]))
        if not found.seen and not self._source.weights.random and not self._told_blind:
            self._told_blind = True
            log.warning(BLIND, row.reference)
        images = zip(self._photos.paths, found.images, strict=True)
        return replace(row, images={name: image for name, image in images if image is not None})

    def _gather(self, planned: PlannedRow) -> GatheredRow:
        photos = len(self._photos.paths)
        gathered = Gathered(1, photos, False)
        stage = f"masks of {planned.row.name}"

        def verdict(key: tuple[int, int], result: Data) -> Again | None:
            return gathered.verdict(key[0], [0], result["rows"])

        self._progress(stage, 0, photos)
        for (start, count), result in self._machine.window.results(judge_full_size, self._tasks(planned), verdict):
            self._near[start] = result["worker"]
            gathered.add(start, count, [0], result["rows"])
            self._progress(stage, gathered.done, photos)
            if gathered.rows[0].failure:
                break
        return gathered.rows[0]

    def _tasks(self, planned: PlannedRow) -> Iterator[tuple[tuple[int, int], Data]]:
        machine, paths = self._machine, list(self._photos.paths.values())
        row = machine.row(planned, {"threads": self._threads, **planned.opening})
        most = machine.chunk(paths)
        for start in range(0, len(paths), most):
            photos = machine.photos(paths[start : start + most], self._photos.digests[start : start + most])
            yield (
                (start, len(photos)),
                {
                    **machine.about(), "photos": photos, "row": row, "reference": self._reference,
                    "near": self._near.get(start, ""),
                },
            )  # fmt: skip
