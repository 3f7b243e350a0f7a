"""Networks with several maps, one for each class: probabilities, and the class of each pixel. Only numpy is needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from u2export.reference.image import Floats, Pixels, sigmoid

# Rounding, also that of int8, leaves probabilities between -SLACK and 1 + SLACK. Logits of photos go far beyond.
SLACK = 0.02
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
