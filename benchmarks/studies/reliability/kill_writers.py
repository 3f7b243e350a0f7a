"""The commands that the study `kills` kills, and their small inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from u2export.benchmarks.report import Report

PROGRAM = (sys.executable, "-m", "u2export")
LONGEST = 300.0  # seconds that a command may take
ANY_MASKS = "mae=1,mae_worst=1,iou=0,iou_worst=0"


@dataclass(frozen=True)
class Writer:
    """A command that writes.

    Attributes:
        name: what the page calls it.
        words: its words; {inputs} and {out} stand for folders.
        slow: whether it takes long, so that it gets fewer kills.
        needs: a module without which the command is left out.
        cache: whether it writes into the cache folder of u2export, which {out} then is.
    """

    name: str
    words: tuple[str, ...]
    slow: bool = False
    needs: str = ""
    cache: bool = False

    @property
    def may(self) -> tuple[int, ...]:
        """The exit codes of whole runs; those of the gate are verdicts."""
        return (0, 1, 3) if self.name == "check" else (0,)

    def command(self, inputs: Path, out: Path) -> Command:
        """Return the words and the environment of the command with these folders."""
        words = tuple(word.format(inputs=inputs, out=out) for word in self.words)
        return Command(words, {"U2EXPORT_HOME": str(out)} if self.cache else {})


@dataclass(frozen=True)
class Command:
    """The words of a command, and what its environment has beside that of this process."""

    words: tuple[str, ...]
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment."""
        return {**os.environ, **self.more}


def _export(name: str, *words: str, needs: str = "") -> Writer:
    """Return the export of a small network to a target."""
    small = ("--weights", "random-u2netp", "--size", "32", "--budget", ANY_MASKS, "--out", "{out}")
    return Writer(name, (name, *words, *small), slow=True, needs=needs)


WRITERS = (
    Writer("table md", ("table", "{inputs}/r.json", "--format", "md", "--out", "{out}/t.md")),
    Writer("table csv", ("table", "{inputs}/r.json", "--format", "csv", "--out", "{out}/t.csv")),
    Writer("table html", ("table", "{inputs}/r.json", "--format", "html", "--out", "{out}/t.html")),
    Writer("report", ("report", "{inputs}/r.json", "--out", "{out}/r.html"), needs="jinja2"),
    Writer("check", ("check", "{inputs}/r.json", "--baseline", "{inputs}/b.json", "--format", "junit", "--out",
                     "{out}/v.xml")),
    Writer("baseline update", ("baseline", "update", "{inputs}/r.json", "--baseline", "{out}/b.json", "--replace")),
    Writer("import", ("import", "{inputs}/times.json", "--as", "trtexec", "--device", "Orin", "--out", "{out}")),
    Writer("calib synth", ("calib", "synth", "--out", "{out}/s", "--count", "3", "--size", "64")),
    Writer("roofline", ("roofline", "{inputs}/net.onnx", "--device", "none", "--no-local", "--json", "{out}/e.json")),
    Writer("predict", ("predict", "{inputs}/photos", "--model", "{inputs}/net.onnx", "--out", "{out}")),
    Writer("weights convert", ("weights", "convert", "{inputs}/w.pth", "--to", "{out}/w.safetensors")),
    Writer("golden", ("golden", "--weights", "random-u2netp", "--size", "32", "--out", "{out}"), slow=True),
    Writer("chart", ("chart", "{inputs}/r.json", "--format", "png", "--out", "{out}"), slow=True),
    Writer("bench", ("bench", "{inputs}/net.onnx", "--images", "{inputs}/photos", "--no-latency", "--json",
                     "{out}/r.json"), slow=True),
    Writer("weights pull", ("weights", "pull", "u2netp"), cache=True),
    Writer("calib pull", ("calib", "pull", "--out", "{out}/photos", "--only", "china"), cache=True),
    Writer("rembg install", ("rembg", "install", "{inputs}/random-u2netp-320-onnx-fp32.onnx", "--model", "u2netp",
                             "--home", "{out}")),
    Writer("trt cache", ("trt", "cache", "{inputs}/random-u2netp-32-trt-int8.recipe.json", "--tensorrt", "8.6.2",
                         "--out", "{out}/c.cache")),
    Writer("kit", ("kit", "android", "{inputs}/random-u2netp-32-ort-fp32.ort", "--out", "{out}"), slow=True),
    _export("onnx"),
    _export("ort"),
    _export("openvino", "--fp32", needs="openvino"),
    _export("coreml", needs="coremltools"),
    _export("trt", "--prepare-only"),
    _export("litert", needs="litert_torch"),
    _export("executorch", needs="executorch"),
)  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Write small inputs for all commands: photos, a network, weights, results, times of trtexec, two artifacts."""
    import onnx
    import torch
    from onnx import TensorProto, helper

    from u2export.reference.model import U2Net

    (folder / "photos").mkdir(parents=True)
    for seed in range(3):
        grid = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(grid).resize((64, 48), Image.Resampling.BICUBIC).save(folder / "photos" / f"p{seed}.png")
    for name, first in (("net", 0.3), ("ref", 0.31)):
        weights = helper.make_tensor("w", TensorProto.FLOAT, (1, 3, 1, 1), [first, 0.5, -0.25])
        nodes = [helper.make_node("Conv", ["image", "w"], ["sum"]), helper.make_node("Sigmoid", ["sum"], ["mask"])]
        sides = {"image": (1, 3, 32, 32), "mask": (1, 1, 32, 32)}
        ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in sides.items()]
        graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, folder / f"{name}.onnx")
    torch.manual_seed(0)
    torch.save(U2Net("u2netp").state_dict(), folder / "w.pth")
    times = [{"h2dMs": 0.5, "computeMs": 5.0 + i / 100, "d2hMs": 0.5, "latencyMs": 6.0} for i in range(20)]
    (folder / "times.json").write_text(json.dumps(times), encoding="utf-8")
    bench = ("bench", folder / "net.onnx", "--reference", folder / "ref.onnx", "--images", folder / "photos",
             "--samples", "6", "--seconds", "0", "--json", folder / "r.json")  # fmt: skip
    whole(*map(str, bench))
    report = Report.load(folder / "r.json")  # an accepted state takes no row without a reference
    replace(report, rows=tuple(row for row in report.rows if row.images)).save(folder / "r.json")
    whole("baseline", "update", str(folder / "r.json"), "--baseline", str(folder / "b.json"))
    photos = ("--calib", str(folder / "photos"), "--max-float", "0")
    lanczos = ("--resize", "lanczos", "--size", "320")  # rembg takes nothing else; the last --size counts
    for export in (
        _export("ort", "--mobile"),
        _export("trt", "--int8", "--prepare-only", *photos),
        replace(_export("onnx"), words=(*_export("onnx").words, *lanczos)),
    ):
        whole(*export.command(folder, folder).words)


def run_command(command: Command) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end, whatever that is."""
    return subprocess.run([*PROGRAM, *command.words], capture_output=True, timeout=LONGEST, env=command.env)


def whole(*words: str, may: Sequence[int] = (0,), more: Mapping[str, str] | None = None) -> None:
    """Run a command to its end, with `more` in its environment.

    Raises:
        RuntimeError: it ended with a code that is not among `may`.
    """
    ended = run_command(Command(words, more or {}))
    if ended.returncode not in may:
        raise RuntimeError(f"{' '.join(words)} ended with {ended.returncode}: {ended.stderr.decode()[-500:]}")
