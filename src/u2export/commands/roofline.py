"""`u2export roofline`: the least time that a network can take on a device. An estimate, marked as such."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import tables
from u2export.commands.console import echo, waiting, wide
from u2export.commands.options import choice, print_json
from u2export.commands.parsing import STDOUT
from u2export.files import write_json


def roofline(
    model: Annotated[Path, typer.Argument(help="An .onnx file of fixed size.")],
    device: Annotated[str, typer.Option(help="A device of benchmarks/devices.json, all, or none.")] = "all",
    precision: Annotated[str, choice(tables.ROOFLINE_PRECISIONS, "Precision on the devices.")] = "fp16",
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Measure the peak and the bandwidth of this machine, about 2 s.")
    ] = True,
    results: Annotated[
        Path | None,
        typer.Option(help="Results of a bench of this network here; adds the share of the peak that each row reaches."),
    ] = None,
    layers: Annotated[int, typer.Option(min=0, help="Number of layers to show, those with most work first.")] = 0,
    json: Annotated[
        str, typer.Option(metavar="FILE", help="Write everything to this file; - prints it and nothing else.")
    ] = "",
) -> None:
    """Estimate the least latency of a network on devices from their makers' figures; never a result."""
    with waiting("counting operations"):
        made = tables.roofline(model, device, precision, local=local, results=results)
    if json == STDOUT:
        print_json(made.to_json(), json)
        return
    wide().print(tables.roofline_table(made, layers))
    if json:
        write_json(made.to_json(), Path(json))
        echo(json)
