"""`u2export sensitivity`: which layers to keep in float so that 8-bit masks stay within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import lower_precision
from u2export.api.lower_precision import Point, Sensitivity
from u2export.commands import options as o
from u2export.commands.console import echo, waiting
from u2export.errors import UserError


@o.grouped
def sensitivity(
    network: o.Network,
    calib: Annotated[Path, typer.Option(help="Calibration photos: a folder, a manifest.json or an .npy file.")],
    images: Annotated[Path, typer.Option(help="Photos to measure masks on; not those of --calib.")],
    budget: Annotated[str, typer.Option(help="Fidelity limits to reach with the least float work.")] = "mae=0.0015",
    out: Annotated[Path, typer.Option(help="Folder for keep-float.json and pareto.png.")] = Path("artifacts"),
    scheme: Annotated[
        str, o.choice(lower_precision.SCHEMES, "How the other layers are quantised: as for ort or as for trt.")
    ] = "ort",
    weight_bits: Annotated[int, typer.Option(help="Retired: changes nothing.", hidden=True)] = 0,
    photos: Annotated[
        int,
        typer.Option(min=1, help="Number of photos to measure on; every third is held back to check the choice."),
    ] = 24,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Weigh layers by time saved on this machine, not by multiplications."),
    ] = False,
    no_condition: o.NoCondition = False,
    cluster: o.Cluster = "",
    as_json: o.AsJson = "",
) -> None:
    """Search the layers to keep in float, for use with --keep-float.

    The search runs some dozens of graphs on every photo, which takes a while. It reads half as many photos again as
    --photos says, and takes those of which the reference is surest.
    """
    with waiting(f"reading {network.weights}") as show:
        found = lower_precision.sensitivity(
            calib, images, weights=network.weights, budget=budget, size=network.size or None, resize=network.resize,
            contract=network.contract,
            scheme=scheme, weight_bits=weight_bits, photos=photos, measure=measure, condition=not no_condition,
            cluster=cluster, progress=show,
        )  # fmt: skip
    written = found.write(out)
    if not o.print_json({"path": str(written), **found.to_json()}, as_json):
        echo(*_table(found, written))
    if not found.met:
        raise UserError(
            f"no mix keeps {budget}; the closest has MAE {found.chosen.mae:.2g}, IoU {found.chosen.iou:.4f}",
            f"{written} holds it; allow more with --budget",
        )


def _table(found: Sensitivity, written: Path) -> list[str]:
    lines = [f"{'float work':>10}  {'layers':>6}  {'MAE':>7}  {'worst':>7}  {'IoU':>6}  {'worst':>6}"]
    lines += [_row(point) + ("  <- chosen" if point == found.chosen else "") for point in found.pareto]
    lines += [f"keep in float: {name}" for name in found.keep_float]
    if back := found.held_back:
        lines.append(f"{back['photos']} photos held back: MAE {back['mae']:.5f}, IoU {back['iou']:.4f}")
    return [*lines, str(written)]


def _row(p: Point) -> str:
    share = f"{100 * p.float_share:9.1f}%"
    return f"{share}  {len(p.keep_float):6}  {p.mae:7.5f}  {p.mae_worst:7.4f}  {p.iou:6.4f}  {p.iou_worst:6.4f}"
