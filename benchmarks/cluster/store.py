"""Files at an address of fsspec, such as s3://bucket/folder, under the sha256 of their content.

The client uploads what is not there yet. Workers fetch what they need, with credentials of their own, and check it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from u2export.errors import UserError, WrongValue
from u2export.reference.weights import file_digest

Data = dict[str, Any]


class Store:
    """The files at one address. This class is the client's side.

    Args:
        address: an address with the protocol of a file system that fsspec knows.

    Raises:
        WrongValue: it is no such address.
        UserError: the package of its protocol is missing, or the address cannot be read.
    """

    def __init__(self, address: str) -> None:
        if "://" not in address:
            raise WrongValue(f"{address!r} is no address of files", "give one such as s3://BUCKET/FOLDER", "store")
        self.address = address
        with _told(f"cannot read {address}"):
            self._system, self._root = _opened(address)
            self._sizes = self._listed()

    def _listed(self) -> dict[str, int]:
        try:
            found = self._system.ls(self._root, detail=True, refresh=True)
        except FileNotFoundError:  # nothing was uploaded yet
            return {}
        return {str(one["name"]).rpartition("/")[2]: int(one["size"] or 0) for one in found}

    def put(self, paths: Sequence[Path], digests: Sequence[str] = ()) -> list[Data]:
        """Upload files that are not there, and return how a task names them; `digests` are their sha256 if known.

        A file of another size under the same sha256 is what an interrupted upload left; it is replaced.

        Raises:
            UserError: a file cannot be read or uploaded.
        """
        known = list(digests) or [file_digest(path) for path in paths]
        sizes = {digest: path.stat().st_size for digest, path in zip(known, paths, strict=True)}
        new = {d: path for d, path in zip(known, paths, strict=True) if self._sizes.get(d) != sizes[d]}
        if new:
            with _told(f"cannot write to {self.address}"):
                self._system.makedirs(self._root, exist_ok=True)
                self._system.put([str(path) for path in new.values()], [f"{self._root}/{digest}" for digest in new])
            self._sizes |= {digest: sizes[digest] for digest in new}
        return [{"store": self.address, "sha256": d, "name": p.name} for d, p in zip(known, paths, strict=True)]

    def put_folder(self, home: Path, files: Mapping[str, str], opens: str) -> Data:
        """Upload the files of an artifact, and return how a task names it.

        Args:
            home: the folder of the files.
            files: the sha256 of each file by its name relative to the folder.
            opens: the name of the file or folder that a worker opens.

        Raises:
            UserError: as `put`.
        """
        self.put([home / name for name in files], list(files.values()))
        return {"store": self.address, "files": dict(files), "opens": opens}


def fetch(file: Mapping[str, Any], folder: Path) -> Path:
    """Fetch one file on a worker and return its path.

    Args:
        file: of `Store.put`.
        folder: where to write it.

    Raises:
        UserError: it cannot be fetched, or it is another file than its sha256 says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(file["name"]).name
    _fetch(file["store"], file["sha256"], path)
    return path


def fetch_folder(file: Mapping[str, Any], home: Path) -> Path:
    """Fetch the files of an artifact on a worker unless they are there, and return the path that is opened.

    Args:
        file: of `Store.put_folder`.
        home: the folder of the run.

    Raises:
        UserError: as `fetch`.
    """
    key = hashlib.sha256("\n".join(f"{n} {d}" for n, d in sorted(file["files"].items())).encode()).hexdigest()[:32]
    folder = home / "stored" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=folder.parent))
        try:
            for name, digest in file["files"].items():
                path = unfinished / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _fetch(file["store"], digest, path)
            unfinished.rename(folder)
        except OSError:  # another thread was faster
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder / str(file["opens"])


def _fetch(address: str, digest: str, path: Path) -> None:
    with _told(f"a worker cannot fetch {path.name} from {address}"):
        system, root = _opened(address)
        system.get_file(f"{root}/{digest}", str(path))
    if file_digest(path) != digest:
        path.unlink()
        raise UserError(
            f"{path.name} at {address} is another file than its sha256 says",
            f"remove {digest} there; the next run uploads it again",
        )


def _opened(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, root = url_to_fs(address)
    return system, str(root).rstrip("/")


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The context in which every error of fsspec becomes one of two lines."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{what}: {error}", "install the package of this protocol on the client and on all workers",
                        "store") from None  # fmt: skip
    except Exception as error:  # the libraries of storage have no common base of their errors
        why = str(error).strip().splitlines()
        raise UserError(
            f"{what}: {why[0] if why else type(error).__name__}",
            "check the address, and the credentials of this process",
            "store",
        ) from None
