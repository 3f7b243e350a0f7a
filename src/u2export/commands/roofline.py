"""`u2export roofline`: the least time a network can take on a device. An estimate, marked as such."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from u2export.commands.console import stderr
from u2export.errors import UserError

if TYPE_CHECKING:
    from u2export.benchmarks.roofline import Bound, Chip, Work


class Arithmetic(str, Enum):
    """Size of values, and which peak counts."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def roofline(
    model: Annotated[Path, typer.Argument(help="An .onnx file of fixed size.")],
    device: Annotated[str, typer.Option(help="A device of the list, all, or none.")] = "all",
    precision: Annotated[Arithmetic, typer.Option(help="Arithmetic on the devices.")] = Arithmetic.fp16,
    local: Annotated[
        bool, typer.Option("--local/--no-local", help="Measure this machine's peak and bandwidth, about 2 s.")
    ] = True,
    results: Annotated[
        Path | None,
        typer.Option(help="Results of a bench of this network here: the share of the peak each row reaches."),
    ] = None,
    layers: Annotated[int, typer.Option(min=0, help="Show so many layers, those with most work first.")] = 0,
    json: Annotated[Path | None, typer.Option(help="Write everything to this file.")] = None,
) -> None:
    """Estimate the least latency of a network on devices from their makers' figures; never a result."""
    from u2export.benchmarks.report import Report
    from u2export.benchmarks.roofline import bound, chips, count, of_network, reached, this_machine
    from u2export.benchmarks.tables.terminal import console
    from u2export.exporters.open import read_artifact
    from u2export.files import write_json

    known = chips()
    if device not in (*known, "all", "none"):
        raise UserError(f"no device {device!r}", f"choose among all, none, {', '.join(known)}")
    work = count(model)
    wanted = {"all": list(known.values()), "none": []}.get(device) or [known[device]] if device != "none" else []
    bounds = [(chip, bound(work, chip, precision.value), precision.value) for chip in wanted]
    timed = of_network(Report.load(results), read_artifact(model)) if results else []
    measured = None
    if local or results:
        with stderr().status("measuring this machine"):
            measured = this_machine()
        bounds.append((measured, bound(work, measured, "fp32"), "fp32"))
    rows = reached(work, measured, timed) if measured else []
    out = console()
    out.print(_summary(work, precision.value), highlight=False)
    out.print(_bounds(bounds))
    for row, rate, share in rows:
        out.print(f"{row.name} ({row.ran_as}): {rate / 1e9:.1f} GFLOP/s, {share:.0%} of the measured float32 peak",
                  highlight=False)  # fmt: skip
    if any(share > 1 for *_, share in rows):
        out.print("more than 100 %: units for 8 bit or bfloat16, or a machine that is busier now than it was then")
    if layers:
        out.print(_layers(work, layers, precision.value))
    if json:
        write_json(_plain(work, bounds, precision.value), json)
        typer.echo(json)


def _summary(work: Work, precision: str) -> str:
    from u2export.benchmarks.roofline import BYTES

    size = BYTES[precision]
    intensity = 2 * work.macs / work.layer_bytes(size)
    return (
        f"{work.macs / 1e9:.2f} G multiply-accumulates, {work.weights / 1e6:.2f} M weights; in {precision}: "
        f"{work.least_bytes(size) / 1e6:.1f} MB have to move, {work.layer_bytes(size) / 1e6:.0f} MB layer by layer "
        f"({intensity:.0f} operations per byte)"
    )


def _bounds(bounds: list[tuple[Chip, Bound, str]]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, title="Estimated lower bounds in ms, not results", title_justify="left")
    for title in ("device", "arithmetic", "compute", "memory", "at least", "layer by layer", "figures"):
        table.add_column(title, justify="left" if title in ("device", "arithmetic", "figures") else "right")
    for chip, b, precision in bounds:
        marks = "measured" if not chip.source else "read" if chip.confirmed else "unconfirmed"
        times = (_ms(v) for v in (b.compute, b.memory, b.least, b.layers))
        table.add_row(chip.name, precision + (" (derived)" if b.derived else ""), *times, marks)
    lines = (
        "at least: the slower of all operations at the peak, and weights, input and output moved once",
        "layer by layer: nothing kept on the chip between layers; derived: scaled from another arithmetic's peak",
        "figures: as makers advertise them, see benchmarks/devices.json; unconfirmed: not found in any document read",
    )
    return Group(table, Text(), *(Text(line, style="dim") for line in lines))


def _ms(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def _layers(work: Work, most: int, precision: str) -> Any:
    from rich.table import Table

    from u2export.benchmarks.roofline import BYTES

    size = BYTES[precision]
    table = Table(box=None, pad_edge=False)
    for title in ("layer", "kind", "M MAC", "kB", "operations/byte"):
        table.add_column(title, justify="left" if title in ("layer", "kind") else "right")
    heaviest = sorted(work.layers, key=lambda layer: -layer.macs)[:most]
    for layer in heaviest:
        moved = (layer.activations + layer.weights) * size / 1e3
        table.add_row(layer.name, layer.kind, f"{layer.macs / 1e6:.1f}", f"{moved:.0f}", f"{layer.intensity(size):.1f}")
    return table


def _plain(work: Work, bounds: list[tuple[Chip, Bound, str]], precision: str) -> dict[str, Any]:
    from dataclasses import asdict

    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return {
        "schema": 1,
        "estimate": "lower bounds from advertised peaks; not results",
        "macs": work.macs,
        "weights": work.weights,
        "precision": precision,
        "bounds": [
            {"device": chip.name, "precision": arithmetic, "source": chip.source, "confirmed": chip.confirmed,
             "least_ms": b.least, **{f"{k}_ms": known(getattr(b, k)) for k in ("compute", "memory", "layers")},
             "derived": b.derived}
            for chip, b, arithmetic in bounds
        ],
        "layers": [asdict(layer) for layer in work.layers],
    }  # fmt: skip
