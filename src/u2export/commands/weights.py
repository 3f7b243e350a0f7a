"""`u2export weights list|pull|info|convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import inspecting
from u2export.commands.console import echo, stdout, waiting
from u2export.commands.options import AsJson
from u2export.text import json_text, rich_text

app = typer.Typer(help="Named weights: list them, fetch them, look into a file, convert it.", no_args_is_help=True)


@app.command("list")
def list_weights(as_json: AsJson = False) -> None:
    """Show the named weights, where they come from, and which are on this machine already."""
    found = inspecting.list_weights()
    if as_json:
        rows = [
            {"name": w.name, "about": w.about, "licence": w.licence, "digest": w.digest, "sources": w.sources,
             "cached": str(w.cached) if w.cached else None}
            for w in found
        ]  # fmt: skip
        print(json_text(rows))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("name", "weights", "licence", "here", "sources", box=None, header_style="bold")
    for w in found:
        cells = (w.name, w.about, w.licence, "yes" if w.cached else "no")
        table.add_row(*map(rich_text, cells), Text("\n").join(map(rich_text, w.sources)))
    stdout().print(table)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of `u2export weights list`.")], as_json: AsJson = False
) -> None:
    """Fetch named weights into the cache and check their hash; prints the file's path."""
    with waiting(f"fetching {name}"):
        path, digest = inspecting.pull_weights(name)
    if as_json:
        print(json_text({"name": name, "path": str(path), "sha256": digest}))
    else:
        echo(path)


@app.command()
def info(weights: Annotated[str, typer.Argument(help="A name, or a file.")], as_json: AsJson = False) -> None:
    """Show variant, channels, parameters and hash of weights."""
    facts = inspecting.weights_facts(weights)
    if as_json:
        print(json_text(facts))
        return
    for key, value in facts.items():
        echo(f"{key:14}{value:,}" if isinstance(value, int) else f"{key:14}{value}")


@app.command()
def convert(
    weights: Annotated[str, typer.Argument(help="A name, or a .pth, .safetensors or .onnx file.")],
    to: Annotated[Path, typer.Option(help="A .pth or .safetensors file to write.")],
) -> None:
    """Write weights under the published parameter names, loadable with strict=True; prints the file's path."""
    echo(inspecting.convert_weights(weights, to))
