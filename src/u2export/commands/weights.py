"""`u2export weights list|pull|info|convert`, and `u2export pull` for artifacts that are ready."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import inspecting
from u2export.api import ready as api
from u2export.commands.console import echo, stdout, waiting
from u2export.commands.options import AsJson, print_json, show_artifact, written
from u2export.commands.parsing import Command, Group
from u2export.text import rich_text

app = typer.Typer(
    cls=Group, help="Named weights: list them, fetch them, look into a file, convert it.", no_args_is_help=True
)


@app.command("list", cls=Command)
def list_weights(as_json: AsJson = "") -> None:
    """Show the named weights, where they come from, and which are on this machine already."""
    found = inspecting.list_weights()
    if as_json:
        rows = [
            {"name": w.name, "about": w.about, "licence": w.licence, "digest": w.digest, "sources": w.sources,
             "cached": str(w.cached) if w.cached else None}
            for w in found
        ]  # fmt: skip
        if print_json(rows, as_json):
            return
    from rich.table import Table

    table = Table("name", "weights", "licence", "here", box=None, header_style="bold")
    for w in found:
        table.add_row(*map(rich_text, (w.name, w.about, w.licence, "yes" if w.cached else "no")))
    stdout().print(table)
    echo("", "Sources")  # whole: they are copied
    for w in found:
        echo(*(f"  {w.name}: {source}" for source in w.sources))


@app.command(cls=Command)
def pull(name: Annotated[str, typer.Argument(help="A name of `u2export weights list`.")], as_json: AsJson = "") -> None:
    """Fetch named weights into the cache and check their hash; prints the file's path."""
    with waiting(f"fetching {name}"):
        path, digest = inspecting.pull_weights(name)
    if not print_json({"name": name, "path": str(path), "sha256": digest}, as_json):
        echo(path)


@app.command(cls=Command)
def info(weights: Annotated[str, typer.Argument(help="A name, or a file.")], as_json: AsJson = "") -> None:
    """Show variant, channels, parameters and hash of weights."""
    facts = inspecting.weights_facts(weights)
    if print_json(facts, as_json):
        return
    for key, value in facts.items():
        echo(f"{key:14}{value:,}" if isinstance(value, int) else f"{key:14}{value}")


@app.command(cls=Command)
def convert(
    weights: Annotated[str, typer.Argument(help="A name, or a .pth, .safetensors or .onnx file.")],
    to: Annotated[Path, typer.Option(help="A .pth or .safetensors file to write.")],
    as_json: AsJson = "",
) -> None:
    """Write weights under the published parameter names, loadable with strict=True; prints the file's path."""
    written([inspecting.convert_weights(weights, to)], as_json)


def pull_ready(
    name: Annotated[str, typer.Argument(help=f"The artifact: {', '.join(api.READY)}.")],
    out: Annotated[Path, typer.Option(help="Folder for the artifact and its record.")] = Path("artifacts"),
    as_json: AsJson = "",
) -> None:
    """Write a verified artifact that this package ships, without PyTorch or a network; prints the file's path."""
    show_artifact(api.pull(name, out), as_json)
