"""Masks against ground truth: maximal F-measure, MAE and S-measure, as in the papers."""

from __future__ import annotations

from collections.abc import Sequence
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


class Accuracy:
    """Accumulates the measures over photos."""

    def __init__(self) -> None:
        self._precision, self._recall = np.zeros(256), np.zeros(256)
        self._mae = self._s = 0.0
        self.images = 0

    def add(self, d0: Floats, truth: NDArray[np.bool_]) -> None:
        """Add one fused map (h, w) and its ground truth (H, W); the mask is resized to the size of the ground truth."""
        mask = stretched(mask_for(d0 if np.isfinite(d0).all() else np.zeros_like(d0), *truth.shape))
        precision, recall = precision_and_recall(mask, truth)
        self._precision += precision
        self._recall += recall
        self._mae += mean_absolute_error(mask, truth)
        self._s += s_measure(mask, truth)
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
