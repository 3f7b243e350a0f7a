"""How close masks are to those of the reference: for each image, then the mean and the worst.

All measures compare d0 stretched to 0..1 (`u2export.reference.image.saliency`) at the network's own size, so that the
resize back to the photo adds no error. They need only numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from u2export.errors import UserError
from u2export.reference.image import Floats, saliency

# Where the network sees no object, d0 stays below this value. Stretching then shows noise, and IoU has no meaning.
EMPTY = 0.2
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ImageFidelity:
    """One mask compared with the reference's mask of the same photo.

    Attributes:
        mae, max_abs: mean and largest absolute difference of the stretched masks (0..1).
        iou: intersection over union of both masks at the threshold 0.5; 1 where both are empty.
        boundary_f: F-measure of the two boundaries, matched within 0.75 % of the diagonal (DAVIS's contour measure F).
        area: foreground pixels, artifact over reference; 1 where both are empty, inf where only the reference is.
        raw_mae: mean absolute difference of d0 before stretching.
        empty: the reference sees no object: its d0 stays below 0.2.
        finite: False where d0 holds NaN or infinite values; the other numbers are then those of a zero mask.
    """

    mae: float
    max_abs: float
    iou: float
    boundary_f: float
    area: float
    raw_mae: float
    empty: bool = False
    finite: bool = True


def compare(d0: Floats, reference: Floats, threshold: float = 0.5) -> ImageFidelity:
    """Compare one fused map d0 (H, W) with the reference's (H, W); both are stretched, and cut at the threshold."""
    finite = bool(np.isfinite(d0).all())
    if not finite:
        d0 = np.zeros_like(reference)
    got, want = saliency(d0), saliency(reference)
    difference = np.abs(got - want)
    a, b = got > threshold, want > threshold
    return ImageFidelity(
        mae=float(difference.mean()),
        max_abs=float(difference.max()),
        iou=_ratio((a & b).sum(), (a | b).sum()),
        boundary_f=boundary_f(a, b),
        area=_ratio(a.sum(), b.sum()),
        raw_mae=float(np.abs(d0 - reference).mean()),
        empty=bool(reference.max() < EMPTY),
        finite=finite,
    )


def _ratio(part: np.integer[Any], whole: np.integer[Any]) -> float:
    if whole == 0:
        return 1.0 if part == 0 else float("inf")
    return float(part / whole)


def boundary_f(a: Bools, b: Bools, tolerance: float = 0.0075) -> float:
    """Return the F-measure of the boundaries of two masks, each (H, W).

    A boundary pixel matches where a boundary pixel of the other mask lies in a square window around it; `tolerance` is
    half the side of the window as a share of the image diagonal. Source: Perazzi et al., "A benchmark dataset and
    evaluation methodology for video object segmentation", CVPR 2016, section 4.
    """
    edge_a, edge_b = _boundary(a), _boundary(b)
    if not edge_a.any() or not edge_b.any():
        return float(edge_a.any() == edge_b.any())
    radius = max(1, round(tolerance * float(np.hypot(*a.shape))))
    precision = (edge_a & _grow(edge_b, radius)).sum() / edge_a.sum()
    recall = (edge_b & _grow(edge_a, radius)).sum() / edge_b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: Bools) -> Bools:
    """Foreground pixels with a background pixel to the right, below, or diagonally below."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _grow(mask: Bools, radius: int) -> Bools:
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(image.filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0


@dataclass(frozen=True)
class Fidelity:
    """Means and worst values over photos.

    Images whose reference is empty count for the mean absolute errors, but not for IoU, boundary F and area.
    """

    images: tuple[ImageFidelity, ...]

    @property
    def shown(self) -> Sequence[ImageFidelity]:
        """The images in which the reference sees an object."""
        return [i for i in self.images if not i.empty]

    @property
    def mae(self) -> float:
        """Mean over all images."""
        return _mean(i.mae for i in self.images)

    @property
    def mae_worst(self) -> float:
        """The MAE of the worst image."""
        return max((i.mae for i in self.images), default=0.0)

    @property
    def max_abs(self) -> float:
        """The largest difference of any pixel."""
        return max((i.max_abs for i in self.images), default=0.0)

    @property
    def iou(self) -> float:
        """Mean over images whose reference is not empty."""
        return _mean((i.iou for i in self.shown), 1.0)

    @property
    def iou_worst(self) -> float:
        """IoU of the worst image whose reference is not empty."""
        return min((i.iou for i in self.shown), default=1.0)

    @property
    def boundary_f(self) -> float:
        """Mean over images whose reference is not empty."""
        return _mean((i.boundary_f for i in self.shown), 1.0)

    @property
    def boundary_f_worst(self) -> float:
        """Boundary F of the worst image whose reference is not empty."""
        return min((i.boundary_f for i in self.shown), default=1.0)

    @property
    def area_worst(self) -> float:
        """The ratio of foreground areas that is farthest from 1."""
        return max((i.area for i in self.shown), key=lambda a: abs(np.log(max(a, 1e-9))), default=1.0)

    @property
    def raw_mae(self) -> float:
        """Mean absolute difference of d0 before stretching, over all images."""
        return _mean(i.raw_mae for i in self.images)

    @property
    def finite(self) -> bool:
        """Whether no image has NaN or infinite values."""
        return all(i.finite for i in self.images)

    def summary(self) -> dict[str, float]:
        """The derived statistics by name."""
        names = (
            "mae",
            "mae_worst",
            "max_abs",
            "iou",
            "iou_worst",
            "boundary_f",
            "boundary_f_worst",
            "area_worst",
            "raw_mae",
        )
        return {name: float(getattr(self, name)) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON: the statistics and the number of photos."""
        return {
            "photos": len(self.images),
            "empty": len(self.images) - len(self.shown),
            "finite": self.finite,
            **self.summary(),
        }

    def broken(self, limits: Mapping[str, float]) -> str:
        """Name the limits that are missed; empty if there is none.

        Differences (`UPPER`) must not exceed their limits; agreements (`LOWER`) must reach theirs.
        """
        if not self.finite:
            return "d0 holds NaN or infinite values"
        wrong = []
        for name, limit in limits.items():
            value = float(getattr(self, name))
            if value > limit if name in UPPER else value < limit:
                wrong.append(f"{name} {value:.2g} {'>' if name in UPPER else '<'} {limit:g}")
        return ", ".join(wrong)


UPPER = ("mae", "mae_worst", "max_abs", "raw_mae")
LOWER = ("iou", "iou_worst", "boundary_f", "boundary_f_worst")


def parse_budget(text: str) -> dict[str, float]:
    """Read limits by the name of their measure from a text such as `mae=0.003,iou_worst=0.97`.

    Raises:
        UserError: a measure is unknown, or a limit is no number in 0..1.
    """
    limits: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (p.strip() for p in part.partition("="))
        if name not in UPPER + LOWER:
            raise UserError(f"no measure named {name!r} in the budget", f"choose among {', '.join(UPPER + LOWER)}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise UserError(f"budget {part!r} is not NAME=NUMBER", "write it like mae=0.003,iou_worst=0.97") from None
        if not 0 <= limits[name] <= 1:
            raise UserError(f"budget {part!r} is out of range", "give a number between 0 and 1")
    return limits


def _mean(values: Iterable[float], empty: float = 0.0) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else empty


def image_json(image: ImageFidelity) -> dict[str, Any]:
    """Return plain data of one image; JSON has no infinite ratios, so they become null."""
    return {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in asdict(image).items()}
