"""Rounded weights, kept between exports: a second export to another target does not compute them again.

The key of an entry covers everything that the weights depend on, the code included, so a stale entry is never used.
Every export checks its masks too.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.calibration import quant_plan, weight_rounding
from u2export.calibration.dataset import Calibration
from u2export.calibration.quant_plan import QuantSpec
from u2export.calibration.weight_rounding import Rounded, rounded_weights
from u2export.errors import UserError
from u2export.files import make_folder, staged
from u2export.reference.weights import home

if TYPE_CHECKING:
    import onnx


def known_weights(
    model: onnx.ModelProto, photos: Calibration, spec: QuantSpec, progress: Callable[[str], None] = lambda what: None
) -> Rounded:
    """Return what `rounded_weights` returns; reuse what the cache folder has of the same graph, photos and scheme."""
    if not spec.fit_weights:
        return {}
    file = home() / "rounding" / f"{_key(model, photos, spec)}.npz"
    if (known := _read(file)) is not None:
        return known
    made = rounded_weights(model, photos, spec, progress)
    _keep(made, file)
    return made


def _key(model: onnx.ModelProto, photos: Calibration, spec: QuantSpec) -> str:
    total = hashlib.sha256(model.graph.SerializeToString(deterministic=True))
    total.update(json.dumps([photos.contract.to_json(), photos.digest, spec.pair_safe], sort_keys=True).encode())
    for module in (weight_rounding, quant_plan):
        total.update(inspect.getsource(module).encode())
    return total.hexdigest()[:32]


def _read(file: Path) -> Rounded | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile):
        return None  # missing or damaged weights are rounded again


def _keep(made: Rounded, file: Path) -> None:
    arrays: dict[str, Any] = dict(made)
    with suppress(UserError, OSError):  # without the cache, the next export only takes longer
        make_folder(file.parent)
        with staged(file) as path, path.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
