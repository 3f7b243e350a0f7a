"""A package as a runner on a Mac: Core ML itself runs it."""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

import numpy as np

from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.ports import INPUT, OUTPUT, picture
from u2export.exporters.runtime import Runner
from u2export.reference import stamp
from u2export.reference.image import Floats

# Units that Core ML may use, by the word in a table. The runner's info says what Core ML really uses for how many
# operations.
UNITS = {"all": "ALL", "cpu and ne": "CPU_AND_NE", "cpu and gpu": "CPU_AND_GPU", "cpu only": "CPU_ONLY"}


def open_on_mac(artifact: Artifact, arithmetic: str) -> Runner:
    """Open a package as a runner in Core ML. It takes pictures of 8 bit, and a stretched mask stays stretched.

    Args:
        artifact: the package.
        arithmetic: a key of `UNITS`.

    Raises:
        UserError: Core ML cannot open the package.
    """
    import coremltools as ct
    from PIL import Image

    unit = ct.ComputeUnit[UNITS[arithmetic]]
    try:
        model = ct.models.MLModel(str(artifact.path), compute_units=unit)
    except RuntimeError as error:
        raise UserError(
            f"Core ML cannot open {artifact.path}: {error}", "export it again, for an older target"
        ) from None
    output = stamp.read(model.user_defined_metadata).get("output", "tensor")

    def prepare(x: Floats) -> list[Image.Image]:
        pixels = picture(x, artifact.contract).astype(np.uint8).transpose(0, 2, 3, 1)
        return [Image.fromarray(p if p.shape[2] == 3 else p[..., 0]) for p in pixels]

    def predict(pictures: list[Image.Image]) -> Floats:
        results = [np.asarray(model.predict({INPUT: p})[OUTPUT], np.float32) for p in pictures]
        if output == "image":
            return np.stack(results)[:, None] / np.float32(255)
        return np.concatenate(results)

    info = {
        "runtime": f"Core ML on macOS {platform.mac_ver()[0]}",
        "device": arithmetic,
        "arithmetic": artifact.precision,
        "output": "d0" if output == "raw" else "stretched mask: raw_mae is not that of d0",
    }
    return Runner(predict, {**info, **_placement(model, unit)}, prepare)


def _placement(model: Any, unit: Any) -> dict[str, str]:
    """Return which device Core ML prefers for how many operations (MLComputePlan, macOS 14.4 and later)."""
    if tuple(int(n) for n in platform.mac_ver()[0].split(".")[:2]) < (14, 4):
        return {"placement": "unknown: MLComputePlan needs macOS 14.4"}
    from coremltools.models.compute_plan import MLComputePlan

    plan = MLComputePlan.load_from_path(model.get_compiled_model_path(), compute_units=unit)
    found: Counter[str] = Counter()
    for op in plan.model_structure.program.functions["main"].block.operations:
        if usage := plan.get_compute_device_usage_for_mlprogram_operation(op):
            device = type(usage.preferred_compute_device).__name__
            found[device.removeprefix("ML").removesuffix("ComputeDevice")] += 1
    return {"placement": ", ".join(f"{n} {device}" for device, n in found.most_common())}
