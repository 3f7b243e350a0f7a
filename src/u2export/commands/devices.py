"""`u2export import` and `u2export kit`: numbers of devices that u2export does not reach itself."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from u2export.commands.console import stderr
from u2export.errors import UserError


class Form(str, Enum):
    """What wrote a file."""

    trtexec = "trtexec"
    benchmark_app = "benchmark_app"
    onnxruntime_perf = "onnxruntime-perf"
    coreml = "coreml"
    kit = "kit"
    aihub = "aihub"


class Phone(str, Enum):
    """Kinds of kits."""

    coreml = "coreml"
    android = "android"


def slug(text: str) -> str:
    """A device's name as a folder's: lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "device"


def import_(
    file: Annotated[Path, typer.Argument(help="What the other tool wrote.")],
    form: Annotated[Form, typer.Option("--as", help="The tool.")],
    artifact: Annotated[
        Path | None, typer.Option(help="What was timed: an artifact or its record. Without it the weights are unknown.")
    ] = None,
    kit: Annotated[
        Path | None, typer.Option(help="The folder of `u2export kit`: its artifact, and the masks to compare with.")
    ] = None,
    device: Annotated[str, typer.Option(help="The machine, where the file does not tell.")] = "",
    log: Annotated[Path | None, typer.Option(help="What the tool printed: version, options, device.")] = None,
    precision: Annotated[str, typer.Option(help="The arithmetic, where neither file nor artifact tells.")] = "",
    published: Annotated[
        str, typer.Option(metavar="URL", help="Where others published the file; rows are marked as theirs.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for <device>-<file>.json, one for each device.")] = Path(
        "artifacts"
    ),
) -> None:
    """Read latencies that another tool measured into results for `u2export table`; they stay marked as imported."""
    from u2export.benchmarks.imports.kit import artifact_of, judge
    from u2export.benchmarks.imports.rows import Claim, reports
    from u2export.exporters.open import read_artifact
    from u2export.files import make_folder

    if artifact and kit:
        raise UserError("--artifact and --kit say the same thing", "give one of them")
    opened = read_artifact(artifact) if artifact else artifact_of(kit) if kit else None
    claim = Claim(device, precision, opened, published)
    made = reports(file, form.value, claim, log, judge(kit, file) if kit else None)
    make_folder(out)
    for report in made:
        target = out / f"{slug(report.device.model or report.device.cpu)}-{slug(file.stem)}.json"
        report.save(target)
        typer.echo(target)


def kit(
    phone: Annotated[Phone, typer.Argument(help="Where it is to run.")],
    artifact: Annotated[Path, typer.Argument(help="A Core ML package, or a file of `u2export ort --mobile`.")],
    weights: Annotated[
        str, typer.Option(help="The weights it was made of, where the record's name does not find them.")
    ] = "",
    out: Annotated[Path, typer.Option(help="Folder for the kit.")] = Path("artifacts"),
) -> None:
    """Write a folder to take to a phone: artifact, inputs, expected masks, a timing program, exact commands."""
    from u2export.benchmarks.imports.kit import PLATFORMS, write
    from u2export.exporters.open import read_artifact
    from u2export.reference.source import Source

    opened = read_artifact(artifact)
    with stderr().status("computing the expected masks"):
        source = Source.open(weights or opened.weights.name, opened.contract)
        typer.echo(write(opened, source, PLATFORMS[phone.value], out))
