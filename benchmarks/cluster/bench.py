"""A bench on a cluster: masks only, because the times of a shared machine mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from u2export.benchmarks.cluster.judging import ClusterJudging
from u2export.benchmarks.cluster.machine import ClusterMachine
from u2export.benchmarks.cluster.on_worker import read_photos
from u2export.benchmarks.measuring.bench import Bench
from u2export.benchmarks.measuring.judging import Judging
from u2export.benchmarks.measuring.photos import Photos, some_photos
from u2export.benchmarks.report import Report
from u2export.errors import UserError


class ClusterBench(Bench):
    """One run of a plan whose machine is a `ClusterMachine`. Arguments are those of `Bench`."""

    def run(self) -> Report:
        """Judge all rows and return the complete report; the journal is then removed. See `Bench.run`."""
        report = super().run()
        self._cluster.journal.remove()
        return report

    @property
    def _cluster(self) -> ClusterMachine:
        machine = self._workers.machine
        assert isinstance(machine, ClusterMachine)
        return machine

    def _new_judging(self, scratch: Path) -> Judging:
        return ClusterJudging(self._plan, self.photos, self._results, self._workers, scratch, self._progress)

    def _readable(self, channels: int) -> Photos:
        """Have the workers read every photo once, as `photos.readable` does."""
        names, paths = list(self._plan.photos), list(self._plan.photos.values())
        digests = [""] * len(paths)
        broken: dict[int, str] = {}
        most, done = self._cluster.chunk(paths), 0

        def tasks() -> Iterator[tuple[int, dict[str, Any]]]:
            for start in range(0, len(paths), most):
                files = self._cluster.files(paths[start : start + most])
                yield start, {**self._cluster.about(), "photos": files, "channels": channels}

        for start, result in self._cluster.window.results(read_photos, tasks()):
            for i, told in enumerate(result["photos"], start):
                digests[i] = told.get("digest", "")
                if "broken" in told:
                    broken[i] = told["broken"]
            done += len(result["photos"])
            self._progress("reading photos", done, len(paths))
            if broken and self._plan.strict:
                raise UserError(broken[min(broken)])
        good = [i for i, digest in enumerate(digests) if digest]
        return some_photos(
            Photos(
                {names[i]: paths[i] for i in good},
                tuple(digests[i] for i in good),
                {names[i]: broken[i] for i in sorted(broken)},
            )
        )
