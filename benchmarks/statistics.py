"""Intervals of paired differences, by the bootstrap with a fixed seed, and of ratios of times taken in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from u2export.benchmarks.latency import Latency

RESAMPLES = 10_000


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
    """Time of `now` over `then`, of two rows that took turns in the same rounds; None with too few rounds of both.

    A round's ratio is that of the two turns' medians; a slow spell of the machine falls on both. Over rounds: the
    estimate of Hodges and Lehmann (1963) of the logarithm, with the exact interval of Wilcoxon's signed-rank test. Who
    goes first in a round is drawn by lot, so equal rows' ratios are symmetric about one, which is all the test asks:
    ten rounds are too few for the bootstrap, and single rounds that went wrong do little harm.
    """
    turns = zip(now.rounds, then.rounds, strict=False)
    ratios = [float(np.median(a)) / float(np.median(b)) for a, b in turns if min((*a, *b), default=0) > 0 and a and b]
    logs = np.log(np.asarray(ratios))
    kept = _walsh_rank(len(logs), (1 - confidence) / 2)
    if kept is None:
        return None
    first, second = np.triu_indices(len(logs))
    walsh = np.sort((logs[first] + logs[second]) / 2)
    low, value, high = np.exp((walsh[kept], np.median(walsh), walsh[-1 - kept]))
    return Interval(float(value), float(low), float(high), len(logs))


def _walsh_rank(rounds: int, tail: float) -> int | None:
    """How many Walsh averages lie below the interval's lower end; None where even the smallest is too many.

    The largest k with P(T <= k) <= tail, T the signed-rank statistic: each rank 1..rounds counts with probability 1/2.
    """
    ways = np.ones(1)
    for rank in range(1, rounds + 1):
        ways = np.pad(ways, (0, rank)) / 2 + np.pad(ways, (rank, 0)) / 2
    fits = int(np.searchsorted(np.cumsum(ways), tail, side="right"))
    return fits - 1 if fits else None


def _ends(confidence: float) -> tuple[float, float]:
    """Percentiles that leave the same share outside on both sides."""
    return 50 * (1 - confidence), 50 * (1 + confidence)
