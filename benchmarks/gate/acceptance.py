"""Accepting results: write them, and their saved masks, into the file of an accepted state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.saved_masks import THRESHOLD, SavedMasks, beside, rejudged
from u2export.benchmarks.report import Report


@dataclass(frozen=True)
class Acceptance:
    """What accepting results changed.

    Attributes:
        old: the accepted state before; None if there was none, or if it was replaced.
        new: the accepted state now, as it stands in the file.
    """

    old: Baseline | None
    new: Baseline


def accept(
    report: Report | Path,
    file: Path,
    *,
    masks: SavedMasks | Path | None = None,
    replace: bool = False,
    any_device: bool | None = None,
    why: str = "",
) -> Acceptance:
    """Accept a report: write it into the file of the accepted state. Other artifacts in the file stay.

    Args:
        report: the results of a bench, or their file.
        file: the file of the accepted state. It is created if it does not exist.
        masks: the saved masks of the same bench. They are saved beside the file, and they give the fidelity.
        replace: True to begin a new accepted state, whatever the file holds.
        any_device: True if the masks are valid on any device, False to tie the state to this device. None means any
            device if the report holds no times.
        why: the reason for accepting the results; it is stored in the file.

    Raises:
        UserError: a file is missing, damaged or cannot be written, or the results do not fit the accepted state.
    """
    found = report if isinstance(report, Report) else Report.load(report)
    saved = masks if isinstance(masks, SavedMasks) or masks is None else SavedMasks.load(masks)
    if saved:
        found = rejudged(found, saved, None, THRESHOLD)
    old = Baseline.load(file) if file.exists() and not replace else None
    if any_device is None:
        any_device = not any(row.latency.ns for row in found.rows)
    new = updated(found, old, any_device, why)
    new.save(file)
    if saved:
        saved.save(beside(file))
    return Acceptance(old, new)
