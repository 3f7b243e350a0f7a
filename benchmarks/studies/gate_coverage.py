"""How often do the gate's intervals hold the true value? Simulated losses of photos and simulated times.

Losses of masks are drawn from known distributions, so their true mean is known. The study counts the 95 % intervals of
`statistics.mean_interval` that hold it, and how often the true mean lies above or below the interval. Times are drawn
with a machine whose speed drifts and with rounds that go wrong; the study counts the intervals of
`statistics.time_ratio` that hold the true ratio. The interval that u2export had before, the percentile bootstrap,
stands beside the present one.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.benchmarks.statistics import CONFIDENCE, Interval, mean_interval, student, time_ratio
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, progress
from u2export.benchmarks.tables.markdown import table
from u2export.exporters.runtime import versions

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, int]], Floats]
LEAST = 0.93
RATIO = 1.1
RESAMPLES = 500
# By name: how to draw the losses, and their true mean.
LOSSES: Mapping[str, tuple[Draw, float]] = {
    "normal": (lambda random, shape: random.normal(0, 1, shape), 0.0),
    "lognormal, sigma 0.5": (lambda random, shape: random.lognormal(0, 0.5, shape), math.exp(0.125)),
    "lognormal, sigma 1": (lambda random, shape: random.lognormal(0, 1, shape), math.exp(0.5)),
    "exponential": (lambda random, shape: random.exponential(1, shape), 1.0),
    "uniform": (lambda random, shape: random.random(shape), 0.5),
    "Student's t, 3 degrees of freedom": (lambda random, shape: random.standard_t(3, shape), 0.0),
}  # fmt: skip


def covered(found: Sequence[Interval], truth: float) -> dict[str, float]:
    """Return the shares of intervals that hold the true value, that lie above it, and that lie below it."""
    above = float(np.mean([interval.low > truth for interval in found]))
    below = float(np.mean([interval.high < truth for interval in found]))
    return {"covered": round(1 - above - below, 4), "above": round(above, 4), "below": round(below, 4)}


def bootstrap(samples: Floats, random: np.random.Generator) -> list[Interval]:
    """Return the percentile bootstrap interval of the mean of each row (Efron and Tibshirani, 1993, chapter 13)."""
    n = samples.shape[1]
    found = []
    for values in samples:
        means = values[random.integers(n, size=(RESAMPLES, n))].mean(axis=1)
        low, high = np.percentile(means, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
        found.append(Interval(float(values.mean()), float(low), float(high), n))
    return found


def students(samples: Floats) -> list[Interval]:
    """Return Student's interval of the mean of each row."""
    n = samples.shape[1]
    means, errors = samples.mean(axis=1), samples.std(axis=1, ddof=1) / math.sqrt(n) * student(CONFIDENCE, n - 1)
    return [Interval(float(m), float(m - e), float(m + e), n) for m, e in zip(means, errors, strict=True)]


def of_losses(name: str, photos: int, runs: int) -> dict[str, Any]:
    """Return the coverage for one distribution and one number of photos, and the widths relative to Student's."""
    draw, mean = LOSSES[name]
    random = np.random.default_rng([photos, *name.encode()])
    samples = draw(random, (runs, photos))
    ours, theirs = [mean_interval(list(values)) for values in samples], students(samples)
    wider = [(a.high - a.low) / (b.high - b.low) for a, b in zip(ours, theirs, strict=True)]
    return {
        "losses": name, "photos": photos, **covered(ours, mean),
        "student": covered(theirs, mean)["covered"],
        "bootstrap": covered(bootstrap(samples[: max(1, runs // 5)], random), mean)["covered"],
        "width": round(float(np.median(wider)), 3),
    }  # fmt: skip


def of_times(rounds: int, runs: int) -> dict[str, Any]:
    """Return the coverage of the ratio of times. The speed drifts, and one turn in ten takes twice as long."""
    random = np.random.default_rng(rounds)
    found = []
    for _ in range(runs):
        pace = np.exp(np.cumsum(random.normal(0, 0.3, rounds)))
        noise = random.lognormal(0, 0.04, (2, rounds)) * np.where(random.random((2, rounds)) < 0.1, 2.0, 1.0)
        interval = time_ratio(list(RATIO * pace * noise[0]), list(pace * noise[1]))
        assert interval and interval.known
        found.append(interval)
    return {"rounds": rounds, **covered(found, RATIO)}


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    losses = table(
        ("losses", "photos", "covered", "mean above", "mean below", "Student", "bootstrap", "width"),
        [
            (row["losses"], str(row["photos"]), *(f"{100 * row[k]:.1f} %" for k in SHARES), f"{row['width']:.2f}")
            for row in data["losses"]
        ],
        "lrrrrrrr",
    )
    times = table(
        ("rounds", "covered", "ratio above", "ratio below"),
        [(str(row["rounds"]), *(f"{100 * row[k]:.1f} %" for k in SHARES[:3])) for row in data["times"]],
        "rrrr",
    )
    return f"""# Coverage of the gate's intervals

{data["runs"]} simulations for each line, 95 % intervals. Again with

    {data["rerun"]}

## Mean of the losses

- *covered*: the share of intervals that hold the true mean. It has to be {100 * LEAST:.0f} % or more.
- *mean above*, *mean below*: the share of cases in which the true mean lies above or below the interval.
- *Student*: the coverage of Student's interval. *bootstrap*: the coverage of the percentile bootstrap, which u2export
  used before, from a fifth of the simulations.
- *width*: the median of the width over the width of Student's interval. The interval is conservative: for symmetric
  losses of few photos it is wider than it needs to be. That is the price for skewed losses.

{losses}

## Ratio of times

The true ratio is {RATIO}. The speed of the machine drifts by 30 % from round to round, each time varies by 4 %, and
one turn in ten takes twice as long.

{times}
"""


SHARES = ("covered", "below", "above", "student", "bootstrap")


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("--runs", type=int, default=10_000, help="simulations for each line; %(default)s")
    parser.add_argument("--photos", type=int, nargs="+", default=[4, 8, 18, 30, 100], help="numbers of photos")
    parser.add_argument("--rounds", type=int, nargs="+", default=[6, 10, 20, 64], help="numbers of rounds, 6 or more")


def run(given: Namespace, pages: Pages) -> int:
    """Simulate, and write both pages; return 1 if a coverage is below 93 %."""
    losses = []
    for name in LOSSES:
        for photos in given.photos:
            losses.append(of_losses(name, photos, given.runs))
            progress(losses[-1])
    data = {
        "schema": 1, "rerun": pages.command, "tools": versions("u2export", "numpy"), "confidence": CONFIDENCE,
        "runs": given.runs, "losses": losses, "times": [of_times(rounds, given.runs) for rounds in given.rounds],
    }  # fmt: skip
    pages.publish(data, page(data))
    return int(any(row["covered"] < LEAST for row in [*losses, *data["times"]]))


STUDY = Study("gate_coverage", "How often do the gate's intervals hold the true value?", "coverage", options, run,
              RESULTS / "gate")  # fmt: skip
