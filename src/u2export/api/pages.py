"""One page of results for a browser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from u2export.api.tables import gather
from u2export.benchmarks.gate.saved_masks import HINT, SavedMasks
from u2export.benchmarks.pages.pictures import Gallery, gallery
from u2export.benchmarks.pages.report_page import ROOM_FOR_PICTURES, page
from u2export.benchmarks.report import Report
from u2export.errors import UserError, WrongValue
from u2export.files import write_text

__all__ = ["write_report"]


def write_report(
    results: Iterable[str | Path | Report],
    out: str | Path = "report.html",
    *,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    photos: int = 24,
) -> Path:
    """Write results as one page that holds everything: table, charts, photos with masks, machine, raw results.

    The page loads nothing and takes less than 5 MB: photos that find no room are left out, and the page counts them.

    Args:
        results: reports, JSON files of `bench` or of an import, files of published figures, or folders of them.
        out: the .html file.
        images: the photos of the bench, for a slider between photo, reference, mask and difference.
        masks: the masks that the bench saved (`--save-masks`); needed with `images`.
        photos: the largest number of photos on the page, the worst first.

    Returns:
        The file.

    Raises:
        UserError: there are no results, the masks are of another bench, a photo is missing, or the file cannot be
            written.
        Unavailable: Jinja2 is not installed (extra `report`).
    """
    if (images is None) != (masks is None):
        missing, given = ("masks", "images") if masks is None else ("images", "masks")
        raise WrongValue(f"{given} without {missing}", "photos and saved masks belong together", missing)
    given_results = list(results)
    paths = [Path(one) for one in given_results if not isinstance(one, Report)]
    reports = [one for one in given_results if isinstance(one, Report)] + (gather(paths) if paths else [])
    shown = _gallery(reports, Path(images), Path(masks), photos) if images is not None and masks is not None else None
    write_text(page(reports, shown), Path(out))
    return Path(out)


def _gallery(reports: list[Report], images: Path, masks: Path, photos: int) -> Gallery:
    saved = SavedMasks.load(masks)
    report = next((r for r in reports if r.photos_digest == saved.photos_digest), None)
    if report is None:
        raise UserError(f"{masks} is of other photos than the results", HINT, "masks")
    return gallery(report, images, saved, photos, ROOM_FOR_PICTURES)
