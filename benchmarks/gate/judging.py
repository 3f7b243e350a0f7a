"""The gate: compare a report with an accepted state, photo by photo and, for times, round by round.

A finding about a mean or a time fails if the whole confidence interval is beyond its limit. It passes if no part of the
interval is beyond the limit. Else it is inconclusive, and it says how many more samples would decide. Masks in a pinned
arithmetic repeat exactly, so the loss of a single photo needs no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from u2export.benchmarks.device import Device
from u2export.benchmarks.gate.baseline import Accepted, Baseline, Pair, arithmetic, pairs
from u2export.benchmarks.gate.policy import Limits, Policy
from u2export.benchmarks.gate.saved_masks import THRESHOLD, SavedMasks, beside, rejudged, rejudged_baseline
from u2export.benchmarks.gate.verdicts import Finding, Judgement, Verdicts
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.statistics import Interval, mean_interval, time_ratio
from u2export.errors import UserError
from u2export.reference.fidelity import Fidelity, ImageFidelity

# Added to both foregrounds before their ratio, as a share of the photo: a change by a few pixels is no collapse.
FEW = 1e-3


def judge(
    report: Report | Path,
    accepted: Baseline | Path,
    policy: Policy | Path | None = None,
    *,
    masks: SavedMasks | Path | None = None,
    accepted_masks: SavedMasks | Path | None = None,
    threshold: float = THRESHOLD,
) -> Verdicts:
    """Judge a report against an accepted state. Every path stands for the object in that file.

    Args:
        report: the results of a bench.
        accepted: the accepted state.
        policy: the limits; the default policy if None.
        masks: the saved masks of the report. With them the fidelity is computed anew, and the numbers of the report
            are not used.
        accepted_masks: the saved masks of the accepted state. If None and `accepted` is a path, the masks beside that
            file are used, if they exist.
        threshold: where masks are cut, from 0 to 1, for both sides. Another threshold than 0.5 needs both saved masks.

    Raises:
        UserError: a file is missing or damaged, the report is unfinished, a threshold needs masks, or the report is of
            another device, other weights, another contract, arithmetic or other photos than the accepted state.
    """
    new = report if isinstance(report, Report) else Report.load(report)
    old = accepted if isinstance(accepted, Baseline) else Baseline.load(accepted)
    limits = policy if isinstance(policy, Policy) else Policy.load(policy) if policy else Policy()
    if masks is None:
        if threshold != THRESHOLD:
            raise UserError("another threshold needs the saved masks", "give the masks that the bench saved")
        return _verdicts(new, old, limits)
    theirs = accepted_masks
    if theirs is None and isinstance(accepted, Path) and beside(accepted).exists():
        theirs = beside(accepted)
    if theirs is None and threshold != THRESHOLD:
        where = f": no {beside(accepted)}" if isinstance(accepted, Path) else ""
        raise UserError(
            f"the masks of the accepted state were not saved{where}", "accept the state again, with its saved masks"
        )
    kept = _opened(theirs) if theirs is not None else None
    new = rejudged(new, _opened(masks), kept, threshold)
    return _verdicts(new, rejudged_baseline(old, kept, threshold) if kept else old, limits)


def _opened(masks: SavedMasks | Path) -> SavedMasks:
    return masks if isinstance(masks, SavedMasks) else SavedMasks.load(masks)


def _verdicts(report: Report, accepted: Baseline, policy: Policy) -> Verdicts:
    if not report.complete:
        raise UserError("the results are of an interrupted run", "continue the run with `u2export bench --resume`")
    found = pairs(report, accepted.artifacts)
    _same_setting(report, accepted)
    for name, pair in found.items():
        if name in accepted.artifacts:
            _same_thing(name, pair.now, accepted.artifacts[name])
    judged = [_judgement(name, pair, accepted.artifacts.get(name), policy) for name, pair in found.items()]
    missing = [n for n in accepted.artifacts if n not in found]
    lost = "is in the accepted state, but not in the results"
    return Verdicts(
        (*judged, *(Judgement(n, (Finding("artifact", "missing", lost),)) for n in missing)), policy, len(report.photos)
    )


# What must be the same


def _same_setting(report: Report, accepted: Baseline) -> None:
    if (report.photos_digest, report.photos) != (accepted.photos_digest, accepted.photos):
        raise UserError(
            f"the photos differ from those of the accepted state: {_other_photos(report.photos, accepted.photos)}",
            "bench the same photos, or accept these results with `u2export baseline update --replace`",
        )
    if accepted.device and accepted.device.fingerprint != report.device.fingerprint:
        raise UserError(
            f"the device differs from that of the accepted state: {_other_device(report.device, accepted.device)}",
            "give the accepted state of this device, or one that `u2export baseline update --any-device` wrote",
        )


def _other_photos(now: Sequence[str], then: Sequence[str]) -> str:
    lost, more = [p for p in then if p not in now], [p for p in now if p not in then]
    told = [f"{len(lost)} missing ({lost[0]} …)" if lost else "", f"{len(more)} more ({more[0]} …)" if more else ""]
    return ", ".join(filter(None, told)) or "the names are the same, but the files or their order differ"


def _other_device(now: Device, then: Device) -> str:
    old, new = asdict(then), asdict(now)
    return ", ".join(f"{key} {new[key]!r}, not {old[key]!r}" for key in old if old[key] != new[key])


def _same_thing(name: str, row: Row, accepted: Accepted) -> None:
    now, then = _identity(row, arithmetic(row)), _identity(accepted, accepted.arithmetic)
    if row.reason:  # a row that never ran has no arithmetic
        now["arithmetic"] = then["arithmetic"]
    other = [f"{key} {now.get(key)}, not {then.get(key)}" for key in {**then, **now} if now.get(key) != then.get(key)]
    if other:
        raise UserError(
            f"{name} differs from the accepted artifact of this name: {'; '.join(other)}",
            "bench the same artifact, or accept this one with `u2export baseline update`",
        )
    if not row.reason and accepted.images and not row.images:
        raise UserError(f"{name} was not compared with a reference", "bench it with a reference, as before")


def _identity(of: Row | Accepted, ran: str) -> dict[str, str]:
    """What must be equal for a comparison. A contract from JSON has lists, and one from memory has tuples."""
    contract = {f"contract's {k}": str(list(v) if isinstance(v, tuple) else v) for k, v in of.contract.items()}
    return {
        "weights": of.weights.sha256[:12], "variant": of.variant, "exporter": of.exporter, "precision": of.precision,
        "arithmetic": ran, **contract,
    }  # fmt: skip


# Verdicts


def _judgement(name: str, pair: Pair, accepted: Accepted | None, policy: Policy) -> Judgement:
    row = pair.now
    if row.reason:
        return Judgement(name, (Finding("ran", "fail", f"did not run: {row.reason}: {row.problem}"),))
    if accepted is None:
        text = "is not in the accepted state; accept it with `u2export baseline update`"
        return Judgement(name, (Finding("artifact", "new", text), *_finite(row)))
    limits = policy.of(name)
    findings = chain(
        _finite(row),
        _masks(row.images, accepted.images, limits, policy.confidence),
        _collapse(row.images, accepted.images, limits["collapse"]["area"]),
        _classes(row.images, accepted.images, limits["class"]),
        _truth(name, row.accuracy, accepted.accuracy, limits["truth"]),
        _latency(pair, limits["latency"]["ratio"], policy),
        _size(row.size, accepted.size, limits["size"]["ratio"]),
    )
    return Judgement(name, tuple(findings))


def _finite(row: Row) -> Iterator[Finding]:
    bad = [photo for photo, image in row.images.items() if not image.finite]
    if bad:
        text = f"NaN or infinite values on {len(bad)} of {len(row.images)} photos"
        yield Finding("finite", "fail", text, photo=bad[0])
    elif row.images:
        yield Finding("finite", "pass", "no NaN, no infinite values")


Images = Mapping[str, ImageFidelity]
# The loss of one photo: above zero if the photo got worse.
LOSSES: dict[str, Callable[[ImageFidelity, ImageFidelity], float]] = {
    "mae": lambda now, then: now.mae - then.mae,
    "iou": lambda now, then: then.iou - now.iou,
    "boundary_f": lambda now, then: then.boundary_f - now.boundary_f,
}


def _masks(now: Images, then: Images, limits: Limits, confidence: float) -> Iterator[Finding]:
    for measure, loss in LOSSES.items():
        # A photo without an object has no overlap to compare; its MAE still counts.
        losses = {p: loss(now[p], then[p]) for p in then if measure == "mae" or not then[p].empty}
        if losses:
            yield _mean(f"mean {measure}", list(losses.values()), limits["mean"][measure], confidence)
            yield _worst(f"worst {measure}", losses, limits["worst"][measure])


def _mean(measure: str, losses: Sequence[float], limit: float, confidence: float) -> Finding:
    found = mean_interval(losses, confidence)
    verdict, more = decided(found, limit)
    text = f"{found.value:+.2g} ({found.low:+.2g} to {found.high:+.2g}) on average, {limit:g} allowed"
    return _with_interval(measure, verdict, text + _open(verdict, more, "photos"), found, limit, more)


def _with_interval(
    measure: str, verdict: str, text: str, found: Interval, limit: float, more: int | None = None
) -> Finding:
    return Finding(measure, verdict, text, found.value, limit, found.low, found.high, more=more)


def decided(found: Interval, limit: float) -> tuple[str, int | None]:
    """Return the verdict on an interval, and how many more samples would decide an inconclusive one."""
    if found.low > limit:
        return "fail", None
    if found.high <= limit:
        return "pass", None
    return "inconclusive", found.needed(limit)


def _open(verdict: str, more: int | None, what: str) -> str:
    if verdict != "inconclusive":
        return ""
    return f"; about {more} more {what} would decide" if more else f"; exactly at the limit, more {what} do not decide"


def _worst(measure: str, losses: Mapping[str, float], limit: float) -> Finding:
    photo = max(losses, key=lambda p: losses[p])
    value = losses[photo]
    text = f"{value:+.2g} on {photo}, {limit:g} allowed"
    return Finding(measure, "fail" if value > limit else "pass", text, value, limit, photo=photo)


def _collapse(now: Images, then: Images, limit: float) -> Iterator[Finding]:
    """Compare the foreground of each photo with the accepted one; the photo with the largest change counts."""
    shown = [p for p in then if not then[p].empty and math.isfinite(then[p].area)]
    if not shown:
        return
    ratios = {p: (now[p].area + FEW) / (then[p].area + FEW) for p in shown}
    photo = max(ratios, key=lambda p: max(ratios[p], 1 / ratios[p]))
    value = max(ratios[photo], 1 / ratios[photo])
    lost = sum(now[p].area == 0 < then[p].area for p in shown)
    empty = f"; empty on {lost} of {len(shown)} photos" if lost else ""
    text = f"{ratios[photo]:.3g} times the accepted area on {photo}, {1 / limit:.3g} to {limit:g} allowed{empty}"
    yield Finding("collapse", "fail" if value > limit else "pass", text, value, limit, photo=photo)


def _classes(now: Images, then: Images, limits: Mapping[str, float]) -> Iterator[Finding]:
    """Compare the classes of the pixels of all photos, for networks with several maps; the worst class counts."""
    new, old = (Fidelity(tuple(images.values())) for images in (now, then))
    if not new.class_ious and not old.class_ious:
        return
    if not new.class_ious or not old.class_ious:
        where = "the accepted state holds" if new.class_ious else "the results hold"
        yield Finding("class iou", "inconclusive", f"{where} no classes; bench both with this u2export")
        return
    losses = {k: old.class_ious.get(k, 1.0) - new.class_ious.get(k, 1.0) for k in {**old.class_ious, **new.class_ious}}
    worst, limit = max(losses, key=losses.__getitem__), limits["iou"]
    loss = losses[worst]
    text = f"{loss:+.2g} of class {worst} over all photos, {limit:g} allowed"
    yield Finding("class iou", "fail" if loss > limit else "pass", text, loss, limit)
    loss, limit = old.class_agreement - new.class_agreement, limits["agreement"]
    text = f"{loss:+.2g} of all pixels, {limit:g} allowed"
    yield Finding("class agreement", "fail" if loss > limit else "pass", text, loss, limit)


def _truth(
    name: str, now: Mapping[str, float], then: Mapping[str, float], limits: Mapping[str, float]
) -> Iterator[Finding]:
    if not then or not now:
        return
    if now.get("images") != then.get("images"):
        raise UserError(
            f"{name} was measured with {now.get('images'):g} ground-truth masks, and the accepted artifact with "
            f"{then.get('images'):g}",
            "bench with the same ground-truth masks",
        )
    for measure, limit in limits.items():
        loss = (now[measure] - then[measure]) * (1 if measure == "mae" else -1)
        verdict = "fail" if loss > limit else "pass"
        yield Finding(f"truth {measure}", verdict, f"{loss:+.2g} over all photos, {limit:g} allowed", loss, limit)


def _latency(pair: Pair, limit: float, policy: Policy) -> Iterator[Finding]:
    if pair.then is None or not pair.now.latency.ns:
        if policy.latency_required:
            yield Finding("latency", "inconclusive", "was not timed beside the accepted artifact in one run")
        return
    found = time_ratio(pair.now.latency.paces, pair.then.latency.paces, policy.confidence)
    if found is None or not found.known:
        yield Finding("latency", "inconclusive", "there are too few rounds with times of both rows")
        return
    verdict, more = decided(found, limit)
    text = f"{found.value:.3f} times the accepted time ({found.low:.3f} to {found.high:.3f}), {limit:g} allowed"
    yield _with_interval("latency", verdict, text + _open(verdict, more, "rounds"), found, limit, more)


def _size(now: int, then: int, limit: float) -> Iterator[Finding]:
    if now and then:
        ratio = now / then
        text = f"{now / 1e6:.2f} MB, {then / 1e6:.2f} MB accepted"
        yield Finding("size", "fail" if ratio > limit else "pass", text, ratio, limit)
