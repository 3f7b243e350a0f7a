"""The bundled photos on which every export is verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from u2export.reference.image import FLAT, Contract, Floats
from u2export.reference.photos import find_photos, read_input

# A map that is below this value everywhere, or constant, shows no object: the network is wrong, or is fed wrongly.
SEEN = 0.5


def sees_nothing(maps: Iterable[Floats]) -> bool:
    """Whether maps d0 of several photos, each of any shape, show no object on any of the photos; False without maps."""
    seen = [bool(d0.max() >= SEEN and d0.max() - d0.min() > FLAT) for d0 in maps]
    return bool(seen) and not any(seen)


def verification_photos() -> list[Path]:
    """Paths of the photos, which are freely licensed (see photos/README.md). They must not be used for calibration."""
    return find_photos([Path(str(resources.files("u2export.reference") / "photos"))])


def verification_inputs(contract: Contract) -> Iterator[Floats]:
    """Yield their network inputs, each (1, C, H, W) float32.

    Models without 1 or 3 channels get the colours of a photo in turn.
    """
    photo = contract.with_channels(3) if contract.channels not in (1, 3) else contract
    for path in verification_photos():
        x = read_input(photo, path)
        yield np.ascontiguousarray(x[:, [i % x.shape[1] for i in range(contract.channels)]])
