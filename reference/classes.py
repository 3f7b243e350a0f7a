"""Networks with several maps, one for each class: probabilities, the class of each pixel, and pictures of both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.errors import UserError
from u2export.reference.image import Floats, Pixels, mask_for, sigmoid

# Rounding, also that of int8, leaves probabilities between -SLACK and 1 + SLACK. Logits of photos go far beyond.
SLACK = 0.02
MOST = 256  # classes in a picture of classes
Classes = NDArray[np.intp]


def stacked(maps: Floats) -> Floats:
    """Return maps as (K, H, W): one map (H, W) becomes (1, H, W)."""
    return maps[None] if maps.ndim == 2 else maps


def probabilities(maps: Floats) -> Floats:
    """Return maps (any shape) in 0..1: logits, which are known by values outside of 0..1, go through a sigmoid."""
    logits = bool(maps.min() < -SLACK or maps.max() > 1 + SLACK)
    return sigmoid(maps) if logits else maps


def class_map(maps: Floats) -> Classes:
    """Return the class of each pixel (H, W): the index of the largest of K maps (K, H, W), the first of equal ones."""
    return np.asarray(maps.argmax(0), np.intp)


def classes_for(maps: Floats, height: int, width: int) -> Pixels:
    """Return the class of each pixel (height, width) of a photo, from the maps of its classes (K, h, w).

    Each map is resized bilinearly before the largest is taken, so that the borders of classes are smooth.

    Raises:
        UserError: there are more than 256 classes.
    """
    if len(maps) > MOST:
        raise UserError(f"{len(maps)} classes; a picture of classes has room for {MOST}", "take the maps themselves")
    best, index = np.full((height, width), -np.inf, np.float32), np.zeros((height, width), np.uint8)
    for k, one in enumerate(maps):  # one class at a time: a photo of 24 megapixels takes 96 MB for each
        shown = _resized(one, height, width)
        won = shown > best
        best[won], index[won] = shown[won], k
    return index


def shown_for(maps: Floats, height: int, width: int) -> Pixels:
    """Return what a photo (height, width) shows: the mask of one map (1, h, w), or the classes of several (K, h, w)."""
    return classes_for(maps, height, width) if len(maps) > 1 else mask_for(maps[0], height, width)


def class_mask_for(one: Floats, height: int, width: int) -> Pixels:
    """Return the map of one class (h, w) in 0..1 as 8 bit (height, width). The map of an absent class stays dark."""
    return np.asarray(np.rint(_resized(one, height, width).clip(0, 1) * 255), np.uint8)


def _resized(one: Floats, height: int, width: int) -> Floats:
    image = Image.fromarray(np.ascontiguousarray(one, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def palette(count: int) -> Pixels:
    """Return the colours of classes 0 to count - 1, (count, 3): those of Pascal VOC, in which class 0 is black.

    The bits of a class's number are dealt out to red, green and blue in turn, the lowest ones to the highest bits.
    """
    number = np.arange(count)
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        for colour in range(3):
            colours[:, colour] |= (number >> (3 * bit + colour) & 1) << (7 - bit)
    return colours.astype(np.uint8)
