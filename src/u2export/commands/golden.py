"""`u2export golden`: vectors that a port on a device checks itself with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import inspecting
from u2export.commands import options as o
from u2export.commands.console import waiting


@o.grouped
def golden(
    network: o.Network,
    out: Annotated[Path, typer.Option(help="Folder for the vectors.")] = Path("golden"),
    as_json: o.AsJson = "",
) -> None:
    """Write a picture, its network input and the reference's mask, for a port to compare itself with stage by stage."""
    with waiting(f"reading {network.weights}"):
        made = inspecting.golden(
            network.weights, out, size=network.size or None, resize=network.resize, contract=network.contract
        )
    o.written([made], as_json)
