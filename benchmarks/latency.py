"""Times of single inferences, and their derived values: percentiles, paces, speed-ups, the knee of a long run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from u2export.benchmarks.statistics import CONFIDENCE, Interval, time_ratio

# The samples and seconds of the quick tier. Times with fewer are good for a first look only.
INDICATIVE_SAMPLES, INDICATIVE_SECONDS = 64, 6.0
# Seconds. The knee compares the last and the first 30 seconds of a sustained run.
KNEE_SECONDS = 30.0


@dataclass(frozen=True)
class Latency:
    """Wall-clock times of single inferences, by round. Every sample counts; none is clipped.

    Attributes:
        rounds: the samples of each round in nanoseconds.
        spans: the duration of each round in nanoseconds, where inferences overlap or have more than one picture;
            otherwise empty.
        batch: pictures in one inference.
    """

    rounds: tuple[tuple[int, ...], ...] = ()
    spans: tuple[int, ...] = ()
    batch: int = 1

    @cached_property
    def ns(self) -> tuple[int, ...]:
        """All samples in nanoseconds, in the order in which they were taken."""
        return tuple(sample for turn in self.rounds for sample in turn)

    def percentile(self, percent: float) -> float:
        """Return a percentile in milliseconds, with linear interpolation between samples."""
        return float(np.percentile(self.ns, percent)) / 1e6

    @property
    def p50(self) -> float:
        """The median in milliseconds."""
        return self.percentile(50)

    @property
    def p90(self) -> float:
        """The 90th percentile in milliseconds."""
        return self.percentile(90)

    @property
    def least(self) -> float:
        """The shortest time in milliseconds."""
        return min(self.ns) / 1e6

    @property
    def mad(self) -> float:
        """The median absolute deviation from the median, in milliseconds."""
        return float(np.median(np.abs(np.asarray(self.ns) - np.median(self.ns)))) / 1e6

    @property
    def unstable(self) -> bool:
        """Whether the times vary too much, by the rule of pyperf.

        The standard deviation is 10 % of the mean or more, or an extreme time is 50 % off the mean or more.
        """
        mean = float(np.mean(self.ns))
        return bool(
            np.std(self.ns) >= 0.1 * mean or max(self.ns) >= 1.5 * mean or min(self.ns) <= 0.5 * mean,
        )

    @property
    def indicative(self) -> bool:
        """Whether there are fewer samples, or less time, than the quick tier asks for."""
        return len(self.ns) < INDICATIVE_SAMPLES or sum(self.spans or self.ns) < INDICATIVE_SECONDS * 1e9

    @property
    def throughput(self) -> float:
        """Pictures per second over all rounds, without the pauses between rounds; nan without samples."""
        total = sum(self.spans or self.ns)
        return len(self.ns) * self.batch / (total / 1e9) if total else float("nan")

    @property
    def paces(self) -> tuple[float, ...]:
        """The times that speed-ups compare, one for each round, in nanoseconds.

        The time of a round is its duration divided by its pictures where `spans` exist, otherwise its median time. The
        time of a round without samples is nan.
        """
        if self.spans:
            return tuple(
                span / (len(turn) * self.batch) if turn else float("nan")
                for turn, span in zip(self.rounds, self.spans, strict=True)
            )
        return tuple(float(np.median(turn)) if turn else float("nan") for turn in self.rounds)

    def summary(self) -> dict[str, float]:
        """Return p50, p90, p95, p99, min and mad in milliseconds, and the number of samples."""
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
    """The times of a row that runs alone for minutes, while the device warms up.

    Attributes:
        slices: the samples; each slice of about 10 seconds is a round.
        states: clocks, temperatures and power after each slice, as `u2export.benchmarks.sensors.pulse` gives them.
    """

    slices: Latency = field(default_factory=Latency)
    states: tuple[Mapping[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """The sum of all times, in seconds."""
        return sum(self.slices.ns) / 1e9

    @property
    def knee(self) -> float:
        """The median time of the last 30 seconds divided by the median time of the first 30 seconds.

        A run shorter than a minute is compared by its halves. The value is nan without samples.
        """
        if not self.slices.ns:
            return float("nan")
        times = np.asarray(self.slices.ns)
        ends = np.cumsum(times) / 1e9
        window = min(KNEE_SECONDS, ends[-1] / 2)
        first, last = times[ends <= max(window, ends[0])], times[ends > min(ends[-1] - window, ends[-1] - 1e-9)]
        return float(np.median(last) / np.median(first))
