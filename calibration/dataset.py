"""Sets of calibration photos: found, checked once, then read one at a time as network inputs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from u2export.calibration.photo_checks import (
    FEWEST,
    Candidate,
    Checked,
    Photo,
    check_photo,
    own_evaluation,
    parallel,
    read_pixels,
    some,
    sort_out,
    stored_array,
    twins_of,
    warnings,
)
from u2export.errors import UserError, WrongValue
from u2export.files import read_json, write_json
from u2export.reference.image import Contract, Floats
from u2export.reference.photos import find_photos
from u2export.reference.spread import evenly_spread
from u2export.reference.weights import file_digest

T = TypeVar("T")
SCHEMA = 1
MANIFEST = "manifest.json"
BUNDLED = Path("calibration")


@dataclass(frozen=True)
class Calibration:
    """A checked set of calibration photos under one image contract.

    Iteration reads one photo at a time, in order of name. It may be repeated.

    Attributes:
        name: name of the folder, manifest or array, or "bundled".
        contract: how a photo becomes a network input.
        photos: the photos of the set.
        skipped: name and reason of each picture that is not used.
        warnings: sentences for the user.
    """

    name: str
    contract: Contract
    photos: tuple[Photo, ...] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def open(
        cls, path: Path, contract: Contract, *, avoid: Sequence[Path] = (), limit: int | None = None,
        strict: bool = False,
    ) -> Calibration:  # fmt: skip
        """Find and check the photos that `--calib` names.

        Args:
            path: a folder of pictures (searched recursively), a manifest.json, or a .npy file of photos
                (N, H, W, C) uint8 or network inputs (N, C, H, W) float32. Of a folder with manifest.json and images/,
                like the project's own calibration/, the manifest is read. The relative path `calibration` means the
                set in the installed package where no such folder exists.
            contract: image contract of the network.
            avoid: pictures, folders or .npy files on which the result will be evaluated.
            limit: check at most this number of pictures, evenly spread over the names.
            strict: refuse the set where a picture would be skipped.

        Raises:
            UserError: nothing is there or readable, fewer than two photos are usable, all pictures are noise, a photo
                is also in `avoid`, a manifest or array is damaged, or `strict` and a picture would be skipped.
        """
        if limit is not None and limit < FEWEST:
            raise WrongValue(f"cannot calibrate on {limit} photos", f"allow at least {FEWEST}")
        name, candidates, unread = _find(path, contract, limit)
        checked = list(parallel(lambda c: check_photo(c, contract), candidates))
        kept, skipped = sort_out(checked, unread, own_evaluation(contract))
        if strict and skipped:
            raise UserError(
                f"{path}: {skipped[0][0]}: {skipped[0][1]}", "remove it, or skip photos that cannot be read"
            )
        if len(kept) < FEWEST:
            raise _too_few(path, kept, skipped)
        if clash := _overlap(kept, avoid, contract):
            raise UserError(
                f"{path}: {len(clash)} of {len(kept)} photos belong to the evaluation set: {some(clash)}",
                "calibrate on other photos than you evaluate on",
            )
        photos = tuple(c.photo for c in kept)
        return cls(name, contract, photos, skipped, warnings(photos, skipped, kept, contract))

    @classmethod
    def bundled(cls, contract: Contract) -> Calibration:
        """Open the small set in this package; calibration/README.md names sources and licences."""
        return cls.open(_package(), contract)

    def __len__(self) -> int:
        return len(self.photos)

    def __iter__(self) -> Iterator[Floats]:
        """Network inputs, each float32 (1, channels, height, width)."""
        for photo in self.photos:
            yield _input(photo.path, photo.row, self.contract)

    @cached_property
    def digest(self) -> str:
        """sha256 over names and decoded pixels, in order: the same photos give the same digest on any machine."""
        lines = "".join(f"{p.name}\t{p.sha256}\n" for p in self.photos)
        data = lines.encode("utf-8", "surrogatepass")  # names of files need not be UTF-8
        return hashlib.sha256(data).hexdigest()

    def summary(self) -> dict[str, Any]:
        """Return what the record of an artifact says about its calibration: plain data without paths of the machine."""
        return {"name": self.name, "photos": len(self), "digest": self.digest, "skipped": len(self.skipped)}

    def subset(self, count: int) -> Calibration:
        """Return the set with only `count` photos, evenly spread over the names; all photos if there are no more.

        Raises:
            UserError: `count` is below 1.
        """
        if count < 1:
            raise WrongValue(f"cannot take {count} photos", "ask for at least one")
        return replace(self, photos=tuple(evenly_spread(self.photos, count)))

    def split(self, held_back: int) -> tuple[Calibration, Calibration]:
        """Split the set: photos to calibrate on, and `held_back` photos to check the result on.

        The held-back photos are evenly spread over the names. Photos with a look-alike stay in the first part, so that
        the check sees new pictures only.

        Raises:
            UserError: the set has too few photos.
        """
        twins = {p.twin for p in self.photos}
        single = [p for p in self.photos if not p.twin and p.name not in twins]
        if not 1 <= held_back <= min(len(single), len(self) - FEWEST):
            raise UserError(
                f"cannot hold {held_back} of {len(self)} photos back ({len(single)} of them have no look-alike)",
                "add photos, or hold fewer back",
            )
        back = evenly_spread(single, held_back)
        rest = tuple(p for p in self.photos if p not in back)
        return replace(self, photos=rest), replace(self, photos=tuple(back), warnings=())


# --- finding -----------------------------------------------------------------------------------------------------


_Listing = tuple[str, Sequence[Candidate], tuple[tuple[str, str], ...]]


def _find(path: Path, contract: Contract, limit: int | None = None) -> _Listing:
    """The set's name, its candidates (at most `limit`, evenly spread), and what could not even be looked at."""
    if not _exists(path):
        if path != BUNDLED:
            raise UserError(f"no such file or folder: {path}", "give a folder of photos, a manifest.json or a .npy")
        path = _package()
    if path.suffix == ".npy" and path.is_file():
        return path.name, _some(_rows(path, contract), limit), ()
    if path.suffix == ".json":
        return path.parent.name, _listed(path, limit), ()
    if not path.is_dir():
        raise UserError(
            f"{path} is a single file, not a set of photos", "give a folder of photos, a manifest.json or a .npy"
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{path}: permission denied", "check the folder's permissions")
    if (path / MANIFEST).is_file() and (path / "images").is_dir():
        return "bundled" if _same(path, _package()) else path.resolve().name, _listed(path / MANIFEST, limit), ()
    return _in_folder(path, contract, limit)


def _some(items: Sequence[T], limit: int | None) -> Sequence[T]:
    return items if limit is None else evenly_spread(items, limit)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise UserError(f"{path}: permission denied", "check the folder's permissions") from None


def _package() -> Path:
    return Path(str(resources.files("u2export.calibration")))


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a / MANIFEST).read_bytes() == (b / MANIFEST).read_bytes()


def _in_folder(path: Path, contract: Contract, limit: int | None) -> _Listing:
    closed: list[OSError] = []
    for _ in os.walk(path, onerror=closed.append):
        pass
    unread = tuple((_relative(Path(e.filename), path), "permission denied") for e in closed)
    photos = find_photos([path], arrays=contract.channels not in (1, 3))
    return path.resolve().name, [Candidate(_relative(p, path), p) for p in _some(photos, limit)], unread


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _listed(manifest: Path, limit: int | None) -> list[Candidate]:
    """The pictures of a manifest, the hash of each checked: a set with a manifest is complete or refused."""
    entries = _some(sorted(read_manifest(manifest), key=lambda entry: entry["file"]), limit)
    candidates = [Candidate(entry["file"], manifest.parent / entry["file"]) for entry in entries]
    if not entries:
        raise UserError(f"{manifest} lists no photos", "give a folder of photos, or another manifest")
    actual = parallel(lambda c: file_digest(c.path), candidates)
    for entry, found in zip(entries, actual, strict=True):
        if found != entry["sha256"]:
            raise UserError(
                f"{manifest.parent / entry['file']} is not the file {manifest.name} describes", "get it again"
            )
    return candidates


def read_manifest(manifest: Path) -> list[dict[str, str]]:
    """Read the entries of a manifest: `file` relative to it, `sha256`, and `licence`, `author`, `source` if known.

    Raises:
        UserError: the manifest cannot be read, has another schema, or an entry lacks its file or hash.
    """
    hint = 'its form is {"schema": 1, "photos": [{"file": "images/a.jpg", "sha256": "…"}]}'
    data = read_json(manifest, "a manifest of photos")
    entries = data.get("photos") if isinstance(data, dict) and data.get("schema") == SCHEMA else None
    if not isinstance(entries, list):
        raise UserError(f"{manifest} is not a manifest of photos", hint)
    for entry in entries:
        if not (isinstance(entry, dict) and isinstance(entry.get("file"), str) and entry.get("sha256")):
            raise UserError(f"{manifest}: an entry lacks file or sha256: {str(entry)[:80]}", hint)
    return entries


def add_to_manifest(manifest: Path, entries: Sequence[dict[str, str]]) -> None:
    """Add entries to a manifest; they replace entries with the same file. A missing manifest is created.

    Raises:
        UserError: the file is no manifest, or it cannot be written.
    """
    before = read_manifest(manifest) if manifest.exists() else []
    merged = {entry["file"]: entry for entry in (*before, *entries)}
    write_json({"schema": SCHEMA, "photos": [merged[name] for name in sorted(merged)]}, manifest)


def _rows(path: Path, contract: Contract) -> list[Candidate]:
    array = stored_array(path)
    c, h, w = contract.shape[1:]
    photos = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == c
    inputs = array.dtype == np.float32 and array.shape[1:] == (c, h, w)
    if not (photos or inputs):
        raise UserError(
            f"{path}: {array.dtype} {array.shape} is neither photos nor network inputs",
            f"photos are uint8 (N, H, W, {c}), network inputs float32 (N, {c}, {h}, {w})",
        )
    if array.size == 0:
        raise UserError(f"{path} is empty", "store at least two photos in it")
    digits = len(str(len(array) - 1))
    return [Candidate(f"{path.name}[{row:0{digits}d}]", path, row) for row in range(len(array))]


def _input(path: Path, row: int | None, contract: Contract) -> Floats:
    array = read_pixels(path, row, contract)
    return contract.tensor(array) if row is None or array.dtype == np.uint8 else array[None]


def _overlap(kept: Sequence[Checked], avoid: Sequence[Path], contract: Contract) -> list[str]:
    """The photos that are in the evaluation set too, or look like one of its photos."""
    found = [c for path in avoid for c in _find(path, contract)[1]]
    others = [c for c in parallel(lambda c: check_photo(c, contract), found) if len(c.thumb)]
    clashes = zip(kept, twins_of(kept, others), strict=True)
    return [f"{c.photo.name} is {t.photo.name}" for c, t in clashes if t]


def _too_few(path: Path, kept: Sequence[Checked], skipped: Sequence[tuple[str, str]]) -> UserError:
    hint = f"give at least {FEWEST} varied photos, better 32"
    if skipped and all(reason.startswith("noise") for _, reason in skipped) and not kept:
        return UserError(f"{path}: all {len(skipped)} pictures are noise", f"Noise is never used; {hint}")
    if not kept:
        reasons = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "it is empty"
        return UserError(f"{path}: none of {len(skipped)} pictures can be used ({reasons})", hint)
    lost = f" ({len(skipped)} skipped, {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
    return UserError(f"{path}: only {len(kept)} usable photo{lost}", hint)
