"""Named sets of photos that the benchmarks of fidelity judge on: `NAME=FOLDER` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Floats, find_photos
from u2export.reference.spread import evenly_spread

if TYPE_CHECKING:
    from u2export.reference.source import Source

Pair = tuple[Floats, Floats]  # a network input and the reference's d0 of it
Sets = Mapping[str, Sequence[Pair]]


def folders(words: Sequence[str]) -> dict[str, Path]:
    """The folders that `NAME=FOLDER` words name."""
    return {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}


def photos_in(named: Mapping[str, Path], count: int) -> dict[str, list[Path]]:
    """So many photos of each folder, evenly spread."""
    return {name: evenly_spread(find_photos([folder]), count) for name, folder in named.items()}


def references(source: Source, photos: Sequence[Path]) -> Iterator[Pair]:
    """The reference's answers."""
    for path in photos:
        x = source.contract.read(path)
        yield x, source.predict(x)


def judged(predict: Callable[[Floats], Floats], pairs: Sequence[Pair]) -> list[ImageFidelity]:
    """Fidelity per photo, of what makes d0 of a network input."""
    return [compare(predict(x)[0, 0], d0[0, 0]) for x, d0 in pairs]
