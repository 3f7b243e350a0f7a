"""The bundled photos that every export is verified on."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np

from u2export.reference.image import Contract, Floats
from u2export.reference.photos import find_photos, read_input


def verification_photos() -> list[Path]:
    """The photos every export is checked on; freely licensed, see photos/README.md. Not for calibration."""
    return find_photos([Path(str(resources.files("u2export.reference") / "photos"))])


def verification_inputs(contract: Contract) -> Iterator[Floats]:
    """Their network inputs; models of other than 1 or 3 channels get the photos' colours in turn."""
    photo = contract.with_channels(3) if contract.channels not in (1, 3) else contract
    for path in verification_photos():
        x = read_input(photo, path)
        yield np.ascontiguousarray(x[:, [i % x.shape[1] for i in range(contract.channels)]])
