"""A real worker with one more target, whose artifacts do what broken runtimes do. Not a test module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from u2export.benchmarks.measuring import worker
from u2export.errors import Unavailable, UserError
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.runtime import Runner
from u2export.files import write_json
from u2export.reference.image import Floats
from u2export.reference.source import Source


class Hostile(Exporter):
    """Runs the first channel of the input as d0, until its arithmetic (the file's stem) says otherwise."""

    name: ClassVar[str] = "hostile"
    title: ClassVar[str] = "Hostile"
    suffix: ClassVar[str] = ".hostile"

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        if artifact.path.stem == "missing":
            raise Unavailable("no such device here", "buy one")
        return (artifact.path.stem,)

    def built(self, artifact: Artifact, folder: Path) -> Artifact | None:
        if artifact.path.stem != "build":
            return None
        folder.mkdir(parents=True)
        path = folder / "engine.hostile"
        path.write_text("made of " + artifact.path.read_text())
        made = replace(artifact, path=path, files=hashes(path))
        write_json(made.to_json(), made.record)
        return made

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        raise NotImplementedError

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        if arithmetic == "refuse":
            raise UserError(f"{artifact.path} is of a newer version", "export it again")
        print("native libraries print on standard output", flush=True)
        os.write(1, b"from C as well\n")
        calls = 0

        def prepare(batch: Floats) -> Floats:
            if arithmetic == "prepare":
                time.sleep(0.1)
            return batch

        def predict(batch: Floats) -> Floats:
            nonlocal calls
            calls += 1
            if calls > 2 and arithmetic in ACTIONS:
                ACTIONS[arithmetic]()
            if arithmetic in PAUSES:
                time.sleep(PAUSES[arithmetic](calls))
            if arithmetic == "single" and len(batch) > 1:
                raise RuntimeError("dimension 0 is 1\nand more")
            if arithmetic == "shape":
                return np.zeros((1, 1, 7, 7), np.float32)
            d0 = batch[:, :1].copy()
            return np.full_like(d0, np.nan) if arithmetic == "nan" else d0

        about = {"runtime": "Hostile 1", "arithmetic": arithmetic, "threads": str(threads)}
        yield Runner(predict, about, prepare, {"compile": 1000})


def _fail() -> None:
    raise ValueError("a bug in a runtime")


ACTIONS = {
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "oom": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(3),
    "hang": lambda: time.sleep(600),
    "raise": _fail,
}

# Seconds by the number of the call.
PAUSES = {"sleep": lambda calls: 0.02, "tire": lambda calls: 0.002 if calls < 300 else 0.01}

if __name__ == "__main__":
    EXPORTERS["hostile"] = Hostile()
    worker.main()
