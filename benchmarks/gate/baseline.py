"""Accepted masks of artifacts, by photo: a small JSON that is reviewed and committed.

Times are not in it: those of another day say nothing. An artifact is timed against the accepted one itself, which is
known by its digest, in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.report import Report, Row, checked, compact
from u2export.errors import UserError
from u2export.files import read_json, write_text
from u2export.reference.dtypes import arithmetic_name
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.weights import Identity

SCHEMA = 1
MEASURES = tuple(f.name for f in fields(ImageFidelity))
DIGITS = 6


@dataclass(frozen=True)
class Accepted:
    """One artifact in one arithmetic, as it was accepted.

    Attributes:
        exporter, precision, arithmetic, variant: as measured; arithmetic is what really ran.
        weights, contract: what its masks are masks of.
        digest: sha256 over its files; the accepted artifact in a later run is known by it. size: their bytes.
        images: fidelity to the reference by photo, to six digits.
        accuracy: maxf, mae, s, images: against ground truth, where masks were given.
    """

    exporter: str
    precision: str
    arithmetic: str
    variant: str
    weights: Identity
    contract: Mapping[str, Any]
    digest: str
    size: int
    images: Mapping[str, ImageFidelity] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, row: Row) -> Accepted:
        """A measured row."""
        images = {photo: _rounded(image) for photo, image in row.images.items()}
        accuracy = {k: _digits(v) for k, v in row.accuracy.items()}
        return cls(
            row.exporter, row.precision, arithmetic(row), row.variant, row.weights, row.contract, row.digest, row.size,
            images, accuracy,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Plain data, a column of numbers for each measure; infinite ratios, which JSON has not, become null."""
        data = asdict(self)
        columns = {m: [getattr(image, m) for image in self.images.values()] for m in MEASURES}
        plain = {m: [None if v == math.inf else v for v in values] for m, values in columns.items()}
        return {**data, "images": plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], photos: tuple[str, ...]) -> Accepted:
        """The artifact in plain data; raises TypeError, KeyError or ValueError where it is none."""
        columns = [[math.inf if v is None else v for v in data["images"][m]] for m in MEASURES]
        rows = list(zip(*columns, strict=True))
        images = {p: checked(ImageFidelity(*row)) for p, row in zip(photos, rows, strict=True)} if rows else {}
        accuracy = {str(k): float(v) for k, v in data["accuracy"].items()}
        weights = checked(Identity(**data["weights"]))
        told = {"weights": weights, "arithmetic": arithmetic_name(data["arithmetic"])}
        return checked(cls(**{**data, **told, "images": images, "accuracy": accuracy}))


@dataclass(frozen=True)
class Baseline:
    """What a gate compares with.

    Attributes:
        photos, photos_digest: the pictures, as in the report.
        device: the machine, where the baseline is of that machine alone; None for masks in a pinned arithmetic, which
            are the same on any.
        artifacts: by bare name (see `bare`).
        created: UTC time of the run last accepted, ISO 8601. why: what its acceptor said.
    """

    photos: tuple[str, ...]
    photos_digest: str
    device: Device | None = None
    artifacts: Mapping[str, Accepted] = field(default_factory=dict)
    created: str = ""
    why: str = ""
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write it as JSON that a person can review, whole or not at all."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["device"] = asdict(self.device) if self.device else None
        data["artifacts"] = {name: accepted.to_json() for name, accepted in sorted(self.artifacts.items())}
        write_text(compact({"schema": data.pop("schema"), **data}), path)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """The baseline in a file.

        Raises:
            UserError: missing, not JSON, no baseline, of another schema, or damaged.
        """
        hint = "make one with `u2export baseline update RESULTS --baseline FILE`"
        data = read_json(path, "a baseline that `u2export baseline update` wrote")
        if not isinstance(data, dict) or not {"schema", "artifacts", "photos_digest"} <= data.keys():
            raise UserError(f"{path} is no baseline", hint)
        if data["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {data['schema']}, this u2export reads {SCHEMA}", hint)
        try:
            photos = tuple(str(photo) for photo in data["photos"])
            device = checked(Device.from_json(data["device"])) if data["device"] else None
            artifacts = {str(k): Accepted.from_json(v, photos) for k, v in data["artifacts"].items()}
            return checked(cls(**{**data, "photos": photos, "device": device, "artifacts": artifacts}))
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: damaged baseline ({type(error).__name__}: {error})", hint) from None


@dataclass(frozen=True)
class Pair:
    """The row to judge, and the accepted artifact measured in the same run, where it was."""

    now: Row
    then: Row | None = None


def arithmetic(row: Row) -> str:
    """What really ran; what was asked for where it never opened."""
    return row.runtime.get("arithmetic", row.arithmetic)


def bare(name: str) -> str:
    """A row's name without the folder that tells two artifacts of one name apart."""
    return name.rpartition("/")[2]


def pairs(report: Report, accepted: Mapping[str, Accepted]) -> dict[str, Pair]:
    """The report's rows by bare name; references and the network in PyTorch itself are not judged.

    Of two rows of one name, the accepted one is that of the baseline's digest; of two such, the one given last.

    Raises:
        UserError: two rows of one name, and neither is the accepted one.
    """
    found: dict[str, list[Row]] = {}
    for row in report.rows:
        if row.exporter != "pytorch":
            found.setdefault(bare(row.name), []).append(row)
    return {name: _pair(name, rows, accepted.get(name)) for name, rows in found.items()}


def _pair(name: str, rows: list[Row], accepted: Accepted | None) -> Pair:
    if len(rows) == 1:
        return Pair(rows[0])
    known = [row for row in rows if accepted and row.digest == accepted.digest]
    if len(rows) != 2 or not known:
        listed = ", ".join(row.name for row in rows)
        raise UserError(
            f"{len(rows)} rows are called {name}: {listed}; none of two is the accepted one",
            "bench one candidate, and beside it at most the artifact that the baseline was made of",
        )
    then = known[-1]
    return Pair(next(row for row in rows if row is not then), then)


def updated(report: Report, old: Baseline | None, any_device: bool, why: str) -> Baseline:
    """The baseline with the report's rows accepted; artifacts that the report has not stay as they were.

    Raises:
        UserError: the report is unfinished, a row is missing something, or the photos or the device are other ones.
    """
    if not report.complete:
        raise UserError("the results are of an interrupted run", "continue it with `u2export bench --resume`")
    device = None if any_device else report.device
    if old and (problem := _unlike(old, report, device)):
        raise UserError(f"{problem} than the baseline's", "give --replace to begin a new baseline")
    rows = {name: pair.now for name, pair in pairs(report, old.artifacts if old else {}).items()}
    for name, row in rows.items():
        if row.reason:
            raise UserError(f"{name} was not measured: {row.reason}: {row.problem}", "mend it, or bench it not")
        if not row.images:
            raise UserError(f"{name} was compared with no reference", "bench it with --reference")
    artifacts = {**(old.artifacts if old else {}), **{name: Accepted.of(row) for name, row in rows.items()}}
    return Baseline(report.photos, report.photos_digest, device, artifacts, report.created, why)


def _unlike(old: Baseline, report: Report, device: Device | None) -> str:
    if old.photos_digest != report.photos_digest:
        return f"the results are of other photos ({len(report.photos)}, not {len(old.photos)})"
    if (old.device and old.device.fingerprint) != (device and device.fingerprint):
        return f"the results are of another device ({device.label if device else 'any'})"
    return ""


def differences(old: Baseline, new: Baseline) -> Iterator[tuple[str, str, str, str]]:
    """What changed: artifact, what, then, now."""
    for name in sorted({*old.artifacts, *new.artifacts}):
        was, now = old.artifacts.get(name), new.artifacts.get(name)
        if was is None or now is None:
            yield name, "artifact", "" if was is None else "there", "" if now is None else "there"
            continue
        for what, (a, b) in {k: (_told(was)[k], v) for k, v in _told(now).items()}.items():
            if a != b:
                yield name, what, a, b


def _told(accepted: Accepted) -> dict[str, str]:
    """What `show` and `diff` say of an artifact, by name."""
    from u2export.reference.fidelity import Fidelity

    f = Fidelity(tuple(accepted.images.values()))
    summary = {name: f"{value:.6g}" for name, value in f.summary().items()} if f.images else {}
    truth = {f"truth {k}": f"{v:.6g}" for k, v in accepted.accuracy.items()}
    return {
        "arithmetic": accepted.arithmetic, "weights": accepted.weights.sha256[:12], "digest": accepted.digest[:12],
        "bytes": str(accepted.size), **summary, **truth,
    }  # fmt: skip


def told(baseline: Baseline) -> dict[str, dict[str, str]]:
    """The artifacts of a baseline with what there is to say of each."""
    return {name: _told(accepted) for name, accepted in sorted(baseline.artifacts.items())}


def _rounded(image: ImageFidelity) -> ImageFidelity:
    values = {m: getattr(image, m) for m in MEASURES}
    rounded: dict[str, Any] = {m: _digits(v) if isinstance(v, float) else v for m, v in values.items()}
    return replace(image, **rounded)


def _digits(value: float) -> float:
    return round(value, DIGITS) if math.isfinite(value) else value
