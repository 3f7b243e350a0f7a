"""The measures that papers on salient objects report: precision and recall, mean absolute error, S-measure.

All functions take one mask as `stretched` returns it and its ground truth, both (H, W). The results equal those of
pysodmetrics 1.6.2 (and so of the authors' MATLAB code) within rounding; the tests compare. One case differs on
purpose: where the centre of the object lies in the last row or column, quadrants of the S-measure are empty, and
pysodmetrics returns NaN. An empty quadrant has no weight here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.float64]
Truth = NDArray[np.bool_]
EPSILON = float(np.spacing(1.0))  # `eps` of the MATLAB code


def stretched(mask: NDArray[np.uint8]) -> Mask:
    """Return an 8-bit mask as values in [0, 1], its range stretched to all of [0, 1]; a flat mask keeps its value."""
    values = mask / 255.0
    low, high = values.min(), values.max()
    return np.asarray((values - low) / (high - low) if high != low else values)


def precision_and_recall(mask: Mask, truth: Truth) -> tuple[Mask, Mask]:
    """Return precision and recall at the 256 thresholds 255, 254, …, 0 of an 8-bit mask, each (256,).

    Source: Achanta et al., "Frequency-tuned Salient Region Detection", CVPR 2009. Both are 0 where their denominator
    is 0.
    """
    levels = (mask * 255).astype(np.uint8)
    hits = np.cumsum(np.bincount(levels[truth], minlength=256)[::-1])
    chosen = np.cumsum(np.bincount(levels.ravel(), minlength=256)[::-1])
    return hits / np.maximum(chosen, 1), hits / max(int(truth.sum()), 1)


def f_measure(precision: Mask, recall: Mask, beta2: float) -> Mask:
    """Return the F-measure with beta² `beta2` (Achanta et al.); 0 where precision and recall are 0."""
    return np.asarray((1 + beta2) * precision * recall / np.maximum(beta2 * precision + recall, np.finfo(float).tiny))


def mean_absolute_error(mask: Mask, truth: Truth) -> float:
    """Return the mean absolute difference (Perazzi et al., "Saliency Filters", CVPR 2012), in [0, 1]."""
    return float(np.abs(mask - truth).mean())


def s_measure(mask: Mask, truth: Truth, alpha: float = 0.5) -> float:
    """Return the structure measure, in [0, 1].

    Source: Fan et al., "Structure-measure: A New Way to Evaluate Foreground Maps", ICCV 2017. `alpha` weighs the
    object-aware part (S_o) against the region-aware part (S_r). Ground truth that is all background or all object has
    no structure, and the mean of the mask decides.
    """
    share = float(truth.mean())
    if share in (0, 1):
        return float(mask.mean()) if share else 1 - float(mask.mean())
    objects = share * _object(mask[truth]) + (1 - share) * _object(1 - mask[~truth])
    return max(0.0, alpha * objects + (1 - alpha) * _regions(mask, truth))


def _object(values: Mask) -> float:
    """Return how bright and even the values of one object, or of the inverted background, are: a part of S_o."""
    mean, deviation = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
    return float(2 * mean / (mean**2 + 1 + deviation + EPSILON))


def _regions(mask: Mask, truth: Truth) -> float:
    """Return the structural similarity of the four quadrants around the object's centre: S_r."""
    height, width = truth.shape
    # The MATLAB code counts from 1 and puts the centre's row and column into the upper and left quadrants.
    row = round(float(truth.sum(1) @ np.arange(height) / truth.sum())) + 1
    column = round(float(truth.sum(0) @ np.arange(width) / truth.sum())) + 1
    total = 0.0
    for rows in (slice(row), slice(row, None)):
        for columns in (slice(column), slice(column, None)):
            if (part := truth[rows, columns]).size:
                total += part.size / truth.size * _similarity(mask[rows, columns], part.astype(float))
    return total


def _similarity(mask: Mask, truth: Mask) -> float:
    """Return the structural similarity of one quadrant, in [-1, 1]: SSIM without its constants."""
    x, y, freedom = mask.mean(), truth.mean(), mask.size - 1 + EPSILON
    covariance = ((mask - x) * (truth - y)).sum() / freedom
    variances = (((mask - x) ** 2).sum() + ((truth - y) ** 2).sum()) / freedom
    above, below = 4 * x * y * covariance, (x**2 + y**2) * variances
    if above:
        return float(above / (below + EPSILON))
    return float(below == 0)
