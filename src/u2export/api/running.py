"""Run an artifact: open it, and make masks or cut-outs of photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact as _read_artifact
from u2export.exporters.open import target_of
from u2export.exporters.runtime import Runner
from u2export.files import make_folder, staged
from u2export.reference.image import Contract, Floats, Picture, Pixels, mask_for
from u2export.reference.photos import (
    MAX_PIXELS_VARIABLE,
    Photo,
    eight_bit,
    find_photos,
    open_picture,
    read_input,
    write_mask,
)

__all__ = ["OpenArtifact", "Written", "open_artifact", "predict", "read_artifact", "trust_engines", "write_masks"]

Skip = Callable[[Path, UserError], None]


@dataclass(frozen=True)
class OpenArtifact:
    """An artifact that is open on this machine. `open_artifact` makes it.

    Attributes:
        artifact: what was opened.
        runner: the runtime's side of it, see `u2export.exporters.Runner`.
    """

    artifact: Artifact
    runner: Runner = field(repr=False)

    @property
    def contract(self) -> Contract:
        """The pre- and postprocessing that the artifact expects, and its input size."""
        return self.artifact.contract

    @property
    def info(self) -> Mapping[str, str]:
        """What really runs, as the runtime says: runtime, device, arithmetic, threads and so on."""
        return self.runner.info

    def __call__(self, batch: Floats) -> Floats:
        """Return the fused map d0 of network inputs.

        Args:
            batch: (N, C, H, W) float32, as `input` makes it.

        Returns:
            (N, K, H, W) float32: d0 before it is stretched; K is 1 for the published networks.
        """
        return self.runner(batch)

    def input(self, photo: str | Path | Picture) -> Floats:
        """Return the network input (1, C, H, W) float32 of one photo, as the artifact's contract says.

        Args:
            photo: a picture file, or its pixels (h, w, C) as uint8 or float32.

        Raises:
            UserError: the picture cannot be read, or has another number of channels.
        """
        return self.contract.tensor(photo) if isinstance(photo, np.ndarray) else read_input(self.contract, Path(photo))

    def mask(self, photo: str | Path | Picture) -> Pixels:
        """Return the mask of one photo.

        Args:
            photo: a picture file (or a `.npy` array for models of neither 1 nor 3 channels), or its pixels
                (H, W, channels) as uint8 or float32.

        Returns:
            (H, W) uint8, at the photo's own size: 0 is background, 255 is the salient object.

        Raises:
            UserError: the picture cannot be read, or the artifact gives NaN or infinite values.
        """
        if isinstance(photo, np.ndarray):
            return self._mask(Photo(photo, *photo.shape[:2]), "the photo")
        return self._mask(open_picture(Path(photo), self.contract.channels), str(photo))

    def _mask(self, photo: Photo, name: str) -> Pixels:
        d0 = self(self.contract.tensor(photo.pixels))
        if not np.isfinite(d0).all():
            raise UserError(
                f"{name}: the artifact's d0 holds NaN or infinite values", "export the network in a higher precision"
            )
        return mask_for(d0[0, 0], photo.height, photo.width)


@dataclass(frozen=True)
class Written:
    """What `write_masks` did.

    Attributes:
        files: the file of each photo.
        skipped: the reason for each photo that could not be read.
        info: what really ran, as in `OpenArtifact.info`.
    """

    files: Mapping[Path, Path]
    skipped: Mapping[Path, str]
    info: Mapping[str, str]


def read_artifact(path: str | Path) -> Artifact:
    """Return the artifact at a path, after a check that its files are those of its record.

    Args:
        path: a model file or folder, or the .json record beside it. An .onnx, .ort, .engine or .mlpackage without a
            record is taken as it is, under the default image contract.

    Raises:
        UserError: the path does not exist, its record cannot be read, or a file has changed since its record was
            written.

    Example:
        >>> u2.read_artifact(artifact.path).precision
        'fp32'
    """
    return _read_artifact(Path(path))


@contextmanager
def open_artifact(
    artifact: Artifact | str | Path, arithmetic: str = "", *, threads: int = 0, trust: bool = False
) -> Iterator[OpenArtifact]:
    """Open an artifact on this machine, for the time of a `with` block.

    Args:
        artifact: an artifact, its file, or its record.
        arithmetic: one of the arithmetics or devices that this machine runs the artifact in, such as "bf16" or
            "fp32 cuda"; the artifact's own by default.
        threads: processors to use, where the runtime can be told; 0 for all that this process may use.
        trust: open a TensorRT engine although it was built on another machine. An engine is native code. This machine
            then opens the engine from now on.

    Returns:
        A context manager. It gives a callable runner with `info` and `contract`, see `OpenArtifact`.

    Raises:
        UserError: the artifact cannot be read, or this machine has no such arithmetic.
        Unavailable: the runtime is not installed here, or has no device.

    Example:
        >>> with u2.open_artifact(artifact) as runner:
        ...     d0 = runner(runner.input(photo))
        ...     mask = runner.mask(photo)
        >>> d0.shape, d0.dtype
        ((1, 1, 64, 64), dtype('float32'))
        >>> mask.shape, mask.dtype
        ((90, 120), dtype('uint8'))
    """
    opened = artifact if isinstance(artifact, Artifact) else None
    if trust:
        trust_engines([opened.path if opened else Path(str(artifact))])
    opened = opened or read_artifact(artifact)  # type: ignore[arg-type]
    with target_of(opened).load(opened, arithmetic, threads) as runner:
        yield OpenArtifact(opened, runner)


def predict(
    artifact: Artifact | str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    arithmetic: str = "",
    threads: int = 0,
    trust: bool = False,
    skip: Skip | None = None,
) -> dict[Path, Pixels]:
    """Return the masks of photos by an artifact.

    All masks are in memory at once; `write_masks` holds one at a time.

    Args:
        artifact: an artifact, its file, or its record.
        images: photos, or folders of photos (searched with their sub-folders).
        arithmetic, threads, trust: as for `open_artifact`.
        skip: is called with each photo that cannot be read and with the error; the photo is then left out. Without
            it, the first such photo raises the error.

    Returns:
        The mask of each photo: (H, W) uint8, at the photo's own size, by the photo's path.

    Raises:
        UserError: no photo was found, a photo cannot be read, or the artifact cannot be opened, see `open_artifact`.

    Example:
        >>> masks = u2.predict(artifact, photo)
        >>> {path.name: mask.shape for path, mask in masks.items()}
        {'photo.png': (90, 120)}
    """
    photos = find_photos(_paths(images), arrays=_takes_arrays(artifact))
    with open_artifact(artifact, arithmetic, threads=threads, trust=trust) as runner:
        return {path: mask for path, _, mask in _masks(runner, photos, skip)}


def write_masks(
    artifact: Artifact | str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path = "masks",
    *,
    cutout: bool = False,
    arithmetic: str = "",
    threads: int = 0,
    trust: bool = False,
    strict: bool = False,
    skip: Skip | None = None,
) -> Written:
    """Write `<stem>.png` for every photo: an 8-bit mask of the photo's size, or the cut-out object.

    Args:
        artifact, images, arithmetic, threads, trust: as for `predict`.
        out: the folder for the files; sub-folders are those of the photos.
        cutout: write the photo with the mask as its alpha channel, in place of the mask.
        strict: raise the error of the first photo that cannot be read. The error of a single photo is always raised.
        skip: is called with each photo that is skipped and with the error.

    Returns:
        The files by photo, the skipped photos with their reasons, and what really ran.

    Raises:
        UserError: as `predict`; also when two photos would write one file, a file would replace its photo, or none of
            the photos could be read. No photo is ever overwritten.

    Example:
        >>> written = u2.write_masks(artifact, photo, folder / "masks")
        >>> [file.name for file in written.files.values()]
        ['photo.png']
    """
    given = _paths(images)
    photos = find_photos(given, arrays=_takes_arrays(artifact))
    targets = _targets(photos, given, Path(out))
    skipped: dict[Path, str] = {}
    files: dict[Path, Path] = {}

    def note(photo: Path, error: UserError) -> None:
        if strict or len(photos) == 1:
            raise error
        skipped[photo] = error.problem
        if skip:
            skip(photo, error)

    with open_artifact(artifact, arithmetic, threads=threads, trust=trust) as runner:
        make_folder(Path(out))
        for path, photo, mask in _masks(runner, photos, note):
            try:
                shown = _cut_out(path, photo, mask) if cutout else mask
            except UserError as error:
                note(path, error)
                continue
            with staged(targets[path]) as temporary:
                write_mask(shown, temporary, photo.icc if cutout else b"")
            files[path] = targets[path]
        info = dict(runner.info)
    if not files:
        raise UserError("none of the photos could be read", "see the reasons above")
    return Written(files, skipped, info)


def trust_engines(paths: Iterable[Path]) -> None:
    """Let this machine open the TensorRT engines among artifacts from now on, although other machines built them.

    An engine is native code: trust only what comes from a source that you know.
    """
    from u2export.exporters.trt.engine_file import ENGINE
    from u2export.exporters.trt.trust import trust

    for path in paths:
        if (engine := read_artifact(path).path).suffix == ENGINE:
            trust(engine)


def _takes_arrays(artifact: Artifact | str | Path) -> bool:
    """Whether the pictures of an artifact are `.npy` arrays: no photo has its number of channels."""
    opened = artifact if isinstance(artifact, Artifact) else read_artifact(artifact)
    return opened.contract.channels not in (1, 3)


def _paths(images: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(images)] if isinstance(images, (str, Path)) else [Path(image) for image in images]


def _masks(runner: OpenArtifact, photos: Iterable[Path], skip: Skip | None) -> Iterator[tuple[Path, Photo, Pixels]]:
    """Give each file with the photo in it and its mask (H, W)."""
    for path in photos:
        try:
            photo = open_picture(path, runner.contract.channels)
            mask = runner._mask(photo, str(path))
        except UserError as error:
            if skip is None:
                raise
            skip(path, error)
        else:
            yield path, photo, mask


def _targets(photos: list[Path], given: list[Path], out: Path) -> dict[Path, Path]:
    """Return the file of each photo: `<stem>.png` in the folder structure of the photos."""
    taken: dict[Path, Path] = {}
    for photo in photos:
        root = next((g for g in given if g.is_dir() and photo.is_relative_to(g)), photo.parent)
        target = (out / photo.relative_to(root)).with_suffix(".png")
        if target in taken:
            raise UserError(
                f"{taken[target]} and {photo} would both write {target}", "rename one of them, or give them apart"
            )
        if target.resolve() == photo.resolve():
            raise UserError(f"the mask of {photo} would overwrite the photo", "choose another folder", "out")
        taken[target] = photo
    return {photo: target for target, photo in taken.items()}


def _cut_out(path: Path, photo: Photo, mask: Pixels) -> Pixels:
    """Return the photo (H, W, 4): its alpha channel is the mask, times the photo's own where it has one."""
    if photo.pixels.shape[2] not in (1, 3):
        raise UserError(f"{path}: a cut-out needs 1 or 3 channels, not {photo.pixels.shape[2]}", "write masks instead")
    if photo.pixels.shape[:2] != mask.shape:
        raise UserError(
            f"{path}: too large to be cut out at full size",
            f"raise the limit of pixels with the environment variable {MAX_PIXELS_VARIABLE}, or write masks instead",
        )
    if photo.alpha is not None:
        mask = np.asarray((mask.astype(np.uint16) * photo.alpha + 127) // 255, np.uint8)
    return np.dstack((np.broadcast_to(eight_bit(photo.pixels), (*mask.shape, 3)), mask))
