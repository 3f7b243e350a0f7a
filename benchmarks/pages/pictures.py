"""Pictures of a page: photos, and the masks of reference and artifacts with their differences, as data in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from u2export.benchmarks.gate.saved_masks import HINT, SavedMasks
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables.columns import small
from u2export.benchmarks.tables.contact_sheet import difference_picture, mask_picture, photo_pixels, worst
from u2export.errors import UserError

SIDE = 384  # the longest side of a picture in pixels


@dataclass(frozen=True)
class Compared:
    """The mask of one artifact: its pictures, and how far it is from the reference."""

    artifact: str
    mask: str
    difference: str
    mae: float
    text: str


@dataclass(frozen=True)
class Case:
    """One photo: its picture, the reference's mask, and the masks of all artifacts. Pictures are `data:` addresses."""

    photo: str
    width: int
    height: int
    picture: str
    reference: str
    compared: tuple[Compared, ...]

    @property
    def size(self) -> int:
        """The number of bytes that the pictures take in a page."""
        return sum(map(len, (self.picture, self.reference, *(c.mask + c.difference for c in self.compared))))


@dataclass(frozen=True)
class Gallery:
    """The photos of a page, the worst first, and the number of photos that found no room."""

    cases: tuple[Case, ...] = ()
    left_out: int = 0
    artifacts: tuple[str, ...] = field(default=())


def gallery(report: Report, images: Path, saved: SavedMasks, count: int, room: int) -> Gallery:
    """Return the worst photos of a report with their masks.

    Args:
        report: the results.
        images: the photos of the bench, a folder or a file.
        saved: the masks that the bench saved.
        count: the largest number of photos.
        room: the largest number of bytes.

    Raises:
        UserError: the masks are of another bench, or a photo is missing or cannot be read.
    """
    if saved.photos_digest != report.photos_digest:
        raise UserError("the masks are of other photos than the results", HINT)
    rows = [row for row in report.rows if row.name in saved.rows and row.images]
    if not rows:
        raise UserError("the masks hold no artifact of these results", HINT)
    files = _files(report, images)
    order = worst(rows, list(report.photos), len(report.photos))
    cases: list[Case] = []
    for case in _cases(report, rows, files, saved, order[:count]):
        room -= case.size
        if room < 0:
            break
        cases.append(case)
    return Gallery(tuple(cases), len(order) - len(cases), tuple(row.title for row in rows))


def _files(report: Report, images: Path) -> Mapping[str, Path]:
    files = photos_in(images)
    if lost := [photo for photo in report.photos if photo not in files]:
        raise UserError(f"{images} has no photo {lost[0]}", "give the folder of photos that was benched", "images")
    return files


def _cases(
    report: Report, rows: Sequence[Row], files: Mapping[str, Path], saved: SavedMasks, photos: Sequence[str]
) -> Iterator[Case]:
    for photo in photos:
        i = report.photos.index(photo)
        shown = ImageOps.contain(Image.fromarray(photo_pixels(files[photo])), (SIDE, SIDE))
        want = next((saved.references[saved.keys[r.name]][i] for r in rows if saved.keys[r.name] in saved.references),
                    None)  # fmt: skip
        compared = tuple(_compared(row, photo, saved, i, shown.size) for row in rows)
        reference = "" if want is None else _address(mask_picture(want, shown.size), "PNG")
        yield Case(photo, *shown.size, _address(shown, "JPEG"), reference, compared)


def _compared(row: Row, photo: str, saved: SavedMasks, i: int, size: tuple[int, int]) -> Compared:
    got, want = saved.rows[row.name][i], saved.references.get(saved.keys[row.name])
    difference = difference_picture(got, None if want is None else want[i], size)
    image = row.images[photo]
    text = f"IoU {image.iou:.4f}, MAE {small(image.mae)}, worst pixel {image.max_abs:.2f}"
    return Compared(row.title, _address(mask_picture(got, size), "PNG"), _address(difference, "PNG"), image.mae, text)


def _address(picture: Image.Image, form: str) -> str:
    """Return a picture as an address that holds its bytes."""
    out = io.BytesIO()
    if form == "PNG":
        grey = picture.convert("L")
        plain = grey.convert("RGB").tobytes() == picture.convert("RGB").tobytes()
        kept = grey if plain else picture.convert("RGB").quantize(64, dither=Image.Dither.NONE)
        kept.save(out, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(out, form, quality=82)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
