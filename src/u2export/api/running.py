"""Run an artifact: open it, and make masks or cut-outs of photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from u2export.api.mask_names import mask_files
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact as _read_artifact
from u2export.exporters.open import target_of
from u2export.exporters.runtime import Runner
from u2export.files import make_folder, staged
from u2export.reference.classes import class_mask_for, palette, probabilities, shown_for
from u2export.reference.image import Contract, Floats, Picture, Pixels
from u2export.reference.photos import (
    MAX_PIXELS_VARIABLE,
    Photo,
    eight_bit,
    find_photos,
    open_picture,
    read_input,
    write_classes,
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
            (N, K, H, W) float32: d0 before it is stretched; K is the number of classes, 1 for networks of one mask.
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
        """Return the mask of one photo; of a network with several classes, the class of each pixel.

        Args:
            photo: a picture file (or a `.npy` array for models of neither 1 nor 3 channels), or its pixels
                (H, W, channels) as uint8 or float32.

        Returns:
            (H, W) uint8, at the photo's own size: 0 is background, 255 is the salient object. Of K classes, the numbers
            0 to K - 1: each pixel has the class of its largest map.

        Raises:
            UserError: the picture cannot be read, or the artifact gives NaN or infinite values.
        """
        return _mask(*self._predicted(photo))

    def class_masks(self, photo: str | Path | Picture) -> Pixels:
        """Return a mask of one photo for each class.

        Args:
            photo: as for `mask`.

        Returns:
            (K, H, W) uint8, at the photo's own size: 255 where the map of the class is 1. The maps of several classes
            are not stretched, so that the mask of an absent class is dark. Networks of one mask give that mask (K = 1).

        Raises:
            UserError: as for `mask`.
        """
        return _class_masks(*self._predicted(photo))

    def _predicted(self, photo: str | Path | Picture) -> tuple[Floats, Photo]:
        if isinstance(photo, np.ndarray):
            opened = Photo(photo, *photo.shape[:2])
            return self._maps(opened, "the photo"), opened
        opened = open_picture(Path(photo), self.contract.channels)
        return self._maps(opened, str(photo)), opened

    def _maps(self, photo: Photo, name: str) -> Floats:
        """Return all maps (K, h, w) of a photo at the network's size."""
        d0 = self(self.contract.tensor(photo.pixels))
        if not np.isfinite(d0).all():
            raise UserError(
                f"{name}: the artifact's d0 holds NaN or infinite values", "export the network in a higher precision"
            )
        maps: Floats = d0[0]
        return maps


@dataclass(frozen=True)
class Written:
    """What `write_masks` did.

    Attributes:
        files: the file of each photo.
        classes: the files of the classes of each photo, where they were asked for.
        skipped: the reason for each photo that could not be read.
        info: what really ran, as in `OpenArtifact.info`.
        notes: what a reader of the masks must know, such as what was assumed of a file without a record.
    """

    files: Mapping[Path, Path]
    skipped: Mapping[Path, str]
    info: Mapping[str, str]
    classes: Mapping[Path, tuple[Path, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_artifact(path: str | Path, output_name: str = "") -> Artifact:
    """Return the artifact at a path, after a check that its files are those of its record.

    Args:
        path: a model file or folder, or the .json record beside it. An .onnx, .ort, .engine or .mlpackage without a
            record is taken as it is, under the default image contract.
        output_name: the output that is the fused map d0, of an ONNX file without a record; by default it is found by
            the graph, or else by its name. The notes of the artifact say what was found and assumed.

    Raises:
        UserError: the path does not exist, its record cannot be read, a file has changed since its record was written,
            or a file without a record does not tell what it takes or gives.

    Example:
        >>> u2.read_artifact(artifact.path).precision
        'fp32'
    """
    return _read_artifact(Path(path), output_name)


@contextmanager
def open_artifact(
    artifact: Artifact | str | Path,
    arithmetic: str = "",
    *,
    output_name: str = "",
    threads: int = 0,
    trust: bool = False,
) -> Iterator[OpenArtifact]:
    """Open an artifact on this machine, for the time of a `with` block.

    Args:
        artifact: an artifact, its file, or its record.
        arithmetic: one of the arithmetics or devices that this machine runs the artifact in, such as "bf16" or
            "fp32 cuda"; the artifact's own by default.
        output_name: as for `read_artifact`, where `artifact` is a file.
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
    opened = _opened(artifact, output_name)
    if trust:
        trust_engines([opened.path])
    with target_of(opened).load(opened, arithmetic, threads) as runner:
        yield OpenArtifact(opened, runner)


def predict(
    artifact: Artifact | str | Path,
    images: str | Path | Iterable[str | Path],
    *,
    arithmetic: str = "",
    output_name: str = "",
    threads: int = 0,
    trust: bool = False,
    skip: Skip | None = None,
) -> dict[Path, Pixels]:
    """Return the masks of photos by an artifact.

    All masks are in memory at once; `write_masks` holds one at a time.

    Args:
        artifact: an artifact, its file, or its record.
        images: photos, or folders of photos (searched with their sub-folders).
        arithmetic, output_name, threads, trust: as for `open_artifact`.
        skip: is called with each photo that cannot be read and with the error; the photo is then left out. Without
            it, the first such photo raises the error.

    Returns:
        The mask of each photo: (H, W) uint8, at the photo's own size, by the photo's path; of a network with several
        classes, the class of each pixel. `OpenArtifact.class_masks` gives a mask for each class.

    Raises:
        UserError: no photo was found, a photo cannot be read, or the artifact cannot be opened, see `open_artifact`.

    Example:
        >>> masks = u2.predict(artifact, photo)
        >>> {path.name: mask.shape for path, mask in masks.items()}
        {'photo.png': (90, 120)}
    """
    opened = _opened(artifact, output_name)
    photos = find_photos(_paths(images), arrays=_takes_arrays(opened))
    with open_artifact(opened, arithmetic, threads=threads, trust=trust) as runner:
        return {path: _mask(maps, photo) for path, photo, maps in _predictions(runner, photos, skip)}


def write_masks(
    artifact: Artifact | str | Path,
    images: str | Path | Iterable[str | Path],
    out: str | Path = "masks",
    *,
    cutout: bool = False,
    classes: bool = False,
    arithmetic: str = "",
    output_name: str = "",
    threads: int = 0,
    trust: bool = False,
    strict: bool = False,
    skip: Skip | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write `<stem>.png` for every photo: an 8-bit mask of the photo's size, or the cut-out object.

    Of a network with several classes, the pixels of the PNG are the numbers of the classes, and its palette shows each
    class in a colour.

    Photos of one stem keep their whole names: `a.avif` and `a.jfif` give `a.avif.png` and `a.jfif.png`.

    Args:
        artifact, images, arithmetic, output_name, threads, trust: as for `predict`.
        out: the folder for the files; sub-folders are those of the photos.
        cutout: write the photo with the mask as its alpha channel, in place of the mask.
        classes: write a mask for each class too, `<stem>.class0.png` and so on.
        strict: raise the error of the first photo that cannot be read. The error of a single photo is always raised.
        skip: is called with each photo that is skipped and with the error.
        progress: is called before each photo with the number of photos done, and the number of all; and at the end.

    Returns:
        The files by photo, the skipped photos with their reasons, and what really ran.

    Raises:
        UserError: as `predict`; also when two photos would write one file, a file would replace a photo, or none of
            the photos could be read; or a cut-out is asked of a network with several classes, or classes of a network
            with one mask. No photo is ever overwritten.

    Example:
        >>> written = u2.write_masks(artifact, photo, folder / "masks")
        >>> [file.name for file in written.files.values()]
        ['photo.png']
    """
    given = _paths(images)
    opened = _opened(artifact, output_name)
    photos = find_photos(given, arrays=_takes_arrays(opened))
    targets = mask_files(photos, given, Path(out))
    skipped: dict[Path, str] = {}
    files: dict[Path, Path] = {}
    of_classes: dict[Path, tuple[Path, ...]] = {}

    def note(photo: Path, error: UserError) -> None:
        if strict or len(photos) == 1:
            raise error
        skipped[photo] = error.problem
        if skip:
            skip(photo, error)

    with open_artifact(opened, arithmetic, threads=threads, trust=trust) as runner:
        make_folder(Path(out))
        counted = _counted(photos, progress)
        for path, photo, maps in _predictions(runner, counted, note):
            _check_classes(runner.artifact.name, len(maps), cutout, classes)
            mask = _mask(maps, photo)
            try:
                shown = _cut_out(path, photo, mask) if cutout else mask
            except UserError as error:
                note(path, error)
                continue
            with staged(targets[path]) as temporary:
                if len(maps) > 1:
                    write_classes(shown, palette(len(maps)), temporary)
                else:
                    write_mask(shown, temporary, photo.icc if cutout else b"")
            files[path] = targets[path]
            if classes:
                of_classes[path] = _write_class_masks(maps, photo, targets[path], targets)
        info = dict(runner.info)
    if not files:
        raise UserError("none of the photos could be read", "see the reasons above")
    return Written(files, skipped, info, of_classes, opened.notes)


def trust_engines(paths: Iterable[Path]) -> None:
    """Let this machine open the TensorRT engines among artifacts from now on, although other machines built them.

    An engine is native code: trust only what comes from a source that you know.
    """
    from u2export.exporters.trt.engine_file import ENGINE
    from u2export.exporters.trt.trust import trust

    for path in paths:
        if (engine := read_artifact(path).path).suffix == ENGINE:
            trust(engine)


def _opened(artifact: Artifact | str | Path, output_name: str) -> Artifact:
    if not isinstance(artifact, Artifact):
        return read_artifact(artifact, output_name)
    return read_artifact(artifact.path, output_name) if output_name else artifact


def _takes_arrays(artifact: Artifact) -> bool:
    """Whether the pictures of an artifact are `.npy` arrays: no photo has its number of channels."""
    return artifact.contract.channels not in (1, 3)


def _paths(images: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(images)] if isinstance(images, (str, Path)) else [Path(image) for image in images]


def _predictions(
    runner: OpenArtifact, photos: Iterable[Path], skip: Skip | None
) -> Iterator[tuple[Path, Photo, Floats]]:
    """Give each file with the photo in it and its maps (K, h, w)."""
    for path in photos:
        try:
            photo = open_picture(path, runner.contract.channels)
            maps = runner._maps(photo, str(path))
        except UserError as error:
            if skip is None:
                raise
            skip(path, error)
        else:
            yield path, photo, maps


def _counted(photos: Sequence[Path], progress: Callable[[int, int], None]) -> Iterator[Path]:
    for done, path in enumerate(photos):
        progress(done, len(photos))
        yield path
    progress(len(photos), len(photos))


def _mask(maps: Floats, photo: Photo) -> Pixels:
    """Return the mask (H, W) of a photo, or the class of each pixel where there are several maps."""
    return shown_for(maps, photo.height, photo.width)


def _class_masks(maps: Floats, photo: Photo) -> Pixels:
    """Return a mask for each class (K, H, W)."""
    if len(maps) == 1:
        return _mask(maps, photo)[None]
    return np.stack([class_mask_for(one, photo.height, photo.width) for one in probabilities(maps)])


def _write_class_masks(maps: Floats, photo: Photo, target: Path, targets: Mapping[Path, Path]) -> tuple[Path, ...]:
    files = tuple(target.with_suffix(f".class{k}.png") for k in range(len(maps)))
    for other, taken in targets.items():
        if taken in files:
            raise UserError(f"{other} and a class of another photo would both write {taken}", "rename the photo")
    for file, one in zip(files, probabilities(maps), strict=True):  # one at a time: photos are large
        with staged(file) as temporary:
            write_mask(class_mask_for(one, photo.height, photo.width), temporary)
    return files


def _check_classes(name: str, maps: int, cutout: bool, classes: bool) -> None:
    if cutout and maps > 1:
        raise UserError(f"{name} has {maps} classes, a cut-out needs one mask", "write the classes instead", "cutout")
    if classes and maps == 1:
        raise UserError(f"{name} gives one mask, it has no classes", "write the mask alone", "classes")


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
