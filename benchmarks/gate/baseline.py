"""The accepted state of artifacts: the fidelity of their masks by photo, in a small JSON file to review and commit.

The file holds no times, because times of different days are not comparable. A bench times the new artifact and the
accepted one in the same run, and the gate recognises the accepted one by its digest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.report import Report, Row, compact, finite, measured
from u2export.errors import UserError
from u2export.files import checked, read_json, write_text
from u2export.reference.dtypes import arithmetic_name
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.weights import Identity

SCHEMA = 1
# Of networks with several maps; files of u2export before 0.2 lack them.
CLASS_COUNTS = ("class_intersection", "class_union")
MEASURES = tuple(f.name for f in fields(ImageFidelity) if f.name not in CLASS_COUNTS)
DIGITS = 6


@dataclass(frozen=True)
class Accepted:
    """One accepted artifact in one arithmetic.

    Attributes:
        exporter, precision, variant: as in the record of the artifact.
        arithmetic: the arithmetic that really ran.
        weights, contract: the network and the image contract of the masks.
        digest: sha256 over the files of the artifact. The gate recognises the accepted artifact in a later run by it.
        size: bytes of these files.
        images: fidelity to the reference by photo, rounded to six digits.
        accuracy: "maxf", "mae", "s" and "images" against ground truth; empty without ground truth.
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
        """Accept a measured row."""
        images = {photo: _rounded(image) for photo, image in row.images.items()}
        accuracy = {k: _digits(v) for k, v in row.accuracy.items()}
        return cls(
            row.exporter, row.precision, arithmetic(row), row.variant, row.weights, row.contract, row.digest, row.size,
            images, accuracy,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Return plain data, one column of numbers for each measure. Infinite ratios become null."""
        data = asdict(self)
        counted = CLASS_COUNTS if any(image.class_union for image in self.images.values()) else ()
        columns = {m: [getattr(image, m) for image in self.images.values()] for m in (*MEASURES, *counted)}
        plain = {m: [None if v == math.inf else v for v in values] for m, values in columns.items()}
        return {**data, "weights": self.weights.to_json(), "images": plain}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], photos: tuple[str, ...]) -> Accepted:
        """Read plain data.

        Raises:
            TypeError, KeyError, ValueError: the data are no accepted artifact of these photos.
        """
        columns = [[math.inf if v is None else v for v in data["images"][m]] for m in MEASURES]
        columns += [[tuple(map(int, v)) for v in data["images"][m]] for m in CLASS_COUNTS if m in data["images"]]
        rows = list(zip(*columns, strict=True))
        images = {p: measured(ImageFidelity(*row)) for p, row in zip(photos, rows, strict=True)} if rows else {}
        accuracy = finite(data["accuracy"])
        weights = checked(Identity(**data["weights"]))
        told = {"weights": weights, "arithmetic": arithmetic_name(data["arithmetic"])}
        return checked(cls(**{**data, **told, "images": images, "accuracy": accuracy}))


@dataclass(frozen=True)
class Baseline:
    """The accepted state that the gate compares a report with.

    Attributes:
        photos, photos_digest: the names of the photos and the sha256 over their files, as in the report.
        device: the only device that this state is valid for; None if it is valid on any device, because its masks are
            of a pinned arithmetic.
        artifacts: the accepted artifacts by bare name (see `bare`).
        created: UTC time of the run that was accepted last, ISO 8601.
        why: the reason that was given for accepting it.
    """

    photos: tuple[str, ...]
    photos_digest: str
    device: Device | None = None
    artifacts: Mapping[str, Accepted] = field(default_factory=dict)
    created: str = ""
    why: str = ""
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write a JSON file that a person can review, completely or not at all."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["device"] = asdict(self.device) if self.device else None
        data["artifacts"] = {name: accepted.to_json() for name, accepted in sorted(self.artifacts.items())}
        write_text(compact({"schema": data.pop("schema"), **data}), path)

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read the accepted state in a file.

        Raises:
            UserError: the file is missing, is not JSON, holds no accepted state, has another schema, or is damaged.
        """
        hint = "make an accepted state with `u2export baseline update RESULTS --baseline FILE`"
        data = read_json(path, "an accepted state that `u2export baseline update` wrote")
        if not isinstance(data, dict) or not {"schema", "artifacts", "photos_digest"} <= data.keys():
            raise UserError(f"{path} holds no accepted state", hint)
        if data["schema"] != SCHEMA:
            raise UserError(f"{path} has schema {data['schema']}, this u2export reads {SCHEMA}", hint)
        try:
            photos = tuple(str(photo) for photo in data["photos"])
            device = checked(Device.from_json(data["device"])) if data["device"] else None
            artifacts = {str(k): Accepted.from_json(v, photos) for k, v in data["artifacts"].items()}
            return checked(cls(**{**data, "photos": photos, "device": device, "artifacts": artifacts}))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path}: damaged accepted state ({type(error).__name__}: {error})", hint) from None


@dataclass(frozen=True)
class Pair:
    """The row to judge, and the row of the accepted artifact in the same run; None if the run did not measure it."""

    now: Row
    then: Row | None = None


def arithmetic(row: Row) -> str:
    """Return the arithmetic that really ran. For a row that never opened, this is the requested one."""
    return row.runtime.get("arithmetic", row.arithmetic)


def bare(name: str) -> str:
    """Return the name of a row without the folder that distinguishes two artifacts of the same name."""
    return name.rpartition("/")[2]


def pairs(report: Report, accepted: Mapping[str, Accepted]) -> dict[str, Pair]:
    """Return the rows of the report by bare name, without PyTorch rows: the gate does not judge the reference.

    If two rows have the same name, the row with the accepted digest is the accepted one. If both have this digest, the
    second of them is the accepted one.

    Raises:
        UserError: two rows have the same name and neither is the accepted one, or more than two have the same name.
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
            f"{len(rows)} rows are called {name}: {listed}; they are not one new and one accepted artifact",
            "bench one new artifact, and beside it only the accepted artifact",
        )
    then = known[-1]
    return Pair(next(row for row in rows if row is not then), then)


def updated(report: Report, old: Baseline | None, any_device: bool, why: str) -> Baseline:
    """Return the accepted state with the rows of the report. Artifacts that the report does not have stay in it.

    Args:
        report: the results to accept.
        old: the accepted state so far; None to begin a new one.
        any_device: True if the masks are valid on any device; False to tie the state to the device of the report.
        why: the reason for accepting the results.

    Raises:
        UserError: the report is unfinished, a row was not measured or not compared, or the photos or the device differ
            from those of the old state.
    """
    if not report.complete:
        raise UserError("the results are of an interrupted run", "continue the run with `u2export bench --resume`")
    device = None if any_device else report.device
    if old and (problem := _unlike(old, report, device)):
        raise UserError(problem, "begin a new accepted state with `u2export baseline update --replace`")
    rows = {name: pair.now for name, pair in pairs(report, old.artifacts if old else {}).items()}
    for name, row in rows.items():
        if row.reason:
            raise UserError(
                f"{name} was not measured: {row.reason}: {row.problem}",
                "fix the artifact, or leave it out of the bench",
            )
        if not row.images:
            raise UserError(f"{name} was not compared with a reference", "bench it with a reference")
    artifacts = {**(old.artifacts if old else {}), **{name: Accepted.of(row) for name, row in rows.items()}}
    return Baseline(report.photos, report.photos_digest, device, artifacts, report.created, why)


def _unlike(old: Baseline, report: Report, device: Device | None) -> str:
    if old.photos_digest != report.photos_digest:
        now, then = len(report.photos), len(old.photos)
        return f"the results are of other photos than the accepted state ({now} photos here, {then} photos there)"
    if (old.device and old.device.fingerprint) != (device and device.fingerprint):
        return f"the results are of another device than the accepted state ({device.label if device else 'any'})"
    return ""


def differences(old: Baseline, new: Baseline) -> Iterator[tuple[str, str, str, str]]:
    """Yield every difference as four words: the artifact, what changed, the old value, the new value."""
    for name in sorted({*old.artifacts, *new.artifacts}):
        was, now = old.artifacts.get(name), new.artifacts.get(name)
        if was is None or now is None:
            yield name, "artifact", "" if was is None else "there", "" if now is None else "there"
            continue
        for what, (a, b) in {k: (_told(was)[k], v) for k, v in _told(now).items()}.items():
            if a != b:
                yield name, what, a, b


def _told(accepted: Accepted) -> dict[str, str]:
    """Return the values that `show` and `diff` print of an artifact, by name."""
    from u2export.reference.fidelity import Fidelity

    f = Fidelity(tuple(accepted.images.values()))
    summary = {name: f"{value:.6g}" for name, value in f.summary().items()} if f.images else {}
    truth = {f"truth {k}": f"{v:.6g}" for k, v in accepted.accuracy.items()}
    return {
        "arithmetic": accepted.arithmetic, "weights": accepted.weights.sha256[:12], "digest": accepted.digest[:12],
        "bytes": str(accepted.size), **summary, **truth,
    }  # fmt: skip


def told(baseline: Baseline) -> dict[str, dict[str, str]]:
    """Return the printed values of every artifact of an accepted state, by the name of the artifact."""
    return {name: _told(accepted) for name, accepted in sorted(baseline.artifacts.items())}


def _rounded(image: ImageFidelity) -> ImageFidelity:
    values = {m: getattr(image, m) for m in MEASURES}
    rounded: dict[str, Any] = {m: _digits(v) if isinstance(v, float) else v for m, v in values.items()}
    return replace(image, **rounded)


def _digits(value: float) -> float:
    return round(value, DIGITS) if math.isfinite(value) else value
