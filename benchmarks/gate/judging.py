"""Whether artifacts got worse than their baseline: each photo's mask against the same photo's, times in turn.

A finding fails when the loss is beyond its limit for certain: for means, when the whole interval is; it passes when
none of the interval is; else it is inconclusive, and says how many more samples would decide. Masks in a pinned
arithmetic repeat exactly, so what one photo loses is certain as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.gate.baseline import Accepted, Baseline, Pair, arithmetic, pairs
from u2export.benchmarks.gate.policy import Limits, Policy
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.statistics import Interval, mean_interval, time_ratio
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
# What is left of a mask counts in pixels of a 320 x 320 map at least, lest one pixel of two be a collapse.
FEW = 1e-3
TITLES = {
    "mean mae": "mean MAE", "mean iou": "mean IoU", "mean boundary_f": "mean boundary F", "worst mae": "worst MAE",
    "worst iou": "worst IoU", "worst boundary_f": "worst boundary F", "collapse": "foreground area",
    "finite": "finite values", "latency": "latency", "size": "size", "ran": "ran", "truth maxf": "maxF to truth",
    "truth mae": "MAE to truth", "truth s": "S to truth", "artifact": "artifact",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One measure of one artifact.

    Attributes:
        measure: a key of TITLES.
        verdict: "pass", "fail", "inconclusive", "new" or "missing".
        value, limit: loss or ratio, and what is allowed; None where there is no number.
        low, high: the interval, where there is one.
        photo: the photo it is of, where it is of one.
        more: samples more that would decide, where that is open: photos, or rounds for latency.
        text: in words.
    """

    measure: str
    verdict: str
    text: str
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    photo: str = ""
    more: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        return TITLES[self.measure]


@dataclass(frozen=True)
class Judgement:
    """All findings of one artifact; its verdict is the gravest of theirs."""

    artifact: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """ "missing", "fail", "inconclusive", "new" or "pass"."""
        found = {f.verdict for f in self.findings}
        return next(v for v in ("missing", "fail", "inconclusive", "new", "pass") if v in found)

    @property
    def reasons(self) -> list[Finding]:
        """The findings that made the verdict."""
        return [f for f in self.findings if f.verdict == self.verdict]


@dataclass(frozen=True)
class Check:
    """The verdicts of one report, with the policy that says what they count as."""

    judgements: tuple[Judgement, ...]
    policy: Policy
    photos: int

    def counts_as(self, judgement: Judgement) -> str:
        """ "pass", "fail" or "inconclusive"."""
        return self.policy.verdicts.get(judgement.verdict, judgement.verdict)

    @property
    def outcome(self) -> str:
        """The gravest: "fail", "inconclusive" or "pass"."""
        found = {self.counts_as(j) for j in self.judgements}
        return next((o for o in ("fail", "inconclusive") if o in found), "pass")

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 3 inconclusive."""
        return EXIT[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [
            {"artifact": j.artifact, "verdict": j.verdict, "counts_as": self.counts_as(j),
             "findings": [asdict(f) for f in j.findings]}
            for j in self.judgements
        ]  # fmt: skip
        return {"schema": 1, "outcome": self.outcome, "exit_code": self.exit_code, "photos": self.photos, "rows": rows}


def check(report: Report, baseline: Baseline, policy: Policy | None = None) -> Check:
    """Judge a report.

    Raises:
        UserError: the report is unfinished, or of another device, weights, contract, arithmetic or other photos than
            the baseline; comparing would say nothing.
    """
    chosen = policy or Policy()
    if not report.complete:
        raise UserError("the results are of an interrupted run", "continue it with `u2export bench --resume`")
    found = pairs(report, baseline.artifacts)
    _same_setting(report, baseline)
    for name, pair in found.items():
        if name in baseline.artifacts:
            _same_thing(name, pair.now, baseline.artifacts[name])
    judged = [_judge(name, pair, baseline.artifacts.get(name), chosen) for name, pair in found.items()]
    missing = [n for n in baseline.artifacts if n not in found]
    lost = [Judgement(n, (Finding("artifact", "missing", "in the baseline, not in the results"),)) for n in missing]
    return Check((*judged, *lost), chosen, len(report.photos))


# What must be the same


def _same_setting(report: Report, baseline: Baseline) -> None:
    if (report.photos_digest, report.photos) != (baseline.photos_digest, baseline.photos):
        raise UserError(
            f"other photos than the baseline's: {_other_photos(report.photos, baseline.photos)}",
            "bench the same photos, or accept these with `u2export baseline update --replace`",
        )
    if baseline.device and baseline.device.fingerprint != report.device.fingerprint:
        raise UserError(
            f"another device than the baseline's: {_other_device(report.device, baseline.device)}",
            "give the baseline of this device, or one made with --any-device",
        )


def _other_photos(now: Sequence[str], then: Sequence[str]) -> str:
    lost, more = [p for p in then if p not in now], [p for p in now if p not in then]
    told = [f"{len(lost)} missing ({lost[0]} …)" if lost else "", f"{len(more)} more ({more[0]} …)" if more else ""]
    return ", ".join(filter(None, told)) or "the same names in other files or another order"


def _other_device(now: Device, then: Device) -> str:
    old, new = asdict(then), asdict(now)
    return ", ".join(f"{key} {new[key]!r}, not {old[key]!r}" for key in old if old[key] != new[key])


def _same_thing(name: str, row: Row, accepted: Accepted) -> None:
    now = {
        "weights": row.weights.sha256[:12], "variant": row.variant, "exporter": row.exporter,
        "precision": row.precision, "arithmetic": arithmetic(row), **_flat(row.contract),
    }  # fmt: skip
    then = {
        "weights": accepted.weights.sha256[:12], "variant": accepted.variant, "exporter": accepted.exporter,
        "precision": accepted.precision, "arithmetic": accepted.arithmetic, **_flat(accepted.contract),
    }  # fmt: skip
    if row.reason:  # what never ran has no arithmetic
        now["arithmetic"] = then["arithmetic"]
    other = [f"{key} {now.get(key)}, not {then.get(key)}" for key in {**then, **now} if now.get(key) != then.get(key)]
    if other:
        raise UserError(
            f"{name} is not what the baseline is of: {'; '.join(other)}",
            "bench the same thing, or accept this one with `u2export baseline update`",
        )
    if not row.reason and accepted.images and not row.images:
        raise UserError(f"{name} was compared with no reference", "bench it with --reference, as the baseline was")


def _flat(contract: Mapping[str, Any]) -> dict[str, str]:
    """A contract from JSON has lists where one from memory has tuples."""
    return {f"contract's {k}": str(list(v) if isinstance(v, tuple) else v) for k, v in contract.items()}


# Verdicts


def _judge(name: str, pair: Pair, accepted: Accepted | None, policy: Policy) -> Judgement:
    row = pair.now
    if row.reason:
        return Judgement(name, (Finding("ran", "fail", f"did not run: {row.reason}: {row.problem}"),))
    if accepted is None:
        new = Finding("artifact", "new", "not in the baseline; accept it with `u2export baseline update`")
        return Judgement(name, (new, *_finite(row)))
    limits = policy.of(name)
    findings = chain(
        _finite(row),
        _masks(row.images, accepted.images, limits, policy.confidence),
        _collapse(row.images, accepted.images, limits["collapse"]["area"]),
        _truth(name, row.accuracy, accepted.accuracy, limits["truth"]),
        _latency(pair, limits["latency"]["ratio"], policy),
        _size(row.size, accepted.size, limits["size"]["ratio"]),
    )
    return Judgement(name, tuple(findings))


def _finite(row: Row) -> Iterator[Finding]:
    bad = [photo for photo, image in row.images.items() if not image.finite]
    if bad:
        yield Finding(
            "finite", "fail", f"NaN or infinite values on {len(bad)} of {len(row.images)} photos", photo=bad[0]
        )
    elif row.images:
        yield Finding("finite", "pass", "no NaN, no infinite values")


Images = Mapping[str, ImageFidelity]
# Loss of one photo, above zero where it got worse.
LOSSES: dict[str, Callable[[ImageFidelity, ImageFidelity], float]] = {
    "mae": lambda now, then: now.mae - then.mae,
    "iou": lambda now, then: then.iou - now.iou,
    "boundary_f": lambda now, then: then.boundary_f - now.boundary_f,
}


def _masks(now: Images, then: Images, limits: Limits, confidence: float) -> Iterator[Finding]:
    for measure, loss in LOSSES.items():
        # Without an object there is nothing to overlap with; stretched noise has a MAE all the same.
        losses = {p: loss(now[p], then[p]) for p in then if measure == "mae" or not then[p].empty}
        if losses:
            yield _mean(f"mean {measure}", list(losses.values()), limits["mean"][measure], confidence)
            yield _worst(f"worst {measure}", losses, limits["worst"][measure])


def _mean(measure: str, losses: Sequence[float], limit: float, confidence: float) -> Finding:
    found = mean_interval(losses, confidence)
    verdict, more = decided(found, limit)
    text = f"{found.value:+.2g} ({found.low:+.2g} to {found.high:+.2g}) on average, {limit:g} allowed"
    return Finding(measure, verdict, text + _open(verdict, more, "photos"), found.value, limit, found.low, found.high,
                   more=more)  # fmt: skip


def decided(found: Interval, limit: float) -> tuple[str, int | None]:
    """The verdict on an interval, and how many samples more would give one where there is none."""
    if found.low > limit:
        return "fail", None
    if found.high <= limit:
        return "pass", None
    return "inconclusive", found.needed(limit)


def _open(verdict: str, more: int | None, what: str) -> str:
    if verdict != "inconclusive":
        return ""
    return f"; about {more} more {what} would decide" if more else f"; right on the limit, no number of {what} decides"


def _worst(measure: str, losses: Mapping[str, float], limit: float) -> Finding:
    photo = max(losses, key=lambda p: losses[p])
    value = losses[photo]
    return Finding(
        measure, "fail" if value > limit else "pass", f"{value:+.2g} on {photo}, {limit:g} allowed", value, limit,
        photo=photo,
    )  # fmt: skip


def _collapse(now: Images, then: Images, limit: float) -> Iterator[Finding]:
    """Foreground now over then, or its inverse, of the photo where that is farthest from one."""
    shown = [p for p in then if not then[p].empty and math.isfinite(then[p].area)]
    if not shown:
        return
    ratios = {p: (now[p].area + FEW) / (then[p].area + FEW) for p in shown}
    photo = max(ratios, key=lambda p: max(ratios[p], 1 / ratios[p]))
    value = max(ratios[photo], 1 / ratios[photo])
    lost = sum(now[p].area == 0 < then[p].area for p in shown)
    empty = f"; empty on {lost} of {len(shown)} photos" if lost else ""
    text = f"{ratios[photo]:.3g} times the baseline's on {photo}, up to {limit:g} or its inverse allowed{empty}"
    yield Finding("collapse", "fail" if value > limit else "pass", text, value, limit, photo=photo)


def _truth(
    name: str, now: Mapping[str, float], then: Mapping[str, float], limits: Mapping[str, float]
) -> Iterator[Finding]:
    if not then or not now:
        return
    if now.get("images") != then.get("images"):
        raise UserError(
            f"{name}: {now.get('images'):g} ground-truth masks, {then.get('images'):g} in the baseline",
            "bench with the same --masks",
        )
    for measure, limit in limits.items():
        loss = (now[measure] - then[measure]) * (1 if measure == "mae" else -1)
        verdict = "fail" if loss > limit else "pass"
        yield Finding(f"truth {measure}", verdict, f"{loss:+.2g} over all photos, {limit:g} allowed", loss, limit)


def _latency(pair: Pair, limit: float, policy: Policy) -> Iterator[Finding]:
    if pair.then is None or not pair.now.latency.ns:
        if policy.latency_required:
            yield Finding("latency", "inconclusive", "not timed beside the accepted artifact in one run")
        return
    found = time_ratio(pair.now.latency, pair.then.latency, policy.confidence)
    if found is None:
        yield Finding("latency", "inconclusive", "too few rounds that both rows took part in")
        return
    verdict, more = decided(found, limit)
    text = f"{found.value:.3f} times the accepted artifact's ({found.low:.3f} to {found.high:.3f}), {limit:g} allowed"
    yield Finding("latency", verdict, text + _open(verdict, more, "rounds"), found.value, limit, found.low, found.high,
                  more=more)  # fmt: skip


def _size(now: int, then: int, limit: float) -> Iterator[Finding]:
    if now and then:
        ratio = now / then
        text = f"{now / 1e6:.2f} MB, {then / 1e6:.2f} accepted"
        yield Finding("size", "fail" if ratio > limit else "pass", text, ratio, limit)
