"""The search for photos that show the same picture, in near-linear time and with flat memory.

Thumbnails are unit vectors. Two of them whose correlation is at least `TWINS` lie no further apart than
sqrt(2 - 2 TWINS), and an orthonormal projection never makes a distance longer. So a few projections on low frequencies
exclude nearly all pairs, and only the rest are compared in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from u2export.reference.image import Floats

TWINS = 0.98  # correlation of thumbnails; copies at half size or JPEG quality 30 >= .99, video frames ten apart <= .96
THUMB = 32
# Horizontal and vertical frequency of each projection. Photos differ most in the first ones.
_FREQUENCIES = (
    (1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (3, 0), (0, 3), (2, 2), (3, 1), (1, 3), (4, 0), (0, 4),
    (3, 2), (2, 3),
)  # fmt: skip
_SQUARED = 2 - 2 * TWINS + 1e-3  # the thousandth is room for the rounding of half-precision thumbnails
_RADIUS = _SQUARED**0.5
# Cells as wide as the radius: a look-alike lies in the same cell or in a cell beside it.
_CELLS = int(2 / _RADIUS) + 5
_BLOCK = 1 << 20  # distances at a time
_ROWS = 4096  # thumbnails at a time


class LookAlikes:
    """The thumbnails of a list of photos, arranged so that look-alikes are found quickly.

    Args:
        thumbs: vectors of length 1 and THUMB * THUMB numbers, in the order of the photos.
    """

    def __init__(self, thumbs: Sequence[NDArray[np.floating]]) -> None:
        self._thumbs = thumbs
        self._points = _projected(thumbs)
        cells = _cells(self._points)
        self._order = np.argsort(cells, kind="stable")
        self._cells = cells[self._order]

    def first_of(self, thumbs: Sequence[NDArray[np.floating]]) -> list[int]:
        """For each of other thumbnails, the index of the first photo that looks like it; -1 if there is none."""
        return self._search(thumbs, _projected(thumbs), np.full(len(thumbs), len(self._thumbs)))

    def first_before(self) -> list[int]:
        """For each photo, the index of the first photo before it that looks like it; -1 if there is none."""
        return self._search(self._thumbs, self._points, np.arange(len(self._thumbs)))

    def _search(self, thumbs: Sequence[NDArray[np.floating]], points: Floats, ends: NDArray[np.int64]) -> list[int]:
        """For each thumbnail the first look-alike with an index below its end."""
        found = [-1] * len(thumbs)
        cells = _cells(points)
        order = np.argsort(cells, kind="stable")
        starts = np.flatnonzero(np.diff(cells[order], prepend=-1))
        for start, end in pairwise([*starts.tolist(), len(order)]):
            near = self._beside(int(cells[order[start]]))
            step = max(1, _BLOCK // max(1, len(near)))
            for at in range(start, end, step) if len(near) else ():
                for i, candidates in self._near(order[at : min(at + step, end)], points, ends, near):
                    found[i] = self._first(thumbs[i], candidates)
        return found

    def _beside(self, cell: int) -> NDArray[np.int64]:
        """The photos in a cell and in those beside it, in their order."""
        lines = cell + np.array([(i * _CELLS + j) * _CELLS for i in (-1, 0, 1) for j in (-1, 0, 1)])
        low = np.searchsorted(self._cells, lines - 1, "left")
        high = np.searchsorted(self._cells, lines + 1, "right")
        return np.sort(np.concatenate([self._order[a:b] for a, b in zip(low, high, strict=True)]))

    def _near(
        self, rows: NDArray[np.int64], points: Floats, ends: NDArray[np.int64], near: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Rows with the photos that may look like them: those within the radius in all projections together."""
        ours, theirs = points[rows], self._points[near]
        squared = (ours * ours).sum(1)[:, None] + (theirs * theirs).sum(1) - 2 * (ours @ theirs.T)
        close = (squared <= _SQUARED) & (near < ends[rows][:, None])
        for row in np.flatnonzero(close.any(1)):
            yield int(rows[row]), near[close[row]]

    def _first(self, thumb: NDArray[np.floating], candidates: NDArray[np.int64]) -> int:
        """The first of the candidates that looks like a thumbnail. Most candidates do, so few are read at a time."""
        own = np.asarray(thumb, np.float32)
        at, step = 0, 4
        while at < len(candidates):
            some = candidates[at : at + step]
            alike = np.stack([self._thumbs[i] for i in some]).astype(np.float32) @ own >= TWINS
            if alike.any():
                return int(some[int(alike.argmax())])
            at, step = at + step, min(2 * step, _ROWS)
        return -1


@cache
def _directions() -> Floats:
    """The projections (THUMB * THUMB, number): orthonormal products of two cosines, as in the DCT-II."""
    steps = (np.arange(THUMB) + 0.5) * np.pi / THUMB
    waves = [np.cos(steps * k) * (2 / THUMB if k else 1 / THUMB) ** 0.5 for k in range(5)]
    return np.stack([np.outer(waves[down], waves[across]).ravel() for across, down in _FREQUENCIES], 1).astype(
        np.float32
    )


def _projected(thumbs: Sequence[NDArray[np.floating]]) -> Floats:
    points = np.zeros((len(thumbs), len(_FREQUENCIES)), np.float32)
    for at in range(0, len(thumbs), _ROWS):
        points[at : at + _ROWS] = np.stack(thumbs[at : at + _ROWS]).astype(np.float32) @ _directions()
    return points


def _cells(points: Floats) -> NDArray[np.int64]:
    """The number of the cell that each point lies in, by its first three projections."""
    at = np.floor(np.clip(points[:, :3], -1.01, 1.01) / _RADIUS).astype(np.int64) + _CELLS // 2
    return np.asarray((at[:, 0] * _CELLS + at[:, 1]) * _CELLS + at[:, 2], np.int64)
