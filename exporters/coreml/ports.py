"""What goes into a package and what comes out of it: pictures, and masks that become d0 again."""

from __future__ import annotations

import numpy as np

from u2export.exporters.onnx_runtime import to_pixels
from u2export.reference.image import Contract, Floats

INPUT, OUTPUT = "image", "mask"
# A d0 of a smaller range is not stretched fully. The value is well above the smallest normal fp16 number.
FLAT = 1e-3


def picture(x: Floats, contract: Contract) -> Floats:
    """Return the pictures (N, C, H, W), 0..255, that a package turns into the network inputs x (N, C, H, W)."""
    pixels = np.concatenate([to_pixels(one[None], contract) for one in x])
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def unstretched(mask: Floats, d0: Floats, output: str) -> Floats:
    """Return a package's output on the scale of d0, with all rounding that the output has gone through.

    The range of the d0 that a mask was stretched from undoes the stretch. Stretching the result again gives the mask,
    and the result shows the error of d0 itself as well.

    Args:
        mask: the package's output (N, K, H, W).
        d0: the map inside the package that the mask was stretched from, of the same shape.
        output: "tensor", "image" or "raw", see `CoreML.output`.
    """
    if output == "raw":
        return mask
    if output == "image":
        mask = np.asarray(np.rint(mask).clip(0, 255) / 255, np.float32)
    low, high = d0.min((2, 3), keepdims=True), d0.max((2, 3), keepdims=True)
    return np.asarray(low + mask * np.maximum(high - low, np.float32(FLAT)), np.float32)
