"""The files that the page consists of, by the names in its address."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from u2export.benchmarks.web.runtime_files import runtime_files

PAGE = ("index.html", "icon.svg", "style.css", "page.js", "view.js", "worker.js")


def page_files() -> dict[str, Path]:
    """Return the files of the page and of onnxruntime-web.

    Raises:
        Unavailable: the files of onnxruntime-web are not in the cache and cannot be fetched.
    """
    folder = Path(str(resources.files("u2export.benchmarks.web") / "page"))
    runtime = {f"ort/{name}": path for name, path in runtime_files().items()}
    return {**{name: folder / name for name in PAGE}, **runtime}
