"""Named sets of photos that the studies of fidelity use: `NAME=FOLDER` on the command line."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from u2export.benchmarks.models import ArtifactModel, GraphModel, Model, Pair, judged
from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.reference.fidelity import Fidelity, ImageFidelity
from u2export.reference.photos import find_photos, read_input

if TYPE_CHECKING:
    from u2export.benchmarks.cluster.models import ClusterModels, Samples
    from u2export.reference.source import Source

T = TypeVar("T")
Sets = Mapping[str, Sequence[Pair]]


def options(parser: ArgumentParser, photos: int) -> None:
    """Add the options that all studies of fidelity have; `photos` is the default number of photos of each set."""
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER", help="photos to measure on")
    parser.add_argument("--calib", type=Path, required=True, help="photos to calibrate on, not those of the sets")
    parser.add_argument("--photos", type=int, default=photos, help="photos of each set, evenly spread; %(default)s")
    parser.add_argument("--weights", default="u2netp", help="%(default)s")
    cluster_option(parser)


def cluster_option(parser: ArgumentParser) -> None:
    """Add the option that has the masks judged on a cluster; see `judging`."""
    parser.add_argument(
        "--cluster", default="", metavar="ADDRESS",
        help="judge the masks on workers like this machine: local:N, or the address of a Dask scheduler",
    )  # fmt: skip


class Judge:
    """Judges masks in this process."""

    def pairs(self, source: Source, photos: Sequence[Path]) -> Sequence[Pair]:
        """Return the photos as network inputs with the d0 of the reference."""
        return list(references(source, photos))

    def some(self, pairs: Sequence[Pair], count: int) -> Sequence[Pair]:
        """Return this many of the pairs, evenly spread."""
        return spread(pairs, count)

    def judged(self, model: Model, pairs: Sequence[Pair]) -> list[ImageFidelity]:
        """Return the fidelity of each photo's mask.

        Raises:
            UserError, Unavailable: the model cannot be opened.
        """
        return judged(model, pairs)

    def about(self) -> dict[str, Any]:
        """Return who judged, as plain data; nothing if it was this process."""
        return {}


@dataclass(frozen=True)
class OnDemand(Sequence[Pair]):
    """The pairs of photos, which are computed when they are asked for; a cluster computes its own."""

    source: Source
    photos: Sequence[Path]

    def __len__(self) -> int:
        return len(self.photos)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> OnDemand: ...
    def __getitem__(self, index: int | slice) -> Pair | OnDemand:
        if isinstance(index, slice):
            return OnDemand(self.source, self.photos[index])
        return next(references(self.source, [self.photos[index]]))


class ClusterJudge(Judge):
    """Judges graphs and artifacts on a cluster; functions of this process are judged here.

    The workers also compute the maps of the reference, so this process holds no photo.
    """

    def __init__(self, models: ClusterModels) -> None:
        self._models = models
        self._samples: dict[OnDemand, Samples] = {}

    def pairs(self, source: Source, photos: Sequence[Path]) -> Sequence[Pair]:
        """See `Judge.pairs`."""
        return OnDemand(source, tuple(photos))

    def some(self, pairs: Sequence[Pair], count: int) -> Sequence[Pair]:
        """See `Judge.some`."""
        return OnDemand(pairs.source, tuple(spread(pairs.photos, count))) if isinstance(pairs, OnDemand) else pairs

    def judged(self, model: Model, pairs: Sequence[Pair]) -> list[ImageFidelity]:
        """See `Judge.judged`.

        Raises:
            UserError: as of `Judge.judged`; or the cluster is lost.
        """
        if not isinstance(pairs, OnDemand) or not isinstance(model, (GraphModel, ArtifactModel)):
            return judged(model, pairs)
        if pairs not in self._samples:
            self._samples[pairs] = self._models.photos(pairs.source, pairs.photos)
        return self._models.judged(model, self._samples[pairs])

    def about(self) -> dict[str, Any]:
        """See `Judge.about`."""
        return {"cluster": self._models.census()}


@contextmanager
def judging(given: Namespace) -> Iterator[Judge]:
    """The context of what judges the masks: the cluster of the option, or else this process.

    Raises:
        UserError, Unavailable: the cluster cannot be reached, or its workers are not like this machine.
    """
    if not given.cluster:
        yield Judge()
        return
    from u2export.benchmarks.cluster.models import cluster_models

    with cluster_models(given.cluster, like_here=True) as models:
        yield ClusterJudge(models)


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


def summarise(images: Sequence[ImageFidelity]) -> dict[str, Any]:
    """Return statistics of the photos in which the reference sees an object, and apart from them of the others."""
    shown, empty = [i for i in images if not i.empty], [i for i in images if i.empty]
    apart = {"photos": len(empty), "raw_mae_worst": max((i.raw_mae for i in empty), default=0.0)}
    return {**Fidelity(tuple(shown)).to_json(), "empty": apart}
