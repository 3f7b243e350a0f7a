"""`u2export lint`: which layers of a network 8 bit or fp16 will break, before anything is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from u2export.api import lower_precision
from u2export.commands.console import echo, print_whole, stdout, waiting
from u2export.commands.options import AsJson, Calib, print_json
from u2export.text import rich_text

if TYPE_CHECKING:
    from u2export.api.lower_precision import LayerDamage, WeakLayers


def lint(
    model: Annotated[
        str, typer.Argument(help="A name of `u2export weights list`, a .pth or .safetensors file, or an fp32 .onnx.")
    ],
    calib: Calib = None,
    photos: Annotated[int, typer.Option(min=1, help="Number of calibration photos to look at, evenly spread.")] = 16,
    top: Annotated[int, typer.Option(min=1, help="Number of layers to print, the worst first.")] = 10,
    as_json: AsJson = "",
) -> None:
    """Name the weak layers, which 8 bit or fp16 will break, from the weights alone or with photos."""
    with waiting(f"reading {model}"):
        found = lower_precision.weak_layers(model, calib=calib, photos=photos)
    if not print_json(found.to_json(), as_json):
        _show(found, top)


def _show(found: WeakLayers, top: int) -> None:
    from rich.table import Table

    console = stdout()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("#", "layer", *(("dB at 8 bit",) if found.inputs else ("error at 8 bit",)), "bias", "problems"):
        table.add_column(title, justify="right" if title in ("#", "bias") or "8 bit" in title else "left")
    for layer in found.layers[:top]:
        problems = rich_text("; ".join(layer.problems)) if layer.problems else rich_text("none", "dim")
        table.add_row(str(layer.index), rich_text(layer.name), _worst(layer), f"{layer.bias:.4g}", problems)
    print_whole(table)
    for c in found.near_constant:
        can = f"cannot be shifted, it reaches {c.obstacle}" if c.obstacle else "conditioning can shift it"
        echo(f"near-constant: {c.producer} channel {c.channel}, {c.low:.4g} to {c.high:.4g}: {can}")
    bad = sum(bool(layer.problems) for layer in found.layers)
    dead = sum(layer.dead if layer.silent is None else layer.silent for layer in found.layers)
    based = f"on {found.inputs} photos" if found.inputs else "by the weights alone"
    console.print(f"{bad} of {len(found.layers)} layers with problems, {dead} silent channels, {based}")


def _worst(layer: LayerDamage) -> str:
    if layer.weights_sqnr is None or layer.inputs_sqnr is None:
        return f"{layer.error8:.2g}"
    return f"{min(layer.weights_sqnr, layer.inputs_sqnr):.0f}"
