"""Masks of a bench on disk, compressed: to judge them again under another threshold, or on another machine.

Sixteen bits a pixel: a map d0 comes back to within 8e-6 of its range, far below any limit of a policy.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.gate.baseline import Baseline, bare
from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.report import Report, Row
from u2export.errors import UserError
from u2export.files import staged
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats

SCHEMA = 1
TOP = 65535
HINT = "give a file that `u2export bench --keep-masks` wrote"


@dataclass(frozen=True)
class SavedMasks:
    """Maps d0 (photos, height, width) of one bench.

    Attributes:
        photos, photos_digest: as in its report.
        rows: maps by row. references: maps of the reference by `key`, where there was one. keys: of the rows.
    """

    photos: tuple[str, ...]
    photos_digest: str
    rows: Mapping[str, Floats]
    references: Mapping[str, Floats]
    keys: Mapping[str, str]

    @classmethod
    def of(cls, report: Report, judged: Sequence[Judged]) -> SavedMasks:
        """What a bench hands out at its end."""
        keys = {row.name: key(row) for row in report.rows}
        rows = {name: maps for group in judged for name, maps in group.rows.items()}
        references = {keys[name]: g.want for g in judged if g.want is not None for name in g.rows}
        return cls(report.photos, report.photos_digest, rows, references, {name: keys[name] for name in rows})

    def save(self, path: Path) -> None:
        """Write an .npz, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        arrays: dict[str, NDArray[Any]] = {}
        about: dict[str, Any] = {"schema": SCHEMA, "photos": self.photos, "photos_digest": self.photos_digest}
        for kind, found in (("rows", self.rows), ("references", self.references)):
            about[kind] = list(found)
            for i, maps in enumerate(found.values()):
                arrays[f"{kind}{i}"], arrays[f"{kind}{i}_range"] = _packed(maps)
        about["keys"] = dict(self.keys)
        try:
            with staged(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another file") from None

    @classmethod
    def load(cls, path: Path) -> SavedMasks:
        """The masks in a file.

        Raises:
            UserError: missing, unreadable, or of another schema.
        """
        try:
            with path.open("rb") as file, np.load(file) as found:
                about = json.loads(str(found["about"]))
                if about["schema"] != SCHEMA:
                    raise UserError(f"{path} has schema {about['schema']}, this u2export reads {SCHEMA}", HINT)
                maps = {
                    kind: {
                        name: _unpacked(found[f"{kind}{i}"], found[f"{kind}{i}_range"])
                        for i, name in enumerate(about[kind])
                    }
                    for kind in ("rows", "references")
                }
                return cls(tuple(about["photos"]), about["photos_digest"], **maps, keys=about["keys"])
        except FileNotFoundError:
            raise UserError(f"no such file: {path}", HINT) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: no kept masks ({error})", HINT) from None


def key(row: Row) -> str:
    """What masks are masks of: equal for rows of the same weights and contract."""
    flat = {k: list(v) if isinstance(v, tuple) else v for k, v in row.contract.items()}
    return hashlib.sha256(f"{row.weights.sha256}{json.dumps(flat, sort_keys=True)}".encode()).hexdigest()[:16]


def _packed(maps: Floats) -> tuple[NDArray[np.uint16], Floats]:
    """Differences along rows of 16-bit values, and each map's range (photos, 2); nan for one that is not finite."""
    ranges = np.full((len(maps), 2), np.nan, np.float32)
    values = np.zeros(maps.shape, np.uint16)
    for i, d0 in enumerate(maps):
        if np.isfinite(d0).all():
            low, high = float(d0.min()), float(d0.max())
            ranges[i] = low, high
            values[i] = np.rint((d0.astype(np.float64) - low) / max(high - low, 1e-30) * TOP)
    return np.diff(values, axis=-1, prepend=np.uint16(0)), ranges


def _unpacked(differences: NDArray[np.uint16], ranges: Floats) -> Floats:
    values = np.cumsum(differences, axis=-1, dtype=np.uint16).astype(np.float64) / TOP
    low, high = (ranges[:, i, None, None].astype(np.float64) for i in (0, 1))
    return np.asarray(low + values * (high - low), np.float32)


def rejudged(report: Report, kept: SavedMasks, accepted: SavedMasks | None, threshold: float) -> Report:
    """The report with the fidelity of its kept masks, to the reference in `accepted` before the bench's own.

    Raises:
        UserError: the masks are of other photos, or there is no reference for a row.
    """
    _same_photos(kept, report.photos_digest, "the results")
    references = {**kept.references, **(accepted.references if accepted else {})}
    if accepted:
        _same_photos(accepted, report.photos_digest, "the baseline")
    rows = []
    for row in report.rows:
        if row.name in kept.rows and not row.reason and row.exporter != "pytorch":
            if key(row) not in references:
                raise UserError(f"no reference was kept for {row.name}", "keep the masks of the baseline's bench too")
            row = replace(row, images=_fidelity(report.photos, kept.rows[row.name], references[key(row)], threshold))
        rows.append(row)
    return replace(report, rows=tuple(rows))


def rejudged_baseline(baseline: Baseline, kept: SavedMasks, threshold: float) -> Baseline:
    """The baseline with the fidelity of its kept masks.

    Raises:
        UserError: the masks are of other photos, or an artifact's are not among them.
    """
    _same_photos(kept, baseline.photos_digest, "the baseline")
    names = {bare(name): name for name in kept.rows}
    artifacts = {}
    for name, accepted in baseline.artifacts.items():
        row = names.get(name, "")
        if kept.keys.get(row) not in kept.references:
            raise UserError(f"the baseline's masks have none of {name}", "accept it again with --keep-masks")
        maps, want = kept.rows[row], kept.references[kept.keys[row]]
        artifacts[name] = replace(accepted, images=_fidelity(baseline.photos, maps, want, threshold))
    return replace(baseline, artifacts=artifacts)


def _same_photos(kept: SavedMasks, digest: str, what: str) -> None:
    if kept.photos_digest != digest:
        raise UserError(f"the masks are of other photos than {what}", HINT)


def _fidelity(photos: Sequence[str], maps: Floats, want: Floats, threshold: float) -> dict[str, ImageFidelity]:
    return {p: compare(got, ref, threshold) for p, got, ref in zip(photos, maps, want, strict=True)}


def beside(baseline: Path) -> Path:
    """Where the masks of a baseline lie."""
    return baseline.with_suffix(".masks.npz")
