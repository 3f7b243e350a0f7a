"""`u2export predict`: masks or cut-outs of photos, by any artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import running
from u2export.api.video import write_video
from u2export.commands.console import Bars, echo, remark, say
from u2export.commands.options import AsJson, OutputName, Trust, print_json
from u2export.errors import UserError, WrongValue


def predict(
    model: Annotated[Path, typer.Option(help="An artifact, its record, or an .onnx file.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Photos, or folders of photos.")] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video in place of photos; writes <stem>.mkv, lossless.", show_default=False)
    ] = None,
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
    if (video is None) == (not images):
        raise WrongValue("photos or a video are needed, not both", "name photos or folders, or give --video FILE")
    if video is not None:
        if classes or strict:
            raise WrongValue("--classes and --strict are for photos", "leave them out beside --video")
        with Bars() as bars:
            film = write_video(
                model, video, out, cutout=cutout, arithmetic=arithmetic, output_name=output_name, trust=trust,
                progress=lambda done, total: bars.show("frames", done, total or done),
            )  # fmt: skip
        remark(*(f"note: {note}" for note in film.notes), f"{film.frames} frames")
        told = {"written": [str(film.file)], "frames": film.frames, "ran": dict(film.info), "notes": film.notes}
        if not print_json(told, as_json):
            echo(film.file)
        return

    def skip(photo: Path, error: UserError) -> None:
        say(f"skipped {error.problem}", error.hint)

    with Bars() as bars:
        made = running.write_masks(
            model, images or [], out, cutout=cutout, classes=classes, arithmetic=arithmetic, output_name=output_name,
            trust=trust, strict=strict, skip=skip, progress=lambda done, total: bars.show("photos", done, total),
        )  # fmt: skip
    remark(*(f"note: {note}" for note in made.notes))
    written = [str(file) for file in made.files.values()]
    of_classes = {str(photo): [str(file) for file in files] for photo, files in made.classes.items()}
    skipped = {str(photo): problem for photo, problem in made.skipped.items()}
    more = {"classes": of_classes} if of_classes else {}
    ran = {"skipped": skipped, "ran": dict(made.info), "notes": made.notes}
    if not print_json({"written": written, **more, **ran}, as_json):
        echo(*written, *(file for files in of_classes.values() for file in files))
    if made.skipped:
        say(f"{len(made.skipped)} of {len(written) + len(made.skipped)} photos skipped")
