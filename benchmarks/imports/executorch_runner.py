"""Reader for the text that ExecuTorch's `executor_runner` prints: the total time of all executions.

Source: pytorch/executorch, examples/portable/executor_runner/executor_runner.cpp, version 1.5.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds

DONE = re.compile(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms")
LOADED = re.compile(r"Model file (\S+) is loaded")


def executorch_runner(text: str, log: str) -> list[TimedModel]:
    """Return the model of each run in the text, or in the log where the text has none."""
    told = text if DONE.search(text) else log
    runs = list(DONE.finditer(told))
    if not runs:
        raise ValueError("no line 'Model executed successfully N time(s) in X ms.'")
    models, start = [], 0
    for run in runs:
        part, start = told[start : run.start()], run.end()
        name = LOADED.search(part)
        count = int(run[1])
        if count < 1:
            raise ValueError("a run of no executions")
        models.append(
            TimedModel(
                "executor_runner",
                PurePosixPath(name[1].replace("\\", "/")).name if name else "",
                stated={"mean": milliseconds(float(run[2]) / count)},
                runtime={"runtime": "ExecuTorch"},
                timed=f"{count} executions, the first included; their mean",
            )
        )
    return models
