"""Masks at the size of the photos: networks of any input size are compared there with one reference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from u2export.benchmarks.measuring.plan import Progress
from u2export.reference.classes import stacked
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats, Picture, bilinear
from u2export.reference.photos import read_picture
from u2export.reference.source import Source
from u2export.reference.verification import sees_nothing

LARGEST = 1024  # pixels: larger photos are compared at this height or width
Size = tuple[int, int]  # height, width
BLIND = "%s sees no object on any photo; check the weights and the photos"
log = logging.getLogger(__name__)


def compared_at(picture: Picture) -> Size:
    """Return the size at which the masks of a photo are compared."""
    height, width = picture.shape[:2]
    shrink = min(1.0, LARGEST / max(height, width))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def compare_at(size: Size, maps: Floats, reference: Floats) -> ImageFidelity:
    """Compare maps (K, h, w) with those of the reference, (K, H, W), both resized to `size`."""
    return compare(_resized(maps, *size), _resized(reference, *size))


def _resized(maps: Floats, height: int, width: int) -> Floats:
    return np.stack([bilinear(one, height, width) for one in stacked(maps)])


def name_of(source: Source) -> str:
    """Return the name of a reference, as it stands in reports."""
    contract = source.contract
    size = f"{contract.height}" if contract.height == contract.width else f"{contract.height}x{contract.width}"
    return f"{source.weights.name}-{size}-pytorch-fp32"


class FullSize:
    """The reference's maps, to be compared with maps of any size at the size of the photos.

    Args:
        source: the reference, at its own input size.
        photos: the photo files.
        progress: receives the stage, the photos done and the photos in all.

    Attributes:
        name: of the reference, as it stands in reports.
    """

    def __init__(self, source: Source, photos: Sequence[Path], progress: Progress) -> None:
        self.name = name_of(source)
        self._maps: list[Floats] = []
        self._sizes: list[Size] = []
        for i, path in enumerate(photos):
            progress("masks of the reference", i, len(photos))
            picture = read_picture(path, source.contract.channels)
            self._sizes.append(compared_at(picture))
            self._maps.append(source.predict(source.contract.tensor(picture))[0])
        if not source.weights.random and sees_nothing(self._maps):
            log.warning(BLIND, self.name)

    def compare(self, index: int, maps: Floats) -> ImageFidelity:
        """Compare the maps (K, h, w) of a photo with those of the reference, both resized to the photo's size."""
        return compare_at(self._sizes[index], maps, self._maps[index])
