"""Reader for the text that ExecuTorch's `executor_runner` prints: the time of each execution, or of all together.

Source: pytorch/executorch, examples/portable/executor_runner/executor_runner.cpp. Version 1.5 prints the total alone;
later sources also print each execution and the time of loading.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from u2export.benchmarks.imports.timed_model import TimedModel, milliseconds, nanoseconds

DONE = re.compile(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms")
READ = re.compile(r"Model file (\S+) is loaded")
OPENED = re.compile(r"Model loaded in ([\d.]+) ms")
EACH = re.compile(r"Iteration \d+ of \d+: ([\d.]+) ms")
THREADS = re.compile(r"num threads = (\d+)")


def executorch_runner(text: str, log: str) -> list[TimedModel]:
    """Return the model of each run in the text, or in the log where the text has none."""
    told = text if DONE.search(text) else log
    runs = list(DONE.finditer(told))
    if not runs:
        raise ValueError("no line 'Model executed successfully N time(s) in X ms.'")
    models, start = [], 0
    for run in runs:
        models.append(_model(told[start : run.start()], int(run[1]), run[2]))
        start = run.end()
    return models


def _model(told: str, count: int, total: str) -> TimedModel:
    """The model of one run; `told` is what was printed before its last line."""
    if count < 1:
        raise ValueError("a run of no executions")
    name, opened, threads = READ.search(told), OPENED.search(told), THREADS.search(told)
    each = [nanoseconds(ms) for ms in EACH.findall(told)]
    whole = len(each) == count > 1
    # The first execution is slower: it is not among the samples.
    timed = "each execution after the first" if whole else f"{count} executions, the first included; their mean"
    return TimedModel(
        "executor_runner",
        PurePosixPath(name[1].replace("\\", "/")).name if name else "",
        rounds=(tuple(each[1:]),) if whole else (),
        stated={} if whole else {"mean": milliseconds(float(total) / count)},
        load_ns=(nanoseconds(opened[1]),) if opened else (),
        first_ns=each[0] if whole else 0,
        runtime={"runtime": "ExecuTorch", **({"threads": threads[1]} if threads else {})},
        timed=timed,
    )
