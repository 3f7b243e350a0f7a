"""`u2export predict`: masks or cut-outs of photos, by any artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import running
from u2export.commands.console import echo, remark, say
from u2export.commands.options import AsJson, OutputName, Trust
from u2export.errors import UserError
from u2export.text import json_text


def predict(
    images: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    model: Annotated[Path, typer.Option(help="An artifact, its record, or an .onnx file.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("masks"),
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Write the photo with the mask as its alpha channel, in place of the mask.")
    ] = False,
    classes: Annotated[
        bool, typer.Option("--classes", help="Of several classes, write a mask for each one too.")
    ] = False,
    arithmetic: Annotated[
        str,
        typer.Option("--arithmetic", "--mode", help="Arithmetic or device, where the artifact runs in several."),
    ] = "",
    output_name: OutputName = "",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first photo that cannot be read.")] = False,
    trust: Trust = False,
    as_json: AsJson = "",
) -> None:
    """Write `<stem>.png` for every photo: an 8-bit mask of the photo's size, or the class of each pixel."""

    def skip(photo: Path, error: UserError) -> None:
        say(f"skipped {error.problem}", error.hint)

    made = running.write_masks(
        model, images, out, cutout=cutout, classes=classes, arithmetic=arithmetic, output_name=output_name, trust=trust,
        strict=strict, skip=skip,
    )  # fmt: skip
    remark(*(f"note: {note}" for note in made.notes))
    written = [str(file) for file in made.files.values()]
    of_classes = {str(photo): [str(file) for file in files] for photo, files in made.classes.items()}
    if as_json:
        skipped = {str(photo): problem for photo, problem in made.skipped.items()}
        told = {"classes": of_classes} if of_classes else {}
        ran = {"skipped": skipped, "ran": dict(made.info), "notes": made.notes}
        print(json_text({"written": written, **told, **ran}))
    else:
        echo(*written, *(file for files in of_classes.values() for file in files))
    if made.skipped:
        say(f"{len(made.skipped)} of {len(written) + len(made.skipped)} photos skipped")
