"""Checks of calibration photos: is a picture a usable photo, and what is wrong with a set of photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.calibration.look_alikes import THUMB, LookAlikes
from u2export.errors import UserError
from u2export.reference.image import Contract, Floats, digest
from u2export.reference.photos import eight_bit, pixels_in, read_picture
from u2export.reference.verification import verification_photos

T = TypeVar("T")
FEWEST, FEW = 2, 16
# The limits below were set on 580 natural photos of six sets. Each names the photo or copy that comes closest to it.
SMALLEST = 32  # pixels of the shorter side
FLATTEST = 3.0  # standard deviation in grey levels of 255; a photo of fog has 12
BLACK_AND_WHITE = 0.995  # share of pixels within 8 levels of black or white; product photos on white come close
COLOURLESS_MASK = 0.8  # the same share where all channels are equal; saved saliency maps have 0.84 or more
UNRELATED = (0.2, 0.35)  # correlation of neighbours at full size, in the thumbnail; chain mail 0.37, leaves 0.54
_WORKERS = 4
# Pixels of a photo that is not read at the same time as others of its size. Such a photo takes about 10 bytes a pixel.
LARGE = 25_000_000
# A larger photo is judged by evenly spread bands of its rows with so many pixels in all.
JUDGED = 8_000_000
BANDS, BAND = 64, 256
_LUMA = (0.299, 0.587, 0.114)  # the weights of Pillow's grey


@dataclass(frozen=True)
class Photo:
    """One calibration photo: where it lies, and the hash of its pixels.

    Attributes:
        name: relative to the set; a part of the set's digest.
        path: path of the picture, or of the .npy file.
        row: index in the .npy file; None for a picture.
        sha256: over the decoded pixels, or over the network input.
        twin: name of an earlier photo that looks the same; empty if there is none.
    """

    name: str
    path: Path
    row: int | None
    sha256: str
    twin: str = ""


@dataclass(frozen=True)
class Candidate:
    """A file, or a row of an array, that may be a calibration photo."""

    name: str
    path: Path
    row: int | None = None


@dataclass(frozen=True)
class Checked:
    """A photo with what is needed to compare it with others, or the reason it is of no use.

    Attributes:
        photo: where it lies, and the hash of its pixels.
        reason: why it cannot be used, empty if it can.
        noise: whether the reason is noise.
        thumb: its thumbnail as a vector of length 1; half precision, as large sets keep one per photo.
        range: the smallest and the largest value of a stored network input.
    """

    photo: Photo
    reason: str = ""
    noise: bool = False
    thumb: NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, np.float16), repr=False)
    range: tuple[float, float] | None = None


def check_photo(candidate: Candidate, contract: Contract) -> Checked:
    """Read one photo once; keep its hash and its thumbnail, or the reason why it is unusable."""
    photo = Photo(candidate.name, candidate.path, candidate.row, "")
    try:
        array = read_pixels(candidate.path, candidate.row, contract)
    except UserError as error:
        return Checked(photo, error.problem.removeprefix(f"{candidate.path}: "))
    if array.dtype == np.float32 and not np.isfinite(array).all():
        return Checked(photo, "holds NaN or infinite values")
    stored = candidate.row is not None and array.dtype == np.float32  # a network input, not a picture
    shown = array if stored else eight_bit(array)
    if stored or shown.shape[0] * shown.shape[1] <= JUDGED:
        grey = _grey(shown, contract)
        thumb = np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX))
        reason, noise = _not_a_photo(grey, thumb, shown)
    else:
        thumb = _large_thumb(shown, contract)
        part = _bands(shown)
        reason, noise = _not_a_photo(_grey(part, contract), thumb, part)
    span = (float(array.min()), float(array.max())) if stored else None
    centred = thumb - thumb.mean()
    unit = np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), np.float16).ravel()
    return Checked(replace(photo, sha256=digest(array)), reason, noise, unit, span)


def read_pixels(path: Path, row: int | None, contract: Contract) -> NDArray[Any]:
    """Read pixels (H, W, C) of a picture, uint8 or float32, or a stored network input (C, H, W) float32."""
    if row is None:
        return read_picture(path, contract.channels)
    # A copy, because torch warns about arrays that are mapped read-only and runtimes need contiguous rows.
    stored: NDArray[Any] = np.array(stored_array(path)[row], order="C")
    return stored


def stored_array(path: Path) -> NDArray[Any]:
    """Map the array of a .npy file; rows are read only when they are used.

    Raises:
        UserError: the file cannot be read, or it holds no array that numpy can map.
    """
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    except PermissionError:
        raise UserError(f"{path}: permission denied", "check the file's permissions") from None
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
        raise UserError(f"{path}: not an array numpy can map ({error})", "write it with numpy.save") from None
    return array


def _grey(array: NDArray[Any], contract: Contract) -> Floats:
    """Brightness (H, W) in 0..255 of a photo or a network input: luma, or the mean where there are not 3 channels."""
    weights = np.array(_LUMA if contract.channels == 3 else [1 / contract.channels] * contract.channels, np.float32)
    if array.dtype == np.uint8:
        return np.asarray(array @ weights, np.float32)
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (contract.mean, contract.std))
    return np.asarray(np.tensordot(weights, (array * std + mean) * 255, 1), np.float32)


def _large_thumb(array: NDArray[Any], contract: Contract) -> Floats:
    """The thumbnail of a large photo, whose rows become grey some at a time."""
    tall = np.empty((THUMB, array.shape[1]), np.float32)
    edges = np.linspace(0, array.shape[0], THUMB + 1).round().astype(int)
    for i, (top, bottom) in enumerate(pairwise(edges)):
        starts = range(top, bottom, BAND)
        tall[i] = sum(_grey(array[s : min(s + BAND, bottom)], contract).sum(0) for s in starts) / (bottom - top)
    return np.asarray(Image.fromarray(tall).resize((THUMB, THUMB), Image.Resampling.BOX), np.float32)


def _bands(array: NDArray[Any]) -> NDArray[Any]:
    """Evenly spread bands of rows, one below the other; neighbours stay neighbours but at the seams."""
    height = max(2, JUDGED // (array.shape[1] * BANDS))
    tops = np.linspace(0, array.shape[0] - height, min(BANDS, array.shape[0] // height)).astype(int)
    return np.concatenate([array[top : top + height] for top in tops])


def _colourless(array: NDArray[Any]) -> bool:
    return array.dtype == np.uint8 and array.shape[2] > 1 and bool((array == array[..., :1]).all())


def _not_a_photo(grey: Floats, thumb: Floats, array: NDArray[Any]) -> tuple[str, bool]:
    """The reason why a picture is no photo, empty if it may be one; and whether it is noise."""
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


def sort_out(
    checked: Sequence[Checked], unread: tuple[tuple[str, str], ...], own: Sequence[Checked]
) -> tuple[list[Checked], tuple[tuple[str, str], ...]]:
    """Those to use, look-alikes marked, and those to skip with the reason."""
    usable = [c for c in checked if not c.reason]
    verified_on = {c.photo.name for c, twin in zip(usable, twins_of(usable, own), strict=True) if twin}
    kept: list[Checked] = []
    skipped = list(unread)
    seen: dict[str, str] = {}
    for c in checked:
        reason = c.reason
        if not reason and c.photo.sha256 in seen:
            reason = f"the same pixels as {seen[c.photo.sha256]}"
        if not reason and c.photo.name in verified_on:
            reason = "every export is verified on this photo"
        if reason:
            skipped.append((c.photo.name, reason))
            continue
        seen[c.photo.sha256] = c.photo.name
        kept.append(c)
    before = LookAlikes([c.thumb for c in kept]).first_before()
    marked = [
        c if first < 0 else replace(c, photo=replace(c.photo, twin=kept[first].photo.name))
        for c, first in zip(kept, before, strict=True)
    ]
    return marked, tuple(skipped)


def twins_of(photos: Sequence[Checked], others: Sequence[Checked]) -> list[Checked | None]:
    """For each photo the first of others that shows the same picture, or None.

    The same picture has the same pixels, or it is rescaled, recompressed or recoloured.
    """
    found = LookAlikes([o.thumb for o in others]).first_of([c.thumb for c in photos])
    return [None if first < 0 else others[first] for first in found]


def own_evaluation(contract: Contract) -> list[Checked]:
    """The bundled photos on which exports are verified; none for models that cannot take photos."""
    if contract.channels not in (1, 3):
        return []
    checked = [check_photo(Candidate(p.name, p), contract) for p in verification_photos()]
    return [c for c in checked if len(c.thumb)]


def warnings(
    photos: Sequence[Photo], skipped: Sequence[tuple[str, str]], kept: Sequence[Checked], contract: Contract
) -> tuple[str, ...]:
    """What the user should know about a set: skipped pictures, too few photos, look-alikes, inputs out of range."""
    said = []
    if skipped:
        reasons = some([f"{name}: {reason}" for name, reason in skipped])
        said.append(f"{len(skipped)} of {len(skipped) + len(photos)} pictures skipped: {reasons}")
    if len(photos) < FEW:
        held = f"from {FEW} on, some are held back to judge the result"
        said.append(f"only {len(photos)} photos; the result depends on each of them; {held}; 32 varied ones are better")
    if twins := [f"{p.name} looks like {p.twin}" for p in photos if p.twin]:
        said.append(f"{len(twins)} look-alikes add nothing: {some(twins)}")
    low = min((0.0 - m) / s for m, s in zip(contract.mean, contract.std, strict=True)) - 0.01
    high = max((1.0 - m) / s for m, s in zip(contract.mean, contract.std, strict=True)) + 0.01
    spans = [c.range for c in kept if c.range]
    if spans and (min(a for a, _ in spans) < low or max(b for _, b in spans) > high):
        said.append(
            f"network inputs run from {min(a for a, _ in spans):.4g} to {max(b for _, b in spans):.4g}, "
            f"normalised photos from {low:.2f} to {high:.2f}"
        )
    return tuple(said)


def some(names: Sequence[str], most: int = 3) -> str:
    """Name the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def parallel(work: Callable[[Candidate], T], candidates: Iterable[Candidate]) -> Iterator[T]:
    """Yield results in order, from several threads: decoding and hashing release the interpreter lock.

    One thread alone takes the large photos, one after the other, so that memory stays bounded.
    """

    def chosen(candidate: Candidate) -> T:
        if candidate.row is None and pixels_in(candidate.path) > LARGE:
            return alone.submit(work, candidate).result()
        return work(candidate)

    with ThreadPoolExecutor(1) as alone, ThreadPoolExecutor(_WORKERS) as pool:
        yield from pool.map(chosen, candidates)
