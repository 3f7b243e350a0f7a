"""A package as a runner on machines without Core ML: PyTorch runs the saved program on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from u2export.exporters.coreml.ports import INPUT, OUTPUT, picture, unstretched
from u2export.exporters.runtime import Runner
from u2export.reference.image import Contract, Floats

# What a table calls an arithmetic, and what `evaluate` calls it.
SIMULATED = {
    "simulated fp16": "fp16",
    "simulated fp16 accumulate": "fp16-accumulate",
    "simulated fp32": "fp32",
}


@contextmanager
def open_simulated(path: Path, contract: Contract, arithmetic: str, threads: int) -> Iterator[Runner]:
    """Open a package as a runner that executes it with PyTorch.

    Args:
        path: the package.
        contract: its pre- and postprocessing.
        arithmetic: one of `evaluate.ARITHMETICS`.
        threads: PyTorch's threads while the runner is open.

    Raises:
        UserError: u2export did not write the package, or the package is damaged.
    """
    import torch

    from u2export.exporters.coreml.evaluate import Program
    from u2export.exporters.coreml.package import Package

    package = Package(path)
    output = package.stamped("output")
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
            lambda x: picture(x, contract),
        )
    finally:
        torch.set_num_threads(before)
