"""A worker of a bench that slows artifacts down on purpose: the study `gate_power` starts it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any, ClassVar

from u2export.benchmarks.measuring import worker
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.onnx import Onnx
from u2export.exporters.runtime import Runner
from u2export.reference.image import Floats

WORKER = (sys.executable, "-m", "u2export.benchmarks.studies.slowed")
SLOWED, SHARE = "slowed", 0.10


@dataclass(frozen=True)
class Slowed(Onnx):
    """The ONNX exporter. Its runner waits after each inference of a file `slowed…`, for a tenth of the time."""

    name: ClassVar[str] = "onnx"

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        with super()._load(artifact, arithmetic, threads) as runner:
            if not artifact.name.startswith(SLOWED):
                yield runner
                return
            inner = runner.predict

            def predict(batch: Any) -> Floats:
                start = perf_counter_ns()
                d0 = inner(batch)
                end = perf_counter_ns() + int(SHARE * (perf_counter_ns() - start))
                while perf_counter_ns() < end:
                    pass
                return d0

            yield replace(runner, predict=predict)


if __name__ == "__main__":
    EXPORTERS["onnx"] = Slowed()
    worker.main()
