"""Our measures against pysodmetrics, which pins packages that others need and so is a dependency of tests alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image

from u2export.benchmarks.measuring.ground_truth import BETA2, Accuracy, find_masks, read_truth
from u2export.benchmarks.measuring.sod_metrics import (
    f_measure,
    mean_absolute_error,
    precision_and_recall,
    s_measure,
    stretched,
)
from u2export.reference.image import Floats, mask_for
from u2export.reference.photos import read_photo

Measured = tuple[NDArray[np.float64], NDArray[np.float64], float, float]


@pytest.fixture(scope="module")
def theirs() -> Callable[[NDArray[np.uint8], NDArray[np.bool_]], Measured]:
    """Precision, recall, MAE and S-measure of one mask from pysodmetrics."""
    sod = pytest.importorskip("py_sod_metrics")

    def measure(mask: NDArray[np.uint8], truth: NDArray[np.bool_]) -> Measured:
        kinds = {"precision": sod.PrecisionHandler, "recall": sod.RecallHandler}
        curves = sod.FmeasureV2({k: kind(with_dynamic=True, with_adaptive=False) for k, kind in kinds.items()})
        mae, s = sod.MAE(), sod.Smeasure()
        for measure in (curves, mae, s):
            measure.step(mask, np.uint8(truth) * 255)
        found = curves.get_results()
        precision, recall = (found[k]["dynamic"] for k in kinds)
        return precision, recall, mae.get_results()["mae"], s.get_results()["sm"]

    return measure


def ours(mask: NDArray[np.uint8], truth: NDArray[np.bool_]) -> Measured:
    values = stretched(mask)
    return *precision_and_recall(values, truth), mean_absolute_error(values, truth), s_measure(values, truth)


def same(mask: NDArray[np.uint8], truth: NDArray[np.bool_], measure: Callable[..., Measured]) -> None:
    for own, other in zip(ours(mask, truth), measure(mask, truth), strict=True):
        assert own == pytest.approx(other, abs=1e-9)


shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14)
pairs = shapes.flatmap(
    lambda shape: st.tuples(
        arrays(np.uint8, shape, elements=st.sampled_from((0, 1, 7, 127, 128, 200, 254, 255)) | st.integers(0, 255)),
        arrays(np.bool_, shape),
    )
)


def quadrants_are_full(truth: NDArray[np.bool_]) -> bool:
    """pysodmetrics returns NaN where the centre lies in the last row or column."""
    if not truth.any() or truth.all():
        return True
    return all(np.argwhere(truth).mean(0).round() + 1 < truth.shape)


@given(pairs)
def test_any_mask(theirs: Callable[..., Measured], pair: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> None:
    assume(quadrants_are_full(pair[1]))
    same(*pair, theirs)


@given(pairs)
def test_every_measure_is_a_number_from_0_to_1(pair: tuple[NDArray[np.uint8], NDArray[np.bool_]]) -> None:
    precision, recall, mae, s = ours(*pair)
    maxf = f_measure(precision, recall, BETA2).max()
    for value in (*precision, *recall, mae, s, maxf):
        assert 0 <= value <= 1 + 1e-12


@given(st.integers(0, 2**32 - 1), st.integers(2, 90), st.integers(2, 90), st.floats(0, 4))
def test_smooth_masks(theirs: Callable[..., Measured], seed: int, height: int, width: int, contrast: float) -> None:
    """What networks answer: a blob with a soft edge and noise, against a blob that lies elsewhere."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[0:height, 0:width], -1) / (height, width)
    truth = np.linalg.norm(grid - random.random(2), axis=-1) < random.random()
    soft = contrast * (random.random() - np.linalg.norm(grid - random.random(2), axis=-1))
    mask = np.uint8(255 / (1 + np.exp(-10 * soft + random.normal(0, 0.5, (height, width)))))
    assume(quadrants_are_full(truth))
    same(mask, truth, theirs)


def test_the_opposite_of_the_truth(theirs: Callable[..., Measured]) -> None:
    """Its similarity is negative; the S-measure stops at 0."""
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    same(np.uint8(~truth) * 255, truth, theirs)
    assert s_measure((~truth).astype(float), truth) == 0


def test_an_object_at_the_edge_has_a_number() -> None:
    truth = np.zeros((6, 8), bool)
    truth[-1] = True
    assert s_measure(truth.astype(float), truth) == pytest.approx(1)
    assert 0 < s_measure(np.full(truth.shape, 0.5), truth) < 0.6


def test_real_photos(shared: Path, theirs: Callable[..., Measured]) -> None:
    """The brightness of a photo as its mask, and the ground truth as a perfect one."""
    photos = sorted((shared / "davis20" / "images").iterdir())[::12]
    for photo, file in find_masks(shared / "davis20" / "masks", photos).items():
        truth = read_truth(file)
        grey = np.asarray(Image.fromarray(read_photo(photo)).convert("L"))
        same(grey, truth, theirs)
        same(255 - grey, truth, theirs)
        same(np.uint8(truth) * 255, truth, theirs)


def test_means_over_photos(theirs: Callable[..., Measured]) -> None:
    """maxF is the largest F of the averaged curves; MAE and S-measure are averaged over photos."""
    random, accuracy, rows = np.random.default_rng(3), Accuracy(), []
    truth = np.zeros((50, 60), bool)
    truth[10:30, 20:50] = True
    for _ in range(4):
        d0: Floats = random.random((32, 32), np.float32)
        accuracy.add(d0, truth)
        rows.append(theirs(mask_for(d0, *truth.shape), truth))
    precision, recall, mae, s = (np.mean(values, 0) for values in zip(*rows, strict=True))
    maxf = (1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)).max()
    assert accuracy.result() == pytest.approx({"maxf": maxf, "mae": mae, "s": s, "images": 4}, abs=1e-9)
