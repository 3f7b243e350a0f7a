"""What conditioning found, kept between exports: finding near-constant channels takes far longer than shifting them.

Only the report is kept, in the user's cache folder; the network is rewritten from it each time. A report is found again
by everything that it depends on, the code included, so a stale one is never used. Exports check their masks anyway.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from u2export.calibration import channel_routes, condition_report, probes
from u2export.calibration import condition as conditioning
from u2export.calibration.condition import condition
from u2export.calibration.condition_report import ConditionReport, Criteria
from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.files import read_json, write_json
from u2export.reference.weights import home

if TYPE_CHECKING:
    import torch

    from u2export.reference.model import U2Net
    from u2export.reference.source import Source


# Sixteen varied photos find the near-constant channels; more photos only take longer.
CONDITION_PHOTOS = 16


def prepared(
    source: Source, precision: str, photos: Calibration | None = None, condition: bool = True
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The module to export at a precision, and the report of the conditioning pass.

    Args:
        source: the reference; its model is not changed.
        precision: "fp32" is exported as it is, every other precision from a conditioned copy.
        photos: calibration photos that conditioning looks at; the bundled ones by default.
        condition: False leaves the network as it is.

    Returns:
        The module, and the report as plain data: empty where nothing was conditioned.
    """
    if precision == "fp32" or not condition:
        return source.model, {}
    seen = photos or Calibration.bundled(source.contract)
    module, report = conditioned(source.model, seen.subset(CONDITION_PHOTOS))
    return module, report.to_json()


def conditioned(model: U2Net, photos: Calibration, criteria: Criteria = Criteria()) -> tuple[U2Net, ConditionReport]:
    """`condition`, without running the network where it ran on the same photos before."""
    file = home() / "conditioning" / f"{_key(model, photos, criteria)}.json"
    if known := _read(file):
        return condition(model, known)
    made, report = condition(model, photos, criteria)
    _keep(report, file)
    return made, report


def _key(model: U2Net, photos: Calibration, criteria: Criteria) -> str:
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    contract, digest = photos.contract.to_json(), photos.digest
    total.update(json.dumps([contract, digest, asdict(criteria)], sort_keys=True).encode())
    for module in (conditioning, condition_report, probes, channel_routes):
        total.update(inspect.getsource(module).encode())
    return total.hexdigest()[:32]


def _read(file: Path) -> ConditionReport | None:
    try:
        data = read_json(file, "a conditioning report")
        return ConditionReport.from_json(data) if isinstance(data, dict) else None
    except UserError:
        return None  # not there, or damaged: measured again


def _keep(report: ConditionReport, file: Path) -> None:
    with suppress(UserError, OSError):  # without a cache it only takes longer
        write_json(report.to_json(), file)
