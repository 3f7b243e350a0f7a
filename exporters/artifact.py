"""An exported model on disk, and the record beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.files import checked, read_json
from u2export.reference.image import Contract
from u2export.reference.onnx_files import model_files
from u2export.reference.weights import Identity, file_digest
from u2export.version import __version__

SCHEMA = 1
RECORD = ".json"  # follows the name of the main file
REQUIRED = {"exporter", "path", "contract", "weights"}
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """An exported model on disk, with all that is known of its making. Its record lies beside it as `<name>.json`.

    Attributes:
        exporter, precision: the target's name, and the precision that was asked for.
        variant: "u2net", "u2netp" or "u2net-custom".
        weights: the weights it was made from.
        contract: the pre- and postprocessing that it expects.
        path: the file or folder that a runtime opens.
        files: sha256 of every file, by its path relative to the artifact's folder.
        tools: versions of the packages that took part.
        options: the target's own options, as they were asked for.
        calibration: digest and size of the calibration set, empty where no photos were used.
        condition: what the conditioning changed, empty where it changed nothing.
        added_float: what became float so that int8 keeps its budget, with figures; empty where nothing did.
        fidelity: how the masks compared with the PyTorch reference at export, and on how many photos.
        golden: what the reference makes of the golden picture. Ports check themselves with it.
        notes: what a reader of a table must know ("simulated", "not run on hardware" …).
        created: UTC time, ISO 8601.
    """

    exporter: str
    precision: str
    variant: str
    weights: Identity
    contract: Contract
    path: Path
    files: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    condition: Mapping[str, Any] = field(default_factory=dict)
    added_float: Mapping[str, Any] = field(default_factory=dict)
    fidelity: Mapping[str, Any] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    created: str = ""
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """The name of the file or folder, which tables and baselines use."""
        return self.path.name

    @property
    def record(self) -> Path:
        """Path of the record."""
        return self.path.with_name(self.path.name + RECORD)

    @property
    def size(self) -> int:
        """Size on disk in bytes, all files."""
        folder = self.path.parent
        return sum((folder / name).stat().st_size for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """The record as plain data; its paths are relative to the record."""
        data = asdict(self)
        data.update(path=self.path.name, contract=self.contract.to_json(), notes=list(self.notes))
        data.update(weights=self.weights.to_json(path=True), fidelity=_finite(self.fidelity))
        return {"schema": data.pop("schema"), "u2export": __version__, **data}


def read_record(record: Path) -> Artifact:
    """The artifact that a record describes. Its files are not looked at.

    Raises:
        UserError: the record is missing, unreadable, of another schema, or damaged; or its list of files lacks the main
            file, or leads out of its folder.
    """
    hint = "give an artifact's record, or export the artifact again"
    data = read_json(record, "an artifact or its record")
    if not isinstance(data, dict) or not data.keys() >= REQUIRED:
        raise UserError(f"{record} is not an artifact's record", hint)
    if data.get("schema") != SCHEMA:
        raise UserError(f"{record} has schema {data.get('schema')}, but this u2export reads schema {SCHEMA}", hint)
    data.pop("u2export", None)
    try:
        # Only the name is taken, so that a record cannot point to a file in another folder.
        data["path"] = record.parent / Path(data["path"]).name
        data["contract"] = _contract(data["contract"])
        data["weights"] = checked(Identity(**data["weights"]))
        data["notes"] = _texts(data.get("notes", []))
        made = checked(Artifact(**data))
        _check_values(data)
        _check_files(made)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{record}: damaged record ({error})", hint) from None
    return made


def is_record(path: Path) -> bool:
    """Tell whether a file is an artifact's record, or stands in the place of one; such as a recipe is not."""
    if not path.name.endswith(RECORD):
        return False
    if path.with_name(path.name.removesuffix(RECORD)).exists():
        return True
    try:
        data = read_json(path, "")
    except UserError:
        return False
    return isinstance(data, dict) and data.keys() >= REQUIRED


def hashes(path: Path, *more: Path) -> dict[str, str]:
    """Return the sha256 of all files of a model and of `more` files, by path relative to the model's folder.

    The files of a model are the file itself, every file in a folder, or an `.onnx` with its external data.

    Raises:
        UserError: a file is missing or unreadable, or an `.onnx` is no ONNX file or names data outside its folder.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    else:
        files = model_files(path) if path.suffix.lower() == ".onnx" else [path]
    return {str(p.relative_to(path.parent)): file_digest(p) for p in (*files, *more)}


def _contract(data: Any) -> Contract:
    made = checked(Contract.from_json(data))
    numbers = (*made.mean, *made.std)
    if len(made.mean) != len(made.std) or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in numbers):
        raise ValueError(f"mean {made.mean} and std {made.std} are not finite numbers of equal count")
    return made


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.40} is no list of texts")
    return tuple(_text(value) for value in values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _check_values(data: Any) -> None:
    """Refuse NaN and infinite numbers, which JSON does not have but Python reads."""
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{data} is not a finite number")
    if isinstance(data, (dict, list)):
        for value in data.values() if isinstance(data, dict) else data:
            _check_values(value)


def _check_files(made: Artifact) -> None:
    """Refuse a list of files without the main file, or with names or links that lead out of the artifact's folder.

    Raises:
        ValueError, TypeError: the list is of this kind.
    """
    name, folder = made.path.name, made.path.parent
    if not name or name == "..":
        raise ValueError("it names no file")
    if not any(Path(_text(file)).parts[:1] == (name,) for file in made.files):
        raise ValueError(f"its list of files lacks {name}")
    for file, digest in made.files.items():
        inside = Path(file)
        if inside.is_absolute() or inside.drive or ".." in inside.parts:
            raise ValueError(f"{file!r:.80} lies outside its folder")
        if not (folder / inside).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{file!r:.80} is a link to another folder")
        if not re.fullmatch("[0-9a-f]{64}", _text(digest)):
            raise ValueError(f"{digest!r:.40} is no sha256")


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in which null stands for NaN and infinite numbers, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
