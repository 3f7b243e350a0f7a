"""Masks at the size of the photos, and times in rounds: a bench whose rows come one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from u2export.benchmarks.fitting.choice import Limits, losers
from u2export.benchmarks.measuring.bench import Bench
from u2export.benchmarks.measuring.plan import Plan, Progress
from u2export.benchmarks.measuring.rows import PlannedRow
from u2export.benchmarks.measuring.timing import Timing
from u2export.benchmarks.report import Report, Row
from u2export.exporters.artifact import Artifact
from u2export.reference.classes import stacked
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats, bilinear
from u2export.reference.photos import read_picture
from u2export.reference.source import Source
from u2export.reference.verification import sees_nothing

LARGEST = 1024  # pixels: larger photos are compared at this height or width
log = logging.getLogger(__name__)


class FullSize:
    """The reference's maps, to be compared with maps of any size at the size of the photos.

    Args:
        source: the reference, at its own input size.
        photos: the photo files.
        progress: receives the stage, the photos done and the photos in all.

    Attributes:
        name: of the reference, as it stands in reports.
    """

    def __init__(self, source: Source, photos: Sequence[Path], progress: Progress) -> None:
        contract = source.contract
        size = f"{contract.height}" if contract.height == contract.width else f"{contract.height}x{contract.width}"
        self.name = f"{source.weights.name}-{size}-pytorch-fp32"
        self._maps: list[Floats] = []
        self._sizes: list[tuple[int, int]] = []
        for i, path in enumerate(photos):
            progress("masks of the reference", i, len(photos))
            pixels = read_picture(path, contract.channels)
            height, width = pixels.shape[:2]
            shrink = min(1.0, LARGEST / max(height, width))
            self._sizes.append((max(1, round(height * shrink)), max(1, round(width * shrink))))
            self._maps.append(source.predict(contract.tensor(pixels))[0])
        if not source.weights.random and sees_nothing(self._maps):
            log.warning("%s sees no object on any photo; check the weights and the photos", self.name)

    def compare(self, index: int, maps: Floats) -> ImageFidelity:
        """Compare the maps (K, h, w) of a photo with those of the reference, both resized to the photo's size."""
        height, width = self._sizes[index]
        return compare(_resized(maps, height, width), _resized(self._maps[index], height, width))


def _resized(maps: Floats, height: int, width: int) -> Floats:
    return np.stack([bilinear(one, height, width) for one in stacked(maps)])


class Trial(Bench):
    """Judges artifacts one after another, then times those that are worth it.

    Args:
        plan, scratch, saved, progress: as of `Bench`; the plan's artifacts are those known from the start.
        source: the reference.
        limits: end the rounds of rows that cannot win any more.
    """

    def __init__(
        self,
        plan: Plan,
        scratch: Path,
        saved: Callable[[Report], None],
        progress: Progress,
        source: Source,
        limits: Limits,
    ) -> None:
        super().__init__(plan, scratch, saved, progress, None)
        self._limits = limits
        self.reference = FullSize(source, list(self.photos.paths.values()), progress)
        self.planned: dict[str, PlannedRow] = {}
        self.stopped: dict[str, str] = {}
        self._machine.send_photos(self.photos.paths.values())

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
        images = {photo: self.reference.compare(i, maps[i]) for i, photo in enumerate(self.photos.paths)}
        return replace(row, images=images, reference=self.reference.name)

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
        self._results.save(complete=True, environment=environment)
        return self.report
