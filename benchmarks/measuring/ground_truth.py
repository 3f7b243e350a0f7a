"""Masks against ground truth: maximal F-measure, MAE and S-measure, as in the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.measuring.sod_metrics import (
    f_measure,
    mean_absolute_error,
    precision_and_recall,
    s_measure,
    stretched,
)
from u2export.errors import UserError
from u2export.reference.image import Floats, mask_for
from u2export.reference.photos import find_photos, read_photo

BETA2 = 0.3


@dataclass(frozen=True)
class Measures:
    """The measures of one mask.

    Attributes:
        precision, recall: at each of 256 thresholds, (256,) float64.
        mae, s: mean absolute error and S-measure.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    mae: float
    s: float


def measures(d0: Floats, truth: NDArray[np.bool_]) -> Measures:
    """Measure a fused map (h, w) against its ground truth (H, W); the mask is resized to the size of the latter."""
    mask = stretched(mask_for(d0 if np.isfinite(d0).all() else np.zeros_like(d0), *truth.shape))
    precision, recall = precision_and_recall(mask, truth)
    return Measures(precision, recall, mean_absolute_error(mask, truth), s_measure(mask, truth))


class Accuracy:
    """Accumulates the measures over photos."""

    def __init__(self) -> None:
        self._precision, self._recall = np.zeros(256), np.zeros(256)
        self._mae = self._s = 0.0
        self.images = 0

    def add(self, d0: Floats, truth: NDArray[np.bool_]) -> None:
        """Add a fused map and its ground truth; see `measures`."""
        self.include(measures(d0, truth))

    def include(self, one: Measures) -> None:
        """Add the measures of one photo. The sums depend on the order of the photos in their last digits."""
        self._precision += one.precision
        self._recall += one.recall
        self._mae += one.mae
        self._s += one.s
        self.images += 1

    def result(self) -> dict[str, float]:
        """Return maxf, mae, s and images (their number); nothing without photos.

        maxf is the largest F-measure (beta² = .3) of precision and recall averaged over photos at each threshold, s the
        S-measure (alpha = .5).
        """
        if not self.images:
            return {}
        curve = f_measure(self._precision / self.images, self._recall / self.images, BETA2)
        return {
            "maxf": float(curve.max()),
            "mae": self._mae / self.images,
            "s": self._s / self.images,
            "images": self.images,
        }


def read_truth(path: Path) -> NDArray[np.bool_]:
    """A ground-truth mask (H, W): brighter than half of its brightest pixel, so 0/1 and 0/255 files both read right.

    Raises:
        UserError: the file cannot be read.
    """
    grey = read_photo(path, channels=1)[..., 0]
    return np.asarray(grey > grey.max() / 2.0)


def find_masks(folder: Path, photos: Sequence[Path]) -> dict[Path, Path]:
    """The mask of each photo that has one: the file of the same stem in the folder.

    Raises:
        UserError: no such folder, two masks of one stem, or no mask at all fits.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}", "give a folder of masks named like the photos", "masks")
    by_stem: dict[str, Path] = {}
    for mask in find_photos([folder], own_masks=True):
        if mask.stem in by_stem:
            raise UserError(f"two masks for {mask.stem!r}: {by_stem[mask.stem]} and {mask}", "keep one of them")
        by_stem[mask.stem] = mask
    found = {photo: by_stem[photo.stem] for photo in photos if photo.stem in by_stem}
    if not found:
        raise UserError(f"no mask in {folder} is named like a photo", "masks and photos must share their stems")
    return found
