"""The contact sheet: one PNG with photos, the masks of the reference and of each row, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables.columns import small
from u2export.benchmarks.tables.fonts import fitting
from u2export.errors import UserError
from u2export.files import staged
from u2export.reference.classes import class_map, palette
from u2export.reference.image import Floats, Pixels, mask_for, saliency
from u2export.reference.photos import ARRAY, eight_bit, read_array, read_photo
from u2export.text import xml_text

# Differences of good exports are invisible. With this factor .05 of the mask's range has the strongest colour.
GAIN = 20
CELL, GAP, LINE, MARGIN = 176, 10, 18, 24
SINGLE = 4  # pictures of one photo where the report has one row beside the reference
Ink = tuple[int, int, int]
INK, PALE, GROUND, EMPTY = (24, 26, 30), (104, 108, 116), (255, 255, 255), (222, 225, 230)
MORE, LESS = np.array((214, 40, 40), np.float32), np.array((32, 96, 214), np.float32)


def draw(report: Report, photos: Mapping[str, Path], judged: Sequence[Judged], target: Path, count: int) -> None:
    """Write the sheet.

    The first column shows each photo above the mask of the reference. Each row of the report has a column beside it,
    with the mask of the row above the signed difference times GAIN: red where the mask is brighter than that of the
    reference, blue where it is darker. Of a single row these pictures stand side by side.

    Args:
        report: names and fidelity.
        photos: the files of the photos, by name.
        judged: the maps of each group of rows.
        target: a .png file.
        count: the number of photos on the sheet, the worst ones first.

    Raises:
        UserError: no row has masks.
    """
    sections = [_section(report, photos, group, count) for group in judged if group.rows]
    if not sections:
        raise UserError("no row has masks to draw", "the report says why each row has none", "contact_sheet")
    width = max(s.width for s in sections)
    # One section for each group of rows, which share weights and image contract.
    sheet = Image.new("RGB", (width, sum(s.height for s in sections)), GROUND)
    top = 0
    for section in sections:
        sheet.paste(section, (0, top))
        top += section.height
    with staged(target) as temporary:
        sheet.save(temporary, "PNG")


def _section(report: Report, photos: Mapping[str, Path], group: Judged, count: int) -> Image.Image:
    rows = [row for name in group.rows if (row := report.row(name)) and name != group.reference]
    names = worst(rows, list(photos), count)
    blocks = [_block(rows, group, name, photos[name], list(photos).index(name)) for name in names]
    columns = SINGLE if len(rows) == 1 else len(rows) + 1
    width = 2 * MARGIN + max(columns, 3) * (CELL + GAP) - GAP
    head = MARGIN + 4 * LINE + 2 * GAP
    section = Image.new("RGB", (width, head + sum(b.height for b in blocks) + MARGIN), GROUND)
    _headings(ImageDraw.Draw(section), group.reference, rows, width - 2 * MARGIN)
    for block in blocks:
        section.paste(block, (MARGIN, head))
        head += block.height
    return section


def _block(rows: Sequence[Row], group: Judged, name: str, path: Path, i: int) -> Image.Image:
    """Return all columns of one photo; of a single row, photo, reference, mask and difference side by side."""
    photo = ImageOps.contain(Image.fromarray(photo_pixels(path)), (CELL, CELL))
    want = None if group.want is None else np.asarray(group.want[i])
    if len(rows) == 1:
        return _line(rows[0], group, name, path, i)
    block = Image.new("RGB", ((len(rows) + 1) * (CELL + GAP), 2 * (photo.height + LINE) + 2 * GAP), GROUND)
    _stack(block, 0, (photo, mask_picture(want, photo.size)), (path.name, "reference"))
    for column, row in enumerate(rows, 1):
        got = np.asarray(group.rows[row.name][i])
        images = (mask_picture(got, photo.size), difference_picture(got, want, photo.size))
        _stack(block, column, images, _captions(row, name))
    return block


def _line(row: Row, group: Judged, name: str, path: Path, i: int) -> Image.Image:
    """Return photo, reference, mask and difference of one photo side by side."""
    photo = ImageOps.contain(Image.fromarray(photo_pixels(path)), (CELL, CELL))
    want = None if group.want is None else np.asarray(group.want[i])
    got = np.asarray(group.rows[row.name][i])
    block = Image.new("RGB", (SINGLE * (CELL + GAP), photo.height + LINE + 2 * GAP), GROUND)
    images = (
        photo,
        mask_picture(want, photo.size),
        mask_picture(got, photo.size),
        difference_picture(got, want, photo.size),
    )
    captions = (path.name, "reference", *_captions(row, name))
    for column, (image, caption) in enumerate(zip(images, captions, strict=True)):
        _stack(block, column, (image,), (caption,))
    return block


def photo_pixels(path: Path) -> Pixels:
    """Return a photo, or the first colours of an array with any number of channels, as (H, W, 3) uint8."""
    if path.suffix.lower() != ARRAY:
        return eight_bit(read_photo(path))
    shown = eight_bit(read_array(path))
    return shown[..., :3] if shown.shape[2] >= 3 else np.repeat(shown[..., :1], 3, 2)


def _headings(pen: ImageDraw.ImageDraw, reference: str, rows: Sequence[Row], room: int) -> None:
    where = "Right of" if len(rows) == 1 else "Below"
    legend = f"{where} each mask: its difference from the reference, times {GAIN}; red: brighter, blue: darker."
    _text(pen, MARGIN, MARGIN, f"Masks compared with {reference or 'no reference'}", 15, INK, room)
    _text(pen, MARGIN, MARGIN + LINE + 3, legend, 12, PALE, room)
    first, wide = (2, 2 * CELL) if len(rows) == 1 else (1, CELL)
    for column, row in enumerate(rows, first):
        left, top = MARGIN + column * (CELL + GAP), MARGIN + 2 * LINE + GAP
        _text(pen, left, top, row.title, 12, INK, wide)
        _text(pen, left, top + LINE, row.ran_as, 12, PALE, wide)


def _captions(row: Row, photo: str) -> tuple[str, str]:
    image = row.images.get(photo)
    if image is None:
        return "", ""
    return f"IoU {image.iou:.4f}", f"MAE {small(image.mae)}, worst pixel {image.max_abs:.2f}"


def _stack(block: Image.Image, column: int, images: Sequence[Image.Image], captions: Sequence[str]) -> None:
    """Draw images of equal size below each other, with a frame, and a caption below each."""
    left, top = column * (CELL + GAP), 0
    pen = ImageDraw.Draw(block)
    for image, caption in zip(images, captions, strict=True):
        block.paste(image, (left, top))
        pen.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline=EMPTY)
        _text(pen, left, top + image.height + 2, caption, 12, PALE)
        top += image.height + LINE


def _text(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, ink: Ink, room: int = CELL) -> None:
    """Draw one line of text. A text wider than `room` pixels loses its middle."""
    text, font = fitting(xml_text(text), size)  # names of files need not be UTF-8
    letters = len(text)
    while pen.textlength(_shortened(text, letters), font) > room and letters > 8:
        letters -= 1
    pen.text((left, top), _shortened(text, letters), ink, font)


def _shortened(text: str, letters: int) -> str:
    """Return a text of this many letters, without its middle."""
    start = letters // 2
    return text if letters >= len(text) else f"{text[:start]}…{text[len(text) - (letters - start) :]}"


def mask_picture(d0: Floats | None, size: tuple[int, int]) -> Image.Image:
    """Return the mask of one map, or of several maps (K, H, W) the colour of each pixel's class."""
    if d0 is None or not np.isfinite(d0).all():
        return Image.new("RGB", size, EMPTY)
    if len(d0) > 1:
        return Image.fromarray(palette(len(d0))[class_map(d0)]).resize(size, Image.Resampling.NEAREST)
    return Image.fromarray(mask_for(d0[0], size[1], size[0])).convert("RGB")


def difference_picture(got: Floats, want: Floats | None, size: tuple[int, int]) -> Image.Image:
    """Return the difference as a picture: white for equal masks, full colour from 1 / GAIN of the mask's range on.

    Of several maps, pixels of another class than the reference's are red.
    """
    if want is None or not np.isfinite(got).all():
        return Image.new("RGB", size, EMPTY)
    if len(got) > 1:
        signed = np.asarray(class_map(got) != class_map(want), np.float32)
    else:
        signed = saliency(got[0]) - saliency(want[0])
    share = np.minimum(np.abs(signed) * GAIN, 1)[..., None]
    colour = np.where(signed[..., None] > 0, MORE, LESS)
    pixels = np.uint8(255 + (colour - 255) * share)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def worst(rows: Sequence[Row], photos: Sequence[str], count: int) -> list[str]:
    """Return `count` photos, those first in which a mask of any row differs most from the mask of the reference."""
    most = {p: max((row.images[p].mae for row in rows if p in row.images), default=0.0) for p in photos}
    return sorted(photos, key=lambda p: -most[p])[:count]
