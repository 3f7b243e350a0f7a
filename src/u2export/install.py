"""How to add an extra to this installation: the command that works for the way u2export came onto the machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

_TORCH = ("torch", "safetensors")
_ONNX = (*_TORCH, "onnx", "onnxruntime", "onnxscript", "onnxsim")
# The packages behind each extra of pyproject.toml, for copies of u2export that pip knows nothing about.
PACKAGES = {
    "torch": _TORCH,
    "onnx": _ONNX,
    "openvino": (*_ONNX, "openvino", "nncf"),
    "coreml": (*_ONNX, "coremltools", "scikit-learn"),
    "trt": (*_ONNX, "tensorrt", "cuda-python"),
    "trt-rtx": (*_ONNX, "tensorrt-rtx"),
    "executorch": (*_ONNX, "executorch"),
    "litert": (*_ONNX, "litert-torch", "ai-edge-quantizer", "ai-edge-litert"),
    "litert-runtime": ("ai-edge-litert",),
    "charts": ("matplotlib",),
    "imports": ("pyyaml",),
    "video": ("av",),
    "report": ("jinja2",),
    "cluster": ("distributed", "fsspec"),
    "ort": ("onnxruntime",),
    "web": ("aiohttp", "cryptography", "onnxruntime", "qrcode"),
}
URL_CHARACTERS = "%:/?#[]@!$&'()*+,;=~"  # pip records addresses of repositories with bare spaces
# Packages whose module has another name.
PACKAGE_OF = {
    "ai_edge_litert": "ai-edge-litert", "ai_edge_quantizer": "ai-edge-quantizer", "litert_torch": "litert-torch",
    "sklearn": "scikit-learn", "tensorrt_rtx": "tensorrt-rtx", "yaml": "pyyaml",
}  # fmt: skip


def how_to_install(extra: str, modules: Sequence[str] = ()) -> str:
    """Return the shell command that installs an extra of u2export on this machine.

    An installer records where a package came from in `direct_url.json` (PEP 610): a folder, an archive or a
    repository. A package from an index has no such file. A bare copy of the code, as `--device ssh://…` sends it, has
    no metadata at all. For a bare copy, and where the recorded folder or archive no longer exists, the command names
    packages in place of the extra.

    Args:
        extra: a key of `PACKAGES`.
        modules: the modules that are missing, where the caller knows them; their packages are named in place of all
            packages of the extra. A device that runs an artifact needs one runtime, not the tools that export.

    Returns:
        One line such as ``pip install '/home/me/u2export[onnx]'``, quoted for a POSIX shell.
    """
    from importlib import metadata  # 40 ms, and few commands end in a hint

    packages = [PACKAGE_OF.get(module, module) for module in modules] or list(PACKAGES[extra])
    try:
        distribution = metadata.distribution("u2export")
    except metadata.PackageNotFoundError:
        return _pip("", packages)
    tool = "uv " if (distribution.read_text("INSTALLER") or "").strip() == "uv" else ""
    recorded = distribution.read_text("direct_url.json")
    if recorded is None:
        return _pip(tool, [f"u2export[{extra}]"])
    try:
        return _pip(tool, _requirement(json.loads(recorded), extra) or packages)
    except (ValueError, KeyError, TypeError, AttributeError):  # no valid direct_url.json
        return _pip(tool, packages)


def _requirement(origin: Any, extra: str) -> list[str]:
    """Return pip's arguments for the origin in a `direct_url.json`; none where a local origin no longer exists."""
    url = quote(origin["url"], safe=URL_CHARACTERS)
    fragment = f"#subdirectory={origin['subdirectory']}" if origin.get("subdirectory") else ""
    if vcs := origin.get("vcs_info"):
        return [f"u2export[{extra}] @ {vcs['vcs']}+{url}@{vcs['commit_id']}{fragment}"]
    local = Path(unquote(urlsplit(url).path)) if urlsplit(url).scheme == "file" else None
    if local and not local.exists():
        return []
    if local and "dir_info" in origin:
        editable = ["-e"] if origin["dir_info"].get("editable") else []
        return [*editable, f"{local}[{extra}]"]
    return [f"u2export[{extra}] @ {url}{fragment}"]


def _pip(tool: str, arguments: Sequence[str]) -> str:
    return f"{tool}pip install {shlex.join(arguments)}"
