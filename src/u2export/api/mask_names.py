"""What the masks of photos are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from u2export.errors import UserError


def mask_files(photos: list[Path], given: list[Path], out: Path) -> dict[Path, Path]:
    """Return the file of each photo: `<stem>.png` in the folder structure of the photos.

    Photos that would share a file (`a.avif` and `a.jfif`) keep their whole names: `a.avif.png` and `a.jfif.png`.

    Raises:
        UserError: two photos would still write one file, or a file would replace a photo.
    """
    bases = {photo: out / photo.relative_to(_root(photo, given)) for photo in photos}
    targets = {photo: base.with_suffix(".png") for photo, base in bases.items()}
    while shared := _sharing(targets):
        whole = {photo: bases[photo].with_name(bases[photo].name + ".png") for photo in shared}
        if all(targets[photo] == target for photo, target in whole.items()):
            one, other = shared[:2]
            raise UserError(
                f"{one} and {other} would both write {whole[one]}", "rename one of them, or give them apart"
            )
        targets.update(whole)
    originals = {photo.resolve() for photo in photos}
    for photo, target in targets.items():
        if target.resolve() in originals:
            owner = "the photo" if target.resolve() == photo.resolve() else str(target)
            raise UserError(f"the mask of {photo} would overwrite {owner}", "choose another folder", "out")
    return targets


def _root(photo: Path, given: list[Path]) -> Path:
    return next((g for g in given if g.is_dir() and photo.is_relative_to(g)), photo.parent)


def _sharing(targets: Mapping[Path, Path]) -> list[Path]:
    """Return the photos of the first file that several photos would write; empty where each has its own."""
    by_file: dict[Path, list[Path]] = {}
    for photo, target in targets.items():
        by_file.setdefault(target, []).append(photo)
    return next((photos for photos in by_file.values() if len(photos) > 1), [])
