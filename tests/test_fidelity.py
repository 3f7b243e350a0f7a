from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from u2export.errors import UserError
from u2export.reference.fidelity import (
    CLASS_MEASURES,
    LOWER,
    UPPER,
    Fidelity,
    ImageFidelity,
    boundary_f,
    compare,
    image_json,
    parse_budget,
)
from u2export.reference.image import Floats

SHAPE = (24, 20)
maps = arrays(np.float32, SHAPE, elements=st.floats(0, 1, width=32))
masks = arrays(np.bool_, SHAPE)


def disc(x: float = 60, y: float = 50, radius: float = 30, size: int = 120) -> Floats:
    """A soft disc, as d0 shows an object."""
    yy, xx = np.mgrid[0:size, 0:size]
    return np.asarray(1 / (1 + np.exp(np.hypot(xx - x, yy - y) - radius)), np.float32)


@given(maps)
def test_a_mask_is_itself(d0: Floats) -> None:
    same = compare(d0, d0)
    assert (same.mae, same.max_abs, same.raw_mae, same.iou, same.boundary_f, same.area) == (0, 0, 0, 1, 1, 1)
    assert same.finite


@given(maps, maps)
def test_bounds_and_symmetry(a: Floats, b: Floats) -> None:
    one, other = compare(a, b), compare(b, a)
    assert 0 <= one.mae <= one.max_abs <= 1 and 0 <= one.iou <= 1 and 0 <= one.boundary_f <= 1
    assert one.iou == other.iou and one.mae == pytest.approx(other.mae, abs=1e-6)
    assert one.boundary_f == pytest.approx(other.boundary_f)
    if 0 < one.area < math.inf:
        assert one.area == pytest.approx(1 / other.area)
    assert one.iou <= min(one.area, other.area) + 1e-9


@given(maps, st.floats(0.2, 5), st.floats(-3, 3))
def test_stretching_hides_scale_and_offset(d0: Floats, scale: float, offset: float) -> None:
    if np.ptp(d0) < 0.1 or (np.abs((d0 - d0.min()) / np.ptp(d0) - 0.5) < 1e-4).any():
        return  # too flat for float32, or a pixel right at the threshold
    moved = compare((d0 * np.float32(scale) + np.float32(offset)).astype(np.float32), d0)
    assert moved.mae < 1e-4 and (moved.iou, moved.boundary_f, moved.area) == (1, 1, 1)


def brute_boundary_f(a: np.ndarray, b: np.ndarray, tolerance: float) -> float:
    """The same definition with every pair of boundary pixels looked at."""

    def edge(mask: np.ndarray) -> list[tuple[int, int]]:
        height, width = mask.shape
        near = ((0, 1), (1, 0), (1, 1))
        return [
            (y, x)
            for y in range(height)
            for x in range(width)
            if any(y + i < height and x + j < width and mask[y, x] != mask[y + i, x + j] for i, j in near)
        ]

    radius = max(1, round(tolerance * math.hypot(*a.shape)))
    first, second = edge(a), edge(b)
    if not first or not second:
        return float(bool(first) == bool(second))

    def matched(these: list[tuple[int, int]], those: list[tuple[int, int]]) -> float:
        return sum(any(max(abs(y - v), abs(x - u)) <= radius for v, u in those) for y, x in these) / len(these)

    precision, recall = matched(first, second), matched(second, first)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=40)
@given(masks, masks, st.sampled_from([0.0075, 0.08]))
def test_boundary_f_is_the_definition(a: np.ndarray, b: np.ndarray, tolerance: float) -> None:
    a, b = a & (np.indices(SHAPE)[0] < 9), b & (np.indices(SHAPE)[1] > 12)  # sparse enough to miss each other
    assert boundary_f(a, b, tolerance) == pytest.approx(brute_boundary_f(a, b, tolerance))


def test_boundary_f_forgives_a_pixel_and_not_ten() -> None:
    still = disc() > 0.5
    assert boundary_f(still, disc(x=61) > 0.5) == 1.0
    assert boundary_f(still, disc(x=70) > 0.5) < 0.4
    assert boundary_f(still, np.zeros_like(still)) == 0.0 == boundary_f(np.zeros_like(still), still)
    assert boundary_f(np.zeros_like(still), np.ones_like(still)) == 1.0  # neither has a boundary


def test_known_numbers() -> None:
    reference, got = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    reference[:2], got[:, :2] = 1, 1
    found = compare(got, reference)
    assert (found.mae, found.max_abs, found.area, found.raw_mae) == (0.5, 1, 1, 0.5)
    assert found.iou == pytest.approx(4 / 12)
    assert compare(np.float32(0.5) * reference, reference).raw_mae == 0.25


def test_nothing_to_see() -> None:
    flat, shown = np.full(SHAPE, 0.1, np.float32), disc()[:24, 40:60]
    both = compare(flat, flat)
    assert both.empty and (both.mae, both.iou, both.area) == (0, 1, 1)
    appeared = compare(shown, flat)
    assert appeared.empty and appeared.area == math.inf and appeared.iou == 0
    lost = compare(flat, shown)
    assert not lost.empty and lost.area == 0 and lost.iou == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    d0 = disc()
    d0[3, 3] = bad
    found = compare(d0, disc())
    assert not found.finite and found.iou == 0 and found.mae > 0.1 and math.isfinite(found.raw_mae)
    assert "NaN" in Fidelity((found,)).broken({})


def image(**changes: object) -> ImageFidelity:
    return ImageFidelity(**{"mae": 0.001, "max_abs": 0.1, "iou": 0.99, "boundary_f": 0.98, "area": 1.0,
                               "raw_mae": 0.002, **changes})  # type: ignore[arg-type]  # fmt: skip


def test_means_and_worst() -> None:
    empty = image(mae=0.5, iou=0.0, boundary_f=0.0, area=math.inf, empty=True)
    fidelity = Fidelity((image(), image(mae=0.003, iou=0.9, boundary_f=0.5, area=0.5), image(area=1.6), empty))
    assert fidelity.mae == pytest.approx(0.505 / 4) and fidelity.mae_worst == 0.5
    assert fidelity.iou == pytest.approx(2.88 / 3) and fidelity.iou_worst == 0.9  # the empty one left out
    assert fidelity.boundary_f_worst == 0.5 and fidelity.area_worst == 0.5  # 0.5 is farther from 1 than 1.6
    data = json.loads(json.dumps(fidelity.to_json(), allow_nan=False))
    assert (data["photos"], data["empty"], data["finite"]) == (4, 1, True)
    agreements = [measure for measure in LOWER if measure not in CLASS_MEASURES]
    assert Fidelity(()).summary() == {**dict.fromkeys(UPPER, 0.0), **dict.fromkeys(agreements, 1.0), "area_worst": 1.0}


def test_worst_area_is_the_lost_object() -> None:
    assert Fidelity((image(area=3.0), image(area=0.0))).area_worst == 0.0
    assert Fidelity((image(area=0.5), image(area=math.inf))).area_worst == math.inf


def test_image_json_is_json() -> None:
    data = json.loads(json.dumps(image_json(image(area=math.inf)), allow_nan=False))
    assert data["area"] is None and data["mae"] == 0.001


def test_budget() -> None:
    limits = parse_budget("mae=0.003, iou_worst=0.97,")
    assert limits == {"mae": 0.003, "iou_worst": 0.97} and parse_budget("") == {}
    assert Fidelity((image(),)).broken(limits) == ""
    assert Fidelity((image(mae=0.0031, iou=0.96),)).broken(limits) == "mae 0.0031 > 0.003, iou_worst 0.96 < 0.97"
    assert Fidelity((image(mae=0.003, iou=0.97),)).broken(limits) == ""  # the limit itself is within


@pytest.mark.parametrize("text", ["area=1", "mae", "mae=", "mae=x", "mae=-1", "mae=nan", "iou=1.5", "=0.1"])
def test_bad_budget(text: str) -> None:
    with pytest.raises(UserError):
        parse_budget(text)


@given(st.text())
def test_budget_of_anything(text: str) -> None:
    try:
        assert set(parse_budget(text)) <= {*UPPER, *LOWER}
    except UserError as error:
        assert error.hint
