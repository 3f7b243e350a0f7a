"""From a path to an artifact: by its record, or without one by what the file itself tells."""

from __future__ import annotations

import hashlib
from pathlib import Path

from u2export.errors import UserError
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact, hashes, read_record
from u2export.reference.weights import Identity, file_digest


def read_artifact(path: Path) -> Artifact:
    """The artifact of a model file, a model folder or a record. The hashes of its files are checked.

    Raises:
        UserError: there is no such file, its record is unreadable or of another schema, or a file was changed since
            the record was written.
        Unavailable: there is no record, and the runtime that would open the file is not installed.
    """
    record = path if path.name.endswith(".json") else path.with_name(path.name + ".json")
    if not path.exists():
        raise UserError(f"no such artifact: {path}", "give the file an export command printed, or its .json record")
    if not record.exists():
        return adopt(path)
    artifact = read_record(record)
    for name, expected in artifact.files.items():
        file = artifact.path.parent / name
        if not file.is_file():
            raise UserError(f"{artifact.path}: {name} is missing", "copy the artifact whole, or export it again")
        if file_digest(file) != expected:
            raise UserError(f"{file} is not the file its record {record.name} describes", "export it again")
    return artifact


def adopt(path: Path) -> Artifact:
    """The artifact of a model file without a record, such as a published ONNX. A note says which contract is assumed.

    Raises:
        UserError: no target opens files of this kind.
        Unavailable: the runtime that opens files of this kind is not installed.
    """
    owner = next((e for e in EXPORTERS.values() if e.adopts(path)), None)
    if owner is None:
        raise UserError(f"{path}: no record beside it, and no runtime here opens such a file", "give an artifact")
    files = hashes(path)
    whole = (
        hashlib.sha256("".join(files.values()).encode()).hexdigest() if len(files) > 1 else next(iter(files.values()))
    )
    return Artifact(
        owner.name, "fp32", "unknown", Identity(path.stem, whole), owner.contract_of(path), path, files,
        notes=("no record: default image contract assumed",),
    )  # fmt: skip
