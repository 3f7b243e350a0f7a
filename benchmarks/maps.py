"""Fused maps d0 of many photos on disk: scratch for one bench, or the reference's to take to another machine."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from u2export.reference.image import Contract, Floats
from u2export.reference.weights import Identity

from u2export.errors import UserError
from u2export.files import staged


def create(path: Path, photos: int, contract: Contract) -> Floats:
    """An .npy file (photos, height, width) of float32, mapped into memory; nan until written."""
    shape = (photos, contract.height, contract.width)
    maps: Floats = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    maps[:] = np.nan
    return maps


def save_reference(maps: Floats, photos: Sequence[str], weights: Identity, contract: Contract, path: Path) -> None:
    """Write an .npz of the reference's maps (photos, height, width), by the sha256 of the photo files.

    Raises:
        UserError: the file cannot be written.
    """
    about = json.dumps({"weights": weights.sha256, "contract": contract.to_json()})
    try:
        with staged(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, about=np.array(about), **dict(zip(photos, maps, strict=True)))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "choose another file") from None


def load_reference(path: Path, photos: Sequence[str], weights: Identity, contract: Contract, into: Floats) -> None:
    """Fill `into` (photos, height, width) from an .npz that `save_reference` wrote.

    Raises:
        UserError: unreadable, of other weights or another image contract, or a photo is not in it.
    """
    hint = "make it with `u2export bench --save-reference` from the same weights, contract and photos"
    try:
        with np.load(path) as found:
            about = json.loads(str(found["about"]))
            if about["weights"] != weights.sha256 or Contract.from_json(about["contract"]) != contract:
                raise UserError(f"{path}: maps of other weights, or under another image contract", hint)
            for i, photo in enumerate(photos):
                into[i] = found[photo]
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}", hint) from None
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", hint) from None
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no reference maps ({error})", hint) from None
