"""Times of single inferences, and what is derived from them: percentiles, paces, speed-ups, the knee of a long run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from u2export.benchmarks.statistics import CONFIDENCE, Interval, time_ratio

# Fewer samples or less time than the quick tier: good for a first look only.
INDICATIVE_SAMPLES, INDICATIVE_SECONDS = 64, 6.0
# The knee compares so many seconds at the end of a sustained run with as many at its start.
KNEE_SECONDS = 30.0


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of single inferences in nanoseconds, by round; every sample counts, none is clipped.

    Attributes:
        rounds: the samples. spans: wall-clock ns of each round, where requests overlapped; else empty.
        batch: pictures in one inference.
    """

    rounds: tuple[tuple[int, ...], ...] = ()
    spans: tuple[int, ...] = ()
    batch: int = 1

    @cached_property
    def ns(self) -> tuple[int, ...]:
        """All samples in the order taken."""
        return tuple(sample for turn in self.rounds for sample in turn)

    def percentile(self, percent: float) -> float:
        """Milliseconds, linear interpolation between samples."""
        return float(np.percentile(self.ns, percent)) / 1e6

    @property
    def p50(self) -> float:
        """Median in ms."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """90th percentile in ms."""
        return self.percentile(90)

    @property
    def least(self) -> float:
        """Fastest sample in ms."""
        return min(self.ns) / 1e6

    @property
    def mad(self) -> float:
        """Median absolute deviation from the median in ms."""
        return float(np.median(np.abs(np.asarray(self.ns) - np.median(self.ns)))) / 1e6

    @property
    def unstable(self) -> bool:
        """pyperf's rule: the deviation is 10 % of the mean or more, or an extreme is 50 % off the mean."""
        mean = float(np.mean(self.ns))
        return bool(
            np.std(self.ns) >= 0.1 * mean or max(self.ns) >= 1.5 * mean or min(self.ns) <= 0.5 * mean,
        )

    @property
    def indicative(self) -> bool:
        """Fewer samples or less time than the quick tier asks for."""
        return len(self.ns) < INDICATIVE_SAMPLES or sum(self.spans or self.ns) < INDICATIVE_SECONDS * 1e9

    @property
    def throughput(self) -> float:
        """Pictures per second over all rounds, pauses between rounds left out."""
        total = sum(self.spans or self.ns)
        return len(self.ns) * self.batch / (total / 1e9) if total else float("nan")

    @property
    def paces(self) -> tuple[float, ...]:
        """What speed-ups compare, by round: ns per picture of overlapping requests, else the median; nan if empty."""
        if self.spans:
            return tuple(
                span / (len(turn) * self.batch) if turn else float("nan")
                for turn, span in zip(self.rounds, self.spans, strict=True)
            )
        return tuple(float(np.median(turn)) if turn else float("nan") for turn in self.rounds)

    def summary(self) -> dict[str, float]:
        """The derived statistics by name, in ms, and the number of samples."""
        tails = {f"p{p}": self.percentile(p) for p in (50, 90, 95, 99)}
        return {**tails, "min": self.least, "mad": self.mad, "samples": len(self.ns)}


def speedup(row: Latency, compared: Latency, confidence: float = CONFIDENCE) -> Interval | None:
    """Return how many times faster `row` is than `compared`: the ratio of their times, by the gate's own estimator.

    Args:
        row: the times of the row.
        compared: the times of the compared row, from the same rounds.
        confidence: of the interval.

    Returns:
        `statistics.time_ratio` of the paces: nan ends with fewer than 6 rounds, None without a common round.
    """
    return time_ratio(compared.paces, row.paces, confidence)


@dataclass(frozen=True)
class Sustained:
    """A row alone, run back to back until the device is as warm as it gets.

    Attributes:
        slices: the samples in the order taken, in the slices they were asked for.
        states: what the system told of clocks, temperature and power after each slice.
    """

    slices: Latency = field(default_factory=Latency)
    states: tuple[Mapping[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return sum(self.slices.ns) / 1e9

    @property
    def knee(self) -> float:
        """Median of the last 30 s over that of the first 30 s (of the halves of a shorter run); nan without samples."""
        if not self.slices.ns:
            return float("nan")
        times = np.asarray(self.slices.ns)
        ends = np.cumsum(times) / 1e9
        window = min(KNEE_SECONDS, ends[-1] / 2)
        first, last = times[ends <= max(window, ends[0])], times[ends > min(ends[-1] - window, ends[-1] - 1e-9)]
        return float(np.median(last) / np.median(first))
