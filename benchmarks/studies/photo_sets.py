"""Named sets of photos that the studies of fidelity use: `NAME=FOLDER` on the command line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.reference.fidelity import Fidelity, ImageFidelity, compare
from u2export.reference.image import Floats
from u2export.reference.photos import find_photos, read_input

if TYPE_CHECKING:
    from u2export.reference.source import Source

T = TypeVar("T")
Pair = tuple[Floats, Floats]  # a network input, and the d0 that the reference computes for it
Sets = Mapping[str, Sequence[Pair]]


def options(parser: ArgumentParser, photos: int) -> None:
    """Add the options that all studies of fidelity have; `photos` is the default number of photos of each set."""
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to calibrate on, not those of the sets")
    parser.add_argument("--photos", type=int, default=photos, help="photos of each set, evenly spread; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")


def opened(
    given: Namespace, source: Source, calib_photos: int | None = None
) -> tuple[Calibration, dict[str, list[Path]]]:
    """Return the calibration photos and the photos of each set.

    Raises:
        UserError: a folder is missing, or a set holds photos that the calibration uses.
    """
    named = folders(given.sets)
    calibration = Calibration.open(given.calib, source.contract, avoid=list(named.values()), limit=calib_photos)
    return calibration, photos_in(named, given.photos)


def head(source: Source, calibration: Calibration, photos: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return the inputs of a study as plain data."""
    return {
        "weights": {"name": source.weights.name, "sha256": source.weights.sha256},
        "contract": source.contract.to_json(),
        "calibration": calibration.summary(),
        "photos": {name: [p.name for p in found] for name, found in photos.items()},
    }


def folders(words: Sequence[str]) -> dict[str, Path]:
    """Return the folders of `NAME=FOLDER` words by name.

    Raises:
        UserError: a word has another form.
    """
    if wrong := [word for word in words if not all(word.partition("="))]:
        raise UserError(f"{wrong[0]!r} is not NAME=FOLDER", "name every set of photos, such as horses=photos/horses")
    return {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}


def photos_in(named: Mapping[str, Path], count: int) -> dict[str, list[Path]]:
    """Return this many photos of each folder, evenly spread."""
    return {name: spread(find_photos([folder]), count) for name, folder in named.items()}


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return this many items, evenly spread over the list."""
    picks = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in picks]


def references(source: Source, photos: Sequence[Path]) -> Iterator[Pair]:
    """Yield the network input of each photo, and the d0 that the reference computes for it."""
    for path in photos:
        x = read_input(source.contract, path)
        yield x, source.predict(x)


def judged(predict: Callable[[Floats], Floats], pairs: Sequence[Pair]) -> list[ImageFidelity]:
    """Return the fidelity of each photo; `predict` computes d0 from a network input."""
    return [compare(predict(x)[0], d0[0]) for x, d0 in pairs]


def summarise(images: Sequence[ImageFidelity]) -> dict[str, Any]:
    """Return statistics of the photos in which the reference sees an object, and apart from them of the others."""
    shown, empty = [i for i in images if not i.empty], [i for i in images if i.empty]
    apart = {"photos": len(empty), "raw_mae_worst": max((i.raw_mae for i in empty), default=0.0)}
    return {**Fidelity(tuple(shown)).to_json(), "empty": apart}
