"""The photos of a bench: found in a folder, read once as a check, known by name and by the sha256 of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from u2export.errors import UserError
from u2export.reference.photos import ARRAY, find_photos, read_array, read_photo
from u2export.reference.spread import evenly_spread
from u2export.reference.weights import file_digest


@dataclass(frozen=True)
class Photos:
    """The photos of a bench that can be read.

    Attributes:
        paths: the files by the names that reports show.
        digests: the sha256 of each file, in the same order.
        broken: why a photo cannot be read, by the photo's name.
    """

    paths: Mapping[str, Path]
    digests: tuple[str, ...]
    broken: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The sha256 over the digests of all photos."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()


def photos_in(path: Path, limit: int = 0, arrays: bool = False) -> dict[str, Path]:
    """Return the photos in a folder by their names relative to the folder, or the one photo that `path` is.

    Args:
        path: a folder, which is searched with its sub-folders, or one photo.
        limit: the most photos to return, spread evenly over all that are found; 0 for all.
        arrays: take `.npy` pictures, for models of neither 1 nor 3 channels.

    Raises:
        UserError: `path` does not exist or holds no photos.
    """
    found = find_photos([path], arrays=arrays)
    if limit:
        found = evenly_spread(found, limit, first=True)
    return {str(p.relative_to(path)) if path.is_dir() else p.name: p for p in found}


def digest_of(path: Path, channels: int = 0) -> str:
    """Read a photo as a check, and return the sha256 of its file; arguments as of `readable`.

    Raises:
        UserError: the photo cannot be read.
    """
    read_array(path, channels) if path.suffix.lower() == ARRAY else read_photo(path)
    return file_digest(path)


def why_broken(error: UserError, path: Path) -> str:
    """Return why a photo cannot be read, without its folder, which may tell about the user."""
    return error.problem.replace(str(path), path.name)


def readable(
    photos: Mapping[str, Path], strict: bool, progress: Callable[[str, int, int], None], channels: int = 0
) -> Photos:
    """Read every photo once, and tell the readable photos from the broken ones.

    Args:
        photos: files by name. strict: whether a broken photo is an error.
        progress: receives the stage, the photos done and the photos in all.
        channels: how many `.npy` pictures must have; 0 for any number.

    Raises:
        UserError: no photo can be read, or one of them cannot be read and `strict` is set.
    """
    paths: dict[str, Path] = {}
    digests, broken = [], {}
    for i, (name, path) in enumerate(photos.items()):
        progress("reading photos", i, len(photos))
        try:
            digest = digest_of(path, channels)
        except UserError as error:
            if strict:
                raise
            broken[name] = why_broken(error, path)
        else:
            paths[name] = path
            digests.append(digest)
    return some_photos(Photos(paths, tuple(digests), broken))


def some_photos(found: Photos) -> Photos:
    """Return the photos.

    Raises:
        UserError: none of them can be read.
    """
    if not found.paths:
        first = next(iter(found.broken.values()), "there are no photos")
        raise UserError(f"none of {len(found.broken)} photos can be read: {first}", "give other photos")
    return found
