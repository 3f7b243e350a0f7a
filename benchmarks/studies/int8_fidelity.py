"""The mask fidelity of lower precision on photos: calibrators, set sizes, with and without conditioning, runtimes.

The data are written after each cell, and an interrupted study continues with the cells that are missing.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from u2export.benchmarks.models import ArtifactModel, GraphModel, Model
from u2export.benchmarks.studies import photo_sets
from u2export.benchmarks.studies.photo_sets import Judge, Sets, head, judging, opened, summarise
from u2export.benchmarks.studies.study import RESULTS, Pages, Study, listed, machine, progress
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.calibration.quantize import PHOTOS
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import int8_spec, preset
from u2export.exporters.runtime import versions
from u2export.exporters.trt.exporter import TensorRT
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source

if TYPE_CHECKING:
    import onnx

    from u2export.reference.model import U2Net

SCHEMA = 1
ALL: Mapping[str, float] = {"mae": 1.0, "mae_worst": 1.0}  # cells beyond the budget are shown too


@dataclass(frozen=True)
class Cell:
    """One way to make and run the network.

    Attributes:
        backend: "onnx fp16", "ort", "ort mixed", "openvino qdq", "openvino nncf" (without bias correction),
            "openvino nncf slow", "trt" (the typed ONNX in ONNX Runtime), or "pytorch noisy": fp32 on photos with noise
            of one grey level, the mean over `DRAWS` draws. The last one shows how much the masks of two JPEG files of
            one scene differ.
        method: the calibrator; "nncf" is the own one of NNCF.
        photos: the number of calibration photos; 0 without calibration.
        condition: True if the network is conditioned first.
    """

    backend: str
    method: str = ""
    photos: int = 0
    condition: bool = True


FEW = 16  # photos of the cells that are compared with each other
# The artifacts that --int8 and --mixed make, and what noise of one grey level does to fp32.
SHIPPED = (
    *(Cell(name, "minmax", PHOTOS) for name in ("ort", "openvino qdq", "trt", "ort mixed")),
    Cell("pytorch noisy", condition=False),
)
DRAWS = 4  # of the noise: a photo whose mask is not reproducible may stand one draw and not the next
UNSURE = 0.9  # IoU of fp32 with itself under such noise, below which a photo's mask is not reproducible
CELLS = (
    *SHIPPED,
    Cell("onnx fp16"),
    Cell("onnx fp16", condition=False),
    *(Cell("ort", method, FEW, on) for method in ("minmax", "mse", "percentile", "entropy") for on in (True, False)),
    *(Cell("ort", "minmax", count) for count in (8, 100)),
    *(Cell("openvino qdq", "minmax", FEW, on) for on in (True, False)),
    Cell("ort mixed", "minmax", FEW),
    *(Cell("openvino nncf", "nncf", 32, on) for on in (True, False)),
    Cell("openvino nncf slow", "nncf", 32),
)
EXPORTERS: Mapping[str, tuple[Exporter, str]] = {
    "onnx fp16": (Onnx(), "fp16"),
    "openvino qdq": (OpenVINO(), "int8"),
    "openvino nncf": (OpenVINO("nncf", "none"), "int8"),
    "openvino nncf slow": (OpenVINO("nncf", "slow"), "int8"),
    "trt": (TensorRT(), "int8"),
}


class Networks:
    """The networks that the cells share: float or conditioned, in PyTorch and as a graph.

    Args:
        source: the reference.
        calibration: photos to calibrate on.
        keep_float: the float layers of "ort mixed".
    """

    def __init__(self, source: Source, calibration: Calibration, keep_float: tuple[str, ...]) -> None:
        self.source, self.calibration, self.keep_float = source, calibration, keep_float
        self.prepared: Callable[[bool], Source] = cache(self._prepared)
        self.graph: Callable[[bool], onnx.ModelProto] = cache(self._graph)

    def _prepared(self, condition: bool) -> Source:
        if not condition:
            return self.source
        module, _ = prepared(self.source, "int8", self.calibration)
        return replace(self.source, model=cast("U2Net", module))

    def _graph(self, condition: bool) -> onnx.ModelProto:
        from u2export.reference.onnx_export import Graph, to_onnx

        return to_onnx(self.prepared(condition).model, self.source.contract, Graph(), {})

    @contextmanager
    def made(self, cell: Cell) -> Iterator[Model]:
        """The context of the model of a cell, or of a function from network input to d0 that computes as the cell."""
        if cell.backend == "pytorch noisy":
            yield self._noisy()
            return
        if cell.backend.startswith("ort"):
            yield self._in_ort(cell)
            return
        exporter, precision = EXPORTERS[cell.backend]
        with TemporaryDirectory() as scratch:
            request = Request(precision, self.calibration, condition=False, budget=ALL)
            yield ArtifactModel(exporter.export(self.prepared(cell.condition), Path(scratch), request))

    def _noisy(self) -> Callable[[Floats], Floats]:
        contract, random = self.source.contract, np.random.default_rng(0)
        level = 1 / 255 / np.array(contract.std).reshape(1, -1, 1, 1)
        return lambda x: self.source.predict((x + level * random.normal(size=x.shape)).astype(np.float32))

    def _in_ort(self, cell: Cell) -> GraphModel:
        from u2export.calibration.quantize import calibrated
        from u2export.exporters.head_rewrite import with_fast_head

        mixed = cell.backend == "ort mixed"
        spec = int8_spec(keep_float=self.keep_float if mixed else ())
        graph = self.graph(cell.condition)
        photos = self.calibration.subset(cell.photos)
        return GraphModel(calibrated(graph if mixed else with_fast_head(graph), photos, spec, cell.method))


def row_of(networks: Networks, cell: Cell, sets: Sets, judge: Judge) -> dict[str, Any]:
    """Return the row of a cell: statistics, and the MAE and IoU of each photo, by set."""
    draws = DRAWS if cell.backend == "pytorch noisy" else 1
    with networks.made(cell) as model:
        images = {name: _mean([judge.judged(model, pairs) for _ in range(draws)]) for name, pairs in sets.items()}
    return {
        **asdict(cell),
        "sets": {name: {**summarise(found), "images": _each(found)} for name, found in images.items()},
    }


def _mean(draws: Sequence[Sequence[ImageFidelity]]) -> list[ImageFidelity]:
    """The photos with the mean of their MAE and IoU over the draws; the other figures are those of the first draw."""
    return [
        replace(each[0], mae=float(np.mean([i.mae for i in each])), iou=float(np.mean([i.iou for i in each])))
        for each in zip(*draws, strict=True)
    ]


def _each(images: Sequence[ImageFidelity]) -> dict[str, list[float]]:
    return {"mae": [round(i.mae, 6) for i in images], "iou": [round(i.iou, 5) for i in images]}


HEAD = """# Mask fidelity of lower precision

Masks against PyTorch in fp32 over the photos in which the reference sees an object ({photos}); none of them was
calibrated on. MAE and IoU at 0.5 of masks stretched to 0..1, mean and worst photo. ort: Q/DQ with u8 activations,
pair-safe 8-bit weights per channel and the faster head; ort mixed: with layers in float and the published head;
openvino qdq: the graph of ort in OpenVINO; openvino nncf: NNCF's MIXED preset, without bias correction or with its slow
one; trt: the typed ONNX for TensorRT, computed by ONNX Runtime; pytorch noisy: the reference itself, in fp32, on the
same photos with noise of one grey level{draws}. {device}. {tools}.

Made by `{command}`

{table}
{unsure}"""


def page(data: Mapping[str, Any], command: str) -> str:
    """Return the Markdown page; its rows have the order of `CELLS`."""
    order = [asdict(cell) for cell in CELLS]
    rows = sorted(data["rows"], key=lambda row: order.index({key: row[key] for key in order[0]}))
    names = list(rows[0]["sets"])
    titles = ["made and run by", "calibrated", "conditioned"]
    for name in names:
        titles += [f"{name}: MAE (worst)", "IoU (worst)"]
    cells = []
    for row in rows:
        calibrated = f"{row['method']}, {row['photos']} photos" if row["photos"] else ""
        cells.append([row["backend"], calibrated, "yes" if row["condition"] else "no"])
        for found in (row["sets"][name] for name in names):
            cells[-1].append(f"{found['mae']:.5f} ({found['mae_worst']:.4f})")
            cells[-1].append(f"{found['iou']:.4f} ({found['iou_worst']:.3f})")
    shown = ", ".join(f"{found['photos']} {name}" for name, found in rows[0]["sets"].items())
    draws = f", mean of {data['draws']} draws" if "draws" in data else ""
    return HEAD.format(
        photos=shown, draws=draws, device=data["device"]["label"], tools=listed(data["tools"]), command=command,
        table=table(titles, cells, "lll" + "rr" * len(names)), unsure=_unsure(data),
    )  # fmt: skip


def _unsure(data: Mapping[str, Any]) -> str:
    """The list of photos whose masks noise of one grey level changes, with their IoU in every row; empty if unknown."""
    noisy = next((row for row in data["rows"] if row["backend"] == "pytorch noisy"), None)
    if noisy is None:
        return ""
    others = [row for row in data["rows"] if row is not noisy and row["backend"] in {c.backend for c in SHIPPED}]
    others = [row for row in others if row["photos"] == PHOTOS]
    cells = []
    for name, found in noisy["sets"].items():
        for i, iou in enumerate(found["images"]["iou"]):
            if iou < UNSURE:
                each = (row["sets"][name]["images"]["iou"][i] for row in others)
                cells.append([f"{name}/{data['photos'][name][i]}", f"{iou:.3f}", *(f"{v:.3f}" for v in each)])
    said = f"\nPhotos on which the IoU of fp32 with itself under noise of one grey level is below {UNSURE:g}: "
    if not cells:
        return f"{said}none.\n"
    titles = ["photo", "fp32 with noise", *(row["backend"] for row in others)]
    return f"{said}{len(cells)}.\n\n{table(titles, cells, 'l' + 'r' * (len(titles) - 1))}\n"


def options(parser: ArgumentParser) -> None:
    """Add the options of this study."""
    photo_sets.options(parser, photos=22)
    parser.add_argument("--shipped", action="store_true", help="measure only what the commands make by default")
    parser.add_argument("--size", type=int, default=320, help="side of the network input; %(default)s")
    parser.add_argument("--keep-float", type=Path, help="float layers of ort mixed; a preset by default")


def run(given: Namespace, pages: Pages) -> int:
    """Measure every cell that the results do not have yet; write the data after each cell."""
    source = Source.open(given.weights, Contract(given.size, given.size))
    calibration, photos = opened(given, source)
    inputs = {"schema": SCHEMA, "draws": DRAWS, **head(source, calibration, photos)}
    data = pages.resumed(inputs) or {**inputs, "tools": _tools(), "device": machine(), "rows": []}
    cells = SHIPPED if given.shipped else CELLS
    left = [cell for cell in cells if not any(asdict(cell).items() <= row.items() for row in data["rows"])]
    networks = Networks(source, calibration, float_layers(given.keep_float, source))
    with judging(given) as judge:
        sets = {name: judge.pairs(source, found) for name, found in photos.items()} if left else {}
        for cell in left:
            progress(cell)
            data["rows"].append(row_of(networks, cell, sets, judge))
            data |= judge.about()
            pages.save(data)
    pages.publish(data, page(data, pages.command))
    return 0


def float_layers(path: Path | None, source: Source) -> tuple[str, ...]:
    """Return the float layers in a file. Without a file, return the preset of the network; it can be empty."""
    from u2export.calibration.sensitivity import read_keep_float

    return read_keep_float(path) if path else preset(source.variant)


def _tools() -> dict[str, str]:
    return versions("u2export", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


STUDY = Study("int8_fidelity", "The mask fidelity of lower precision: calibrators, set sizes, conditioning, runtimes.",
              "fidelity", options, run, RESULTS / "int8")  # fmt: skip
