"""Which of the measured options to take: limits, the front of time and masks, the closest miss."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from u2export.benchmarks.latency import Latency, speedup
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.statistics import Interval, time_ratio
from u2export.calibration.float_search import load_of
from u2export.reference.fidelity import Fidelity

ROUNDS = 6  # fewer rounds give no interval
HOPELESS = 1.5  # times the allowed time, by the times of single photos: not worth a search for float layers


@dataclass(frozen=True)
class Limits:
    """What an option must keep.

    Attributes:
        budget: fidelity limits, as of `u2export.reference.fidelity.parse_budget`.
        max_ms: the longest time of one inference in milliseconds; 0 for any time.
    """

    budget: Mapping[str, float]
    max_ms: float = 0.0

    def in_words(self) -> str:
        """The limits in one phrase, such as "100 ms and iou_worst=0.95"."""
        masks = ", ".join(f"{name}={limit:g}" for name, limit in self.budget.items())
        return f"{self.max_ms:g} ms and {masks}" if self.max_ms else masks


@dataclass(frozen=True)
class Option:
    """One artifact in one arithmetic on the device, as it was judged and timed.

    Attributes:
        name: of its row in the report.
        path: the artifact's file.
        target, precision, arithmetic: of the row.
        size: height and width of the network's input.
        float_share: share of the multiply-accumulates that was put into float to keep the budget.
        fidelity: of the masks at the size of the photos, against the reference at its own size; None if it did not run.
        broken: the limits of masks that are broken, in words; empty where all are kept.
        ms: the time of one inference in milliseconds with its interval. Without rounds it is the median over the
            photos, without an interval. None if it did not run.
        rounds: timed rounds.
        stopped: why no more rounds were timed; empty where all were.
        problem: why it did not run.
    """

    name: str
    path: Path
    target: str
    precision: str
    arithmetic: str
    size: tuple[int, int]
    float_share: float = 0.0
    fidelity: Fidelity | None = None
    broken: str = ""
    ms: Interval | None = None
    rounds: int = 0
    stopped: str = ""
    problem: str = ""

    @property
    def ran(self) -> bool:
        """Whether its masks and a time are known."""
        return self.fidelity is not None and self.ms is not None

    def fast(self, limits: Limits) -> bool:
        """Whether it is proven to keep the time: the whole interval does."""
        return not limits.max_ms or (self.ms is not None and self.ms.high <= limits.max_ms)

    def fits(self, limits: Limits) -> bool:
        """Whether masks and time keep the limits."""
        return self.ran and not self.broken and self.rounds >= ROUNDS and self.fast(limits)

    def excess(self, limits: Limits) -> float:
        """The limit that is broken most, as a factor: 1.2 is 20 % over it; infinite where it did not run."""
        if self.fidelity is None or self.ms is None:
            return math.inf
        high = self.ms.high if self.ms.known else self.ms.value
        return max(load_of(self.fidelity, limits.budget), high / limits.max_ms if limits.max_ms else 0.0)

    def to_json(self) -> dict[str, Any]:
        """The option as plain data."""
        found = {key: getattr(self, key) for key in ("name", "target", "precision", "arithmetic", "float_share")}
        ms = {"ms": self.ms.value, "ms_low": self.ms.low, "ms_high": self.ms.high} if self.ms else {}
        times = {key: None if math.isnan(value) else value for key, value in ms.items()}
        masks = self.fidelity.summary() if self.fidelity else {}
        told = {"rounds": self.rounds, "broken": self.broken, "stopped": self.stopped, "problem": self.problem}
        return {**found, "path": str(self.path), "size": list(self.size), **times, "masks": masks, **told}


def time_of(row: Row) -> Interval | None:
    """The time of one inference in milliseconds: over the rounds, or the median over the photos without rounds."""
    if row.latency.ns:
        return time_ratio(row.latency.paces, [1e6] * len(row.latency.rounds))
    return Interval(median(row.inference_ns) / 1e6) if row.inference_ns else None


def losers(report: Report, live: Collection[str], limits: Limits) -> dict[str, str]:
    """The rows that need no more rounds, with the reason: too slow for the limits, or beaten in time and in masks."""
    rows = {name: row for name in live if (row := report.row(name)) is not None}
    found: dict[str, str] = {}
    for name, row in rows.items():
        ms = time_of(row)
        if ms is None or not ms.known:
            continue
        if limits.max_ms and ms.low > limits.max_ms:
            found[name] = f"slower than {limits.max_ms:g} ms"
        elif better := next((o for o in rows.values() if o is not row and _beats(o, row)), None):
            found[name] = f"{better.name} is faster with masks as close"
    return found


def _beats(other: Row, row: Row) -> bool:
    """Whether a row is proven faster than another, with masks as close on average and on the worst photo."""
    a, b = other.fidelity, row.fidelity
    return bool(a and b and a.mae <= b.mae and a.iou_worst >= b.iou_worst and _faster(other.latency, row.latency))


def _faster(one: Latency, other: Latency) -> bool:
    gain = speedup(one, other)
    return gain is not None and gain.known and gain.low > 1


def front(options: Iterable[Option]) -> list[Option]:
    """The options that no other option beats in both time and mean absolute error of the masks, the fastest first."""
    shown = sorted(((_ms(o), _mae(o), o) for o in options if o.ran), key=lambda found: found[:2])
    kept: list[Option] = []
    for _, mae, option in shown:
        if not kept or mae < _mae(kept[-1]):
            kept.append(option)
    return kept


def _ms(option: Option) -> float:
    return option.ms.value if option.ms else math.inf


def _mae(option: Option) -> float:
    return option.fidelity.mae if option.fidelity else math.inf


def take(options: Sequence[Option], report: Report, limits: Limits) -> Option | None:
    """The option to take: of those within the limits that nothing is proven to be faster than, the closest masks.

    So 8 bit is taken only where it is proven faster than every float option within the limits.
    """
    fitting = {o.name: o for o in options if o.fits(limits)}
    rows = {name: row for name in fitting if (row := report.row(name)) is not None}
    unbeaten = [
        o for name, o in fitting.items() if not any(_faster(r.latency, rows[name].latency) for r in rows.values())
    ]
    return min(unbeaten, key=_mae, default=None)


def closest(options: Iterable[Option], limits: Limits) -> Option | None:
    """The option that misses the limits least; None where nothing ran."""
    ran = [o for o in options if o.ran]
    return min(ran, key=lambda o: o.excess(limits), default=None)


@dataclass(frozen=True)
class Fitted:
    """What `fit` found.

    Attributes:
        limits: what was asked for.
        options: everything that was tried, in the order of the trial.
        report: times and masks of the rows, as `u2export table` reads them.
        taken: the option to take; None where nothing fits.
        left_out: what was not tried, with the reason.
        reference: the name of the reference that all masks were compared with, and its size in words.
        files: the files that were written.
    """

    limits: Limits
    options: tuple[Option, ...]
    report: Report
    taken: Option | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    reference: str = ""
    files: tuple[Path, ...] = ()

    @property
    def front(self) -> list[Option]:
        """See `front`."""
        return front(self.options)

    @property
    def closest(self) -> Option | None:
        """The option that misses the limits least."""
        return closest(self.options, self.limits)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, without the report."""
        return {
            "schema": 1,
            "budget": dict(self.limits.budget),
            "max_ms": self.limits.max_ms,
            "reference": self.reference,
            "device": self.report.device.label,
            "taken": self.taken.to_json() if self.taken else None,
            "closest": self.closest.to_json() if self.closest and not self.taken else None,
            "front": [o.name for o in self.front],
            "options": [o.to_json() for o in self.options],
            "left_out": dict(self.left_out),
        }
