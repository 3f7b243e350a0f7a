"""Masks against ground truth: maximal F-measure, MAE and S-measure, as in the papers, through pysodmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from u2export.errors import Unavailable, UserError
from u2export.reference.image import Floats, find_photos, mask_for, read_photo

BETA2 = 0.3


def require() -> None:
    """Raise Unavailable where pysodmetrics is not installed."""
    if find_spec("py_sod_metrics") is None:
        raise Unavailable("comparing with --masks needs pysodmetrics", "pip install 'u2export[eval]'")


class Accuracy:
    """Accumulates the measures over photos."""

    def __init__(self) -> None:
        from py_sod_metrics import MAE, FmeasureV2, PrecisionHandler, RecallHandler, Smeasure

        self._mae, self._s = MAE(), Smeasure()
        curves = {"precision": PrecisionHandler, "recall": RecallHandler}
        self._pr = FmeasureV2({k: v(with_dynamic=True, with_adaptive=False) for k, v in curves.items()})
        self.images = 0

    def add(self, d0: Floats, truth: NDArray[np.bool_]) -> None:
        """One fused map (h, w) and its ground truth (H, W); the mask is resized to the ground truth's size."""
        mask = mask_for(d0 if np.isfinite(d0).all() else np.zeros_like(d0), *truth.shape)
        for measure in (self._mae, self._s, self._pr):
            measure.step(mask, truth.astype(np.uint8) * 255)
        self.images += 1

    def result(self) -> dict[str, float]:
        """maxf, mae, s and images (how many); empty without photos.

        maxf is the largest F-measure (beta² = .3) of precision and recall averaged over photos at each threshold, s the
        S-measure (alpha = .5).
        """
        if not self.images:
            return {}
        curves = self._pr.get_results()
        precision, recall = curves["precision"]["dynamic"], curves["recall"]["dynamic"]
        f = (1 + BETA2) * precision * recall / np.maximum(BETA2 * precision + recall, np.finfo(float).tiny)
        return {
            "maxf": float(f.max()),
            "mae": float(self._mae.get_results()["mae"]),
            "s": float(self._s.get_results()["sm"]),
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
        raise UserError(f"no such folder: {folder}", "give --masks a folder of masks named like the photos")
    by_stem: dict[str, Path] = {}
    for mask in find_photos([folder]):
        if mask.stem in by_stem:
            raise UserError(f"two masks for {mask.stem!r}: {by_stem[mask.stem]} and {mask}", "keep one of them")
        by_stem[mask.stem] = mask
    found = {photo: by_stem[photo.stem] for photo in photos if photo.stem in by_stem}
    if not found:
        raise UserError(f"no mask in {folder} is named like a photo", "masks and photos must share their stems")
    return found
