"""Files of fused maps d0: scratch files of one bench, and the .npz of a reference's maps for another machine."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from u2export.errors import UserError
from u2export.files import staged
from u2export.reference.classes import stacked
from u2export.reference.image import Contract, Floats

HINT = "make it with `u2export bench --save-reference` from the same weights, image contract and photos"


def create(path: Path, photos: int, maps_each: int, contract: Contract) -> Floats:
    """Create an .npy file and map it into memory.

    Args:
        path: the file. photos: number of photos. maps_each: maps of a photo, one for each class. contract: gives height
            and width of a map.

    Returns:
        Maps (photos, maps_each, height, width), float32, all nan.
    """
    shape = (photos, maps_each, contract.height, contract.width)
    maps: Floats = np.lib.format.open_memmap(path, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
    maps[:] = np.nan
    return maps


def save_reference(maps: Floats, photos: Sequence[str], weights: str, contract: Contract, path: Path) -> None:
    """Write an .npz of a reference's maps.

    Args:
        maps: the maps (photos, K, height, width).
        photos: sha256 of each photo file.
        weights: sha256 of the weights.
        contract: the image contract of the maps.
        path: the file to write.

    Raises:
        UserError: the file cannot be written.
    """
    about = json.dumps({"weights": weights, "contract": contract.to_json()})
    try:
        with staged(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **dict(zip(photos, maps, strict=True)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "choose another file") from None


def weights_of(path: Path) -> str:
    """Return the sha256 of the weights that made the maps in an .npz.

    Raises:
        UserError: the file is missing or unreadable.
    """
    with _opened(path) as found:
        return str(json.loads(str(found["about"]))["weights"])


def load_reference(path: Path, photos: Sequence[str], contract: Contract, scratch: Path) -> Floats:
    """Read the maps of photos from an .npz that `save_reference` wrote.

    Args:
        path: the file. photos: sha256 of each photo file. contract: the image contract that the maps must have.
        scratch: an .npy file to hold the maps; it is mapped into memory.

    Returns:
        Maps (photos, K, height, width), float32.

    Raises:
        UserError: the file is missing or unreadable, has another image contract, or lacks the map of a photo.
    """
    with _opened(path) as found:
        if Contract.from_json(json.loads(str(found["about"]))["contract"]) != contract:
            raise UserError(f"{path}: its maps have another image contract", HINT)
        into: Floats | None = None
        for i, photo in enumerate(photos):
            if photo not in found:
                raise UserError(f"{path}: the file has no map of photo {i + 1}", HINT)
            maps = stacked(found[photo])  # one map (H, W) in files of u2export before 0.2
            into = create(scratch, len(photos), len(maps), contract) if into is None else into
            into[i] = maps
        return create(scratch, 0, 1, contract) if into is None else into


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file, np.load(file) as found:
            yield found
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", HINT) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no reference maps ({error})", HINT) from None
