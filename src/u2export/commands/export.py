"""`u2export onnx|ort|openvino`: one artifact and its record, checked before either appears."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.commands import options as o
from u2export.commands.console import stderr
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.reference.fidelity import parse_budget
from u2export.reference.onnx_export import Graph

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration
    from u2export.reference.image import Contract
    from u2export.reference.source import Source


class Quantizer(str, Enum):
    """Who makes OpenVINO's 8-bit graph."""

    qdq = "qdq"
    nncf = "nncf"


class BiasCorrection(str, Enum):
    """NNCF's ways to undo the mean error that rounding leaves in each channel."""

    slow = "slow"
    fast = "fast"
    none = "none"


class Placement(str, Enum):
    """Where TensorRT's Q/DQ pairs stand."""

    producer = "producer"
    conv_input = "conv-input"


# Of a calibration set of at least ENOUGH photos so many are kept for judging the result.
ENOUGH, HELD_BACK = 16, 4


def onnx(
    weights: o.Weights = "u2netp",
    out: o.Out = Path("artifacts"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
    fp32: o.Fp32 = False,
    fp16: o.Fp16 = False,
    opset: Annotated[int, typer.Option(help="13 to 18.")] = 17,
    all_outputs: Annotated[bool, typer.Option("--all-outputs", help="All seven maps, not d0 alone.")] = False,
    dynamic: Annotated[str, typer.Option(help="Free axes: any of batch,height,width.")] = "",
    embed_preprocess: Annotated[
        bool,
        typer.Option("--embed-preprocess", help="uint8 NHWC in, mask out: all but the resize in the graph."),
    ] = False,
    calib: o.Calib = None,
    no_condition: o.NoCondition = False,
    budget: o.Budget = "",
    as_json: o.AsJson = False,
) -> None:
    """Export to ONNX, simplified, checked and compared with PyTorch on photos."""
    exporter = Onnx(Graph(opset, all_outputs, o.words(dynamic), embed_preprocess))
    precision = o.chosen({"fp32": fp32, "fp16": fp16}, "fp32")
    run(exporter, weights, out, o.contract_of(size, resize), precision, calib, not no_condition, budget, as_json)


def ort(
    weights: o.Weights = "u2netp",
    out: o.Out = Path("artifacts"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
    fp32: o.Fp32 = False,
    int8: o.Int8 = False,
    mixed: o.Mixed = False,
    keep_float: o.KeepFloat = None,
    weight_bits: Annotated[
        int, typer.Option(help="Of int8 weights: 7 is right on every processor, 8 saturates on x86 without VNNI.")
    ] = 7,
    mobile: Annotated[bool, typer.Option("--mobile", help="ONNX Runtime's own format (.ort), for phones.")] = False,
    calib: o.Calib = None,
    no_condition: o.NoCondition = False,
    budget: o.Budget = "",
    as_json: o.AsJson = False,
) -> None:
    """Export for ONNX Runtime on CPUs and phones."""
    precision = o.chosen({"fp32": fp32, "int8": int8}, "fp32")
    exporter = Ort(mobile, mixed, o.kept(keep_float), weight_bits)
    run(exporter, weights, out, o.contract_of(size, resize), precision, calib, not no_condition, budget, as_json)


def openvino(
    weights: o.Weights = "u2netp",
    out: o.Out = Path("artifacts"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
    fp32: o.Fp32 = False,
    fp16: o.Fp16 = False,
    int8: o.Int8 = False,
    quantizer: Annotated[
        Quantizer, typer.Option(help="Of int8: qdq, the graph that ONNX Runtime gets too, or NNCF.")
    ] = Quantizer.qdq,
    bias_correction: Annotated[
        BiasCorrection, typer.Option(help="Of NNCF: slow helps the worst photo and takes minutes.")
    ] = BiasCorrection.slow,
    accuracy_control: Annotated[
        bool, typer.Option("--accuracy-control", help="Let NNCF put layers back to float; takes long.")
    ] = False,
    calib: o.Calib = None,
    no_condition: o.NoCondition = False,
    budget: o.Budget = "",
    as_json: o.AsJson = False,
) -> None:
    """Export to OpenVINO IR (.xml and .bin)."""
    precision = o.chosen({"fp32": fp32, "fp16": fp16, "int8": int8}, "fp32")
    exporter = OpenVINO(quantizer.value, bias_correction.value, accuracy_control)
    run(exporter, weights, out, o.contract_of(size, resize), precision, calib, not no_condition, budget, as_json)


def run(
    exporter: Exporter,
    weights: str,
    out: Path,
    contract: Contract,
    precision: str,
    calib: Path | None,
    condition: bool,
    budget: str,
    as_json: bool,
) -> Artifact:
    """Export, and print the path of what was written (or the whole record)."""
    artifact = exported(exporter, weights, out, contract, precision, calib, condition, budget)
    show(artifact, as_json)
    return artifact


def exported(
    exporter: Exporter,
    weights: str,
    out: Path,
    contract: Contract,
    precision: str,
    calib: Path | None,
    condition: bool,
    budget: str,
) -> Artifact:
    """Export, with photos of a large enough calibration set held back to judge the result on."""
    from u2export.reference.source import Source

    request = Request(precision, None, condition, parse_budget(budget))
    exporter.check(request, calib is not None)
    with stderr().status(f"{exporter.title} {precision}: reading {weights}") as status:
        source = Source.open(weights, contract)
        calibration = open_calibration(calib, source)
        held_back = None
        if calibration and precision in exporter.calibrated and len(calibration) >= ENOUGH:
            calibration, held_back = calibration.split(HELD_BACK)
        request = Request(precision, calibration, condition, request.budget, held_back)
        status.update(f"{exporter.title} {precision}: exporting {source.weights.label} and checking its masks")
        return exporter.export(source, out, request)


def show(artifact: Artifact, as_json: bool) -> None:
    """Print an artifact's path, and a summary as a remark; or the whole record."""
    print(o.shown({**artifact.to_json(), "path": str(artifact.path)}) if as_json else artifact.path)
    if not as_json:
        stderr().print(_summary(artifact))


def open_calibration(calib: Path | None, source: Source) -> Calibration | None:
    """The set that `--calib` names; the photos that exports are verified on may not be in it."""
    from u2export.calibration.dataset import Calibration

    if calib is None:
        return None
    calibration = Calibration.open(calib, source.contract)
    for warning in calibration.warnings:
        stderr().print(f"[yellow]warning:[/] {warning}")
    return calibration


def _summary(artifact: Artifact) -> str:
    lines = [
        f"  {artifact.size / 1e6:.2f} MB, sha256 {next(iter(artifact.files.values()))[:16]}…, {artifact.weights.label}"
    ]
    if f := artifact.fidelity:
        lines.append(
            f"  masks against PyTorch on {f['photos']} photos: MAE {f['mae']:.2g} (worst {f['mae_worst']:.2g}), "
            f"IoU {f['iou']:.4f} (worst {f['iou_worst']:.4f})"
        )
    lines += [f"  note: {note}" for note in artifact.notes]
    return "\n".join([*lines, f"  next: u2export bench {artifact.path} --images FOLDER"])
