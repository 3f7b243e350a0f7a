"""The saved masks of a bench, compressed on disk, to judge them with another threshold or on another machine.

A pixel takes 16 bits. A map d0 is restored with an error of at most 8e-6 of its range, far below any limit of a policy.
"""

from __future__ import annotations

import hashlib
import json
import tokenize
import zipfile
import zlib
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
THRESHOLD = 0.5  # where a bench cuts masks
# What numpy raises for damaged archives and headers of arrays.
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, EOFError, SyntaxError, MemoryError,
          RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip
HINT = "give the file of masks that `u2export bench` saved"


@dataclass(frozen=True)
class SavedMasks:
    """The maps d0 of one bench, each an array (photos, K, height, width), K maps for K classes.

    Attributes:
        photos, photos_digest: the names of the photos and the sha256 over their files, as in the report.
        rows: the maps by name of the row.
        references: the maps of the reference by `key`; empty if the bench had no reference.
        keys: the `key` of every row by name of the row.
    """

    photos: tuple[str, ...]
    photos_digest: str
    rows: Mapping[str, Floats]
    references: Mapping[str, Floats]
    keys: Mapping[str, str]

    @classmethod
    def of(cls, report: Report, judged: Sequence[Judged]) -> SavedMasks:
        """Collect the maps that a bench hands out at its end."""
        keys = {row.name: key(row) for row in report.rows}
        rows = {name: maps for group in judged for name, maps in group.rows.items()}
        references = {keys[name]: g.want for g in judged if g.want is not None for name in g.rows}
        return cls(report.photos, report.photos_digest, rows, references, {name: keys[name] for name in rows})

    def save(self, path: Path) -> None:
        """Write an .npz file, completely or not at all.

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
        """Read the masks in a file.

        Raises:
            UserError: the file is missing, cannot be read, is damaged, or has another schema.
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
        except DAMAGE as error:
            raise UserError(f"{path} holds no saved masks ({error})", HINT) from None


def key(row: Row) -> str:
    """Return a key that is equal for rows of the same weights and the same contract, which share a reference."""
    flat = {k: list(v) if isinstance(v, tuple) else v for k, v in row.contract.items()}
    return hashlib.sha256(f"{row.weights.sha256}{json.dumps(flat, sort_keys=True)}".encode()).hexdigest()[:16]


def _packed(maps: Floats) -> tuple[NDArray[np.uint16], Floats]:
    """Return the maps as differences of 16-bit values along each line, and the ranges of the maps (photos, K, 2).

    A map with a value that is not finite gets the range nan, nan.
    """
    ranges = np.full((*maps.shape[:2], 2), np.nan, np.float32)
    values = np.zeros(maps.shape, np.uint16)
    for i in np.ndindex(*maps.shape[:2]):
        one = maps[i]
        if np.isfinite(one).all():
            low, high = float(one.min()), float(one.max())
            ranges[i] = low, high
            values[i] = np.rint((one.astype(np.float64) - low) / max(high - low, 1e-30) * TOP)
    return np.diff(values, axis=-1, prepend=np.uint16(0)), ranges


def _unpacked(differences: NDArray[np.uint16], ranges: Floats) -> Floats:
    if differences.ndim == 3:  # one map a photo, in files of u2export before 0.2
        differences, ranges = differences[:, None], ranges[:, None]
    values = np.cumsum(differences, axis=-1, dtype=np.uint16).astype(np.float64) / TOP
    low, high = (ranges[..., i, None, None].astype(np.float64) for i in (0, 1))
    return np.asarray(low + values * (high - low), np.float32)


def rejudged(report: Report, saved: SavedMasks, accepted: SavedMasks | None, threshold: float) -> Report:
    """Return the report with the fidelity of its saved masks.

    Args:
        report: the report.
        saved: the saved masks of the same bench.
        accepted: the saved masks of the accepted state. Their reference replaces the one of the bench.
        threshold: where masks are cut, from 0 to 1.

    Raises:
        UserError: the masks are of other photos, or a row has no reference.
    """
    _same_photos(saved, report.photos_digest, "the results")
    references = {**saved.references, **(accepted.references if accepted else {})}
    if accepted:
        _same_photos(accepted, report.photos_digest, "the accepted state")
    rows = []
    for row in report.rows:
        if row.name in saved.rows and not row.reason and row.exporter != "pytorch":
            if key(row) not in references:
                raise UserError(
                    f"the saved masks have no reference for {row.name}",
                    "give the saved masks of the accepted state too",
                )
            row = replace(row, images=_fidelity(report.photos, saved.rows[row.name], references[key(row)], threshold))
        rows.append(row)
    return replace(report, rows=tuple(rows))


def rejudged_baseline(baseline: Baseline, saved: SavedMasks, threshold: float) -> Baseline:
    """Return the accepted state with the fidelity of its saved masks, cut at the threshold.

    Raises:
        UserError: the masks are of other photos, or they lack an accepted artifact.
    """
    _same_photos(saved, baseline.photos_digest, "the accepted state")
    names = {bare(name): name for name in saved.rows}
    artifacts = {}
    for name, accepted in baseline.artifacts.items():
        row = names.get(name, "")
        if saved.keys.get(row) not in saved.references:
            raise UserError(
                f"the saved masks of the accepted state lack {name}", "accept it again, with its saved masks"
            )
        maps, want = saved.rows[row], saved.references[saved.keys[row]]
        artifacts[name] = replace(accepted, images=_fidelity(baseline.photos, maps, want, threshold))
    return replace(baseline, artifacts=artifacts)


def _same_photos(saved: SavedMasks, digest: str, what: str) -> None:
    if saved.photos_digest != digest:
        raise UserError(f"the masks are of other photos than {what}", HINT)


def _fidelity(photos: Sequence[str], maps: Floats, want: Floats, threshold: float) -> dict[str, ImageFidelity]:
    return {p: compare(got, ref, threshold) for p, got, ref in zip(photos, maps, want, strict=True)}


def beside(baseline: Path) -> Path:
    """Return the file for the saved masks of the accepted state in a file."""
    return baseline.with_suffix(".masks.npz")
