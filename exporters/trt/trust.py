"""The engines this machine may open: engines are native code.

Only those this machine has built, or was told to trust, are opened.
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
    """Let this machine open an engine from now on: it is remembered by its hash, in u2export's cache folder."""
    write_json({**_trusted(), file_digest(engine): engine.name}, _register())


def check_trust(engine: Path) -> None:
    """Refuse an engine this machine neither built nor was told to trust.

    Raises:
        UserError: it is foreign.
    """
    if file_digest(engine) not in _trusted():
        raise UserError(
            f"{engine} was not built on this machine, and engines are native code",
            "build it here with u2export trt build RECIPE, or add --trust if you know where it comes from",
        )
