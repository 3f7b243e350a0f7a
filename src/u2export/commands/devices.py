"""`u2export import` and `u2export kit`: numbers of devices that u2export does not reach itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import tables
from u2export.commands.console import waiting
from u2export.commands.options import AsJson, choice, written


def import_(
    file: Annotated[Path, typer.Argument(help="What the other tool wrote.")],
    form: Annotated[str, choice(tuple(tables.TOOLS), "The tool.", "--as")],
    artifact: Annotated[
        Path | None, typer.Option(help="What was timed: an artifact or its record. Without it the weights are unknown.")
    ] = None,
    kit: Annotated[
        Path | None, typer.Option(help="The folder of `u2export kit`: its artifact, and the masks to compare with.")
    ] = None,
    device: Annotated[str, typer.Option(help="The machine, where the file does not say.")] = "",
    log: Annotated[Path | None, typer.Option(help="What the tool printed: version, options, device.")] = None,
    power: Annotated[
        Path | None, typer.Option(help="What tegrastats, nvidia-smi or powermetrics logged during the run: energy.")
    ] = None,
    precision: Annotated[str, typer.Option(help="The arithmetic, where neither file nor artifact says.")] = "",
    published: Annotated[
        str, typer.Option(metavar="URL", help="Where others published the file; rows are marked as theirs.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for <device>-<file>.json, one for each device.")] = Path(
        "artifacts"
    ),
    as_json: AsJson = "",
) -> None:
    """Read latencies that another tool measured into results for `u2export table`; they stay marked as imported."""
    made = tables.import_results(
        file, form, artifact=artifact, kit=kit, device=device, log=log, power=power, precision=precision,
        published=published, out=out,
    )  # fmt: skip
    written(made, as_json)


def kit(
    phone: Annotated[str, typer.Argument(metavar="|".join(tables.PHONES), help="The kind of phone.")],
    artifact: Annotated[
        Path,
        typer.Argument(
            help="coreml: a Core ML package; android: a file of `u2export ort --mobile`, litert or executorch; "
            "web: a file of `u2export onnx` or ort."
        ),
    ],
    weights: Annotated[
        str, typer.Option(help="The weights that it was made of, where the name in its record does not find them.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for the kit.")] = Path("artifacts"),
    as_json: AsJson = "",
) -> None:
    """Write a folder to take to a phone: artifact, inputs, expected masks, a timing program, exact commands."""
    with waiting("computing the expected masks"):
        made = tables.phone_kit(phone, artifact, weights=weights, out=out)
    written([made], as_json)
