"""Rows of a report, made from a tool's file and from what the caller says about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from u2export.benchmarks.device import Device
from u2export.benchmarks.imports.power_log import Power
from u2export.benchmarks.imports.timed_model import UNTOLD, TimedModel
from u2export.benchmarks.imports.tool_files import read
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.measuring.rows import planned_artifact
from u2export.benchmarks.report import Report, Row, Settings
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.weights import Identity

# Returns the fidelity of each picture whose mask a file names.
Judge = Callable[[TimedModel], Mapping[str, ImageFidelity]]


@dataclass(frozen=True)
class Claim:
    """What the caller says about a file.

    Attributes:
        device: the name of the machine; it replaces the name in the file.
        precision: the precision, if neither the file nor the artifact states it.
        artifact: the artifact that was timed; None if its record is not available.
        url: the address at which others published the file; "" for a file of the caller's own.
        power: the mean power while the model ran, from a log of the caller's.
    """

    device: str = ""
    precision: str = ""
    artifact: Artifact | None = None
    url: str = ""
    power: Power | None = None


def reports(path: Path, form: str, claim: Claim, log: Path | None = None, judge: Judge | None = None) -> list[Report]:
    """Return one report for each device in a tool's file.

    Args:
        path: the file.
        form: one of tool_files.FORMATS.
        claim: what the caller says about the file.
        log: the text that the tool printed.
        judge: compares the masks that the file names. Without it the rows have no fidelity, and a note says so.

    Raises:
        UserError: as `read`; nothing names the device; the file belongs to another artifact; or a power is given for a
            file that does not hold the times of one model.
        Unavailable: as `read`.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    by_device: dict[str, list[tuple[Device, TimedModel, Row]]] = {}
    models = read(path, form, log)
    if claim.power and (len(models) != 1 or not models[0].rounds):
        problem = f"{path} does not hold every time of one model, so that a log of power tells nothing about it"
        raise UserError(problem, "leave the log out", "power")
    for model in models:
        device = Device(claim.device, "", "", 0) if claim.device else model.device
        if device is None or not (device.model or device.cpu):
            raise UserError(f"{path} does not say what it was measured on", "name the machine", "device")
        row = _row(model, path, digest, claim, judge)
        by_device.setdefault(device.fingerprint, []).append((device, model, row))
    return [_report(group) for group in by_device.values()]


def _report(group: Sequence[tuple[Device, TimedModel, Row]]) -> Report:
    """Return the report of one device. Rows of one name get runtime and arithmetic added to the name."""
    rows, taken = [], set[str]()
    for _, model, row in group:
        ran = f"{model.runtime.get('runtime', '')} {row.arithmetic}"
        name = row.name if row.name not in taken else f"{row.name} ({ran})"
        taken.add(name)
        rows.append(replace(row, name=name))
    photos = dict.fromkeys(photo for row in rows for photo in row.images)
    samples = max((len(row.latency.ns) for row in rows), default=0)
    versions = {name: version for _, model, _ in group for name, version in model.environment.items()}
    settings = Settings("custom", samples, 0.0, max((len(row.latency.rounds) for row in rows), default=0))
    return Report(group[0][0], settings, versions, tuple(photos), rows=tuple(rows), complete=True)


def _row(model: TimedModel, path: Path, digest: str, claim: Claim, judge: Judge | None) -> Row:
    planned = _planned(model, path, claim)
    images = judge(model) if judge else {}
    source = {"file": path.name, "sha256": digest, "tool": model.tool, "version": model.version or UNTOLD,
              "timed": model.timed, "url": claim.url}  # fmt: skip
    without_masks = () if images else ("no fidelity: no masks were brought back",)
    unknown = () if claim.artifact else ("no artifact's record: weights and preprocessing are not known",)
    energy = tuple(map(claim.power.microjoules, model.rounds)) if claim.power else ()
    return replace(
        planned,
        images=images,
        reference="golden" if images else "",
        latency=Latency(model.rounds),
        stated=model.stated,
        opening_ns=model.opening_ns,
        load_ns=model.load_ns or _total(model.opening_ns),
        first_ns=model.first_ns,
        memory=model.memory,
        runtime=model.runtime,
        reason="failed" if model.problem else "",
        problem=model.problem,
        energy_uj=energy,
        notes=(*planned.notes, *model.notes, *without_masks, *unknown, *([claim.power.note] if claim.power else [])),
        provenance="published" if claim.url else "imported",
        source={name: value for name, value in source.items() if value},
    )


def _total(parts: Mapping[str, Iterable[int]]) -> tuple[int, ...]:
    total = sum(ns for part in parts.values() for ns in part)
    return (total,) if total else ()


def _planned(model: TimedModel, path: Path, claim: Claim) -> Row:
    """Return the row of the artifact, still without times; without an artifact, a row of unknown weights."""
    if claim.artifact is None:
        precision = claim.precision or model.precision or "unknown"
        name = model.name or path.stem
        return Row(name, model.tool, precision, precision, "unknown", Identity(name, ""), {})
    row = planned_artifact(claim.artifact.name, claim.artifact).row
    # An engine has another name than the file that it was built from. Only files of one kind can be compared by name.
    same_kind = Path(model.name).suffix == claim.artifact.path.suffix
    if (model.artifact and model.artifact != row.digest) or (same_kind and model.name != claim.artifact.name):
        problem = f"{path} is of another artifact than {claim.artifact.name}"
        raise UserError(problem, "give the artifact that was timed")
    return row
