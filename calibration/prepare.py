"""The network as exporters start from it: conditioned, with the report of conditioning cached between exports.

To find near-constant channels takes far longer than to shift them. Only the report is stored, in the user's cache
folder; the network is rewritten from it each time. The key of a report covers everything that the report depends on,
the code included, so a stale report is never used. Every export checks its masks too.
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


# Sixteen varied photos find all near-constant channels; more photos only take longer.
CONDITION_PHOTOS = 16


def prepared(
    source: Source, precision: str, photos: Calibration | None = None, condition: bool = True
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Return the module to export at a precision, and the report of conditioning.

    Args:
        source: the reference; its model is not changed.
        precision: "fp32" takes the network as it is; every other precision takes a conditioned copy.
        photos: calibration photos for conditioning; the bundled photos by default.
        condition: False takes the network as it is at every precision.

    Returns:
        The module, and the report as plain data; the report is empty without conditioning.
    """
    if precision == "fp32" or not condition:
        return source.model, {}
    seen = photos or Calibration.bundled(source.contract)
    module, report = conditioned(source.model, seen.subset(CONDITION_PHOTOS))
    return module, report.to_json()


def conditioned(model: U2Net, photos: Calibration, criteria: Criteria = Criteria()) -> tuple[U2Net, ConditionReport]:
    """Condition a network as `condition` does; reuse the cached report of the same network, photos and criteria."""
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
        return None  # a missing or damaged report is measured again


def _keep(report: ConditionReport, file: Path) -> None:
    with suppress(UserError, OSError):  # without the cache, the next export only takes longer
        write_json(report.to_json(), file)
