"""An exported model on disk, and the record beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.files import read_json
from u2export.reference.image import Contract
from u2export.reference.weights import Identity, file_digest
from u2export.version import __version__

SCHEMA = 1
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
    options: Options = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    condition: Mapping[str, Any] = field(default_factory=dict)
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
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        """Size on disk in bytes, all files."""
        folder = self.path.parent
        return sum((folder / name).stat().st_size for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """The record as plain data; its paths are relative to the record."""
        data = asdict(self)
        data.update(path=self.path.name, contract=self.contract.to_json(), notes=list(self.notes))
        return {"schema": data.pop("schema"), "u2export": __version__, **data}


def read_record(record: Path) -> Artifact:
    """The artifact that a record describes. Its files are not looked at.

    Raises:
        UserError: the record is missing, unreadable, of another schema, or damaged.
    """
    hint = "give an artifact's record, or export the artifact again"
    data = read_json(record, "an artifact or its record")
    if not isinstance(data, dict) or not {"exporter", "path", "contract", "weights"} <= data.keys():
        raise UserError(f"{record} is not an artifact's record", hint)
    if data.get("schema") != SCHEMA:
        raise UserError(f"{record} has schema {data.get('schema')}, but this u2export reads schema {SCHEMA}", hint)
    data.pop("u2export", None)
    try:
        # Only the name is taken, so that a record cannot point to a file in another folder.
        data["path"] = record.parent / Path(data["path"]).name
        data["contract"] = Contract.from_json(data["contract"])
        data["weights"] = Identity(**data["weights"])
        data["notes"] = tuple(data.get("notes", ()))
        return Artifact(**data)
    except (TypeError, ValueError) as error:
        raise UserError(f"{record}: damaged record ({error})", hint) from None


def hashes(path: Path, *more: Path) -> dict[str, str]:
    """sha256 of a file, or of every file in a folder, and of `more` files; by path relative to the parent folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {str(p.relative_to(path.parent)): file_digest(p) for p in (*files, *more)}
