"""What each TensorRT precision costs to prepare and build, moves in memory, and does to masks; without a GPU.

    python -m u2export.benchmarks.studies.trt_fidelity --calib CALIBRATION_FOLDER SET=FOLDER ...

Writes `trt.json` and `trt.md`. Typed ONNX is made and judged in ONNX Runtime, engines are built ahead of time with
TensorRT-RTX and never run: everything is marked simulated. Both steps are the commands users type, each in a process
of its own, whose processor time and peak memory the system tells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from u2export.benchmarks.studies.photo_sets import Pair, Sets, folders, judged, photos_in, references
from u2export.calibration.dataset import Calibration
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import versions
from u2export.exporters.open import read_artifact
from u2export.exporters.trt.exporter import TensorRT
from u2export.exporters.trt.installed import devices, installed
from u2export.files import write_json, write_text
from u2export.install import how_to_install
from u2export.reference.fidelity import Fidelity, ImageFidelity
from u2export.reference.image import find_photos
from u2export.reference.source import Source

SCHEMA = 1
TARGET = "sm86"
LOOSE = ("--budget", "mae=1,mae_worst=1")  # what misses its budget is measured too, and shown
RANDOM = "random-u2net"


@dataclass(frozen=True)
class Variant:
    """One way to prepare, by the words of the command line; `weights` where not those the run is for."""

    words: tuple[str, ...]
    weights: str = ""

    @property
    def label(self) -> str:
        """What the table calls it."""
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
    """One command: what it printed as JSON, and what it took: processor seconds, bytes of memory at most."""

    answer: Mapping[str, Any]
    seconds: float
    peak: int


def step(*words: str) -> Step:
    """Run `u2export trt …` to its end.

    Raises:
        UserError: it failed; with its own two lines.
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
    """Typed ONNX and recipe."""
    words = (*variant.words, "--weights", variant.weights or weights, "--out", str(folder), "--prepare-only", *LOOSE)
    return step(*words, *(() if "--fp32" in words else ("--calib", str(calib))))


def judge(artifact: Artifact, pairs: Sequence[Pair]) -> list[ImageFidelity]:
    """Fidelity per photo, of the typed ONNX in ONNX Runtime."""
    with TensorRT().load(artifact) as runner:
        return judged(runner, pairs)


def rows(weights: str, calib: Path, sets: Sets) -> Iterator[dict[str, Any]]:
    """One row for each variant."""
    for variant in VARIANTS:
        with TemporaryDirectory() as scratch, few_photos(calib) as few:
            made = prepare(variant, weights, few if variant.weights else calib, Path(scratch))
            graph = Path(str(made.answer["path"]))
            built = step("build", str(graph.with_suffix(".recipe.json")), "--runtime", "rtx", "--target", TARGET)
            options = built.answer["options"]
            judged = {} if variant.weights else {n: judge(read_artifact(graph), p) for n, p in sets.items()}
            print(variant.label, file=sys.stderr)
            yield {
                "variant": variant.label,
                "prepare": {"cpu_seconds": made.seconds, "peak_bytes": made.peak},
                "build": {"cpu_seconds": built.seconds, "peak_bytes": built.peak},
                "onnx_bytes": graph.stat().st_size,
                "engine": {k: options[k] for k in ("plan_bytes", "activation_bytes", "table", "precisions")},
                "fidelity": {name: Fidelity(tuple(images)).to_json() for name, images in judged.items()},
            }


@contextmanager
def few_photos(calib: Path) -> Iterator[Path]:
    """A folder of four calibration photos: enough where only structure counts."""
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


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown."""
    sets = list(found[0]["fidelity"]) if found else []
    head = "| variant | convolutions built in | prepare: time, memory | build: time, memory | ONNX, engine MB "
    head += "| activations MB | traffic MB | layers |" + "".join(f" {s}: MAE, IoU mean / worst |" for s in sets)
    lines = [head, "|---" * (8 + len(sets)) + "|"]
    for row in found:
        base = next(r for r in found if r["variant"].startswith("fp32") and (RANDOM in r["variant"]) == _random(row))
        got = ", ".join(f"{n} {kind}" for kind, n in row["engine"]["precisions"]["got"].items())
        costs = [
            f"{row[s]['cpu_seconds'] / base[s]['cpu_seconds']:.1f} x, {row[s]['peak_bytes'] / 1e6:.0f} MB"
            for s in ("prepare", "build")
        ]
        engine = row["engine"]
        sizes = f"{row['onnx_bytes'] / 1e6:.1f}, {engine['plan_bytes'] / 1e6:.1f}"
        moved = [f"{engine['activation_bytes'] / 1e6:.0f}", f"{engine['table']['traffic_bytes'] / 1e6:.0f}"]
        masks = [_masks(row["fidelity"].get(s)) for s in sets]
        cells = (row["variant"], got, *costs, sizes, *moved, str(engine["table"]["layers"]), *masks)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _random(row: Mapping[str, Any]) -> bool:
    return RANDOM in row["variant"]


def _masks(f: Mapping[str, Any] | None) -> str:
    return f"{f['mae']:.5f}, {f['iou']:.4f} / {f['iou_worst']:.4f}" if f else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare, build and judge every variant; the files are rewritten after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to calibrate on, others than those")
    parser.add_argument("--photos", type=int, default=24, help="of each set, evenly spread")
    parser.add_argument("--weights", default="u2netp")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/simulated"))
    given = parser.parse_args(argv)
    if "rtx" not in installed():
        raise Unavailable("engines are built with tensorrt_rtx", how_to_install("trt-rtx"))
    source = Source.open(given.weights)
    named = folders(given.sets)
    calibration = Calibration.open(given.calib, source.contract, avoid=list(named.values()))
    photos = photos_in(named, given.photos)
    sets = {name: list(references(source, found)) for name, found in photos.items()}
    tools = versions("u2export", "torch", "onnx", "onnxruntime", "tensorrt_rtx", "numpy")
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "simulated",
        "weights": {"name": source.weights.name, "sha256": source.weights.sha256},
        "contract": source.contract.to_json(),
        "machine": platform.machine(),
        "gpu": devices(),
        "target": TARGET,
        "tools": tools,
        "calibration": calibration.summary(),
        "photos": {name: [p.name for p in found] for name, found in photos.items()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "rows": [],
    }
    head = HEAD.format(rtx=f"TensorRT-RTX {tools['tensorrt_rtx']}", target=TARGET)
    for row in rows(given.weights, given.calib, sets):
        data["rows"].append(row)
        write_json(data, given.out / "trt.json")
        write_text(f"{head}\n{table(data['rows'])}", given.out / "trt.md")


if __name__ == "__main__":
    main()
