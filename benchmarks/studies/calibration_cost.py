"""The time and the peak memory of calibration: ours, ONNX Runtime's and NNCF's, over more and more photos.

Each run has a process of its own, which stops itself if it takes more memory than allowed. The data are written after
each run, and an interrupted study continues with the runs that are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

from u2export.benchmarks.measuring.worker import peak, resident
from u2export.benchmarks.studies.photo_sets import spread
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, listed, machine, progress
from u2export.benchmarks.tables.markdown import table
from u2export.errors import UserError
from u2export.exporters.runtime import versions
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_file import read_onnx
from u2export.reference.photos import find_photos, read_input

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
CHILD = (sys.executable, "-m", "u2export.benchmarks.studies.calibration_cost")
GB = 1e9


@dataclass(frozen=True)
class Run:
    """One calibration: the method, and the number of photos."""

    method: str
    photos: int


@dataclass(frozen=True)
class Task:
    """The inputs of a run.

    Attributes:
        model: the file of the fp32 graph.
        photos: the photos, which are read one at a time.
        contract: how a photo becomes a network input.
    """

    model: Path
    photos: Sequence[Path]
    contract: Contract

    def read(self, path: Path) -> Floats:
        """The network input of one photo."""
        return read_input(self.contract, path)

    def inputs(self) -> Iterator[Floats]:
        """Yield the network inputs; a photo is read when it is needed."""
        return map(self.read, self.photos)


def ours(task: Task, method: str) -> None:
    """Observe the ranges of all activations."""
    from u2export.calibration.activation_ranges import observe

    observe(_graph(task), task.inputs(), method=method)


def recipe(task: Task) -> None:
    """Do what `u2export ort --int8` does: min-max ranges, bias correction, and the 8-bit graph."""
    from u2export.calibration.quantize import calibrated
    from u2export.exporters.ort import int8_spec

    calibrated(_graph(task), _Again(task), int8_spec())


@dataclass(frozen=True)
class _Again:
    """The inputs of a task, for more than one pass."""

    task: Task

    def __iter__(self) -> Iterator[Floats]:
        return self.task.inputs()


def by_onnxruntime(task: Task, method: str) -> None:
    """Call quantize_static in its documented form: Q/DQ, per channel."""
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.inputs = task.inputs()

        def get_next(self) -> dict[str, Floats] | None:
            x = next(self.inputs, None)
            return None if x is None else {"image": x}

    q.quantize_static(
        task.model, task.model.with_suffix(".int8.onnx"), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        calibrate_method=q.CalibrationMethod[method],
    )  # fmt: skip


def by_nncf(task: Task) -> None:
    """Call nncf.quantize on the OpenVINO model: preset MIXED, without bias correction."""
    import nncf
    import openvino

    nncf.quantize(
        openvino.convert_model(task.model), nncf.Dataset(list(task.photos), task.read),
        preset=nncf.QuantizationPreset.MIXED, subset_size=len(task.photos),
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )  # fmt: skip


METHODS: Mapping[str, Callable[[Task], None]] = {
    "u2export minmax": lambda task: ours(task, "minmax"),
    "u2export entropy": lambda task: ours(task, "entropy"),
    "u2export minmax and bias correction": recipe,
    "onnxruntime minmax": lambda task: by_onnxruntime(task, "MinMax"),
    "onnxruntime entropy": lambda task: by_onnxruntime(task, "Entropy"),
    "nncf": by_nncf,
}
SLOW = ("u2export entropy", "u2export minmax and bias correction")  # fewer photos show their memory too


def _graph(task: Task) -> onnx.ModelProto:

    return read_onnx(task.model)


def child(method: str, task: Task, limit: float) -> None:
    """Run one calibration, and print its costs as a line of JSON. Beyond `limit` bytes the process ends."""
    import onnx  # noqa: F401 - the imports that every method needs do not count
    import onnxruntime  # noqa: F401

    before, wall, cpu = resident(), perf_counter(), process_time()

    def report(finished: bool) -> None:
        took = {"seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu}
        print(json.dumps({"finished": finished, **took, "peak": peak(), "before": before}), flush=True)

    def watch() -> None:
        while resident() < limit:
            sleep(0.1)
        report(False)
        os._exit(0)

    Thread(target=watch, daemon=True).start()
    METHODS[method](task)
    report(True)


def in_a_process(run: Run, task: Task, limit: float) -> dict[str, Any]:
    """Make a run in a process of its own, and return its row."""
    words = {"method": run.method, "model": str(task.model), "photos": list(map(str, task.photos))}
    order = json.dumps({**words, "contract": task.contract.to_json(), "limit": limit})
    done = subprocess.run(CHILD, input=order, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if "finished" not in found:
            raise ValueError
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        found = {"finished": False, "error": last[0][:200]}
    return {**asdict(run), **found}


def serve(order: str) -> None:
    """Do in the child process what `in_a_process` asks for."""
    given = json.loads(order)
    task = Task(Path(given["model"]), list(map(Path, given["photos"])), Contract.from_json(given["contract"]))
    child(given["method"], task, given["limit"])


HEAD = """# Time and peak memory of calibration

{weights} at {size}x{size}, each run in a process of its own; the peak is of all memory of the process, which is stopped
at {limit:g} GB. Photos are read as they are needed, and reading them is part of the time; other processes ran on this
machine, so times are for orientation. {device}. {tools}.

Made by `{command}`

{table}
"""


def page(data: Mapping[str, Any], command: str) -> str:
    """Return the Markdown page: a line for each method, with the time and the memory for each number of photos."""
    rows, limit = data["rows"], data["limit"] * GB
    counts = sorted({row["photos"] for row in rows})
    cells = []
    for method in METHODS:
        known = {row["photos"]: _cell(row, limit) for row in rows if row["method"] == method}
        if known:
            cells.append([method, *(known.get(n, "") for n in counts)])
    titles = ["calibration", *(f"{n} photos" for n in counts)]
    used = listed(data["tools"])
    return HEAD.format(**{**data, "device": data["device"]["label"], "tools": used}, command=command,
                       table=table(titles, cells, "l" + "r" * len(counts)))  # fmt: skip


def _cell(row: Mapping[str, Any], limit: float) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    if not row["finished"]:
        return f"stopped at {limit / GB:g} GB after {row['seconds']:.0f} s"
    return f"{row['seconds']:.0f} s, {row['peak'] / GB:.2f} GB"


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="photos")
    parser.add_argument("--counts", type=int, nargs="+", default=[32, 100, 300], help="numbers of photos")
    parser.add_argument("--size", type=int, default=320, help="side of the network input; %(default)s")
    parser.add_argument("--limit", type=float, default=8, help="GB of memory that a run may take; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")


def run(given: Namespace, pages: Pages) -> int:
    """Make every run that the results do not have yet; write the data after each run.

    Raises:
        UserError: there are too few photos for the largest run.
    """
    photos = find_photos(given.folders)
    if len(photos) < max(given.counts):
        raise UserError(f"{len(photos)} photos are too few for runs of {max(given.counts)}", "give more folders")
    with TemporaryDirectory() as scratch:
        _all(given, pages, photos, Path(scratch) / "fp32.onnx")
    return 0


def _all(given: Namespace, pages: Pages, photos: Sequence[Path], model: Path) -> None:
    import onnx

    from u2export.reference.onnx_export import Graph, to_onnx
    from u2export.reference.source import Source

    source = Source.open(given.weights, Contract(given.size, given.size))
    onnx.save(to_onnx(source.model, source.contract, Graph(), {}), model)
    inputs = {"schema": SCHEMA, "weights": source.weights.name, "size": given.size, "limit": given.limit}
    tools = versions("onnxruntime", "openvino", "nncf", "onnx", "numpy")
    data = pages.resumed(inputs) or {**inputs, "tools": tools, "device": machine(), "rows": []}
    for wanted in (Run(method, n) for n in sorted(given.counts) for method in METHODS):
        known = any(asdict(wanted).items() <= row.items() for row in data["rows"])
        if known or (wanted.method in SLOW and wanted.photos > 100):
            continue
        progress(wanted)
        task = Task(model, spread(photos, wanted.photos), source.contract)
        data["rows"].append(in_a_process(wanted, task, given.limit * GB))
        pages.save(data)
    pages.publish(data, page(data, pages.command))


STUDY = Study("calibration_cost", "What do our calibration and those of others cost?", "calibration",
              options, run, RESULTS / "int8")  # fmt: skip

if __name__ == "__main__":
    serve(sys.stdin.read())
