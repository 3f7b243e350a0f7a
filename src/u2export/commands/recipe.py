"""`u2export recipe show`: what a recipe of TensorRT asks for, and the commands that build it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.api import tensorrt
from u2export.commands.console import echo
from u2export.commands.options import AsJson, print_json
from u2export.commands.parsing import Command, Group
from u2export.install import how_to_install

if TYPE_CHECKING:
    from u2export.api.tensorrt import Recipe

app = typer.Typer(cls=Group, help="Recipes of TensorRT engines, which `u2export trt` writes.", no_args_is_help=True)


@app.callback()
def recipe() -> None:
    """Recipes of TensorRT engines, which `u2export trt` writes."""


@app.command(cls=Command)
def show(
    file: Annotated[Path, typer.Argument(help="The .recipe.json that `u2export trt` wrote, with its .onnx beside it.")],
    as_json: AsJson = "",
) -> None:
    """Show precisions, float layers, scales and versions of a recipe, and ready commands that build its engine."""
    show_recipe(file, as_json)


def show_recipe(file: Path, as_json: str) -> None:
    """Print a recipe, as text or as JSON."""
    found, graph = tensorrt.read_recipe(file)
    if not print_json({"path": str(file), **found.to_json()}, as_json):
        echo(*_lines(file, graph, found), "", *ways_to_build(file, found))


def _lines(file: Path, graph: Path, found: Recipe) -> Iterator[str]:
    shape = " x ".join(str(n) if n > 0 else "free" for n in found.shape)
    counts = ", ".join(f"{n} {precision}" for precision, n in Counter(found.layers.values()).most_common())
    yield f"{file}: {found.precision} recipe of {graph}, which is unchanged"
    yield f"graph: opset {found.opset}, input {found.input} ({shape}), output {found.output}"
    yield f"convolutions: {counts}; the rest in {found.rest}"
    if found.scales:
        photos = found.calibration.get("photos")
        told = f", calibrated on {photos} photos" if photos else ""
        yield f"scales: {len(found.scales)} activations{told}; Q/DQ pairs stand at the {found.placement}"
    yield from (f"in {precision}: {layer}" for layer, precision in _exceptions(found))
    yield from (f"must stay in fp32: {name}" for name in found.islands)
    for version, limits in found.to_json()["tensorrt"].items():
        yield f"TensorRT {version}: {limits['refused'] or 'builds it, typing ' + ' or '.join(limits['typing'])}"


def _exceptions(found: Recipe) -> list[tuple[str, str]]:
    """Return the layers of other precisions than the recipe's own."""
    return [(layer, precision) for layer, precision in found.layers.items() if precision != found.precision]


def ways_to_build(file: Path, found: Recipe) -> Iterator[str]:
    """Give the commands that build the engine of a recipe: on the device, with trtexec, and with RTX."""
    yield "build on the device: u2export trt build " + shlex.quote(str(file))
    yield f"or with trtexec, in {shlex.quote(str(file.parent))}:"
    for version, command in found.commands().items():
        yield f"  TensorRT {version}:"
        yield f"    {command}"
    if not found.builds_with("rtx"):
        yield "or with TensorRT-RTX, which builds without a GPU:"
        yield f"    {how_to_install('trt-rtx', ['tensorrt_rtx'])}"
        yield f"    u2export trt build {shlex.quote(str(file))} --runtime rtx --target sm86"
