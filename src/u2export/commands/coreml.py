"""`u2export coreml`: a Core ML package, its masks checked by executing the saved file."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from u2export.commands import options as o
from u2export.commands.export import run
from u2export.errors import UserError
from u2export.exporters.coreml.exporter import CoreML


class Target(str, Enum):
    """Oldest system that can open the package."""

    ios16 = "ios16"
    ios17 = "ios17"
    ios18 = "ios18"
    ios26 = "ios26"


class Output(str, Enum):
    """What the package gives."""

    tensor = "tensor"
    image = "image"
    raw = "raw"


def coreml(
    weights: o.Weights = "u2netp",
    out: o.Out = Path("artifacts"),
    size: Annotated[
        str,
        typer.Option(metavar="N|HxW[,…]", help="Input size in pixels; several, separated by commas, for a choice."),
    ] = "320",
    resize: o.Resize = "bilinear",
    fp16: o.Fp16 = False,
    fp32: o.Fp32 = False,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights, computed with in fp16.")] = False,
    palette: Annotated[
        int, typer.Option(metavar="8|6|4", help="Weights as indices of so many bits into palettes.", show_default=False)
    ] = 0,
    group: Annotated[
        int, typer.Option(help="Output channels that share a palette, 0 for all; needs --target ios18.")
    ] = 0,
    w8a8: Annotated[
        bool, typer.Option("--w8a8", help="8-bit weights and activations, experimental; needs --calib and ios17.")
    ] = False,
    target: Annotated[Target, typer.Option(help="Oldest system that may open it.")] = Target.ios16,
    output: Annotated[
        Output, typer.Option(help="Mask as fp16 tensor 0..1, as 8-bit grey image, or raw: d0 before the stretch.")
    ] = Output.tensor,
    calib: o.Calib = None,
    no_condition: o.NoCondition = False,
    budget: o.Budget = "",
    as_json: o.AsJson = False,
) -> None:
    """Export to a Core ML package for Xcode; its masks are checked by executing the saved file, also without a Mac."""
    if palette not in (0, 8, 6, 4):
        raise UserError(f"no palettes of {palette} bits", "give --palette 8, 6 or 4")
    flags = {"fp16": fp16, "fp32": fp32, "int8": int8, "w8a8": w8a8, f"palette{palette}": palette > 0}
    contract, *more = (o.contract_of(s, resize) for s in size.split(","))
    exporter = CoreML(target.value, output.value, tuple((c.height, c.width) for c in more), group)
    precision = o.chosen(flags, "fp16")
    run(exporter, weights, out, contract, precision, calib, not no_condition, budget, as_json)
