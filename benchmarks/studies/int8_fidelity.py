"""Mask fidelity of lower precision on photos: calibrators, set sizes, conditioned or not, runtimes.

    python -m u2export.benchmarks.studies.int8_fidelity --calib CALIBRATION_FOLDER SET=FOLDER ...

Writes `fidelity.json` after each cell and `fidelity.md` at the end; cells that the former holds are not measured again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from u2export.benchmarks.device import this_device
from u2export.benchmarks.studies.coreml_fidelity import ALL, summarise
from u2export.benchmarks.studies.photo_sets import Sets, folders, judged, photos_in, references
from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.calibration.quantize import PHOTOS
from u2export.errors import UserError
from u2export.exporters.exporter import Exporter, Request, versions
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import int8_spec, preset
from u2export.files import read_json, write_json, write_text
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.image import Contract, Floats
from u2export.reference.source import Source

if TYPE_CHECKING:
    import onnx

    from u2export.reference.model import U2Net

SCHEMA = 1
NAME = "u2export.benchmarks.studies.int8_fidelity"


@dataclass(frozen=True)
class Cell:
    """One way to make and run the network.

    Attributes:
        backend: "onnx fp16", "ort", "ort mixed", "openvino qdq", "openvino nncf" (without bias correction),
            "openvino nncf slow", or "pytorch noisy", fp32 on photos with noise of one grey level: how much masks
            differ anyway, from one JPEG of a scene to the next.
        method: of calibration; NNCF has its own.
        photos: calibrated on; 0 where nothing is.
        condition: the near-constant channels shifted first.
    """

    backend: str
    method: str = ""
    photos: int = 0
    condition: bool = True


FEW = 16  # photos for cells that are compared with one another
# What --int8 and --mixed make.
SHIPPED = tuple(Cell(name, "minmax", PHOTOS) for name in ("ort", "openvino qdq", "ort mixed"))
CELLS = (
    *SHIPPED,
    Cell("onnx fp16"),
    Cell("onnx fp16", condition=False),
    Cell("pytorch noisy", condition=False),
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
}


class Bench:
    """The sources and sets of photos that all cells share.

    Args:
        source: the reference.
        calibration: photos to calibrate on.
        keep_float: layers that "ort mixed" leaves in float.
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
    def opened(self, cell: Cell) -> Iterator[Callable[[Floats], Floats]]:
        """Network input to d0, as the cell computes it."""
        if cell.backend == "pytorch noisy":
            yield self._noisy()
            return
        if cell.backend.startswith("ort"):
            yield self._in_ort(cell)
            return
        exporter, precision = EXPORTERS[cell.backend]
        with TemporaryDirectory() as scratch:
            request = Request(precision, self.calibration, condition=False, budget=ALL)
            artifact = exporter.export(self.prepared(cell.condition), Path(scratch), request)
            with exporter.load(artifact) as runner:
                yield runner

    def _noisy(self) -> Callable[[Floats], Floats]:
        contract, random = self.source.contract, np.random.default_rng(0)
        level = 1 / 255 / np.array(contract.std).reshape(1, -1, 1, 1)
        return lambda x: self.source.predict((x + level * random.normal(size=x.shape)).astype(np.float32))

    def _in_ort(self, cell: Cell) -> Callable[[Floats], Floats]:
        from u2export.calibration.quantize import calibrated
        from u2export.reference.onnx_session import open_graph

        spec = int8_spec(keep_float=self.keep_float if cell.backend == "ort mixed" else ())
        photos = self.calibration.subset(cell.photos)
        running = open_graph(calibrated(self.graph(cell.condition), photos, spec, cell.method))
        feed = running.get_inputs()[0].name
        return lambda x: cast(Floats, running.run(None, {feed: x})[0])


def measure(bench: Bench, cell: Cell, sets: Sets) -> dict[str, Any]:
    """The cell's row: statistics and each photo's MAE and IoU, by set."""
    with bench.opened(cell) as predict:
        images = {name: judged(predict, pairs) for name, pairs in sets.items()}
    return {
        **asdict(cell),
        "sets": {name: {**summarise(found), "images": _each(found)} for name, found in images.items()},
    }


def _each(images: Sequence[ImageFidelity]) -> dict[str, list[float]]:
    return {"mae": [round(i.mae, 6) for i in images], "iou": [round(i.iou, 5) for i in images]}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, in the order of `CELLS`."""
    order = [asdict(cell) for cell in CELLS]
    rows = sorted(rows, key=lambda row: order.index({key: row[key] for key in order[0]}))
    names = list(rows[0]["sets"])
    head = "| made and run by | calibrated | conditioned |" + "".join(
        f" {n}: MAE (worst) | IoU (worst) |" for n in names
    )
    lines = [head, "|---|---|---|" + "--:|--:|" * len(names)]
    for row in rows:
        calibrated = f"{row['method']}, {row['photos']} photos" if row["photos"] else ""
        cells = [row["backend"], calibrated, "yes" if row["condition"] else "no"]
        for name in names:
            found = row["sets"][name]
            cells += [
                f"{found['mae']:.5f} ({found['mae_worst']:.4f})",
                f"{found['iou']:.4f} ({found['iou_worst']:.3f})",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


HEAD = """# Mask fidelity of lower precision

Masks against PyTorch in fp32 over the photos in which the reference sees an object ({photos}); none of them was
calibrated on. MAE and IoU at 0.5 of masks stretched to 0..1, mean and worst photo. ort: Q/DQ with u8 activations and
7-bit weights per channel; ort mixed: with layers in float; openvino qdq: the same graph in OpenVINO; openvino nncf:
NNCF's MIXED preset, without bias correction or with its slow one; pytorch noisy: the reference itself, in fp32, on the
same photos with noise of one grey level. {device}. {tools}.

Made by `{command}`
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every cell that is not in the results yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to calibrate on, others than those")
    parser.add_argument("--photos", type=int, default=22, help="of each set, evenly spread")
    parser.add_argument("--shipped", action="store_true", help="only what the commands make by default")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--weights", default="u2netp")
    parser.add_argument("--keep-float", type=Path, help="for ort mixed; the preset of the network by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/int8"))
    given = parser.parse_args(argv)
    source = Source.open(given.weights, Contract(given.size, given.size))
    named = folders(given.sets)
    calibration = Calibration.open(given.calib, source.contract, avoid=list(named.values()))
    photos = photos_in(named, given.photos)
    head = {
        "schema": SCHEMA,
        "weights": {"name": source.weights.name, "sha256": source.weights.sha256},
        "contract": source.contract.to_json(),
        "calibration": calibration.summary(),
        "photos": {name: [p.name for p in found] for name, found in photos.items()},
    }
    file = given.out / "fidelity.json"
    data = _resumed(file, head) or {**head, "tools": _tools(), "device": _device(), "rows": []}
    cells = SHIPPED if given.shipped else CELLS
    left = [cell for cell in cells if not any(asdict(cell).items() <= row.items() for row in data["rows"])]
    sets = {name: list(references(source, found)) for name, found in photos.items()} if left else {}
    bench = Bench(source, calibration, kept(given.keep_float, source))
    for cell in left:
        print(cell, file=sys.stderr)
        data["rows"].append(measure(bench, cell, sets))
        write_json(data, file)
    write_text(_page(data, given.photos), given.out / "fidelity.md")


def kept(path: Path | None, source: Source) -> tuple[str, ...]:
    """Layers to leave in float from a file, or the network's preset; none if it has none."""
    from u2export.calibration.sensitivity import read_keep_float

    return read_keep_float(path) if path else preset(source.variant)


def _resumed(file: Path, head: Mapping[str, Any]) -> dict[str, Any] | None:
    if not file.exists():
        return None
    data: dict[str, Any] = read_json(file, "results of this benchmark")
    if {key: data.get(key) for key in head} != head:
        raise UserError(f"{file} is of other weights or photos", "give another --out, or remove it")
    return data


def _tools() -> dict[str, str]:
    return versions("u2export", "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


def _device() -> dict[str, Any]:
    device = this_device()
    return {"label": device.label, "features": list(device.features)}


def _page(data: Mapping[str, Any], photos: int) -> str:
    sets = data["photos"]
    words = " ".join([f"--photos {photos}", *(f"{n}=FOLDER" for n in sets)])
    command = f"python -m {NAME} --calib FOLDER {words}"
    shown = ", ".join(f"{found['photos']} {name}" for name, found in data["rows"][0]["sets"].items())
    tools = ", ".join(f"{name} {version}" for name, version in data["tools"].items())
    return (
        HEAD.format(photos=shown, device=data["device"]["label"], tools=tools, command=command)
        + "\n"
        + table(data["rows"])
    )


if __name__ == "__main__":
    main()
