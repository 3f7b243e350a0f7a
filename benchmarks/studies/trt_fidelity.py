"""The masks and the costs of TensorRT engines, without a GPU.

ONNX Runtime judges the typed ONNX. TensorRT-RTX builds the engines ahead of time, and nothing runs them, so everything
in the pages is marked simulated. Both steps are the commands that users type, each in a process of its own. The system
tells the processor time and the peak memory of each process.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from u2export.benchmarks.models import ArtifactModel
from u2export.benchmarks.studies import photo_sets
from u2export.benchmarks.studies.photo_sets import Judge, Sets, head, judging, opened
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, now, progress
from u2export.benchmarks.tables.markdown import table
from u2export.errors import Unavailable, UserError
from u2export.exporters.open import read_artifact
from u2export.exporters.runtime import versions
from u2export.exporters.trt.installed import devices, installed
from u2export.reference.fidelity import Fidelity
from u2export.reference.photos import find_photos
from u2export.reference.source import Source

SCHEMA = 1
TARGET = "sm86"
LOOSE = ("--budget", "mae=1,mae_worst=1")  # variants beyond the budget are shown too
RANDOM = "random-u2net"


@dataclass(frozen=True)
class Variant:
    """One way to prepare.

    Attributes:
        words: the words of the command line.
        weights: other weights than those of the study; empty for those of the study.
    """

    words: tuple[str, ...]
    weights: str = ""

    @property
    def label(self) -> str:
        """The name of the variant in the table."""
        words = " ".join(w.removeprefix("--").replace("no-condition", "not conditioned") for w in self.words)
        return f"{words}, {self.weights}, structure only" if self.weights else words


VARIANTS = (
    Variant(("--fp32",)),
    Variant(("--fp16",)),
    Variant(("--fp16", "--no-condition")),
    Variant(("--int8",)),
    Variant(("--int8", "--placement", "conv-input")),
    Variant(("--int8", "--rest", "fp16")),
    Variant(("--fp32",), RANDOM),
    Variant(("--fp16",), RANDOM),
    Variant(("--int8",), RANDOM),
)


@dataclass(frozen=True)
class Step:
    """One command: its JSON output, its processor time in seconds, and its peak memory in bytes."""

    answer: Mapping[str, Any]
    seconds: float
    peak: int


def step(*words: str) -> Step:
    """Run `u2export trt …` to its end.

    Raises:
        UserError: the command failed; the error has the two lines of the command.
    """
    command = [sys.executable, "-m", "u2export", "trt", *words, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        out = process.stdout.read()
        said = process.stderr.read().strip().splitlines()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        problem, hint = ("", "", *said)[-2:]
        raise UserError(problem.removeprefix("u2export: "), hint.strip())
    return Step(json.loads(out), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def prepare(variant: Variant, weights: str, calib: Path, folder: Path) -> Step:
    """Make the typed ONNX and the recipe."""
    words = (*variant.words, "--weights", variant.weights or weights, "--out", str(folder), "--prepare-only", *LOOSE)
    return step(*words, *(() if "--fp32" in words else ("--calib", str(calib))))


def rows(weights: str, calib: Path, sets: Sets, judge: Judge) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant."""
    for variant in VARIANTS:
        with TemporaryDirectory() as scratch, few_photos(calib) as few:
            made = prepare(variant, weights, few if variant.weights else calib, Path(scratch))
            graph = Path(str(made.answer["path"]))
            built = step("build", str(graph.with_suffix(".recipe.json")), "--runtime", "rtx", "--target", TARGET)
            options = built.answer["options"]
            # The typed ONNX runs in ONNX Runtime.
            model = ArtifactModel(read_artifact(graph))
            fidelity = {} if variant.weights else {n: judge.judged(model, p) for n, p in sets.items()}
            progress(variant.label)
            yield {
                "variant": variant.label,
                "prepare": {"cpu_seconds": made.seconds, "peak_bytes": made.peak},
                "build": {"cpu_seconds": built.seconds, "peak_bytes": built.peak},
                "onnx_bytes": graph.stat().st_size,
                "engine": {k: options[k] for k in ("plan_bytes", "activation_bytes", "table", "precisions")},
                "fidelity": {name: Fidelity(tuple(images)).to_json() for name, images in fidelity.items()},
            }


@contextmanager
def few_photos(calib: Path) -> Iterator[Path]:
    """Make a folder of four calibration photos. They are enough for the rows that show only the structure."""
    with TemporaryDirectory() as folder:
        for i, photo in enumerate(find_photos([calib])[:4]):
            (Path(folder) / f"{i}{photo.suffix}").symlink_to(photo.resolve())
        yield Path(folder)


HEAD = """# TensorRT, simulated
Not run on hardware. Masks: the typed ONNX in ONNX Runtime on a CPU, its optimisations off, against the PyTorch
reference in fp32. Structure: engines built ahead of time by {rtx} for {target} on a machine without a GPU; traffic is
what all layers read and write in one run, by the builder's own layer table. TensorRT on a Jetson fuses int8 otherwise,
and its speed is not to be told from this table. Times are processor seconds of the two commands, as ratios to the fp32
row of the same network; memory is the most their processes held. `random-u2net` is full-size U²-Net with untrained
weights: its structure and costs are real, masks mean nothing and are left out.
"""


def page(found: Sequence[Mapping[str, Any]], rtx: str, command: str) -> str:
    """Return the Markdown page."""
    return f"{HEAD.format(rtx=rtx, target=TARGET)}\nMade by `{command}`\n\n{costs(found)}\n"


def costs(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the table. Costs are ratios to the fp32 row of the same network."""
    sets = list(found[0]["fidelity"]) if found else []
    titles = ["variant", "convolutions built in", "prepare: time, memory", "build: time, memory", "ONNX, engine MB",
              "activations MB", "traffic MB", "layers", *(f"{s}: MAE, IoU mean / worst" for s in sets)]  # fmt: skip
    cells = []
    for row in found:
        base = next(r for r in found if r["variant"].startswith("fp32") and _random(r) == _random(row))
        steps = [
            f"{row[s]['cpu_seconds'] / base[s]['cpu_seconds']:.1f} x, {row[s]['peak_bytes'] / 1e6:.0f} MB"
            for s in ("prepare", "build")
        ]
        engine = row["engine"]
        cells.append([
            row["variant"], ", ".join(f"{n} {kind}" for kind, n in engine["precisions"]["got"].items()), *steps,
            f"{row['onnx_bytes'] / 1e6:.1f}, {engine['plan_bytes'] / 1e6:.1f}",
            f"{engine['activation_bytes'] / 1e6:.0f}", f"{engine['table']['traffic_bytes'] / 1e6:.0f}",
            str(engine["table"]["layers"]), *(_masks(row["fidelity"].get(s)) for s in sets),
        ])  # fmt: skip
    return table(titles, cells, "l" * len(titles))


def _random(row: Mapping[str, Any]) -> bool:
    return RANDOM in row["variant"]


def _masks(f: Mapping[str, Any] | None) -> str:
    return f"{f['mae']:.5f}, {f['iou']:.4f} / {f['iou_worst']:.4f}" if f else ""


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    photo_sets.options(parser, photos=24)


def run(given: Namespace, pages: Pages) -> int:
    """Prepare, build and judge every variant; write both pages after each variant."""
    if "rtx" not in installed():
        raise Unavailable("the engines of this study need tensorrt_rtx", "install the extra trt-rtx")
    source = Source.open(given.weights)
    calibration, photos = opened(given, source)
    tools = versions("u2export", "torch", "onnx", "onnxruntime", "tensorrt_rtx", "numpy")
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "simulated",
        "rerun": pages.command,
        "machine": platform.machine(),
        "gpu": devices(),
        "target": TARGET,
        "tools": tools,
        **head(source, calibration, photos),
        "created": now(),
        "rows": [],
    }
    with judging(given) as judge:
        sets = {name: judge.pairs(source, found) for name, found in photos.items()}
        for row in rows(given.weights, given.calib, sets, judge):
            data["rows"].append(row)
            data |= judge.about()
            pages.publish(data, page(data["rows"], f"TensorRT-RTX {tools['tensorrt_rtx']}", pages.command))
    return 0


STUDY = Study("trt_fidelity", "The masks and costs of TensorRT engines, without a GPU.", "trt", options, run,
              RESULTS / "simulated")  # fmt: skip
