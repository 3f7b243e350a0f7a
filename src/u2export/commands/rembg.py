"""`u2export rembg`: artifacts where rembg looks for its models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from u2export.api import rembg as api
from u2export.commands.console import echo
from u2export.commands.options import AsJson, print_json
from u2export.commands.parsing import Command, Group

app = typer.Typer(cls=Group, help="Artifacts where rembg looks for its models.", no_args_is_help=True)
Home = Annotated[
    Path | None,
    typer.Option(help="Folder of rembg; by default what rembg finds in the environment.", show_default=False),
]
Flat = Annotated[bool, typer.Option("--flat", help="The place of older versions of rembg, ~/.u2net/<model>.onnx.")]


@app.callback()
def rembg() -> None:
    """Artifacts where rembg looks for its models."""


@app.command(cls=Command)
def install(
    artifact: Annotated[Path, typer.Argument(help="An .onnx artifact that was exported with --resize lanczos.")],
    model: Annotated[
        str, typer.Option(help="Name of the model in rembg; by default that of the weights.", show_default=False)
    ] = "",
    home: Home = None,
    flat: Flat = False,
    as_json: AsJson = "",
) -> None:
    """Put an artifact where rembg looks; a file of your own is kept, and `remove` puts it back."""
    show(api.install(artifact, model=model, home=home, flat=flat), as_json)


@app.command(cls=Command)
def remove(
    model: Annotated[str, typer.Argument(help="Name of the model in rembg.")],
    home: Home = None,
    flat: Flat = False,
    as_json: AsJson = "",
) -> None:
    """Take the artifact away again, and put your own file back."""
    show(api.remove(model, home=home, flat=flat), as_json)


@app.command(cls=Command)
def status(home: Home = None, as_json: AsJson = "") -> None:
    """Show which file rembg opens for each model."""
    places = api.status(home=home)
    if not print_json([place.to_json() for place in places], as_json):
        for place in places:
            echo(told(place))


def show(place: api.Place, as_json: str) -> None:
    """Print one place, and the variables that rembg needs."""
    if print_json(place.to_json(), as_json):
        return
    echo(told(place))
    for name, value in (place.environment or {}).items():
        echo(f"export {name}={shlex.quote(value)}")


def told(place: api.Place) -> str:
    """Return a line about one place."""
    what = {
        "u2export": f"artifact {place.artifact}",
        "own": "a file of your own",
        "none": "no file, rembg fetches its own",
    }
    kept = f"; your own file is kept as {place.backup.name}" if place.backup else ""
    return f"{place.model}: {place.file}: {what[place.state]}{kept}"
