"""`u2export sensitivity`: which layers to keep in float so that 8-bit masks stay within a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.commands import options as o
from u2export.commands.console import stderr
from u2export.errors import UserError
from u2export.reference.fidelity import parse_budget

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.activation_ranges import Ranges
    from u2export.calibration.dataset import Calibration
    from u2export.calibration.float_search import Sample, Search
    from u2export.calibration.quantize import QuantSpec
    from u2export.calibration.sensitivity import Point, Sensitivity
    from u2export.reference.image import Contract, Floats
    from u2export.reference.source import Source

SCHEMES = ("ort", "trt")
CALIBRATE_ON = 16


def sensitivity(
    calib: Annotated[Path, typer.Option(help="Calibration photos: a folder, a manifest.json or an .npy file.")],
    images: Annotated[Path, typer.Option(help="Photos to measure masks on; not those of --calib.")],
    weights: o.Weights = "u2netp",
    budget: Annotated[str, typer.Option(help="Fidelity limits to reach with the least float work.")] = "mae=0.0015",
    out: Annotated[Path, typer.Option(help="Folder for keep-float.json and pareto.png.")] = Path("artifacts"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
    scheme: Annotated[str, typer.Option(help="How the rest is quantised: as for ort or for trt.")] = "ort",
    weight_bits: Annotated[int, typer.Option(help="8, or 7 for x86 processors without VNNI.")] = 7,
    photos: Annotated[
        int, typer.Option(min=1, help="Measure on so many of --images; every third is held back to check the choice.")
    ] = 24,
    measure: Annotated[
        bool, typer.Option("--measure", help="Weigh layers by time saved on this machine, not by multiplications.")
    ] = False,
    no_condition: o.NoCondition = False,
    as_json: o.AsJson = False,
) -> None:
    """Search the layers to keep in float, for use with --keep-float.

    Runs some dozens of graphs on every photo, which takes a while. Of half as many photos again those are taken
    of which the reference is surest.
    """
    if scheme not in SCHEMES:
        raise UserError(f"no scheme named {scheme!r}", f"choose one of {', '.join(SCHEMES)}")
    limits = parse_budget(budget)
    with stderr().status(f"reading {weights}") as status:
        source, calibration, samples = _sets(weights, o.contract_of(size, resize), calib, images, photos)
        status.update("conditioning and calibrating")
        search = _search(source, calibration, samples, _spec(scheme, weight_bits), limits, measure, not no_condition)
        search.progress = lambda count, what: status.update(f"graph {count + 1}: {what}")
        found = search.run(source.weights.label)
    written = found.write(out)
    print(o.shown({"path": str(written), **found.to_json()}) if as_json else _table(found, written))
    if not found.met:
        raise UserError(
            f"no mix keeps {budget}; the closest has MAE {found.chosen.mae:.2g}, IoU {found.chosen.iou:.4f}",
            f"{written} holds it; allow more with --budget, or quantise with --weight-bits 8",
        )


def _spec(scheme: str, weight_bits: int) -> QuantSpec:
    from u2export.calibration.quantize import ONNX_RUNTIME, TENSORRT

    # The heads stay in float, as in `u2export ort --keep-float`.
    return replace({"ort": ONNX_RUNTIME, "trt": TENSORRT}[scheme], weight_bits=weight_bits, heads=False)


def _sets(
    weights: str, contract: Contract, calib: Path, images: Path, photos: int
) -> tuple[Source, Calibration, list[Sample]]:
    from u2export.calibration.dataset import Calibration
    from u2export.calibration.float_search import surest
    from u2export.reference.source import Source

    source = Source.open(weights, contract)
    calibration = Calibration.open(calib, source.contract, avoid=[images]).subset(CALIBRATE_ON)
    samples = [(x, source.predict(x)) for x in Calibration.open(images, source.contract).subset(photos * 3 // 2)]
    return source, calibration, surest(samples, photos)


def _search(
    source: Source,
    calibration: Calibration,
    samples: list[Sample],
    spec: QuantSpec,
    limits: dict[str, float],
    measure: bool,
    condition: bool,
) -> Search:
    from u2export.calibration.activation_ranges import observe
    from u2export.calibration.float_search import Search
    from u2export.calibration.prepare import prepared
    from u2export.calibration.quantize import bias_errors
    from u2export.reference.onnx_export import Graph, to_onnx

    module, _ = prepared(source, "int8", calibration, condition)
    model = to_onnx(module, source.contract, Graph(), {})
    ranges = observe(model, calibration)
    errors = bias_errors(model, ranges, spec, calibration)
    work = _saved(model, ranges, spec, samples[0][0]) if measure else None
    judged = [s for i, s in enumerate(samples) if i % 3 != 2]
    return Search(model, ranges, errors, spec, judged, limits, samples[2::3], work)


def _saved(model: onnx.ModelProto, ranges: Ranges, spec: QuantSpec, x: Floats) -> dict[str, float]:
    from u2export.calibration.layer_work import saved_time
    from u2export.calibration.quantize import quantize

    return saved_time(model, quantize(model, ranges, spec), x)


def _table(found: Sensitivity, written: Path) -> str:
    lines = [f"{'float work':>10}  {'layers':>6}  {'MAE':>7}  {'worst':>7}  {'IoU':>6}  {'worst':>6}"]
    lines += [_row(point) + ("  <- chosen" if point == found.chosen else "") for point in found.pareto]
    lines += [f"keep in float: {name}" for name in found.keep_float]
    if back := found.held_back:
        lines.append(f"{back['photos']} photos held back: MAE {back['mae']:.5f}, IoU {back['iou']:.4f}")
    return "\n".join([*lines, str(written)])


def _row(p: Point) -> str:
    share = f"{100 * p.float_share:9.1f}%"
    return f"{share}  {len(p.keep_float):6}  {p.mae:7.5f}  {p.mae_worst:7.4f}  {p.iou:6.4f}  {p.iou_worst:6.4f}"
