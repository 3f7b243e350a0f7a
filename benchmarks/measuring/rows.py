"""Which rows a bench has, and what the masks of each are compared with.

Rows of the same weights and image contract form a group; each group has a reference of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.benchmarks.measuring import map_files as maps
from u2export.benchmarks.report import Row
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.install import how_to_install
from u2export.reference.image import Contract
from u2export.reference.weights import RANDOM, WEIGHTS, Identity, cached, file_digest, pull

WEIGHT_FILES = (".pth", ".pt", ".safetensors")
UNKNOWN = "unknown"  # variant of a model file without a record: nobody knows what weights are in it
Key = tuple[str, Contract]


@dataclass(frozen=True)
class PlannedRow:
    """A row to be: as it stands before measuring, how a worker opens it, and whether in its own arithmetic."""

    row: Row
    opening: Mapping[str, Any]
    contract: Contract
    default: bool = True


@dataclass(frozen=True)
class Choice:
    """What `--reference` names."""

    text: str = "auto"

    @property
    def kind(self) -> str:
        """ "auto", "pytorch", "weights" (a file), "maps" (an .npz) or "artifact"."""
        suffix = Path(self.text).suffix.lower()
        if self.text in ("auto", "pytorch"):
            return self.text
        return "weights" if suffix in WEIGHT_FILES else "maps" if suffix == ".npz" else "artifact"

    @cached_property
    def artifact(self) -> Artifact:
        """Where it is one."""
        return read_artifact(Path(self.text))

    @cached_property
    def sha256(self) -> str:
        """Of the weights it stands for; empty where it stands for each group's own."""
        path = Path(self.text)
        if self.kind == "weights":
            return file_digest(path)
        if self.kind == "maps":
            return maps.weights_of(path)
        return self.artifact.weights.sha256 if self.kind == "artifact" else ""

    def key(self, subject: PlannedRow) -> Key:
        """The subject's group; a file of unknown weights is held against the reference that the caller names."""
        unknown = subject.row.variant == UNKNOWN and self.sha256
        return self.sha256 if unknown else subject.row.weights.sha256, subject.contract

    def is_reference(self, subject: PlannedRow, group: Sequence[PlannedRow]) -> bool:
        """Whether a row of the group may serve as its reference."""
        row = subject.row
        if row.exporter == "pytorch":
            return True
        if self.kind == "auto":
            recorded = row.variant != UNKNOWN or len(group) > 1
            return recorded and subject.default and row.precision == "fp32" and row.exporter in ("onnx", "ort")
        path = Path(subject.opening["artifact"])
        return self.kind == "artifact" and subject.default and path.resolve() == self.artifact.path.resolve()


def groups(subjects: Sequence[PlannedRow], choice: Choice) -> list[list[PlannedRow]]:
    """Subjects by weights and contract; in each group those that may be the reference first, the best at the front.

    Raises:
        UserError: the reference named fits no group, or is PyTorch and cannot be had here.
    """
    found: dict[Key, list[PlannedRow]] = {}
    for subject in subjects:
        found.setdefault(choice.key(subject), []).append(subject)
    taken = {s.row.name for s in subjects}
    ordered = []
    for key, group in found.items():
        extra = [_unique(s, taken) for s in _not_among(key, group, choice)]
        inside = [s for s in group if choice.is_reference(s, group)]
        ordered.append([*extra, *inside, *(s for s in group if s not in inside)])
    named = choice.kind not in ("auto", "pytorch")
    if named and not any(key[0] == choice.sha256 for key in found):
        raise UserError(f"--reference {choice.text} is of other weights than the artifacts", "see their records")
    return ordered


def _not_among(key: Key, group: Sequence[PlannedRow], choice: Choice) -> Iterator[PlannedRow]:
    """References that are not among the artifacts given: PyTorch, or a further artifact."""
    sha256, contract = key
    known = (s.row for s in group if s.row.weights.sha256 == sha256)
    row = next(known, None)
    identity = row.weights if row else Identity(Path(choice.text).stem, sha256)
    if choice.kind in ("auto", "pytorch", "weights"):
        if name := find_weights(identity, choice):
            yield planned_pytorch(name, identity, contract, row.variant if row else UNKNOWN)
        elif choice.kind == "pytorch":
            raise UserError(
                f"no PyTorch reference for weights {identity.name}: torch or the weights are missing",
                f"give --reference FILE, or pull the weights and run {how_to_install('torch')}",
            )
    if choice.kind == "artifact" and (choice.sha256, choice.artifact.contract) == key:
        subject = planned_artifact(choice.artifact.name, choice.artifact)
        if not any(choice.is_reference(s, group) for s in group):
            yield subject


def find_weights(identity: Identity, choice: Choice) -> str:
    """What `Source.open` takes to open the weights an artifact was made from; empty where that cannot be done here."""
    if find_spec("torch") is None:
        return ""
    if choice.kind == "weights":
        return choice.text if choice.sha256 == identity.sha256 else ""
    if identity.random and identity.name.startswith(RANDOM):
        return identity.name
    if identity.name in WEIGHTS:
        try:
            pull(identity.name)
        except UserError:
            return ""
    there = (name for name in WEIGHTS if cached(name).is_file())
    return next((name for name in there if file_digest(cached(name)) == identity.sha256), "")


def planned_artifact(name: str, artifact: Artifact) -> PlannedRow:
    """The row of an artifact in the arithmetic its precision means."""
    digest = hashlib.sha256("".join(f"{k} {v}\n" for k, v in sorted(artifact.files.items())).encode()).hexdigest()
    row = Row(
        name, artifact.exporter, artifact.precision, artifact.precision, artifact.variant, artifact.weights,
        artifact.contract.to_json(), digest, artifact.size, notes=artifact.notes,
    )  # fmt: skip
    return PlannedRow(row, {"artifact": str(artifact.path), "mode": ""}, artifact.contract)


def planned_pytorch(weights: str, identity: Identity, contract: Contract, variant: str) -> PlannedRow:
    """The row of the PyTorch network; `weights` is what `Source.open` finds them by."""
    size = f"{contract.height}" if contract.height == contract.width else f"{contract.height}x{contract.width}"
    name = f"{identity.name}-{size}-pytorch-fp32"
    row = Row(name, "pytorch", "fp32", "fp32", variant, identity, contract.to_json(), identity.sha256)
    opening = {"weights": weights, "sha256": identity.sha256, "contract": contract.to_json()}
    return PlannedRow(row, opening, contract)


def named(artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    """Artifacts by row name: the file's, with its folder's in front where two are called alike.

    Raises:
        UserError: the same one twice.
    """
    names = [a.name for a in artifacts]
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        unique = names.count(artifact.name) == 1
        name = artifact.name if unique else f"{artifact.path.resolve().parent.name}/{artifact.name}"
        if name in found:
            raise UserError(f"{name} is given twice", "give each artifact once")
        found[name] = artifact
    return found


def _unique(subject: PlannedRow, taken: set[str]) -> PlannedRow:
    """A further reference under a name no row has."""
    row = subject.row
    mark = hashlib.sha256(f"{row.weights.sha256}{row.contract}".encode()).hexdigest()[:6]
    name = f"{row.name}-{mark}" if row.name in taken else row.name
    taken.add(name)
    return replace(subject, row=replace(row, name=name))
