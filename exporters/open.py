"""From a path to an artifact: by its record, or without one by what the file itself tells."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from u2export.errors import UserError
from u2export.exporters import EXPORTERS, Exporter
from u2export.exporters.artifact import RECORD, Artifact, hashes, is_record, read_record
from u2export.files import no_pipe
from u2export.reference.weights import Identity, file_digest

log = logging.getLogger(__name__)


def read_artifact(path: Path, output_name: str = "") -> Artifact:
    """The artifact of a model file, a model folder or a record. The hashes of its files are checked.

    Args:
        path: of the model or the record.
        output_name: of an ONNX file without a record: the output that is d0; empty to find it.

    Raises:
        UserError: there is no such file, its record is unreadable or of another schema, or a file was changed since
            the record was written; or an output is named although there is a record.
        Unavailable: there is no record, and the runtime that would open the file is not installed.
    """
    record = path if path.name.endswith(RECORD) else path.with_name(path.name + RECORD)
    if not path.exists():
        raise UserError(f"no such artifact: {path}", "give the file an export command printed, or its .json record")
    no_pipe(path, "give an artifact")
    if not record.exists():
        return adopt(path, output_name)
    if output_name:
        raise UserError(f"{path} has a record, which tells its output", "leave the name out", "output_name")
    artifact = read_record(record)
    for name, expected in artifact.files.items():
        file = artifact.path.parent / name
        if not file.is_file():
            raise UserError(f"{artifact.path}: {name} is missing", "copy the artifact whole, or export it again")
        if file_digest(file) != expected:
            raise UserError(f"{file} is not the file its record {record.name} describes", "export it again")
    return artifact


def read_artifacts(given: Iterable[Path | Artifact], output_name: str = "") -> list[Artifact]:
    """Return the artifacts among several paths, each once, such as all that `folder/*` names.

    Among several paths, a path that is no artifact (a recipe, results, a picture) is skipped with a line in the log.
    An artifact that is given through its file and its record counts once. `output_name` is for the files without a
    record.

    Raises:
        UserError: as `read_artifact`; or none of the paths is an artifact, or an output is named and all have records.
        Unavailable: as `read_artifact`.
    """
    given = list(given)
    several = len(given) > 1
    skipped = [p for p in given if several and isinstance(p, Path) and p.exists() and not is_artifact(p)]
    if skipped and len(skipped) == len(given):
        raise UserError(f"none of the {len(skipped)} paths is an artifact", "give files that an export command printed")
    for path in skipped:
        log.warning("skipped %s: it is no artifact", path)
    used = [one for one in given if one not in skipped]
    if output_name and not any(isinstance(one, Path) and _lacks_record(one) for one in used):
        raise UserError("all artifacts have records, which tell their outputs", "leave the name out", "output_name")
    found: dict[Path, Artifact] = {}
    for one in used:
        artifact = one if isinstance(one, Artifact) else read_artifact(one, output_name if _lacks_record(one) else "")
        found.setdefault(artifact.path.parent.resolve() / artifact.name, artifact)
    return list(found.values())


def target_of(artifact: Artifact) -> Exporter:
    """Return the target that made an artifact.

    Raises:
        UserError: this u2export has no such target.
    """
    if artifact.exporter not in EXPORTERS:
        raise UserError(
            f"{artifact.name} is of an unknown target {artifact.exporter!r:.40}",
            f"this u2export has {', '.join(EXPORTERS)}",
        )
    return EXPORTERS[artifact.exporter]


def is_artifact(path: Path) -> bool:
    """Tell whether a path is meant as an artifact: a record, a model with a record, or a model that a target opens."""
    if path.name.endswith(RECORD):
        return is_record(path)
    return path.with_name(path.name + RECORD).is_file() or any(e.adopts(path) for e in EXPORTERS.values())


def _lacks_record(path: Path) -> bool:
    return not path.name.endswith(RECORD) and not path.with_name(path.name + RECORD).exists()


def adopt(path: Path, output_name: str = "") -> Artifact:
    """The artifact of a model file without a record, such as a published ONNX. Its notes say what is assumed.

    Raises:
        UserError: no target opens files of this kind, or what must be assumed cannot be told, see `Runtime.assume`.
        Unavailable: the runtime that opens files of this kind is not installed.
    """
    owner = next((e for e in EXPORTERS.values() if e.adopts(path)), None)
    if owner is None:
        raise UserError(f"{path}: no record beside it, and no runtime here opens such a file", "give an artifact")
    files = hashes(path)
    whole = (
        hashlib.sha256("".join(files.values()).encode()).hexdigest() if len(files) > 1 else next(iter(files.values()))
    )
    assumed = owner.assume(path, output_name)
    return Artifact(
        owner.name, assumed.precision, "unknown", Identity(path.stem, whole), assumed.contract, path, files,
        options=assumed.options, notes=assumed.notes,
    )  # fmt: skip
