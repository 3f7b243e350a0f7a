"""Time and peak memory of calibrating the 8-bit network: ours, ONNX Runtime's and NNCF's, over more and more photos.

    python -m u2export.benchmarks.studies.calibration_cost PHOTO_FOLDER ...

Each run has a process of its own, which stops itself beyond the memory allowed. Writes `calibration.json` after each
run and `calibration.md` at the end; runs that the former holds are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter, process_time, sleep
from typing import TYPE_CHECKING, Any

from u2export.benchmarks.device import this_device
from u2export.benchmarks.measuring.worker import peak, resident
from u2export.errors import UserError
from u2export.exporters.exporter import versions
from u2export.files import read_json, write_json, write_text
from u2export.reference.image import Contract, Floats, find_photos
from u2export.reference.spread import evenly_spread

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
NAME = "u2export.benchmarks.studies.calibration_cost"
GB = 1e9


@dataclass(frozen=True)
class Run:
    """One calibration: by what, and over how many photos."""

    method: str
    photos: int


@dataclass(frozen=True)
class Task:
    """What a run works on.

    Attributes:
        model: fp32 graph, a file.
        photos: pictures to read, one at a time.
        contract: how a picture becomes a network input.
    """

    model: Path
    photos: Sequence[Path]
    contract: Contract

    def inputs(self) -> Iterator[Floats]:
        """Network inputs, read as they are asked for."""
        return map(self.contract.read, self.photos)


def ours(task: Task, method: str) -> None:
    """Ranges of all activations."""
    from u2export.calibration.activation_ranges import observe

    observe(_graph(task), task.inputs(), method=method)


def recipe(task: Task) -> None:
    """What `u2export ort --int8` does: min-max ranges, bias correction, the 8-bit graph."""
    from u2export.calibration.quantize import calibrated
    from u2export.exporters.ort import int8_spec

    calibrated(_graph(task), _Again(task), int8_spec())


@dataclass(frozen=True)
class _Again:
    """A task's inputs, to be iterated over more than once."""

    task: Task

    def __iter__(self) -> Iterator[Floats]:
        return self.task.inputs()


def by_onnxruntime(task: Task, method: str) -> None:
    """quantize_static in its documented form, Q/DQ per channel."""
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
    """nncf.quantize of the OpenVINO model, MIXED, without bias correction."""
    import nncf
    import openvino

    nncf.quantize(
        openvino.convert_model(task.model), nncf.Dataset(list(task.photos), task.contract.read),
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
SLOW = ("u2export entropy", "u2export minmax and bias correction")  # their memory shows over fewer photos too


def _graph(task: Task) -> onnx.ModelProto:
    import onnx

    return onnx.load(task.model)


def child(method: str, task: Task, limit: float) -> None:
    """Run one calibration and print what it took as a line of JSON; the end of the process if it exceeds `limit`."""
    import onnx  # noqa: F401 - what every method needs is not counted
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


def measure(run: Run, task: Task, limit: float) -> dict[str, Any]:
    """The run's row, from a process of its own."""
    words = {"method": run.method, "model": str(task.model), "photos": list(map(str, task.photos))}
    order = json.dumps({**words, "contract": task.contract.to_json(), "limit": limit})
    done = subprocess.run(
        [sys.executable, "-m", NAME, "--child"], input=order, capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if "finished" not in found:
            raise ValueError
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        found = {"finished": False, "error": last[0][:200]}
    return {**asdict(run), **found}


def serve(order: str) -> None:
    """The child's side of `measure`."""
    given = json.loads(order)
    task = Task(Path(given["model"]), list(map(Path, given["photos"])), Contract.from_json(given["contract"]))
    child(given["method"], task, given["limit"])


def table(rows: Sequence[Mapping[str, Any]], limit: float) -> str:
    """Markdown: a line for each method, time and memory for each number of photos."""
    counts = sorted({row["photos"] for row in rows})
    lines = ["| calibration |" + "".join(f" {n} photos |" for n in counts), "|---|" + "--:|" * len(counts)]
    for method in METHODS:
        cells = {row["photos"]: _cell(row, limit) for row in rows if row["method"] == method}
        if cells:
            lines.append(f"| {method} | " + " | ".join(cells.get(n, "") for n in counts) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any], limit: float) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    if not row["finished"]:
        return f"stopped at {limit / GB:g} GB after {row['seconds']:.0f} s"
    return f"{row['seconds']:.0f} s, {row['peak'] / GB:.2f} GB"


HEAD = """# Time and peak memory of calibration

{weights} at {size}x{size}, each run in a process of its own; the peak is of all memory of the process, which is stopped
at {limit:g} GB. Photos are read as they are needed, and reading them is part of the time; other processes ran on this
machine, so times are for orientation. {device}. {tools}.

Made by `python -m {name} PHOTO_FOLDER ... --size {size}`
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Make every run that is not in the results yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="photos")
    parser.add_argument("--child", action="store_true", help="one run, told by standard input")
    parser.add_argument("--counts", type=int, nargs="+", default=[32, 100, 300], help="numbers of photos")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--limit", type=float, default=8, help="GB of memory that a run may take")
    parser.add_argument("--weights", default="u2netp")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8"))
    given = parser.parse_args(argv)
    if given.child:
        serve(sys.stdin.read())
        return
    photos = find_photos(given.folders)
    if len(photos) < max(given.counts):
        raise UserError(f"{len(photos)} photos are too few for runs of {max(given.counts)}", "give more folders")
    with TemporaryDirectory() as scratch:
        _all(given, photos, Path(scratch) / "fp32.onnx")


def _all(given: argparse.Namespace, photos: Sequence[Path], model: Path) -> None:
    import onnx

    from u2export.reference.onnx_export import Graph, to_onnx
    from u2export.reference.source import Source

    source = Source.open(given.weights, Contract(given.size, given.size))
    onnx.save(to_onnx(source.model, source.contract, Graph(), {}), model)
    device = this_device()
    head = {"schema": SCHEMA, "weights": source.weights.name, "size": given.size, "limit": given.limit}
    file = given.out / "calibration.json"
    data = read_json(file, "results of this benchmark") if file.exists() else {}
    if not head.items() <= data.items():
        tools = versions("onnxruntime", "openvino", "nncf", "onnx", "numpy")
        data = {**head, "tools": tools, "device": {"label": device.label, "features": device.features}, "rows": []}
    runs = [Run(method, n) for n in sorted(given.counts) for method in METHODS]
    for run in runs:
        known = any(asdict(run).items() <= row.items() for row in data["rows"])
        if known or (run.method in SLOW and run.photos > 100):
            continue
        print(run, file=sys.stderr)
        task = Task(model, evenly_spread(photos, run.photos), source.contract)
        data["rows"].append(measure(run, task, given.limit * GB))
        write_json(data, file)
    used = ", ".join(f"{name} {version}" for name, version in data["tools"].items())
    text = HEAD.format(**{**data, "name": NAME, "tools": used, "device": data["device"]["label"]})
    write_text(text + "\n" + table(data["rows"], given.limit * GB), given.out / "calibration.md")


if __name__ == "__main__":
    main()
