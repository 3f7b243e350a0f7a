"""What a target runtime implements, and what every target gets for free.

A target writes `_export` and `_load`. Given are: the checks of the request, a staging folder, the comparison of the
finished file with the PyTorch reference on real photos, and the record that travels with the artifact.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from u2export import __version__
from u2export.errors import Unavailable, UserError
from u2export.files import make_folder, publish, read_json, staging, write_json
from u2export.reference.image import Contract, Floats
from u2export.reference.weights import Identity, file_digest

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration
    from u2export.reference.source import Source

SCHEMA = 1
Options = Mapping[str, Any]


def _as_it_is(batch: Floats) -> Any:
    return batch


@dataclass(frozen=True)
class Runner:
    """An open artifact.

    Attributes:
        predict: what `prepare` returned to the fused map d0, (N, K, H, W) float32; this is what gets timed.
        info: what really ran, read back from the runtime: device, provider, arithmetic, threads …
        prepare: (N, C, H, W) float32 network input to what the artifact takes, where that is something else.
        opening: ns of "read" and "compile" while it was opened, as far as the runtime tells them apart.
    """

    predict: Callable[[Any], Floats]
    info: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Floats], Any] = _as_it_is
    opening: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, batch: Floats) -> Floats:
        """d0 of a network input, untimed."""
        return self.predict(self.prepare(batch))


@dataclass(frozen=True)
class Artifact:
    """An exported model on disk with all that made it; its record lies beside it as `<name>.json`.

    Attributes:
        exporter, precision: the target's name and the precision asked for.
        variant: "u2net", "u2netp" or "u2net-custom".
        weights: which weights it was made from.
        contract: pre- and postprocessing it expects.
        path: the file or folder a runtime opens.
        files: sha256 of every file, by its path relative to the artifact's folder.
        tools: versions of the packages that took part.
        options: the target's own options, as asked for.
        calibration: digest and size of the calibration set, empty where none was used.
        condition: what the conditioning pass changed, empty where nothing was.
        fidelity: masks against the PyTorch reference at export, and on how many photos.
        golden: what the reference makes of the golden picture, for ports to check themselves with.
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
        """The file's or folder's own name: how tables and baselines call the artifact."""
        return self.path.name

    @property
    def record(self) -> Path:
        """Where the record lies."""
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        """Bytes on disk, all files."""
        folder = self.path.parent
        return sum((folder / name).stat().st_size for name in self.files)

    def to_json(self) -> dict[str, Any]:
        """The record: plain data, paths relative to it."""
        data = asdict(self)
        data.update(path=self.path.name, contract=self.contract.to_json(), notes=list(self.notes))
        return {"schema": data.pop("schema"), "u2export": __version__, **data}

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """The artifact of a model file, model folder, or record, its files' hashes checked.

        Raises:
            UserError: missing, unreadable, of a newer schema, or a file changed since the record was written.
        """
        record = path if path.name.endswith(".json") else path.with_name(path.name + ".json")
        if not path.exists():
            raise UserError(f"no such artifact: {path}", "give the file an export command printed, or its .json record")
        if not record.exists():
            return adopt(path)
        artifact = cls._read(record)
        for name, expected in artifact.files.items():
            file = artifact.path.parent / name
            if not file.is_file():
                raise UserError(f"{artifact.path}: {name} is missing", "copy the artifact whole, or export it again")
            if file_digest(file) != expected:
                raise UserError(f"{file} is not the file its record {record.name} describes", "export it again")
        return artifact

    @classmethod
    def _read(cls, record: Path) -> Artifact:
        hint = "give an artifact's record, or export the artifact again"
        data = read_json(record, "an artifact or its record")
        if not isinstance(data, dict) or not {"exporter", "path", "contract", "weights"} <= data.keys():
            raise UserError(f"{record} is not an artifact's record", hint)
        if data.get("schema") != SCHEMA:
            raise UserError(f"{record} has schema {data.get('schema')}, this u2export reads {SCHEMA}", hint)
        data.pop("u2export", None)
        try:
            # Only a name beside the record: a record must not be able to point elsewhere.
            data["path"] = record.parent / Path(data["path"]).name
            data["contract"] = Contract.from_json(data["contract"])
            data["weights"] = Identity(**data["weights"])
            data["notes"] = tuple(data.get("notes", ()))
            return cls(**data)
        except (TypeError, ValueError) as error:
            raise UserError(f"{record}: damaged record ({error})", hint) from None


def adopt(path: Path) -> Artifact:
    """A model file without a record (say, a published ONNX): run under the default contract, and said so.

    Raises:
        UserError: no target opens files of this kind.
    """
    from u2export.exporters import EXPORTERS

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


def hashes(path: Path, *more: Path) -> dict[str, str]:
    """sha256 of a file, or of every file in a folder, by path relative to the parent folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {str(p.relative_to(path.parent)): file_digest(p) for p in (*files, *more)}


@dataclass(frozen=True)
class Request:
    """What the caller wants exported, apart from the target's own options.

    Attributes:
        precision: one of the target's `precisions`.
        calibration: photos, for the precisions that need them and for conditioning.
        condition: re-parametrise the network exactly before lowering its precision (the default).
        budget: fidelity limits that replace the precision's default ones, by `Fidelity` field.
        held_back: photos of the caller's own that were not calibrated on, to judge the masks on beside the
            verification photos.
    """

    precision: str
    calibration: Calibration | None = None
    condition: bool = True
    budget: Mapping[str, float] = field(default_factory=dict)
    held_back: Calibration | None = None


@dataclass(frozen=True)
class Made:
    """What `_export` wrote: further files beside the main one, tool versions, the conditioning report, notes."""

    more: tuple[Path, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    condition: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exporter(ABC):
    """One target runtime; its fields are the target's own options. Modules of targets import nothing heavy at the top.

    Class attributes:
        name: the command-line word, module name and extra. title: for people. suffix: of the main file.
        precisions: those it can write, the default first. calibrated: those that need photos.
        needs: modules to export with. extra: what to install for them.
        limits: default fidelity budget by precision (see `Fidelity.broken`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    suffix: ClassVar[str]
    precisions: ClassVar[Sequence[str]] = ("fp32",)
    calibrated: ClassVar[Sequence[str]] = ()
    needs: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str] = ""
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "fp32": {"mae": 1e-4, "mae_worst": 1e-3},
        "fp16": {"mae": 1e-3, "mae_worst": 5e-3},
        "int8": {"mae": 6e-3, "mae_worst": 3e-2},
    }

    @abstractmethod
    def _export(self, source: Source, path: Path, request: Request) -> Made:
        """Write the model to `path`, a name inside a scratch folder."""

    @abstractmethod
    def _load(self, artifact: Artifact, mode: str, threads: int) -> AbstractContextManager[Runner]:
        """Open the artifact on this machine; `mode` is one of `modes(artifact)`."""

    def adopts(self, path: Path) -> bool:
        """Whether this target opens a file that has no record."""
        return False

    def contract_of(self, path: Path) -> Contract:
        """The image contract to assume for such a file."""
        return Contract()

    def modes(self, artifact: Artifact) -> Sequence[str]:
        """The arithmetics this machine can run the artifact in, the one its precision means first."""
        return (artifact.precision,)

    def built(self, artifact: Artifact, folder: Path) -> Artifact | None:
        """What this machine has to make of an artifact before it can run it, in `folder`; None where it runs as it is.

        Raises:
            UserError: it cannot be made.
        """
        return None

    def missing(self) -> Unavailable | None:
        """Why this machine cannot export to the target; None if it can."""
        return missing_modules(self.title, self.needs, self.extra)

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the target's artifacts; None if it can."""
        return self.missing()

    def filename(self, source: Source, precision: str) -> str:
        """`<weights>-<size>-<target>-<precision><suffix>`."""
        c = source.contract
        size = f"{c.height}" if c.height == c.width else f"{c.height}x{c.width}"
        return f"{source.weights.name}-{size}-{self.name}-{precision}{self.suffix}"

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """Write the artifact and its record into `folder`, unless its masks miss the budget.

        Raises:
            UserError: the precision is not one of the target's, photos are needed and missing, the folder cannot be
                written, or the masks differ from the reference by more than the budget. Nothing is left behind then,
                except that a calibrated artifact over budget is kept in `folder`/refused with its report.
            Unavailable: this machine lacks a package.
        """
        self.check(request, request.calibration is not None)
        with staging(folder) as scratch:
            path = scratch / self.filename(source, request.precision)
            made = self._export(source, path, request)
            calibration = request.calibration
            artifact = Artifact(
                exporter=self.name,
                precision=request.precision,
                variant=source.variant,
                weights=source.weights,
                contract=source.contract,
                path=path,
                files=hashes(path, *made.more),
                tools={"u2export": __version__, **made.tools},
                options=asdict(self),
                calibration=calibration.summary() if calibration else {},
                condition=made.condition,
                golden=source.golden,
                notes=made.notes,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
            artifact, broken = self._judged(artifact, source, request)
            if broken:
                self._refuse(artifact, folder, broken, keep=request.precision in self.calibrated)
            return self._publish(artifact, folder)

    def check(self, request: Request, calibrated: bool) -> None:
        """Refuse what cannot work before any time is spent on it; `calibrated` says whether photos are at hand.

        Raises:
            UserError, Unavailable: as `export`.
        """
        if request.precision not in self.precisions:
            raise UserError(f"{self.title} has no {request.precision}", f"choose one of {', '.join(self.precisions)}")
        if request.precision in self.calibrated and not calibrated:
            raise UserError(f"{self.title} {request.precision} needs calibration photos", "add --calib calibration/")
        if problem := self.missing():
            raise problem

    def _judged(self, artifact: Artifact, source: Source, request: Request) -> tuple[Artifact, str]:
        """The artifact with its measured fidelity in the record, and the limits it breaks, in words."""
        if self.missing_runtime():
            return replace(artifact, notes=(*artifact.notes, "not run on this machine")), ""
        with self._load(artifact, self.modes(artifact)[0], processors()) as runner:
            fidelity = source.compare(runner, request.held_back or ())
        limits = {**self.limits.get(request.precision, {}), **request.budget}
        return replace(artifact, fidelity=fidelity.to_json()), fidelity.broken(limits)

    def _refuse(self, artifact: Artifact, folder: Path, broken: str, keep: bool) -> NoReturn:
        """Say what is wrong; what took a calibration to make is kept, apart, for whoever wants to look into it."""
        problem = f"{artifact.name}: masks differ from PyTorch's by more than allowed: {broken}"
        if not keep:
            raise UserError(problem, "nothing was written; relax it with --budget, or choose another precision")
        kept = self._publish(replace(artifact, notes=(*artifact.notes, f"refused: {broken}")), folder / "refused")
        raise UserError(problem, f"kept with its report at {kept.record}; calibrate on other photos, or relax --budget")

    def _publish(self, artifact: Artifact, folder: Path) -> Artifact:
        scratch = artifact.path.parent
        tops = sorted({Path(name).parts[0] for name in artifact.files})
        make_folder(folder)
        final = replace(artifact, path=folder / artifact.path.name)
        final.record.unlink(missing_ok=True)  # a record must never describe files it does not belong to
        for name in tops:
            publish(scratch / name, folder / name)
        write_json(final.to_json(), final.record)
        return final

    def load(self, artifact: Artifact, mode: str = "", threads: int = 0) -> AbstractContextManager[Runner]:
        """Open an artifact on this machine.

        Args:
            artifact: what to open.
            mode: one of `modes(artifact)`; the first by default.
            threads: processors to use where the runtime can be told; 0 for all this process may use.

        Raises:
            Unavailable: this machine cannot run it.
            UserError: no such mode.
        """
        if problem := self.missing_runtime():
            raise problem
        modes = self.modes(artifact)
        if mode and mode not in modes:
            raise UserError(f"{artifact.name} cannot run as {mode} here", f"choose one of {', '.join(modes)}")
        return self._load(artifact, mode or modes[0], threads or processors())

    @contextmanager
    def streams(self, artifact: Artifact, mode: str, threads: int, count: int) -> Iterator[Sequence[Runner]]:
        """`count` runners to be used at the same time, each with its share of the threads; raises as `load`."""
        share = max(1, (threads or processors()) // count)
        with ExitStack() as stack:
            yield [stack.enter_context(self.load(artifact, mode, share)) for _ in range(count)]


def missing_modules(title: str, needs: Sequence[str], extra: str) -> Unavailable | None:
    """Unavailable naming the modules of `needs` that are not installed, or None."""
    lost = [module for module in needs if find_spec(module) is None]
    if not lost:
        return None
    return Unavailable(
        f"{title} is not available here: {', '.join(lost)} not installed", f"pip install 'u2export[{extra}]'"
    )


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*modules: str) -> dict[str, str]:
    """Installed versions of distributions, those not installed left out."""
    from importlib.metadata import distributions

    installed = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    return {name: installed[name] for name in modules if name in installed}


__all__ = ["Artifact", "Exporter", "Made", "Request", "Runner", "adopt", "hashes", "processors", "versions"]
