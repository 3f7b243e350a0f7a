"""A package executed with PyTorch on this CPU, where there is no Core ML."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.ports import INPUT, OUTPUT, picture, unstretched
from u2export.exporters.runtime import Runner
from u2export.reference import stamp
from u2export.reference.image import Floats

if TYPE_CHECKING:
    from u2export.exporters.coreml.package import Package

SIMULATED = {
    "simulated fp16": "fp16",
    "simulated fp16 accumulate": "fp16-accumulate",
    "simulated fp32": "fp32",
}


def stamped(package: Package, key: str) -> Any:
    """What u2export stamped into a package under a key.

    Raises:
        UserError: there is no such stamp.
    """
    value = stamp.read(package.spec.description.metadata.userDefined).get(key)
    if not value:
        raise UserError(f"{package.path}: not written by u2export (no {key} in its metadata)", "export it again")
    return value


@contextmanager
def simulated(artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
    """The package executed with PyTorch on this CPU."""
    import torch

    from u2export.exporters.coreml.evaluate import Program
    from u2export.exporters.coreml.package import Package

    package = Package(artifact.path)
    output = stamped(package, "output")
    program = Program(package, arithmetic)
    d0 = next(op.name for op in reversed(package.operations) if op.kind == "sigmoid")

    def predict(pictures: Floats) -> Floats:
        results = (program.run({INPUT: p[None]}, keep=(d0,)) for p in pictures)
        return np.concatenate([unstretched(r[OUTPUT], r[d0], output) for r in results])

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield Runner(
            predict,
            {
                "runtime": f"MIL evaluation in PyTorch {torch.__version__}",
                "device": "CPU",
                "arithmetic": arithmetic,
                "threads": str(threads),
                "simulated": "fidelity only: not run on hardware, the times are those of this CPU",
            },
            lambda x: picture(x, artifact.contract),
        )
    finally:
        torch.set_num_threads(before)
