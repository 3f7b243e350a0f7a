"""Fused maps d0 of many photos on disk: scratch for one bench, or the reference's to take to another machine."""

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
from u2export.reference.image import Contract, Floats

HINT = "make it with `u2export bench --save-reference` from the same weights, image contract and photos"


def create(path: Path, photos: int, contract: Contract) -> Floats:
    """An .npy file (photos, height, width) of float32, mapped into memory; nan until written."""
    shape = (photos, contract.height, contract.width)
    maps: Floats = np.lib.format.open_memmap(path, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
    maps[:] = np.nan
    return maps


def save_reference(maps: Floats, photos: Sequence[str], weights: str, contract: Contract, path: Path) -> None:
    """Write an .npz of the reference's maps (photos, height, width).

    Args:
        maps: what to write. photos: sha256 of the photo files. weights: sha256 of the weights. path: where to.
        contract: the image contract the maps were made under.

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
    """sha256 of the weights the maps in an .npz were made with.

    Raises:
        UserError: missing or unreadable.
    """
    with _opened(path) as found:
        return str(json.loads(str(found["about"]))["weights"])


def load_reference(path: Path, photos: Sequence[str], contract: Contract, into: Floats) -> None:
    """Fill `into` (photos, height, width) from an .npz that `save_reference` wrote.

    Raises:
        UserError: missing, unreadable, made under another image contract, or one of the photos is not in it.
    """
    with _opened(path) as found:
        if Contract.from_json(json.loads(str(found["about"]))["contract"]) != contract:
            raise UserError(f"{path}: maps made under another image contract", HINT)
        for i, photo in enumerate(photos):
            if photo not in found:
                raise UserError(f"{path}: has no map of photo {i + 1}", HINT)
            into[i] = found[photo]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file, np.load(file) as found:
            yield found
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", HINT) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no reference maps ({error})", HINT) from None
