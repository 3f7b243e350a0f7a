"""The network as exporters start from it: conditioned, with what took long kept between exports.

To find near-constant channels takes far longer than to shift them. Only the report is stored, in the user's cache
folder; the network is rewritten from it each time. Rounded weights are kept too. The key of an entry covers everything
that the entry depends on, the code included, so a stale entry is never used. Every export checks its masks too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.calibration import channel_routes, condition_report, probes, quant_plan, weight_rounding
from u2export.calibration import condition as conditioning
from u2export.calibration.condition import condition
from u2export.calibration.condition_report import ConditionReport, Criteria
from u2export.calibration.dataset import Calibration
from u2export.calibration.quant_plan import QuantSpec
from u2export.calibration.weight_rounding import Rounded, rounded_weights
from u2export.errors import UserError
from u2export.files import make_folder, read_json, staged, write_json
from u2export.reference.weights import home

if TYPE_CHECKING:
    import onnx
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


def known_weights(
    model: onnx.ModelProto, photos: Calibration, spec: QuantSpec, progress: Callable[[str], None] = lambda what: None
) -> Rounded:
    """Return what `rounded_weights` returns; reuse what the cache folder has of the same graph, photos and scheme."""
    if not spec.fit_weights:
        return {}
    file = home() / "rounding" / f"{_key_of_rounding(model, photos, spec)}.npz"
    if (known := _read_rounded(file)) is not None:
        return known
    made = rounded_weights(model, photos, spec, progress)
    _keep_rounded(made, file)
    return made


def _key_of_rounding(model: onnx.ModelProto, photos: Calibration, spec: QuantSpec) -> str:
    total = hashlib.sha256(model.graph.SerializeToString(deterministic=True))
    total.update(json.dumps([photos.contract.to_json(), photos.digest, spec.pair_safe], sort_keys=True).encode())
    for module in (weight_rounding, quant_plan):
        total.update(inspect.getsource(module).encode())
    return total.hexdigest()[:32]


def _read_rounded(file: Path) -> Rounded | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        return None  # missing or damaged weights are rounded again


def _keep_rounded(made: Rounded, file: Path) -> None:
    arrays: dict[str, Any] = dict(made)
    with suppress(UserError, OSError):  # without the cache, the next export only takes longer
        make_folder(file.parent)
        with staged(file) as path, path.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
