"""Where does the faster head pay? Every target with the published head and with the faster one, side by side.

ONNX Runtime and OpenVINO run both on this processor, in turns, on one thread. TensorRT-RTX builds the engines of both
ahead of time, and nothing runs them; ONNX Runtime computes their typed ONNX. The Core ML packages of both are executed
with PyTorch. Figures of TensorRT and Core ML are therefore masks and structure, not times.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from u2export.benchmarks.models import judged
from u2export.benchmarks.statistics import time_ratio
from u2export.benchmarks.studies import photo_sets
from u2export.benchmarks.studies.phones import in_turns
from u2export.benchmarks.studies.photo_sets import Sets, head, opened, references, summarise
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, listed, machine, now, progress
from u2export.benchmarks.studies.trt_fidelity import TARGET, step
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.exporters.coreml.exporter import CoreML
from u2export.exporters.exporter import Request
from u2export.exporters.head_rewrite import with_fast_head
from u2export.exporters.int8 import in_onnx_runtime
from u2export.exporters.ort import int8_spec
from u2export.exporters.runtime import Runner, versions
from u2export.exporters.trt.exporter import TensorRT
from u2export.reference.image import Floats
from u2export.reference.onnx_session import open_session
from u2export.reference.source import Source

if TYPE_CHECKING:
    import onnx
    import torch

    from u2export.calibration.float_fallback import Quantised
    from u2export.reference.model import U2Net

HEADS = ("published", "faster")
ALL: Mapping[str, float] = {"mae": 1.0, "mae_worst": 1.0, "raw_mae": 1.0, "iou": 0.0, "iou_worst": 0.0}
ROW = "{target} {precision}, {head} head"


@dataclass(frozen=True)
class Inputs:
    """What all parts share."""

    source: Source
    conditioned: Source
    calibration: Calibration
    photos: Mapping[str, Sequence[Path]]
    sets: Sets
    rounds: int


def graph_of(source: Source, faster: bool) -> onnx.ModelProto:
    """Return the fp32 graph of a network with one of the heads."""
    from u2export.reference.onnx_export import Graph, to_onnx

    graph = to_onnx(source.model, source.contract, Graph(), {})
    return with_fast_head(graph) if faster else graph


# ONNX Runtime and OpenVINO


def cpu(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield the rows of ONNX Runtime and of OpenVINO, whose times were taken in turns."""
    from u2export.calibration.quantize import calibrated

    runners: dict[str, Runner] = {}
    rows = []
    for precision in ("fp32", "int8"):
        for name in HEADS:
            graph = graph_of(inputs.conditioned if precision == "int8" else inputs.source, name == "faster")
            if precision == "int8":
                graph = calibrated(graph, inputs.calibration, int8_spec())
            in_ort = in_onnx_runtime(open_session(graph, threads=1, spinning=False))
            for target, run in (("ONNX Runtime", in_ort), ("OpenVINO", _in_openvino(graph))):
                row = {"target": target, "precision": precision, "head": name, "fidelity": _masks(run, inputs.sets)}
                label = ROW.format(**row)
                progress(label)
                runners[label] = Runner(run)
                rows.append(row)
    times = in_turns(runners, inputs.sets, inputs.rounds)
    for row in sorted(rows, key=lambda r: (r["target"], r["precision"])):  # both heads side by side
        published = times[ROW.format(**{**row, "head": "published"})]
        ratio = time_ratio(times[ROW.format(**row)], published)
        yield {**row, "time": [ratio.value, ratio.low, ratio.high] if ratio else None}


def _in_openvino(graph: onnx.ModelProto) -> Callable[[Floats], Floats]:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", hints).create_infer_request()
    return lambda x: np.array(next(iter(request.infer([x]).values())))


# TensorRT


@dataclass(frozen=True)
class WithHead(TensorRT):
    """The exporter to TensorRT with a choice of the head."""

    faster: bool = False

    def _typed(
        self, model: onnx.ModelProto, source: Source, request: Request
    ) -> tuple[onnx.ModelProto, tuple[str, ...], Quantised | None]:
        return super()._typed(with_fast_head(model) if self.faster else model, source, request)


def trt(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield the rows of TensorRT: masks of the typed ONNX, and the structure of an engine of TensorRT-RTX."""
    for precision in ("fp32", "fp16", "int8"):
        for name in HEADS:
            exporter = WithHead(faster=name == "faster")
            with TemporaryDirectory() as folder:
                request = Request(precision, inputs.calibration, condition=False, budget=ALL)
                artifact = exporter.export(inputs.conditioned, Path(folder), request)
                with exporter.load(artifact) as runner:
                    fidelity = _masks(runner, inputs.sets)
                recipe = str(artifact.path.with_suffix(".recipe.json"))
                engine = step("build", recipe, "--runtime", "rtx", "--target", TARGET).answer["options"]
            row = {"target": "TensorRT", "precision": precision, "head": name, "fidelity": fidelity}
            progress(ROW.format(**row))
            layers, moved = engine["table"]["layers"], engine["table"]["traffic_bytes"]
            yield {**row, "layers": layers, "moved": moved, "activations": engine["activation_bytes"]}


# Core ML


def with_fast_head_in_torch(model: U2Net) -> U2Net:
    """Return a copy of a network whose first output, d0, comes from the faster head; it has no other output."""
    import torch
    from torch.nn import functional as F

    from u2export.exporters.head_rewrite import BLOCK, upsampling
    from u2export.reference.model import U2Net

    convolutions = [_folded(model, n) for n in range(1, 7)]

    class Faster(U2Net):
        """A U²-Net with the head of `head_rewrite`."""

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """Compute d0 alone."""
            features = self.features(x)
            height, width = (int(size) for size in features[0].shape[2:])
            full, wide, rows = [], [], []
            for y, (weight, bias) in zip(features, convolutions, strict=True):
                if weight.shape[2] > 3:
                    side = F.pixel_shuffle(F.conv2d(y, weight, bias, BLOCK, 1), BLOCK)
                else:
                    side = F.conv2d(y, weight, bias, padding=1)
                h, w = (int(size) for size in side.shape[2:])
                if h == height:
                    full.append(side)
                else:
                    # Core ML's converter wants matrices of four dimensions on both sides.
                    wide.append(side @ torch.from_numpy(upsampling(w, width).T.copy()[None, None]))
                    rows.append(upsampling(h, height))
            tall = torch.from_numpy(np.concatenate(rows, 1)[None, None])
            return (torch.sigmoid(full[0] + tall @ torch.cat(wide, 2)),)

    made = deepcopy(model)
    made.__class__ = Faster  # conditioning adds channels that the constructor does not know
    return made.eval()


def _folded(model: U2Net, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight and bias of side convolution n with the fusion folded in; of the two largest, in blocks."""
    import torch

    from u2export.exporters.head_rewrite import BLOCK

    side, fusion = cast("torch.nn.Conv2d", model.get_submodule(f"side{n}")), model.outconv
    assert side.bias is not None and fusion.bias is not None
    with torch.no_grad():
        fuse = fusion.weight[:, (n - 1) * model.out_channels : n * model.out_channels, 0, 0]
        weight = torch.einsum("ko,ochw->kchw", fuse, side.weight)
        bias = fuse @ side.bias + (fusion.bias if n == 1 else 0)
        if n > 2:
            return weight, bias
        maps, channels = weight.shape[:2]
        wide = weight.new_zeros(maps, BLOCK, BLOCK, channels, BLOCK + 2, BLOCK + 2)
        for i in range(BLOCK):
            for j in range(BLOCK):
                wide[:, i, j, :, i : i + 3, j : j + 3] = weight
        return wide.reshape(-1, *wide.shape[3:]), bias.repeat_interleave(BLOCK**2)


def coreml(inputs: Inputs) -> Iterator[dict[str, Any]]:
    """Yield the rows of Core ML: masks of the package executed with PyTorch, and its operations."""
    from u2export.exporters.coreml.package import Package

    source = replace(inputs.source, contract=replace(inputs.source.contract, rounded=True))
    sets = {name: list(references(source, paths)) for name, paths in inputs.photos.items()}
    for precision, exporter in (("fp16", CoreML()), ("w8a8", CoreML("ios17"))):
        for name in HEADS:
            network = inputs.conditioned
            if name == "faster":
                network = replace(network, model=with_fast_head_in_torch(network.model))
            with TemporaryDirectory() as folder:
                request = Request(precision, inputs.calibration, condition=False, budget=ALL)
                artifact = exporter.export(network, Path(folder), request)
                with exporter.load(artifact) as runner:
                    fidelity = _masks(runner, sets)
                package = Package(artifact.path)
                written = sum(_bytes(op.type.scalar, op.type.shape) for op in package.operations)
                row = {"target": "Core ML", "precision": precision, "head": name, "fidelity": fidelity}
                progress(ROW.format(**row))
                yield {**row, "layers": sum(package.counts().values()), "moved": written}


def _bytes(scalar: str, shape: Sequence[int | None]) -> int:
    from u2export.exporters.coreml.package import dtype_of

    return int(np.prod([d or 0 for d in shape])) * dtype_of(scalar).itemsize


# The page


def page(data: Mapping[str, Any]) -> str:
    """Return the Markdown page."""
    rows = data["rows"]
    names = list(data["photos"])
    masks = [f"{name}: MAE, IoU mean / worst" for name in names]
    texts = []
    if ran := [row for row in rows if "time" in row]:
        cells = [(*_named(row), _time(row["time"]), *_cells(row, names)) for row in ran]
        texts.append(f"""## On this processor

{data["machine"]["label"]}
({", ".join(data["machine"]["features"])}), one thread. time: processor time
relative to the published head in the same runtime and precision, over {data["rounds"]} rounds in turns, with its 95 %
interval.

{table(("runtime", "precision", "head", "time", *masks), cells, "lllr" + "l" * len(names))}
""")
    if built := [row for row in rows if row["target"] == "TensorRT"]:
        cells = [
            (
                row["precision"], row["head"], str(row["layers"]), f"{row['moved'] / 1e6:.0f}",
                f"{row['activations'] / 1e6:.0f}", *_cells(row, names),
            )
            for row in built
        ]  # fmt: skip
        titles = ("precision", "head", "layers", "traffic MB", "activations MB", *masks)
        texts.append(f"""## TensorRT, not run on hardware

Masks: the typed ONNX in ONNX Runtime. Structure: engines that TensorRT-RTX built ahead of time for {TARGET}; traffic is
what all layers read and write in one run, by the builder's layer table.

{table(titles, cells, "llrrr" + "l" * len(names))}
""")
    if made := [row for row in rows if row["target"] == "Core ML"]:
        cells = [
            (row["precision"], row["head"], str(row["layers"]), f"{row['moved'] / 1e6:.0f}", *_cells(row, names))
            for row in made
        ]
        texts.append(f"""## Core ML, not run on hardware

Masks: the package executed with PyTorch, every fp16 tensor rounded. Operations, and the bytes of all their results, are
those of the package; Core ML fuses some of them on a device.

{table(("precision", "head", "operations", "results MB", *masks), cells, "llrr" + "l" * len(names))}
""")
    return f"""# Where the faster head pays

The head of {data["weights"]["name"]} as published, and in the faster form of `exporters/head_rewrite.py`, which
computes the same. {listed(data["tools"])}.

{chr(10).join(texts)}
Again:
```sh
{data["command"]}
```
"""


def _named(row: Mapping[str, Any]) -> Sequence[str]:
    return row["target"], row["precision"], row["head"]


def _time(found: Sequence[float] | None) -> str:
    return f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})" if found else "unknown"


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        f = row["fidelity"][name]
        yield f"{f['mae']:.5f}, {f['iou']:.4f} / {f['iou_worst']:.3f}"


def _masks(predict: Callable[[Floats], Floats], sets: Sets) -> dict[str, Any]:
    return {name: summarise(judged(predict, pairs)) for name, pairs in sets.items()}


RUNS: Mapping[str, Callable[[Inputs], Iterator[dict[str, Any]]]] = {"cpu": cpu, "trt": trt, "coreml": coreml}


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    photo_sets.options(parser, photos=24)
    parser.add_argument("--calib-photos", type=int, default=32, help="number of calibration photos; %(default)s")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of the times; %(default)s")
    parser.add_argument("--parts", nargs="+", choices=RUNS, default=list(RUNS), help="targets to try; all of them")


def run(given: Namespace, pages: Pages) -> int:
    """Try both heads on the targets; write both pages after each. Rows of other targets in the pages stay."""
    source = Source.open(given.weights)
    calibration, photos = opened(given, source, given.calib_photos)
    sets = {name: list(references(source, found)) for name, found in photos.items()}
    conditioned = replace(source, model=cast("U2Net", prepared(source, "int8", calibration)[0]))
    inputs = Inputs(source, conditioned, calibration, photos, sets, given.rounds)
    start = {**head(source, calibration, photos), "machine": machine(), "rounds": given.rounds}
    data: dict[str, Any] = pages.resumed(start) or {**start, "rows": []}
    data["tools"] = versions("torch", "onnxruntime", "openvino", "tensorrt_rtx", "coremltools")
    data |= {"made": now(), "command": pages.command.partition(" --parts")[0]}
    for part in given.parts:
        found = list(RUNS[part](inputs))
        again = {row["target"] for row in found}
        data["rows"] = [row for row in data["rows"] if row["target"] not in again] + found
        pages.publish(data, page(data))
    return 0


STUDY = Study("head", "Where does the faster head pay?", "head", options, run, RESULTS / "int8")
