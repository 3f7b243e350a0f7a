"""`u2export weights list|pull|info|convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from u2export.commands.console import stderr
from u2export.commands.options import AsJson, shown
from u2export.errors import UserError
from u2export.reference import weights as w

app = typer.Typer(help="Named weights: list them, fetch them, look into a file, convert it.", no_args_is_help=True)


@app.command("list")
def list_weights(as_json: AsJson = False) -> None:
    """The named weights, where they come from, and which are here already."""
    rows: list[dict[str, Any]] = [
        {
            "name": k.name,
            "about": k.about,
            "licence": k.licence,
            "digest": k.digest,
            "sources": list(k.sources),
            "cached": str(w.cached(k.name)) if w.cached(k.name).is_file() else None,
        }
        for k in w.WEIGHTS.values()
    ]
    if as_json:
        print(shown(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "weights", "licence", "here", "sources", box=None, header_style="bold")
    for row in rows:
        here = "yes" if row["cached"] else "no"
        table.add_row(row["name"], row["about"], row["licence"], here, "\n".join(w.WEIGHTS[str(row["name"])].sources))
    Console().print(table)


@app.command()
def pull(name: Annotated[str, typer.Argument(help="A name of `weights list`.")], as_json: AsJson = False) -> None:
    """Fetch named weights into the cache, hash checked; prints the file's path."""
    with stderr().status(f"fetching {name}"):
        path = w.pull(name)
    print(shown({"name": name, "path": str(path), "sha256": w.file_digest(path)}) if as_json else path)


@app.command()
def info(weights: Annotated[str, typer.Argument(help="A name, or a file.")], as_json: AsJson = False) -> None:
    """Variant, channels, parameters and hash of weights."""
    identity, model = w.load(weights)
    facts: dict[str, Any] = {
        "name": identity.label,
        "sha256": identity.sha256,
        "variant": model.variant.name,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len(model.state_dict()),
        "widths": [[x.middle, x.out] for x in model.variant.widths],
    }
    if as_json:
        print(shown(facts))
        return
    for key, value in facts.items():
        print(f"{key:14}{value:,}" if isinstance(value, int) else f"{key:14}{value}")


@app.command()
def convert(
    weights: Annotated[str, typer.Argument(help="A name, or a .pth .safetensors .onnx file.")],
    to: Annotated[Path, typer.Option(help="A .pth or .safetensors file to write.")],
) -> None:
    """Write weights under the published parameter names, loadable with strict=True; prints the file's path."""
    if to.suffix not in (".pth", ".safetensors"):
        raise UserError(f"cannot write weights as {to.suffix or to.name!r}", "name a .pth or .safetensors file")
    _, model = w.load(weights)
    w.save(model, to)
    print(to)
