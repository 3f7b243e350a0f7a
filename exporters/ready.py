"""Artifacts that the package ships, so that a machine without PyTorch has verified masks at once.

This project made them of published weights by its own export; `nox -s ready` makes them again. The record beside each
one holds the hash of the file, the weights, the calibration photos and the fidelity that was measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.files import make_folder, staged

FOLDER = Path(__file__).with_name("shipped")
READY: Mapping[str, str] = {"u2netp-int8": "u2netp-320-ort-int8.onnx"}


def ready(name: str) -> Artifact:
    """Return a shipped artifact, after a check that its file is the one of its record.

    Raises:
        UserError: there is no such name, or the installed files are damaged.
    """
    if name not in READY:
        raise UserError(
            f"no ready artifact named {name!r}",
            f"choose one of {', '.join(READY)}; `u2export weights pull` fetches weights, and exports make the rest",
        )
    return read_artifact(FOLDER / READY[name])


def copied(artifact: Artifact, folder: Path) -> Artifact:
    """Copy an artifact of one file and its record into a folder; files of the same names are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(folder)
    for path in (artifact.path, artifact.record):
        with staged(folder / path.name) as temporary:
            shutil.copyfile(path, temporary)
    return read_artifact(folder / artifact.name)
