"""Intervals of paired differences and of time ratios, by the bootstrap with a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from u2export.benchmarks.report import Latency

RESAMPLES = 10_000
# Fewer rounds say nothing about how much rounds differ.
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, and of how many samples."""

    value: float
    low: float
    high: float
    samples: int

    def needed(self, limit: float) -> int | None:
        """How many samples more would put the limit outside an interval about the same value; None for never.

        The interval's width goes with the root of the number of samples; the side towards the limit counts.
        """
        distance = abs(self.value - limit)
        width = self.high - self.value if self.value < limit else self.value - self.low
        if distance == 0:
            return None
        total = math.ceil(self.samples * (width / distance) ** 2)
        return max(1, total - self.samples)


def mean_interval(differences: Sequence[float], confidence: float) -> Interval:
    """The mean of paired differences and its percentile bootstrap interval (Efron and Tibshirani, 1993, chapter 13).

    One difference alone has no spread: it stands for itself.
    """
    values = np.asarray(differences, np.float64)
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), _ends(confidence))
    return Interval(float(values.mean()), float(low), float(high), len(values))


def time_ratio(now: Latency, then: Latency, confidence: float) -> Interval | None:
    """Time of `now` over `then`, of two rows that took turns in the same rounds; None with too few rounds of both."""
    pairs = [(a, b) for a, b in zip(now.rounds, then.rounds, strict=False) if a and b]
    if len(pairs) < LEAST_ROUNDS:
        return None
    logs = np.array([math.log(float(np.median(a)) / float(np.median(b))) for a, b in pairs])
    draws = np.random.default_rng(0).integers(len(logs), size=(RESAMPLES, len(logs)))
    low, high = np.percentile(np.median(logs[draws], axis=1), _ends(confidence))
    return Interval(math.exp(float(np.median(logs))), math.exp(low), math.exp(high), len(logs))


def _ends(confidence: float) -> tuple[float, float]:
    """Percentiles that leave the same share outside on both sides."""
    return 50 * (1 - confidence), 50 * (1 + confidence)
