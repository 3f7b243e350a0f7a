"""`u2export roofline`, the least time that a network can take on a device, and `profile`, what its layers take here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import profiling, tables
from u2export.commands.console import echo, print_whole, remark, waiting, wide
from u2export.commands.options import AsJson, choice, print_json
from u2export.commands.parsing import STDOUT
from u2export.files import write_json, write_text


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


def profile(
    artifact: Annotated[
        Path, typer.Argument(help="An artifact of onnx, ort or openvino; or the file of trtexec --exportProfile.")
    ],
    runs: Annotated[int, typer.Option(min=1, help="Runs that count, after three that warm up.")] = 20,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the runtime; 0 for all processors.")] = 0,
    device: Annotated[
        str,
        typer.Option(
            help="Adds the roofline's bound: a device of benchmarks/devices.json, or here.", show_default=False
        ),
    ] = "",
    layers: Annotated[int, typer.Option(min=1, help="How many layers to show and draw, the slowest first.")] = 15,
    layer_info: Annotated[
        Path | None, typer.Option(help="The file of trtexec --exportLayerInfo.", show_default=False)
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(help="The ONNX file of the engine; with --layer-info it gives bounds.", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all layers as CSV.", show_default=False)] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw a .png or .svg.", show_default=False)] = None,
    as_json: AsJson = "",
) -> None:
    """Measure the time of each layer with the runtime's profiler, beside the roofline's bound."""
    if chart is not None:
        profiling.check_chart(chart)
    with waiting("measuring layers"):
        made = profiling.profile(
            artifact, runs=runs, threads=threads, device=device, layer_info=layer_info, graph=graph
        )
    if csv is not None:
        write_text(made.to_csv(), csv)
    if chart is not None:
        profiling.profile_chart(made, chart, layers)
    if print_json(made.to_json(), as_json):
        return
    print_whole(profiling.profile_table(made, layers))
    echo("", *profiling.profile_summary(made))
    remark(*(f"written: {path}" for path in (csv, chart) if path is not None))
