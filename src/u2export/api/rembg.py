"""rembg with artifacts of u2export: a file is put where rembg looks, and the user's own file comes back afterwards.

rembg 2.0.86 opens `<home>/models/<model>/<model>.onnx` if this file exists, else `<home>/<model>.onnx`, and it does not
look at the checksum of a file that is there. Older versions know the second place only, and fetch a file again whose
checksum differs unless MODEL_CHECKSUM_DISABLED is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.files import make_folder, read_json, staging, write_json
from u2export.reference.image import Contract
from u2export.reference.weights import file_digest

__all__ = ["MODELS", "Place", "home_of_rembg", "install", "remove", "status"]

# The sessions of rembg that feed a network as U²-Net's contract with Lanczos says.
MODELS = ("u2net", "u2netp", "u2net_human_seg", "silueta")
CONTRACT = Contract(resize="lanczos")
MARK, BACKUP = ".u2export.json", ".before-u2export"
HOME = "U2NET_HOME"


@dataclass(frozen=True)
class Place:
    """The file that rembg opens for a model.

    Attributes:
        model: the name of the model in rembg.
        file: the path where rembg looks.
        state: "u2export" (an artifact is there), "own" (another file is there) or "none".
        artifact: the name of the artifact that is there; empty if none is.
        backup: the user's own file, which `remove` puts back; None if there was none.
        environment: variables that rembg needs to use the file.
    """

    model: str
    file: Path
    state: str
    artifact: str = ""
    backup: Path | None = None
    environment: Mapping[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "model": self.model, "file": str(self.file), "state": self.state, "artifact": self.artifact,
            "backup": str(self.backup) if self.backup else None, "environment": dict(self.environment or {}),
        }  # fmt: skip


def home_of_rembg(home: str | Path | None = None, flat: bool = False) -> Path:
    """Return the folder of rembg: `home`, or what rembg finds in the environment.

    Args:
        home: a folder, which replaces the rules of rembg.
        flat: the folder of versions that have no folder for each model.
    """
    if home or os.environ.get(HOME):
        return Path(home or os.environ[HOME]).expanduser()
    data = os.environ.get("XDG_DATA_HOME")
    if flat:
        return Path(data or "~", ".u2net").expanduser()
    return Path(os.environ.get("REMBG_HOME") or (Path(data, "rembg") if data else "~/.rembg")).expanduser()


def install(
    artifact: str | Path | Artifact, *, model: str = "", home: str | Path | None = None, flat: bool = False
) -> Place:
    """Put an artifact where rembg looks. A file of the user's own is kept beside it, until `remove` puts it back.

    Args:
        artifact: an ONNX artifact of the targets onnx or ort, exported with `resize="lanczos"` at 320 x 320.
        model: the name in rembg, by default that of the weights.
        home: the folder of rembg; by default what rembg finds in the environment.
        flat: the place of rembg's older versions, `<home>/<model>.onnx`.

    Raises:
        UserError: rembg would feed the artifact wrongly, the artifact was changed or refused, its weights are no model
            of rembg, or a backup is in the way. Nothing is changed then.
    """
    made = artifact if isinstance(artifact, Artifact) else read_artifact(Path(artifact))
    _check(made)
    file = _file(_model(model or made.weights.name), home, flat)
    make_folder(file.parent)
    backup, found = _beside(file, BACKUP), _state(file)
    if found == "own" and os.path.lexists(backup):
        raise UserError(f"{file} and {backup} are both files of yours", "move one of them away")
    with staging(file.parent) as scratch:
        copy = scratch / file.name
        shutil.copyfile(made.path, copy)
        data = {"artifact": made.name, "precision": made.precision, "sha256": file_digest(copy)}
        write_json(data, _beside(file, MARK))  # first: an interrupted install can be removed
        if found == "own":
            file.replace(backup)
        copy.replace(file)
    return _place(file, home, flat)


def remove(model: str, *, home: str | Path | None = None, flat: bool = False) -> Place:
    """Take the artifact away, and put the user's own file back.

    Args:
        model: the name in rembg.
        home, flat: as for `install`.

    Raises:
        UserError: there is no artifact of u2export, or the file was changed since. Nothing is changed then.
    """
    file = _file(_model(model), home, flat)
    mark, backup = _beside(file, MARK), _beside(file, BACKUP)
    if not mark.exists():
        raise UserError(f"u2export installed nothing at {file}", "see `u2export rembg status`")
    if _state(file) == "own" and os.path.lexists(backup):
        raise UserError(f"{file} was changed after u2export installed it", f"move it away, then {backup} comes back")
    if _state(file) == "u2export":
        file.unlink()
    if os.path.lexists(backup):
        backup.replace(file)
    mark.unlink()
    return _place(file, home, flat)


def status(*, home: str | Path | None = None) -> list[Place]:
    """Return, for each model, the file that rembg opens: its own place if it exists, else that of older versions."""
    found = []
    for model in MODELS:
        places = [_place(_file(model, home, flat), home, flat) for flat in (False, True)]
        found.append(next((place for place in places if place.state != "none"), places[0]))
    return found


def _check(made: Artifact) -> None:
    """Refuse what rembg cannot feed, or what was not verified."""
    again = "export it again: u2export onnx --resize lanczos, or u2export ort --int8 --calib PHOTOS --resize lanczos"
    if made.path.suffix != ".onnx" or made.exporter not in ("onnx", "ort"):
        raise UserError(f"{made.name} is no file that rembg opens", again)
    if made.contract != CONTRACT:
        raise UserError(f"{made.name} has another image contract than rembg (Lanczos, 320x320, float input)", again)
    if not made.record.exists() or not made.fidelity or any(note.startswith("refused") for note in made.notes):
        raise UserError(f"{made.name} has no record that its masks were verified", again)
    if set(made.files) != {made.name}:
        raise UserError(f"{made.name} has weights in other files, which rembg would not find", again)


def _model(name: str) -> str:
    if name not in MODELS:
        raise WrongValue(f"rembg has no model {name!r} of this kind", f"choose one of {', '.join(MODELS)}", "model")
    return name


def _file(model: str, home: str | Path | None, flat: bool) -> Path:
    root = home_of_rembg(home, flat)
    return root / f"{model}.onnx" if flat else root / "models" / model / f"{model}.onnx"


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(file.name + ending)


def _state(file: Path) -> str:
    if not os.path.lexists(file):
        return "none"
    mark = _beside(file, MARK)
    known = read_json(mark, "the mark of an installed artifact").get("sha256") if mark.exists() else ""
    return "u2export" if known and file.is_file() and file_digest(file) == known else "own"


def _place(file: Path, home: str | Path | None, flat: bool) -> Place:
    state, backup = _state(file), _beside(file, BACKUP)
    name = (
        read_json(_beside(file, MARK), "the mark of an installed artifact")["artifact"] if state == "u2export" else ""
    )
    needed = {HOME: str(home_of_rembg(home, flat))} if home else {}
    needed |= {"MODEL_CHECKSUM_DISABLED": "1"} if flat else {}
    kept = backup if os.path.lexists(backup) else None
    return Place(file.name.removesuffix(".onnx"), file, state, name, kept, needed if state == "u2export" else {})
