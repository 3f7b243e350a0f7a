"""The files that the page consists of, by the names in its address."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from u2export.benchmarks.web.runtime_files import runtime_files

PAGE = ("index.html", "icon.svg", "style.css", "page.js", "clock.js", "device.js", "turns.js", "view.js", "worker.js")
# The page of a kit, which has no bench behind it.
KIT = (
    "icon.svg", "style.css", "kit.js", "pictures.js", "clock.js", "device.js", "turns.js", "view.js", "worker.js",
    "sw.js",
)  # fmt: skip


def page_files() -> dict[str, Path]:
    """Return the files of the page and of onnxruntime-web.

    Raises:
        Unavailable: the files of onnxruntime-web are not in the cache and cannot be fetched.
    """
    return {**{name: _file(name) for name in PAGE}, **_runtime()}


def kit_files() -> dict[str, Path]:
    """Return the files of a kit's page and of onnxruntime-web.

    Raises:
        Unavailable: as `page_files`.
    """
    return {"index.html": _file("kit.html"), **{name: _file(name) for name in KIT}, **_runtime()}


def _file(name: str) -> Path:
    return Path(str(resources.files("u2export.benchmarks.web") / "page")) / name


def _runtime() -> dict[str, Path]:
    return {f"ort/{name}": path for name, path in runtime_files().items()}
