"""Which rows a bench has, and what the masks of each row are compared with.

Rows of the same weights and image contract form a group; each group has a reference of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.benchmarks.measuring import map_files
from u2export.benchmarks.report import SCENARIOS, Row, Settings
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.install import how_to_install
from u2export.reference.checkpoint import SUFFIXES
from u2export.reference.image import Contract
from u2export.reference.weights import RANDOM, WEIGHTS, Identity, cached, file_digest, pull, resolve, weights_digest

WEIGHT_FILES = tuple(suffix for suffix in SUFFIXES if suffix != ".onnx")  # an .onnx is run as it is
UNKNOWN = "unknown"  # variant of a model file without a record: nobody knows its weights
# Of a group: sha256 of the weights, and the image contract.
Key = tuple[str, Contract]


@dataclass(frozen=True)
class PlannedRow:
    """A planned row: its fields before measuring, how a worker opens it, and whether it uses the default arithmetic.

    Attributes:
        row: the fields that are known before measuring; `reason` is set where the row cannot be measured.
        opening: fields of the worker's request "open", without threads: "artifact", "mode" and, where the user named
            it, "output" (and "built", the path of what the device built), or "weights", "sha256" and "contract" of
            the PyTorch network.
        contract: the image contract, as in `row`.
        default: whether the arithmetic is the one that the runtime chooses for the artifact.
    """

    row: Row
    opening: Mapping[str, Any]
    contract: Contract
    default: bool = True

    @property
    def is_pytorch(self) -> bool:
        """Whether the row is the PyTorch network and not an artifact."""
        return "weights" in self.opening


@dataclass(frozen=True)
class ReferenceChoice:
    """What the option `--reference` names: a word, or the path of a file.

    Attributes:
        text: the word or the path.
        output_name: the output that is d0, of an ONNX file without a record where the file does not tell.
    """

    text: str = "auto"
    output_name: str = ""

    @property
    def kind(self) -> str:
        """Return "auto", "pytorch", "weights" (a file), "maps" (an .npz) or "artifact"."""
        suffix = Path(self.text).suffix.lower()
        if self.text in ("auto", "pytorch"):
            return self.text
        return "weights" if suffix in WEIGHT_FILES else "maps" if suffix == ".npz" else "artifact"

    @cached_property
    def artifact(self) -> Artifact:
        """The artifact that `--reference` names, where `kind` is "artifact"."""
        try:
            return read_artifact(Path(self.text))
        except UserError as error:
            if not self.output_name or error.option != "output_name":
                raise
        return read_artifact(Path(self.text), self.output_name)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the weights of the named reference; empty for "auto" and "pytorch"."""
        path = Path(self.text)
        if self.kind == "weights":
            return weights_digest(path)
        if self.kind == "maps":
            return map_files.weights_of(path)
        return self.artifact.weights.sha256 if self.kind == "artifact" else ""

    def key(self, planned: PlannedRow) -> Key:
        """Return the group of a row. A file of unknown weights joins the group of the named reference."""
        unknown = planned.row.variant == UNKNOWN and self.sha256
        return self.sha256 if unknown else planned.row.weights.sha256, planned.contract

    def is_reference(self, planned: PlannedRow, group: Sequence[PlannedRow]) -> bool:
        """Tell whether a row of a group may serve as the group's reference."""
        row = planned.row
        if planned.is_pytorch:
            return True
        if not planned.default:
            return False
        if self.kind == "auto":
            recorded = row.variant != UNKNOWN or len(group) > 1
            return recorded and row.precision == "fp32" and row.exporter in ("onnx", "ort")
        path = Path(planned.opening["artifact"])
        return self.kind == "artifact" and path.resolve() == self.artifact.path.resolve()


def groups(planned_rows: Sequence[PlannedRow], choice: ReferenceChoice) -> list[list[PlannedRow]]:
    """Return the rows by weights and contract, with further references that are not among the artifacts.

    In each group the rows that may be the reference come first, the best of them at the front.

    Raises:
        UserError: the named reference fits no group, or it is PyTorch and torch or the weights are missing.
    """
    found: dict[Key, list[PlannedRow]] = {}
    for planned in planned_rows:
        found.setdefault(choice.key(planned), []).append(planned)
    taken = {planned.row.name for planned in planned_rows}
    ordered = []
    for key, group in found.items():
        further = _further_reference(key, group, choice)
        possible = [planned for planned in group if choice.is_reference(planned, group)]
        others = [planned for planned in group if planned not in possible]
        ordered.append([*([_unique(further, taken)] if further else []), *possible, *others])
    named = choice.kind not in ("auto", "pytorch")
    if named and not any(weights == choice.sha256 for weights, _ in found):
        raise UserError(
            f"the reference {choice.text} is of other weights than the artifacts", "see their records", "reference"
        )
    return ordered


def _further_reference(key: Key, group: Sequence[PlannedRow], choice: ReferenceChoice) -> PlannedRow | None:
    """Return the group's reference where it is none of the group's rows: PyTorch, or the artifact of `--reference`."""
    if choice.kind == "maps":
        return None
    if choice.kind == "artifact":
        return _further_artifact(key, group, choice)
    return _further_pytorch(key, group, choice)


def _further_artifact(key: Key, group: Sequence[PlannedRow], choice: ReferenceChoice) -> PlannedRow | None:
    """Return the row of the artifact of `--reference`; None where it is of another group, or in the group already."""
    fits = (choice.sha256, choice.artifact.contract) == key
    if not fits or any(choice.is_reference(planned, group) for planned in group):
        return None
    return planned_artifact(choice.artifact.name, choice.artifact)


def _further_pytorch(key: Key, group: Sequence[PlannedRow], choice: ReferenceChoice) -> PlannedRow | None:
    """Return the row of the PyTorch network of a group's weights; None where it cannot run here.

    Raises:
        UserError: the network cannot run here, and `--reference` asks for it.
    """
    sha256, contract = key
    known = next((planned.row for planned in group if planned.row.weights.sha256 == sha256), None)
    identity = known.weights if known else resolve(choice.text)[0]
    if weights := find_weights(identity, choice):
        return planned_pytorch(weights, identity, contract, known.variant if known else UNKNOWN)
    if choice.kind == "pytorch":
        raise UserError(
            f"no PyTorch reference for weights {identity.name}: torch or the weights are missing",
            f"give a file of the weights, or pull them and run {how_to_install('torch')}",
            "reference",
        )
    return None


def find_weights(identity: Identity, choice: ReferenceChoice) -> str:
    """Return the name or file by which `Source.open` opens the weights of an artifact; empty where it cannot.

    Own weights are found where they were when the artifact was made, as long as the file is the same.
    """
    if find_spec("torch") is None:
        return ""
    if choice.kind == "weights":
        return choice.text if choice.sha256 == identity.sha256 else ""
    if identity.random and identity.name.startswith(RANDOM):
        return identity.name
    if identity.path and _is_file_of(Path(identity.path), identity):
        return identity.path
    if identity.name in WEIGHTS:
        try:
            pull(identity.name)
        except UserError:
            return ""
    there = (name for name in WEIGHTS if cached(name).is_file())
    return next((name for name in there if file_digest(cached(name)) == identity.sha256), "")


def _is_file_of(path: Path, identity: Identity) -> bool:
    try:
        return path.is_file() and weights_digest(path) == identity.sha256
    except (UserError, OSError, ValueError):
        return False


def missing_references(artifacts: Sequence[Artifact], choice: ReferenceChoice) -> dict[str, str]:
    """Return what to tell the user of own weights for which "auto" finds no PyTorch reference, by their sha256.

    Named and random weights are left out: `find_weights` finds them without help.
    """
    told: dict[str, str] = {}
    if choice.kind != "auto":
        return told
    for artifact in artifacts:
        weights = artifact.weights
        own = artifact.variant != UNKNOWN and not weights.random and weights.name not in WEIGHTS
        if not own or weights.sha256 in told or find_weights(weights, choice):
            continue
        group = [a for a in artifacts if (a.weights.sha256, a.contract) == (weights.sha256, artifact.contract)]
        there = any(a.precision == "fp32" and a.exporter in ("onnx", "ort") for a in group)
        instead = "masks are compared with the fp32 ONNX" if there else "masks are compared with nothing"
        cure = "" if find_spec("torch") else f", with PyTorch installed ({how_to_install('torch')})"
        told[weights.sha256] = (
            f"no PyTorch reference for {weights.name}: {instead}; pass --reference FILE, the weights "
            f"with sha256 {weights.sha256}{cure}"
        )
    return told


def planned_artifact(name: str, artifact: Artifact) -> PlannedRow:
    """Return the row of an artifact in the arithmetic that its precision means."""
    parts = {**artifact.files, **chosen_output(artifact)}  # another output is another network
    digest = hashlib.sha256("".join(f"{k} {v}\n" for k, v in sorted(parts.items())).encode()).hexdigest()
    row = Row(
        name, artifact.exporter, artifact.precision, artifact.precision, artifact.variant, artifact.weights,
        artifact.contract.to_json(), digest, artifact.size, notes=artifact.notes,
    )  # fmt: skip
    opening = {"artifact": str(artifact.path), "mode": "", **chosen_output(artifact)}
    return PlannedRow(row, opening, artifact.contract)


def chosen_output(artifact: Artifact) -> dict[str, str]:
    """Return the field "output" of a worker's request where the user named the output of a file without a record."""
    return {"output": str(artifact.options["output"])} if artifact.options.get("named") else {}


def planned_pytorch(weights: str, identity: Identity, contract: Contract, variant: str) -> PlannedRow:
    """Return the row of the PyTorch network; `weights` is the name or file by which `Source.open` opens them."""
    size = f"{contract.height}" if contract.height == contract.width else f"{contract.height}x{contract.width}"
    name = f"{identity.name}-{size}-pytorch-fp32"
    row = Row(name, "pytorch", "fp32", "fp32", variant, identity, contract.to_json(), identity.sha256)
    opening = {"weights": weights, "sha256": identity.sha256, "contract": contract.to_json()}
    return PlannedRow(row, opening, contract)


def in_scenario(planned: PlannedRow, settings: Settings) -> PlannedRow:
    """Return the row with scenario, batch and streams of the settings; its name tells them where it is throughput."""
    s, name = settings, planned.row.name
    if s.scenario != SCENARIOS[0]:
        batch = f"batch {s.batch}" if s.batch > 1 else ""
        streams = f"{s.streams} streams" if s.streams > 1 else ""
        name = " ".join(filter(None, (name, s.scenario, batch, streams)))
    row = replace(planned.row, name=name, scenario=s.scenario, batch=s.batch, streams=s.streams)
    return replace(planned, row=row)


def named(artifacts: Sequence[Artifact]) -> dict[str, Artifact]:
    """Return artifacts by row name: the file's name, after its folder's name where two files have the same name.

    Raises:
        UserError: an artifact is given twice.
    """
    names = [a.name for a in artifacts]
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        unique = names.count(artifact.name) == 1
        name = artifact.name if unique else f"{artifact.path.resolve().parent.name}/{artifact.name}"
        if name in found:
            raise WrongValue(f"{name} is given twice", "give each artifact once")
        found[name] = artifact
    return found


def _unique(planned: PlannedRow, taken: set[str]) -> PlannedRow:
    """Return a further reference under a name that no other row has."""
    row = planned.row
    mark = hashlib.sha256(f"{row.weights.sha256}{row.contract}".encode()).hexdigest()[:6]
    name = f"{row.name}-{mark}" if row.name in taken else row.name
    taken.add(name)
    return replace(planned, row=replace(row, name=name))
