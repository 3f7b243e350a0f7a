"""What the tasks of one group of rows have given so far, put in the order of the photos."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from u2export.benchmarks.cluster.window import Again
from u2export.benchmarks.measuring.ground_truth import Accuracy, Measures
from u2export.benchmarks.report import image_from_json
from u2export.reference.fidelity import ImageFidelity

Data = Mapping[str, Any]
# Reasons that may be those of the machine and not of the artifact: such a task is done twice.
PERHAPS_THE_MACHINE = ("crashed", "timeout")


class GatheredRow:
    """One row: its fidelity photo by photo, and its first failure."""

    def __init__(self, photos: int) -> None:
        self.images: list[ImageFidelity | None] = [None] * photos
        self.accuracy = Accuracy()
        self.runtime: dict[str, str] = {}
        self.notes: list[str] = []
        self.maps = 1
        self.seen = False
        self.failure: tuple[int, str, str] | None = None  # first photo of the task, reason, problem
        self._waiting: dict[int, tuple[int, list[Measures]]] = {}
        self._next = 0

    def add(self, start: int, count: int, told: Data) -> None:
        """Add what a task told about `count` photos from number `start` on."""
        if "reason" in told:
            self.failure = min(self.failure or (start, "", ""), (start, told["reason"], told["problem"]))
            if not self.failure[1]:
                self.failure = (start, told["reason"], told["problem"])
            return
        self.runtime, self.maps = dict(told["runtime"]), int(told["maps"])
        self.notes = list(dict.fromkeys([*self.notes, *told["notes"]]))
        self.seen |= bool(told["seen"])
        for i, image in enumerate(told["images"]):
            self.images[start + i] = image_from_json(image)
        self._waiting[start] = (count, [_measures(one) for one in told["accuracy"]])
        while self._next in self._waiting:
            count, found = self._waiting.pop(self._next)
            self._next += count
            for one in found:
                self.accuracy.include(one)


class Gathered:
    """All rows of one group.

    Args:
        rows: the number of rows.
        photos: the number of photos.
        reference: whether the first row is the reference of the others.
    """

    def __init__(self, rows: int, photos: int, reference: bool) -> None:
        self.rows = [GatheredRow(photos) for _ in range(rows)]
        self.done = 0
        self._reference = reference
        self._missing = bytearray(b"\1" * photos)
        self._again: set[int] = set()

    @property
    def reference_failed(self) -> bool:
        """Whether the reference failed, so that all rows need another one."""
        return self._reference and self.rows[0].failure is not None

    def wanted(self, start: int) -> list[int]:
        """Return the numbers of the rows that a task from photo `start` on must judge: not those that failed before."""
        return [i for i, row in enumerate(self.rows) if row.failure is None or row.failure[0] > start]

    def verdict(self, start: int, rows: Sequence[int], told: Sequence[Data]) -> Again | None:
        """Tell whether a task must be done again: a process died, or a runtime ran otherwise than on other workers."""
        for number, one in zip(rows, told, strict=False):
            known = self.rows[number].runtime
            if known and "reason" not in one and (wrong := _other(one["runtime"], known)):
                return Again(wrong)
        if any(one.get("reason") in PERHAPS_THE_MACHINE for one in told) and start not in self._again:
            self._again.add(start)
            return Again()
        return None

    def add(self, start: int, count: int, rows: Sequence[int], told: Sequence[Data]) -> None:
        """Add the result of a task."""
        for number, one in zip(rows, told, strict=False):
            self.rows[number].add(start, count, one)
        self._missing[start : start + count] = bytes(count)
        self.done += count

    def has(self, start: int, count: int) -> bool:
        """Whether one of these photos was judged already, or there are not so many."""
        missing = self._missing[start : start + count]
        return len(missing) != count or not all(missing)

    def chunks(self, most: int) -> Iterator[tuple[int, int]]:
        """Yield the first photo and the number of photos of each task that is left, at most `most` photos a task."""
        start = 0
        while (start := self._missing.find(1, start)) >= 0:
            end = self._missing.find(0, start, start + most)
            stop = end if end >= 0 else min(start + most, len(self._missing))
            yield start, stop - start
            start = stop


def _measures(told: Data) -> Measures:
    precision, recall = (np.frombuffer(b64decode(told[name])) for name in ("precision", "recall"))
    return Measures(precision, recall, float(told["mae"]), float(told["s"]))


def _other(runtime: Data, known: Data) -> str:
    pairs = {k: (runtime.get(k), known.get(k)) for k in sorted({*runtime, *known})}
    return "; ".join(f"{k} {a} in place of {b}" for k, (a, b) in pairs.items() if a != b)
