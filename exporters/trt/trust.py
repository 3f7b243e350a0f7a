"""The engines that this machine may open.

Engines are native code. This machine opens those that it built, and those that its user told it to trust.
"""

from __future__ import annotations

from pathlib import Path

from u2export.errors import UserError
from u2export.files import read_json, write_json
from u2export.reference.weights import file_digest, home


def _register() -> Path:
    return home() / "trusted_engines.json"


def _trusted() -> dict[str, str]:
    path = _register()
    found = read_json(path, "the register of engines") if path.exists() else {}
    return found if isinstance(found, dict) else {}


def trust(engine: Path) -> None:
    """Let this machine open an engine from now on.

    The engine's sha256 goes into `trusted_engines.json` in u2export's cache folder.

    Raises:
        UserError: there is no such file.
    """
    if not engine.is_file():
        raise UserError(f"no such file: {engine}", "give an .engine")
    write_json({**_trusted(), file_digest(engine): engine.name}, _register())


def check_trust(engine: Path) -> None:
    """Refuse an engine that this machine neither built nor was told to trust.

    Raises:
        UserError: the engine is foreign.
    """
    if file_digest(engine) not in _trusted():
        raise UserError(
            f"{engine} was not built on this machine, and engines are native code",
            "build it here with u2export trt build RECIPE, or trust it if you know where it comes from",
            "trust",
        )
