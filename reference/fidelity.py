"""How close masks are to those of the reference: for each image, then the mean and the worst.

All measures compare d0 at the network's own size, so that the resize back to the photo adds no error. They need only
numpy and Pillow. A network with one map is compared as its mask is made, with d0 stretched to 0..1 (`image.saliency`).
A network with several maps, one for each class, is compared map by map in 0..1 as it is, because stretching would turn
the map of an absent class into noise. The class of each pixel (`u2export.reference.classes.class_map`) is compared too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from u2export.errors import UserError, WrongValue
from u2export.reference.classes import class_map, probabilities, stacked
from u2export.reference.image import Floats, saliency

# Where the network sees no object, d0 stays below this value. Stretching then shows noise, and IoU has no meaning.
EMPTY = 0.2
# A class counts where the reference and the artifact together give it at least this share of all pixels of all photos.
# Without the limit, one stray pixel of a class that no photo shows would be an IoU of 0.
COUNTED = 2e-4
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)  # a report of many photos holds one for each photo and row
class ImageFidelity:
    """One mask compared with the reference's mask of the same photo; of a network with several maps, all of its maps.

    With several maps, each of the numbers is that of the map on which it is worst. Maps in which the reference stays
    below 0.2 have no IoU, boundary F and area.

    Attributes:
        mae, max_abs: mean and largest absolute difference of the stretched masks (0..1).
        iou: intersection over union of both masks at the threshold 0.5; 1 where both are empty.
        boundary_f: F-measure of the two boundaries, matched within 0.75 % of the diagonal (DAVIS's contour measure F).
        area: foreground pixels, artifact over reference; 1 where both are empty, inf where only the reference is.
        raw_mae: mean absolute difference of d0 before stretching.
        empty: the reference sees no object: its d0 stays below 0.2, or all pixels have one class.
        finite: False where d0 holds NaN or infinite values; the other numbers are then those of a zero mask.
        class_intersection, class_union: for each class the pixels that have it in both class maps, and in at least one
            of them; empty for networks with one map.
    """

    mae: float
    max_abs: float
    iou: float
    boundary_f: float
    area: float
    raw_mae: float
    empty: bool = False
    finite: bool = True
    class_intersection: tuple[int, ...] = ()
    class_union: tuple[int, ...] = ()


def compare(d0: Floats, reference: Floats, threshold: float = 0.5) -> ImageFidelity:
    """Compare the fused map d0 of a photo with the reference's.

    Args:
        d0: one map (H, W), or one for each class (K, H, W). Logits of several classes become probabilities.
        reference: the reference's, of the same shape.
        threshold: where maps are cut, from 0 to 1.

    Raises:
        UserError: the number of maps or their size differs.
    """
    d0, reference = stacked(d0), stacked(reference)
    check_maps(d0, reference)
    finite = bool(np.isfinite(d0).all())
    if not finite:
        d0 = np.zeros_like(reference)
    if len(reference) > 1:
        return replace(_classes(d0, reference, threshold), finite=finite)
    one = _map(saliency(d0[0]), saliency(reference[0]), threshold)
    raw = float(np.abs(d0 - reference).mean())
    return replace(one, raw_mae=raw, empty=bool(reference.max() < EMPTY), finite=finite)


def check_maps(d0: Floats, reference: Floats) -> None:
    """Check that maps (K, H, W) can be compared with those of the reference.

    Raises:
        UserError: the number of maps or their size differs.
    """
    if len(d0) != len(reference):
        raise UserError(
            f"it gives {_counted(len(d0))}, the reference gives {_counted(len(reference))}",
            "compare it with the reference of its own weights",
        )
    if d0.shape != reference.shape:
        sizes = [f"{maps.shape[1]}x{maps.shape[2]}" for maps in (d0, reference)]
        raise UserError(f"its maps are {sizes[0]}, those of the reference are {sizes[1]}", "export it at one size")


def _counted(maps: int) -> str:
    return "1 map" if maps == 1 else f"{maps} maps"


def _map(got: Floats, want: Floats, threshold: float) -> ImageFidelity:
    """Compare one map (H, W) in 0..1 with another."""
    difference = np.abs(got - want)
    a, b = got > threshold, want > threshold
    return ImageFidelity(
        mae=float(difference.mean()),
        max_abs=float(difference.max()),
        iou=_ratio((a & b).sum(), (a | b).sum()),
        boundary_f=boundary_f(a, b),
        area=_ratio(a.sum(), b.sum()),
        raw_mae=float(difference.mean()),
        empty=bool(want.max() < EMPTY),
    )


def _classes(d0: Floats, reference: Floats, threshold: float) -> ImageFidelity:
    """Compare the maps of several classes (K, H, W), each number by its worst map, and the class of each pixel."""
    pairs = zip(probabilities(d0), probabilities(reference), strict=True)
    each = [_map(got, want, threshold) for got, want in pairs]
    shown = [m for m in each if not m.empty] or each
    a, b = class_map(d0), class_map(reference)
    known = range(len(reference))
    return ImageFidelity(
        mae=max(m.mae for m in each),
        max_abs=max(m.max_abs for m in each),
        iou=min(m.iou for m in shown),
        boundary_f=min(m.boundary_f for m in shown),
        area=max((m.area for m in shown), key=_distance),
        raw_mae=max(m.raw_mae for m in each),
        empty=bool((b == b.flat[0]).all()),
        class_intersection=tuple(int(((a == k) & (b == k)).sum()) for k in known),
        class_union=tuple(int(((a == k) | (b == k)).sum()) for k in known),
    )


def _distance(area: float) -> float:
    """How far a ratio of areas is from 1."""
    return float(abs(np.log(max(area, 1e-9))))


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
        return max((i.area for i in self.shown), key=_distance, default=1.0)

    @property
    def raw_mae(self) -> float:
        """Mean absolute difference of d0 before stretching, over all images."""
        return _mean(i.raw_mae for i in self.images)

    @property
    def finite(self) -> bool:
        """Whether no image has NaN or infinite values."""
        return all(i.finite for i in self.images)

    @cached_property
    def class_ious(self) -> dict[int, float]:
        """IoU of each class that counts (`COUNTED`), over the pixels of all images; empty for networks with one map."""
        both, either = (_sums(getattr(i, name) for i in self.images) for name in ("class_intersection", "class_union"))
        pixels = (sum(both) + sum(either)) / 2  # a pixel of two classes is in two unions, one of one class is in both
        return {k: both[k] / n for k, n in enumerate(either) if n and n >= COUNTED * pixels}

    @property
    def class_iou(self) -> float:
        """Mean over the classes that count; 1 for networks with one map."""
        return _mean(self.class_ious.values(), 1.0)

    @property
    def class_iou_worst(self) -> float:
        """IoU of the worst class that counts; 1 for networks with one map."""
        return min(self.class_ious.values(), default=1.0)

    @property
    def class_agreement(self) -> float:
        """The share of the pixels whose class is the reference's; 1 for networks with one map."""
        both, either = (sum(sum(getattr(i, f"class_{n}")) for i in self.images) for n in ("intersection", "union"))
        return 2 * both / (both + either) if either else 1.0

    def summary(self) -> dict[str, float]:
        """The derived statistics by name; those of classes for networks with several maps."""
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
            *(CLASS_MEASURES if self.class_ious else ()),
        )
        return {name: float(getattr(self, name)) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON: the statistics and the number of photos."""
        return {
            "photos": len(self.images),
            "empty": len(self.images) - len(self.shown),
            "finite": self.finite,
            **self.summary(),
            **({"class_ious": {str(k): iou for k, iou in self.class_ious.items()}} if self.class_ious else {}),
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
                which = (
                    f" (class {min(self.class_ious, key=self.class_ious.__getitem__)})" if name == WORST_CLASS else ""
                )
                wrong.append(f"{name}{which} {value:.2g} {'>' if name in UPPER else '<'} {limit:g}")
        return ", ".join(wrong)


UPPER = ("mae", "mae_worst", "max_abs", "raw_mae")
WORST_CLASS = "class_iou_worst"
CLASS_MEASURES = ("class_iou", WORST_CLASS, "class_agreement")
LOWER = ("iou", "iou_worst", "boundary_f", "boundary_f_worst", *CLASS_MEASURES)


def parse_budget(text: str) -> dict[str, float]:
    """Read limits by the name of their measure from a text such as `mae=0.003,iou_worst=0.97`.

    Raises:
        UserError: a measure is unknown, or a limit is no number in 0..1.
    """
    limits: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = (p.strip() for p in part.partition("="))
        if name not in UPPER + LOWER:
            raise WrongValue(f"no measure named {name!r} in the budget", f"choose among {', '.join(UPPER + LOWER)}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise WrongValue(f"budget {part!r} is not NAME=NUMBER", "write it like mae=0.003,iou_worst=0.97") from None
        if not 0 <= limits[name] <= 1:
            raise WrongValue(f"budget {part!r} is out of range", "give a number between 0 and 1")
    return limits


def _mean(values: Iterable[float], empty: float = 0.0) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else empty


def _sums(images: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum over images of the pixels of each class."""
    return [sum(pixels) for pixels in zip(*filter(None, images), strict=True)]


def image_json(image: ImageFidelity) -> dict[str, Any]:
    """Return plain data of one image; JSON has no infinite ratios, so they become null. One map has no classes."""
    values = {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in asdict(image).items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v != ()}
