"""How a photo becomes a network input, and how a map becomes a mask: one contract, in numpy and Pillow only.

The resize is bilinear with half-pixel centres and no anti-aliasing. OpenCV calls it INTER_LINEAR, PyTorch calls it
``align_corners=False``. An anti-aliased filter would change the author's own masks by ten times the error of fp16.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from u2export.errors import UserError, WrongValue

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# A picture: uint8, or float32 in a range of its own where the file is deeper than 8 bits.
Picture = NDArray[np.uint8] | NDArray[np.float32]
RESIZES = ("bilinear", "lanczos")
# A d0 with a smaller range is constant; a division by this range would only amplify rounding.
FLAT = 1e-6


@dataclass(frozen=True)
class Contract:
    """Pre- and postprocessing of one exported model.

    photo: EXIF orientation applied, RGB (or grey for one-channel models), alpha dropped
    -> resize to height x width -> x / max(x) -> (x - mean) / std -> float32 (1, channels, height, width)
    -> network -> d0 -> (d0 - min) / max(max - min, 1e-6) -> 8 bit, truncated -> Pillow's bilinear to the photo.

    Attributes:
        height, width: input size of the network in pixels.
        resize: "bilinear" (no anti-aliasing, the author's) or "lanczos" (Pillow's, what rembg does).
        mean, std: per channel, of values in 0..1 (ImageNet, as in the published training code).
        rounded: resized pixels are rounded to 8 bit before scaling, for artifacts that take uint8 pictures.
        version: version of the rules above; files with another version are refused.
    """

    height: int = 320
    width: int = 320
    resize: str = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    rounded: bool = False
    version: int = 1

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise WrongValue(f"no resize named {self.resize!r}", f"choose one of {', '.join(RESIZES)}")
        if min(self.height, self.width) < 1 or max(self.height, self.width) > 8192:
            raise WrongValue(
                f"input size {self.height}x{self.width} is out of range", "give sides between 1 and 8192 pixels"
            )

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(1, channels, height, width)."""
        return 1, self.channels, self.height, self.width

    def with_channels(self, channels: int) -> Contract:
        """The same rules for a network with another number of input channels; means and deviations are repeated."""
        if channels == self.channels:
            return self
        cycle = [i % 3 for i in range(channels)]
        rgb = self if self.channels >= 3 else Contract()
        return replace(self, mean=tuple(rgb.mean[i] for i in cycle), std=tuple(rgb.std[i] for i in cycle))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON, the form that is stamped into artifacts."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any] | str) -> Contract:
        """Read the contract that was stamped into an artifact.

        Raises:
            UserError: the contract has another version, or it cannot be read.
        """
        fields = json.loads(data) if isinstance(data, str) else dict(data)
        if fields.get("version") != cls.version:
            raise UserError(
                f"the artifact's image contract has version {fields.get('version')}, this u2export knows {cls.version}",
                "export it again, or use the u2export that made it",
            )
        try:
            plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
            return cls(**plain)
        except TypeError as error:
            raise UserError(f"unreadable image contract: {error}", "export the artifact again") from None

    def tensor(self, pixels: Picture) -> Floats:
        """Return the network input (1, channels, height, width) of a picture (H, W, channels), uint8 or float32."""
        x = self._resized(pixels)
        x = x / np.maximum(x.max(), np.float32(FLAT))
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((x - mean) / std).transpose(2, 0, 1)[None], dtype=np.float32)

    def _resized(self, pixels: Picture) -> Floats:
        if pixels.ndim != 3 or pixels.shape[2] != self.channels:
            raise UserError(
                f"the model takes {self.channels} channels, the picture has shape {pixels.shape}",
                "give photos to models of 1 or 3 channels, and .npy arrays to others",
            )
        if self.rounded and pixels.dtype != np.uint8:
            # Artifacts that take 8-bit pictures: the largest value becomes 255, so rounding costs the least.
            pixels = np.asarray(pixels * (255.0 / max(float(pixels.max()), FLAT)), np.float32)
        resized = self._lanczos(pixels) if self.resize == "lanczos" else bilinear(pixels, self.height, self.width)
        return np.rint(resized) if self.rounded else resized

    def _lanczos(self, pixels: Picture) -> Floats:
        """Pillow's filter; on 8-bit colours at once, on all others channel by channel in float."""
        size, lanczos = (self.width, self.height), Image.Resampling.LANCZOS
        if pixels.dtype == np.uint8 and self.channels in (1, 3):
            image = Image.fromarray(pixels if self.channels > 1 else pixels[..., 0])
            return np.asarray(image.resize(size, lanczos), np.float32).reshape(self.height, self.width, self.channels)
        planes = [Image.fromarray(np.ascontiguousarray(plane, np.float32)) for plane in pixels.transpose(2, 0, 1)]
        # The filter overshoots at edges, where 8-bit pictures are cut at 0 and 255.
        return np.stack([np.asarray(p.resize(size, lanczos), np.float32) for p in planes], -1).clip(0, pixels.max())


# Contracts by name. "cloth" is that of the published cloth segmentation, whose training code scales with mean and
# deviation 0.5 and takes 768 x 768 pixels.
CONTRACTS = {
    "imagenet": Contract(),
    "cloth": Contract(768, 768, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
}


def bilinear(array: NDArray[Any], height: int, width: int) -> Floats:
    """Resize (H, W) or (H, W, C) bilinearly: half-pixel centres, clamped edges, no anti-aliasing, no rounding."""
    rows = _lerp(np.asarray(array, np.float32), height, 0)
    return _lerp(rows, width, 1)


def _lerp(x: Floats, size: int, axis: int) -> Floats:
    if x.shape[axis] == size:
        return x
    where = (np.arange(size) + 0.5) * (x.shape[axis] / size) - 0.5
    where = where.clip(0, x.shape[axis] - 1)
    low = where.astype(np.intp)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    share = (where - low).astype(np.float32).reshape([-1 if d == axis else 1 for d in range(x.ndim)])
    a = x.take(low, axis)
    return np.asarray(a + (x.take(high, axis) - a) * share, np.float32)


def sigmoid(x: Floats) -> Floats:
    """Return maps in 0..1 of logits."""
    with np.errstate(over="ignore"):  # exp of much more than 88 is infinite, and its map 0
        return np.asarray(1 / (1 + np.exp(-np.asarray(x, np.float32))), np.float32)


def saliency(d0: Floats) -> Floats:
    """Stretch one map d0 (any shape) to 0..1 as the author does; a constant map becomes 0."""
    low, high = d0.min(), d0.max()
    return np.asarray((d0 - low) / np.maximum(high - low, np.float32(FLAT)), np.float32)


def mask_for(d0: Floats, height: int, width: int) -> Pixels:
    """Return the 8-bit mask (height, width) of one map d0 (h, w), in the author's own steps.

    The map is stretched, truncated to 8 bit at the network's size, and resized with Pillow's bilinear filter. The
    result differs from the author's saved maps by 0.0003 on average. Rounding and resizing in float would differ
    four times as much.
    """
    small = Image.fromarray(np.asarray(saliency(d0) * 255, np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def digest(array: NDArray[Any]) -> str:
    """Return the sha256 over the shape, type and values of an array."""
    head = f"{array.dtype.str}{array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
