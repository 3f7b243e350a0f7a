"""Which format of a phone is closest to PyTorch, smallest and cheapest? All formats are open in one process, in turns.

Times are processor time of one thread, because other programs take less of it than of the clock. Each round runs every
format once on the same photo, in random order; the ratio is to the first artifact, over the rounds.
"""

from __future__ import annotations

import random
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import process_time_ns
from typing import Any

from u2export.benchmarks.device import environment
from u2export.benchmarks.models import judged
from u2export.benchmarks.statistics import time_ratio
from u2export.benchmarks.studies.photo_sets import Sets, folders, photos_in, references, summarise
from u2export.benchmarks.studies.study import Pages, Study, listed, machine, now, progress
from u2export.benchmarks.tables.markdown import table
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.exporters.runtime import Runner
from u2export.reference.source import Source

PACKAGES = ("onnxruntime", "ai-edge-litert", "executorch", "torch")
# What int8 of the published u2netp shall keep on 24 horses and the 18 photos of the U²-Net repository, by exporter:
# measures that shall be no more, or no less. "time" is the CPU time relative to ONNX Runtime's fp32.
MOST = {"litert": {"mae": 0.0024, "time": 0.32}, "executorch": {"mae": 0.003}}
LEAST = {"litert": {"iou": 0.992, "iou_worst": 0.96}, "executorch": {"iou": 0.99, "iou_worst": 0.95}}
NAMED = {"mae": "MAE", "iou": "IoU", "iou_worst": "IoU worst", "time": "CPU time"}


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("artifacts", nargs="+", type=Path, metavar="ARTIFACT", help="the first one is compared with")
    parser.add_argument("--sets", nargs="+", required=True, metavar="NAME=FOLDER", help="photos to judge the masks on")
    parser.add_argument("--photos", type=int, default=24, help="photos of each set, evenly spread; %(default)s")
    parser.add_argument("--rounds", type=int, default=41, help="rounds of the times; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Judge the masks of all artifacts, time them in turns, and write both pages.

    Raises:
        UserError: an artifact or a folder is missing.
        Unavailable: a runtime is not installed.
    """
    opened = [read_artifact(path) for path in given.artifacts]
    source = Source.open(given.weights, opened[0].contract)
    photos = photos_in(folders(given.sets), given.photos)
    sets = {name: list(references(source, paths)) for name, paths in photos.items()}
    with ExitStack() as stack:
        runners = {a.name: stack.enter_context(EXPORTERS[a.exporter].load(a, threads=1)) for a in opened}
        rows = [_row(artifact, runners[artifact.name], sets) for artifact in opened]
        times = in_turns(runners, sets, given.rounds)
    for row in rows:
        ns = times[row["artifact"]]
        ratio = time_ratio(ns, times[opened[0].name])
        row |= {"ns": ns, "ratio": [ratio.value, ratio.low, ratio.high] if ratio else None}
    found = {name: version for name, version in environment().items() if name in PACKAGES}
    data = {
        "weights": {"name": source.weights.name, "sha256": source.weights.sha256}, "machine": machine(), "made": now(),
        "environment": found, "photos": {name: [p.name for p in paths] for name, paths in photos.items()},
        "rows": rows, "command": pages.command,
    }  # fmt: skip
    pages.publish(data, page(data))
    return 0


def _row(artifact: Artifact, runner: Runner, sets: Sets) -> dict[str, Any]:
    """The masks of one artifact: the fidelity on each set and on all together."""
    images = {name: judged(runner, pairs) for name, pairs in sets.items()}
    progress(artifact.name)
    return {
        "artifact": artifact.name, "exporter": artifact.exporter, "precision": artifact.precision,
        "bytes": artifact.size, "runs": dict(runner.info),
        "calibration": artifact.calibration,
        "fidelity": {"all": summarise([i for each in images.values() for i in each]),
                     **{name: summarise(each) for name, each in images.items()}},
    }  # fmt: skip


def in_turns(runners: Mapping[str, Runner], sets: Sets, rounds: int) -> dict[str, list[int]]:
    """Return the processor ns of each artifact by round, after two rounds to warm up."""
    inputs = [x for pairs in sets.values() for x, _ in pairs]
    found: dict[str, list[int]] = {name: [] for name in runners}
    for number in range(-2, rounds):
        for name in random.Random(number).sample(list(runners), len(runners)):
            fed = runners[name].prepare(inputs[number % len(inputs)])
            start = process_time_ns()
            runners[name].predict(fed)
            if number >= 0:
                found[name].append(process_time_ns() - start)
    return found


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    titles = ("artifact", "runtime", "bytes", "MAE", "MAE worst", "IoU", "IoU worst", "CPU ms", "relative", "interval")
    sets = ", ".join(f"{len(names)} of {name}" for name, names in data["photos"].items())
    return f"""# Formats for phones

{table(titles, [_cells(row) for row in data["rows"]], "llrrrrrrrl")}

Weights: {data["weights"]["name"]}. Masks against PyTorch on all photos together: {sets}. CPU ms: processor time of one
thread, median of {len(data["rows"][0]["ns"])} rounds; every round runs all rows once, in random order, in one process.
relative: to the first row, by the estimator of speed-ups over the rounds, with its 95 % interval.
{data["machine"]["label"]} ({", ".join(data["machine"]["features"])}); {listed(data["environment"])}.
**This is an x86 processor and no phone:** ratios on Arm differ.
{limits(data["rows"])}
Again:
```sh
{data["command"]}
```
"""


def limits(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the section that compares int8 with its limits; empty where no row has limits."""
    found = [cells for row in rows if row["precision"] == "int8" for cells in _compared(row)]
    if not found:
        return ""
    titles = ("artifact", "measure", "limit", "measured", "kept")
    return f"""
## Limits of int8

{table(titles, found, "lllrl")}
"""


def _compared(row: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Yield a line for each limit of a row's exporter."""
    value = row["ratio"][0] if row["ratio"] else float("nan")
    seen = {**row["fidelity"]["all"], "time": value}
    for name, limit in MOST.get(row["exporter"], {}).items():
        kept = "yes" if seen[name] <= limit else "no"
        yield row["artifact"], NAMED[name], f"at most {limit:g}", f"{seen[name]:.2g}", kept
    for name, limit in LEAST.get(row["exporter"], {}).items():
        kept = "yes" if seen[name] >= limit else "no"
        yield row["artifact"], NAMED[name], f"at least {limit:g}", f"{seen[name]:.4f}", kept


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    found = row["fidelity"]["all"]
    value, low, high = row["ratio"] or (float("nan"),) * 3
    masks = [f"{found[name]:.2g}" for name in ("mae", "mae_worst")]
    masks += [f"{found[name]:.4f}" for name in ("iou", "iou_worst")]
    times = (f"{median(row['ns']) / 1e6:.0f}", f"{value:.2f}", f"{low:.2f}–{high:.2f}")
    return (row["artifact"], row["runs"]["runtime"], f"{row['bytes']:,}", *masks, *times)


STUDY = Study(
    "phones", "Which format of a phone is closest, smallest and cheapest?", "phones", options, run,
    Path("benchmarks/results/phones"),
)  # fmt: skip
