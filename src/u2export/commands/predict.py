"""`u2export predict`: masks or cut-outs of photos by any artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.commands import options
from u2export.commands.options import AsJson, Trust, shown
from u2export.errors import UserError

if TYPE_CHECKING:
    from u2export.exporters import Artifact, Runner


def predict(
    images: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    model: Annotated[Path, typer.Option(help="An artifact, its record, or an .onnx file.")],
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("masks"),
    cutout: Annotated[
        bool, typer.Option("--cutout", help="Write the photo with the mask as its alpha channel, in place of the mask.")
    ] = False,
    arithmetic: Annotated[
        str, typer.Option("--arithmetic", "--mode", help="Arithmetic or device, where the artifact runs in several.")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first photo that cannot be read.")] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write `<stem>.png`, an 8-bit mask of the photo's size, for every photo."""
    from u2export.exporters import EXPORTERS
    from u2export.exporters.open import read_artifact
    from u2export.files import make_folder
    from u2export.reference.image import find_photos

    photos = find_photos(images)
    targets = _targets(photos, images, out)
    if trust:
        options.trust([model])
    artifact = read_artifact(model)
    make_folder(out)
    failed: dict[str, str] = {}
    written: list[str] = []
    with EXPORTERS[artifact.exporter].load(artifact, arithmetic) as runner:
        for photo, target in zip(photos, targets, strict=True):
            try:
                _write(photo, target, artifact, runner, cutout)
                written.append(str(target))
            except UserError as error:
                if strict or len(photos) == 1:
                    raise
                failed[str(photo)] = error.problem
                print(f"u2export: skipped {error.problem}", file=sys.stderr)
    if as_json:
        print(shown({"written": written, "skipped": failed, "ran": dict(runner.info)}))
    else:
        print(*written, sep="\n")
    if failed:
        print(f"u2export: {len(failed)} of {len(photos)} photos skipped", file=sys.stderr)
    if not written:
        raise UserError("none of the photos could be read", "see the reasons above")


def _targets(photos: list[Path], given: list[Path], out: Path) -> list[Path]:
    """`<stem>.png` in the folder structure of the photos.

    Raises:
        UserError: two photos would write the same file, or a result would overwrite its photo.
    """
    targets: dict[Path, Path] = {}
    for photo in photos:
        root = next((g for g in given if g.is_dir() and photo.is_relative_to(g)), photo.parent)
        target = (out / photo.relative_to(root)).with_suffix(".png")
        if target in targets:
            raise UserError(
                f"{targets[target]} and {photo} would both write {target}", "rename one, or give them apart"
            )
        if target.resolve() == photo.resolve():
            raise UserError(f"the mask of {photo} would overwrite the photo", "choose another --out")
        targets[target] = photo
    return list(targets)


def _write(photo: Path, target: Path, artifact: Artifact, runner: Runner, cutout: bool) -> None:
    import numpy as np

    from u2export.files import staged
    from u2export.reference.image import mask_for, read_photo, write_mask

    contract = artifact.contract
    pixels = read_photo(photo, contract.channels)
    d0 = runner(contract.tensor(pixels))
    if not np.isfinite(d0).all():
        raise UserError(f"{photo}: the artifact's d0 holds NaN or infinite values", "export it in a higher precision")
    mask = mask_for(d0[0, 0], *pixels.shape[:2])
    if cutout:
        rgb = np.broadcast_to(pixels, (*mask.shape, 3))
        mask = np.dstack((rgb, mask))
    with staged(target) as temporary:
        write_mask(mask, temporary)
