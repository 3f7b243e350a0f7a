"""The files of onnxruntime-web that the page needs, from its package in the npm registry, each with a known hash."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

from u2export.errors import Unavailable
from u2export.files import publish, staging
from u2export.reference.weights import file_digest, home

VERSION = "1.30.0"
PACKAGE = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
PACKAGE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# The first three are for WebAssembly, with one thread and with several; the other three are for WebGPU.
FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}


def runtime_files() -> dict[str, Path]:
    """Return the files of onnxruntime-web by name; the first call downloads 33 MB into the cache.

    Raises:
        Unavailable: the files are not in the cache, and the registry cannot be reached or sends something else.
    """
    if not cached():
        _download(_folder())
    return {name: _folder() / name for name in FILES}


def cached() -> bool:
    """Tell whether the files are in the cache, as they should be."""
    return all((_folder() / name).is_file() and file_digest(_folder() / name) == FILES[name] for name in FILES)


def _folder() -> Path:
    return home() / f"onnxruntime-web-{VERSION}"


def _download(folder: Path) -> None:
    """Write the files of the package into `folder`, which appears whole or not at all.

    Raises:
        Unavailable: see `runtime_files`.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    hint = "connect this machine to the internet once; the files then stay in the cache"
    with staging(folder.parent) as scratch:
        try:
            package = pooch.retrieve(PACKAGE, f"sha256:{PACKAGE_SHA256}", "package.tgz", scratch, progressbar=False)
            made = scratch / folder.name
            made.mkdir()
            with tarfile.open(package) as archive:
                for name, digest in FILES.items():
                    (made / name).write_bytes(_member(archive, name, digest))
        except (OSError, ValueError, KeyError, tarfile.TarError) as error:
            said = str(error).partition("\n")[0][:160]
            raise Unavailable(f"cannot fetch onnxruntime-web {VERSION} from the npm registry: {said}", hint) from None
        publish(made, folder)


def _member(archive: tarfile.TarFile, name: str, digest: str) -> bytes:
    member = archive.extractfile(f"package/dist/{name}")
    data = member.read() if member else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{name} has another hash than expected")
    return data
