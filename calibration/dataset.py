"""Calibration photos: found, checked once, then streamed as network inputs with flat memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.errors import UserError
from u2export.files import read_json, write_json
from u2export.reference.image import Contract, Floats, digest, find_photos, read_photo
from u2export.reference.verification import verification_photos
from u2export.reference.weights import file_digest

SCHEMA = 1
MANIFEST = "manifest.json"
BUNDLED = Path("calibration")
FEWEST, FEW = 2, 8
# Limits below were set on 580 natural photos of six sets; the nearest photo or copy is given with each.
SMALLEST = 32  # pixels of the shorter side
FLATTEST = 3.0  # standard deviation in grey levels of 255; fog came to 12
BLACK_AND_WHITE = 0.995  # share of pixels within 8 levels of an end; product shots on white come close
COLOURLESS_MASK = 0.8  # the same where all channels are equal; saved saliency maps start at .84
UNRELATED = (0.2, 0.35)  # correlation of neighbours at full size and in the thumbnail; chain mail .37, leaves .54
TWINS = 0.98  # correlation of thumbnails; copies at half size or JPEG quality 30 >= .99, video frames ten apart <= .96
THUMB = 32
_WORKERS = 4
_LUMA = (0.299, 0.587, 0.114)  # what Pillow's grey is made of

T = TypeVar("T")


@dataclass(frozen=True)
class Photo:
    """One calibration photo: where it lies and what its pixels hash to.

    Attributes:
        name: relative to the set, the part of the digest a person can read.
        path: of the picture, or of the .npy file.
        row: index in the .npy file, None for a picture.
        sha256: over the decoded pixels (or the network input).
        twin: name of an earlier photo that looks the same, empty if there is none.
    """

    name: str
    path: Path
    row: int | None
    sha256: str
    twin: str = ""


@dataclass(frozen=True)
class Calibration:
    """A checked set of calibration photos under one image contract.

    Iterating reads one photo at a time, in order of name, and may be repeated.

    Attributes:
        name: of the folder, manifest or array, or "bundled".
        contract: how a photo becomes a network input.
        photos: those that will be used.
        skipped: name and reason of those that will not.
        warnings: what the user should know, ready to print.
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
                (N, H, W, C) uint8 or network inputs (N, C, H, W) float32. A folder that holds manifest.json and
                images/, like this project's own calibration/, means its manifest; a relative `calibration` that is
                not there means the set in the installed package.
            contract: image contract of the network.
            avoid: pictures, folders or .npy files the result will be evaluated on.
            limit: look at no more than so many, evenly spread over the names.
            strict: the first picture that would be skipped is an error.

        Raises:
            UserError: nothing there or nothing readable, fewer than two usable photos, only noise, a photo also in
                `avoid`, a manifest or array that is not one; with `strict` anything that would be skipped.
        """
        if limit is not None and limit < FEWEST:
            raise UserError(f"cannot calibrate on {limit} photos", f"allow at least {FEWEST}")
        name, candidates, unread = _find(path, contract)
        if limit is not None:
            candidates = _spread(candidates, limit)
        checked = list(_parallel(lambda c: _check(c, contract), candidates))
        kept, skipped = _sort_out(checked, unread, _own_evaluation(contract))
        if strict and skipped:
            raise UserError(f"{path}: {skipped[0][0]}: {skipped[0][1]}", "remove it, or leave out --strict")
        if len(kept) < FEWEST:
            raise _too_few(path, kept, skipped)
        if clash := _overlap(kept, avoid, contract):
            raise UserError(
                f"{path}: {len(clash)} of {len(kept)} photos belong to the evaluation set: {_some(clash)}",
                "calibrate on other photos than you evaluate on",
            )
        photos = tuple(c.photo for c in kept)
        return cls(name, contract, photos, skipped, _warnings(photos, skipped, kept, contract))

    @classmethod
    def bundled(cls, contract: Contract) -> Calibration:
        """The small set in this package, see its README for sources and licences."""
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
        return hashlib.sha256(lines.encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What an artifact's record says about its calibration: plain data without machine paths."""
        return {"name": self.name, "photos": len(self), "digest": self.digest, "skipped": len(self.skipped)}

    def subset(self, count: int) -> Calibration:
        """The same set cut down to `count` photos, evenly spread over the names; itself if it has no more."""
        if count < 1:
            raise UserError(f"cannot take {count} photos", "ask for at least one")
        return replace(self, photos=tuple(_spread(self.photos, count)))

    def split(self, held_back: int) -> tuple[Calibration, Calibration]:
        """A part to calibrate on and `held_back` photos to check the result on, evenly spread over the names.

        Photos with a look-alike stay in the first part, so that the check is on pictures not seen.

        Raises:
            UserError: too few photos for that.
        """
        twins = {p.twin for p in self.photos}
        single = [p for p in self.photos if not p.twin and p.name not in twins]
        if not 1 <= held_back <= min(len(single), len(self) - FEWEST):
            raise UserError(
                f"cannot hold {held_back} of {len(self)} photos back ({len(single)} of them have no look-alike)",
                "add photos, or hold fewer back",
            )
        back = _spread(single, held_back)
        rest = tuple(p for p in self.photos if p not in back)
        return replace(self, photos=rest), replace(self, photos=tuple(back), warnings=())


# --- finding -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    name: str
    path: Path
    row: int | None = None


Found = tuple[str, Sequence[_Candidate], tuple[tuple[str, str], ...]]


def _find(path: Path, contract: Contract) -> Found:
    """The set's name, its candidates, and what could not even be looked at."""
    if not _exists(path):
        if path != BUNDLED:
            raise UserError(f"no such file or folder: {path}", "give a folder of photos, a manifest.json or a .npy")
        path = _package()
    if path.suffix == ".npy" and path.is_file():
        return path.name, _rows(path, contract), ()
    if contract.channels not in (1, 3):
        raise UserError(
            f"{path}: photos have 1 or 3 channels, the model takes {contract.channels}",
            f"give a .npy file of network inputs (N, {contract.channels}, {contract.height}, {contract.width}) float32",
        )
    if path.suffix == ".json":
        return path.parent.name, _listed(path), ()
    if not path.is_dir():
        raise UserError(
            f"{path} is a single file, not a set of photos", "give a folder of photos, a manifest.json or a .npy"
        )
    if not os.access(path, os.R_OK | os.X_OK):
        raise UserError(f"{path}: permission denied", "check the folder's permissions")
    if (path / MANIFEST).is_file() and (path / "images").is_dir():
        return "bundled" if _same(path, _package()) else path.resolve().name, _listed(path / MANIFEST), ()
    return _in_folder(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        raise UserError(f"{path}: permission denied", "check the folder's permissions") from None


def _package() -> Path:
    return Path(str(resources.files("u2export.calibration")))


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a / MANIFEST).read_bytes() == (b / MANIFEST).read_bytes()


def _in_folder(path: Path) -> Found:
    closed: list[OSError] = []
    for _ in os.walk(path, onerror=closed.append):
        pass
    unread = tuple((_relative(Path(e.filename), path), "permission denied") for e in closed)
    photos = find_photos([path])
    return path.resolve().name, [_Candidate(_relative(p, path), p) for p in photos], unread


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _listed(manifest: Path) -> list[_Candidate]:
    """The pictures of a manifest, every file's hash checked: a set with a manifest is complete or refused."""
    entries = read_manifest(manifest)
    candidates = [_Candidate(entry["file"], manifest.parent / entry["file"]) for entry in entries]
    if not entries:
        raise UserError(f"{manifest} lists no photos", "give a folder of photos, or another manifest")
    actual = _parallel(lambda c: file_digest(c.path), candidates)
    for entry, found in zip(entries, actual, strict=True):
        if found != entry["sha256"]:
            raise UserError(
                f"{manifest.parent / entry['file']} is not the file {manifest.name} describes", "get it again"
            )
    return sorted(candidates, key=lambda c: c.name)


def read_manifest(manifest: Path) -> list[dict[str, str]]:
    """The entries of a manifest: `file` relative to it, `sha256`, and `licence`, `author`, `source` if known.

    Raises:
        UserError: unreadable, of another schema, or an entry lacks its file or hash.
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
    """Put entries into a manifest, in place of those with the same file; it is made if it is not there.

    Raises:
        UserError: what is there is no manifest, or it cannot be written.
    """
    before = read_manifest(manifest) if manifest.exists() else []
    merged = {entry["file"]: entry for entry in (*before, *entries)}
    write_json({"schema": SCHEMA, "photos": [merged[name] for name in sorted(merged)]}, manifest)


def _rows(path: Path, contract: Contract) -> list[_Candidate]:
    array = _array(path)
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
    return [_Candidate(f"{path.name}[{row:0{digits}d}]", path, row) for row in range(len(array))]


def _array(path: Path) -> NDArray[Any]:
    """The mapped array of a .npy file: rows are read as they are used."""
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    except PermissionError:
        raise UserError(f"{path}: permission denied", "check the file's permissions") from None
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise UserError(f"{path}: not an array numpy can map ({error})", "write it with numpy.save") from None
    return array


# --- checking one photo ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checked:
    """A photo with what is needed to compare it with others, or the reason it is of no use."""

    photo: Photo
    reason: str = ""
    noise: bool = False
    thumb: Floats = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    range: tuple[float, float] | None = None


def _check(candidate: _Candidate, contract: Contract) -> _Checked:
    """Read one photo once, keep hashes and a thumbnail of it."""
    photo = Photo(candidate.name, candidate.path, candidate.row, "")
    try:
        array = _read(candidate.path, candidate.row, contract)
    except UserError as error:
        return _Checked(photo, error.problem.removeprefix(f"{candidate.path}: "))
    if array.dtype == np.float32 and not np.isfinite(array).all():
        return _Checked(photo, "holds NaN or infinite values")
    grey = _grey(array, contract)
    thumb = np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX))
    reason, noise = _not_a_photo(grey, thumb, array)
    span = (float(array.min()), float(array.max())) if array.dtype == np.float32 else None
    centred = thumb - thumb.mean()
    unit = np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float32).ravel()
    return _Checked(replace(photo, sha256=digest(array)), reason, noise, unit, span)


def _read(path: Path, row: int | None, contract: Contract) -> NDArray[Any]:
    """Pixels (H, W, C) uint8, or a stored network input (C, H, W) float32."""
    if row is None:
        return read_photo(path, contract.channels)
    # A copy: torch warns of arrays that are mapped read-only, and runtimes want rows in order.
    stored: NDArray[Any] = np.array(_array(path)[row], order="C")
    return stored


def _input(path: Path, row: int | None, contract: Contract) -> Floats:
    array = _read(path, row, contract)
    return contract.tensor(array) if array.dtype == np.uint8 else array[None]


def _grey(array: NDArray[Any], contract: Contract) -> Floats:
    """Brightness (H, W) on a scale of 0..255, of photos and network inputs alike: luma, or the mean of odd channels."""
    weights = np.array(_LUMA if contract.channels == 3 else [1 / contract.channels] * contract.channels, np.float32)
    if array.dtype == np.uint8:
        return np.asarray(array @ weights, np.float32)
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (contract.mean, contract.std))
    return np.asarray(np.tensordot(weights, (array * std + mean) * 255, 1), np.float32)


def _colourless(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.shape[2] > 1 and bool((array == array[..., :1]).all())


def _not_a_photo(grey: Floats, thumb: Floats, array: NDArray[Any]) -> tuple[str, bool]:
    """Why a picture is no photo (empty if it may be one), and whether it is noise."""
    if min(grey.shape) < SMALLEST:
        return f"only {grey.shape[1]}x{grey.shape[0]} pixels", False
    if grey.std() < FLATTEST:
        return "one flat colour", False
    near, far = _correlation(grey), _correlation(thumb)
    if near < UNRELATED[0] or far < UNRELATED[1]:
        return f"noise: neighbouring pixels hardly relate (correlation {min(near, far):.2f})", True
    ends = ((abs(grey) <= 8) | (abs(grey - 255) <= 8)).mean()
    if ends > BLACK_AND_WHITE or (ends > COLOURLESS_MASK and _colourless(array)):
        return "a mask: hardly anything but black and white", False
    return "", False


def _correlation(grey: Floats) -> float:
    """Correlation of horizontal neighbours, on at most 256 rows."""
    rows = grey[:: -(-len(grey) // 256)]
    rows = rows - rows.mean()
    return float((rows[:, 1:] * rows[:, :-1]).mean() / max(float((rows * rows).mean()), 1e-6))


# --- checking the set --------------------------------------------------------------------------------------------


def _sort_out(
    checked: Sequence[_Checked], unread: tuple[tuple[str, str], ...], own: Sequence[_Checked]
) -> tuple[list[_Checked], tuple[tuple[str, str], ...]]:
    """Those to use, look-alikes marked, and those to skip with the reason."""
    kept: list[_Checked] = []
    skipped = list(unread)
    seen: dict[str, str] = {}
    for c in checked:
        reason = c.reason
        if not reason and c.photo.sha256 in seen:
            reason = f"the same pixels as {seen[c.photo.sha256]}"
        if not reason and _twin(c, own):
            reason = "a photo every export is verified on"
        if reason:
            skipped.append((c.photo.name, reason))
            continue
        seen[c.photo.sha256] = c.photo.name
        twin = _twin(c, kept)
        kept.append(replace(c, photo=replace(c.photo, twin=twin.photo.name)) if twin else c)
    return kept, tuple(skipped)


def _twin(c: _Checked, others: Sequence[_Checked]) -> _Checked | None:
    """The first of others that shows the same picture: same pixels, or rescaled, recompressed, recoloured."""
    if not others:
        return None
    alike = np.stack([o.thumb for o in others]) @ c.thumb >= TWINS
    return others[int(alike.argmax())] if alike.any() else None


def _own_evaluation(contract: Contract) -> list[_Checked]:
    """The bundled photos that exports are verified on; none for models that cannot take photos."""
    if contract.channels not in (1, 3):
        return []
    checked = [_check(_Candidate(p.name, p), contract) for p in verification_photos()]
    return [c for c in checked if len(c.thumb)]


def _overlap(kept: Sequence[_Checked], avoid: Sequence[Path], contract: Contract) -> list[str]:
    """Which photos also are, or look like one, in the evaluation set."""
    found = [c for path in avoid for c in _find(path, contract)[1]]
    others = [c for c in _parallel(lambda c: _check(c, contract), found) if len(c.thumb)]
    clashes = ((c, _twin(c, others)) for c in kept)
    return [f"{c.photo.name} is {t.photo.name}" for c, t in clashes if t]


def _too_few(path: Path, kept: Sequence[_Checked], skipped: Sequence[tuple[str, str]]) -> UserError:
    hint = f"give at least {FEWEST} varied photos, better 32"
    if skipped and all(reason.startswith("noise") for _, reason in skipped) and not kept:
        return UserError(f"{path}: all {len(skipped)} pictures are noise", f"Noise is never used; {hint}")
    if not kept:
        reasons = f"{skipped[0][0]}: {skipped[0][1]}" if skipped else "it is empty"
        return UserError(f"{path}: none of {len(skipped)} pictures can be used ({reasons})", hint)
    lost = f" ({len(skipped)} skipped, {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
    return UserError(f"{path}: only {len(kept)} usable photo{lost}", hint)


def _warnings(
    photos: Sequence[Photo], skipped: Sequence[tuple[str, str]], kept: Sequence[_Checked], contract: Contract
) -> tuple[str, ...]:
    said = []
    if skipped:
        reasons = _some([f"{name}: {reason}" for name, reason in skipped])
        said.append(f"{len(skipped)} of {len(skipped) + len(photos)} pictures skipped: {reasons}")
    if len(photos) < FEW:
        said.append(f"only {len(photos)} photos; the result depends on each of them, 32 varied ones are better")
    if twins := [f"{p.name} looks like {p.twin}" for p in photos if p.twin]:
        said.append(f"{len(twins)} look-alikes add nothing: {_some(twins)}")
    low = min((0.0 - m) / s for m, s in zip(contract.mean, contract.std, strict=True)) - 0.01
    high = max((1.0 - m) / s for m, s in zip(contract.mean, contract.std, strict=True)) + 0.01
    spans = [c.range for c in kept if c.range]
    if spans and (min(a for a, _ in spans) < low or max(b for _, b in spans) > high):
        said.append(
            f"network inputs run from {min(a for a, _ in spans):.4g} to {max(b for _, b in spans):.4g}, "
            f"normalised photos from {low:.2f} to {high:.2f}"
        )
    return tuple(said)


def _some(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def _spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread; all of them if there are no more."""
    if count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def _parallel(work: Callable[[_Candidate], T], candidates: Iterable[_Candidate]) -> Iterator[T]:
    """Results in order; decoding and hashing release the interpreter lock."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(work, candidates)
