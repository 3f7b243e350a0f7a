"""`u2export inspect`: what is inside an exported file; `golden`: vectors that a port on a device checks itself with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from u2export.api import inspecting
from u2export.commands import options as o
from u2export.commands.console import echo, print_whole, waiting
from u2export.commands.options import AsJson, print_json
from u2export.commands.recipe import show_recipe
from u2export.text import rich_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from u2export.api.inspecting import ModelFile, Port

LONGEST = 100  # characters of a metadata value that are shown


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="A model file or folder, its .json record, or TensorRT's recipe, build log or layer table."
        ),
    ],
    layers: Annotated[bool, typer.Option("--layers", help="List every convolution.")] = False,
    as_json: AsJson = "",
) -> None:
    """Show operations, weights as stored, precision of each layer, inputs, outputs and metadata of a model file."""
    if file.name.endswith(".recipe.json"):
        show_recipe(file, as_json)
        return
    found, recorded = inspecting.inspect(file)
    path = recorded.path if recorded else file
    record: dict[str, Any] = recorded.to_json() if recorded else {}
    if print_json({"path": str(path), **found.to_json(), "record": record}, as_json):
        return
    echo(*_lines(path, found, record))
    if layers:
        _print_layers(found)


def _lines(path: Path, found: ModelFile, record: Mapping[str, Any]) -> Iterator[str]:
    yield f"{path}: {found.kind}, {found.bytes / 1e6:.2f} MB"
    yield f"inputs: {_ports(found.inputs)}"
    yield f"outputs: {_ports(found.outputs)}"
    yield f"operations: {sum(found.operations.values())}: {_counts(found.operations)}"
    yield f"convolutions: {len(found.layers)}; weights: {_counts(found.weights)}; read: {_counts(found.activations)}"
    if kept := found.kept:
        yield f"left in floating point: {len(kept)}: {', '.join(layer.name for layer in kept)}"
    for key, value in found.metadata.items():
        text = " ".join(value.split())
        yield f"{key}: {text if len(text) <= LONGEST else text[:LONGEST] + ' …'}"
    if record:
        yield f"record: {record['exporter']} {record['precision']}, made {record['created']}, its files unchanged"
        yield from (f"note: {note}" for note in record["notes"])


def _ports(ports: Sequence[Port]) -> str:
    return "; ".join(f"{p.name} ({p.kind}, {' x '.join(p.shape)})" for p in ports)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))


def _print_layers(found: ModelFile) -> None:
    from rich.table import Table

    table = Table("convolution", "weight shape", "stored as", "reads", box=None, header_style="bold", pad_edge=False)
    table.add_column("bytes", justify="right")
    for layer in found.layers:
        shape = "x".join(str(n) for n in layer.shape)
        table.add_row(*map(rich_text, (layer.name, shape, layer.weight, layer.activation, f"{layer.bytes:,}")))
    print_whole(table)


@o.grouped
def golden(
    network: o.Network,
    out: Annotated[Path, typer.Option(help="Folder for the vectors.")] = Path("golden"),
    as_json: AsJson = "",
) -> None:
    """Write a picture, its network input and the reference's mask, for a port to compare itself with stage by stage."""
    with waiting(f"reading {network.weights}"):
        made = inspecting.golden(
            network.weights, out, size=network.size or None, resize=network.resize, contract=network.contract
        )
    o.written([made], as_json)
