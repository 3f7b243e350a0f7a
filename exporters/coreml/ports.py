"""What goes into a package and comes out of it: pictures of network inputs, masks back on the scale of d0."""

from __future__ import annotations

import numpy as np

from u2export.exporters.onnx_runtime import to_pixels
from u2export.reference.image import Contract, Floats

INPUT, OUTPUT = "image", "mask"
# Below this range of d0 the mask is not stretched fully: well above the smallest normal fp16 number.
FLAT = 1e-3


def picture(x: Floats, contract: Contract) -> Floats:
    """The pictures (N, C, H, W), 0..255, that a package makes the network inputs x of."""
    pixels = np.concatenate([to_pixels(one[None], contract) for one in x])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def unstretched(mask: Floats, d0: Floats, output: str) -> Floats:
    """A package's output brought back to the scale of d0, whatever rounding it has gone through.

    A mask is undone by the range of the d0 it was stretched from, so that stretching it again gives the mask, and the
    error of d0 itself is seen as well.
    """
    if output == "raw":
        return mask
    if output == "image":
        mask = np.asarray(np.rint(mask).clip(0, 255) / 255, np.float32)
    low, high = d0.min((2, 3), keepdims=True), d0.max((2, 3), keepdims=True)
    return np.asarray(low + mask * np.maximum(high - low, np.float32(FLAT)), np.float32)
