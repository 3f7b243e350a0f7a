"""The masks of the rows: each row's maps are made by a worker and compared with the maps of a reference."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from u2export.benchmarks.measuring import map_files
from u2export.benchmarks.measuring.ground_truth import Accuracy, read_truth
from u2export.benchmarks.measuring.photos import Photos
from u2export.benchmarks.measuring.plan import Plan, Progress
from u2export.benchmarks.measuring.results import Results, failed, with_notes
from u2export.benchmarks.measuring.rows import PlannedRow, ReferenceChoice
from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerHandle
from u2export.benchmarks.measuring.workers import Workers
from u2export.benchmarks.report import Row
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity, check_maps, compare
from u2export.reference.image import Floats
from u2export.reference.verification import sees_nothing

BLIND = "sees no object on any photo"
log = logging.getLogger(__name__)

NO_TRUTH = "several classes: not compared with ground truth"


@dataclass(frozen=True)
class Judged:
    """The maps d0 of one group of rows, mapped into memory from scratch files.

    Attributes:
        reference: name of the reference; empty where the group has none.
        want: maps of the reference (photos, K, height, width), float32; None where the group has none.
        rows: maps of the rows by name, of the same shape.
    """

    reference: str
    want: Floats | None
    rows: Mapping[str, Floats]


class _Reference(NamedTuple):
    name: str
    maps: Floats


class Judging:
    """Compares the masks of the rows, one group of rows after the other.

    Args:
        plan: what to compare, and with what.
        photos: the photos that can be read.
        results: receives every row.
        workers: starts one worker for each row.
        scratch: folder for the files of the maps.
        progress: receives the stage, the photos done and the photos in all.

    Attributes:
        judged: the maps of the groups so far; they exist as long as `scratch` does.
    """

    def __init__(
        self, plan: Plan, photos: Photos, results: Results, workers: Workers, scratch: Path, progress: Progress
    ) -> None:
        self.judged: list[Judged] = []
        self._plan, self._photos, self._results, self._workers = plan, photos, results, workers
        self._choice = ReferenceChoice(plan.reference, plan.output_name)
        self._scratch, self._progress = scratch, progress
        self._files = 0

    def judge(self, group: Sequence[PlannedRow]) -> None:
        """Make the maps of the rows of a group, and compare them with the first reference that works.

        Args:
            group: rows of the same weights and image contract, possible references first.

        Raises:
            UserError: the maps of `--reference` do not fit, or the reference's maps cannot be written.
        """
        reference = self._reference_file(group)
        rows: dict[str, Floats] = {}
        for planned in self._without_maps(group, reference):
            row, maps = self.row_with_masks(planned, reference)
            self._results.save(row)
            if row.reason or maps is None:
                continue
            rows[row.name] = maps
            if reference is None and self._choice.is_reference(planned, group):
                reference = _Reference(row.name, maps)
        name, want = reference or ("", None)
        self.judged.append(Judged(name, want, rows))
        self._note_blindness(group, name, want, rows)
        if want is not None and self._plan.save_reference:
            weights, contract = self._choice.key(group[0])
            map_files.save_reference(want, self._photos.digests, weights, contract, self._plan.save_reference)

    def _note_blindness(
        self, group: Sequence[PlannedRow], reference: str, want: Floats | None, rows: Mapping[str, Floats]
    ) -> None:
        """Note on the rows of a group that their reference sees no object; masks that show nothing agree easily."""
        if want is None or group[0].row.weights.random or not sees_nothing(want):
            return
        log.warning("%s %s; check the weights, the size and the normalisation", reference, BLIND)
        for row in map(self._results.row, rows):
            self._results.save(replace(row, notes=tuple(dict.fromkeys((*row.notes, f"the reference {BLIND}")))))

    def _reference_file(self, group: Sequence[PlannedRow]) -> _Reference | None:
        """Return the maps of an .npz that is the group's reference; None where the reference is another."""
        if self._choice.kind != "maps" or self._choice.key(group[0])[0] != self._choice.sha256:
            return None
        file = Path(self._plan.reference)
        maps = map_files.load_reference(file, self._photos.digests, group[0].contract, self._new_file())
        return _Reference(file.name, maps)

    def _without_maps(self, group: Sequence[PlannedRow], reference: _Reference | None) -> list[PlannedRow]:
        """Return the rows whose maps must be made now, the reference first where another row needs it."""
        possible = [p for p in group if not p.row.reason and self._choice.is_reference(p, group)]
        first = possible[0] if possible and reference is None else None
        expected = reference.name if reference else first.row.name if first else ""
        rows = [p for p in group if not p.row.reason and not self._workers.runs_outside(p)]
        rows = [p for p in rows if self._plan.all_maps or not self._is_complete(p, expected)]
        if rows and first and rows[0] is not first:
            rows.insert(0, first)
        return rows

    def _is_complete(self, planned: PlannedRow, reference: str) -> bool:
        """Tell whether an earlier run has already compared the row with this reference."""
        row = self._results.row(planned.row.name)
        same_photos = list(row.images) == list(self._photos.paths)
        compared = row.name == reference or (row.reference == reference and same_photos)
        return not row.reason and compared and bool(row.accuracy) == bool(self._plan.masks)

    def _new_file(self) -> Path:
        self._files += 1
        return self._scratch / f"{self._files}.npy"

    def row_with_masks(self, planned: PlannedRow, reference: _Reference | None) -> tuple[Row, Floats | None]:
        """Return the row with its fidelity, accuracy and the times of each photo; and its maps, None on a failure."""
        row = replace(self._results.row(planned.row.name), reference=reference.name if reference else "")
        opening = self._workers.opening(planned)
        try:
            with self._workers.start(self._workers.machine_of(planned)) as worker:
                opened = worker.ask("open", **opening)
                maps, answers = self._maps(planned, worker)
                start = {"start": opened["memory"]} if "memory" in opened else {}
                memory = {**start, **worker.ask("memory")["memory"]}
            if reference and len(maps):
                refuse_other_maps(maps[0], reference.maps[0])
        except WorkerFailed as failure:
            return failed(row, failure, opening.get("artifact", "")), None
        measured = replace(
            row,
            images=self._fidelity(maps, reference),
            accuracy=self._accuracy(maps),
            notes=self._notes(with_notes(row, opened), maps),
            load_ns=(opened["load_ns"],),
            opening_ns={phase: (ns,) for phase, ns in opened["opening_ns"].items()},
            preprocess_ns=_times(answers, "preprocess_ns"),
            inference_ns=_times(answers, "inference_ns"),
            postprocess_ns=_times(answers, "postprocess_ns"),
            memory=memory,
            runtime=opened["runtime"],
            reason="",
            problem="",
        )
        return measured, maps

    def _maps(self, planned: PlannedRow, worker: WorkerHandle) -> tuple[Floats, list[dict[str, Any]]]:
        """Return all maps of every photo, in a scratch file, and the worker's answers without the maps."""
        machine, found = self._workers.machine_of(planned), []
        maps: Floats | None = None
        paths = [machine.path(path) for path in self._photos.paths.values()]
        answers = worker.stream("predict", photos=paths)
        for i in range(len(paths)):
            self._progress(f"masks of {planned.row.name}", i, len(paths))
            answer = next(answers)
            count = answer.pop("maps")
            if maps is None:
                maps = map_files.create(self._new_file(), len(paths), count, planned.contract)
            maps[i] = np.frombuffer(b64decode(answer.pop("d0")), "<f4").reshape(maps[i].shape)
            found.append(answer)
        if maps is None:
            maps = map_files.create(self._new_file(), 0, 1, planned.contract)
        return maps, found

    def _fidelity(self, maps: Floats, reference: _Reference | None) -> dict[str, ImageFidelity]:
        """Return the fidelity of each photo's mask; empty without a reference."""
        if reference is None:
            return {}
        pairs = zip(self._photos.paths, maps, reference.maps, strict=True)
        return {name: compare(got, want) for name, got, want in pairs}

    def _notes(self, row: Row, maps: Floats) -> tuple[str, ...]:
        untrue = bool(self._plan.masks) and maps.shape[1] > 1
        return (*row.notes, NO_TRUTH) if untrue and NO_TRUTH not in row.notes else row.notes

    def _accuracy(self, maps: Floats) -> dict[str, float]:
        """Return the measures against ground truth; empty without masks, and for several classes."""
        if not self._plan.masks or maps.shape[1] > 1:
            return {}
        accuracy = Accuracy()
        for path, d0 in zip(self._photos.paths.values(), maps, strict=True):
            if path in self._plan.masks:
                accuracy.add(d0[0], read_truth(self._plan.masks[path]))
        return accuracy.result()


def refuse_other_maps(maps: Floats, reference: Floats) -> None:
    """Refuse a row whose maps (K, H, W) of a photo are others than those of its reference: its classes are others.

    Raises:
        WorkerFailed: the number of maps or their size differs.
    """
    try:
        check_maps(maps, reference)
    except UserError as error:
        raise WorkerFailed("refused", f"{error.problem} ({error.hint})") from None


def _times(answers: Sequence[Mapping[str, Any]], name: str) -> tuple[int, ...]:
    return tuple(answer[name] for answer in answers if name in answer)
