"""What a target runtime implements, and what every target gets for free.

A target writes `_export` and `_load`. Given are: the checks of the request, a staging folder, the comparison of the
finished file with the PyTorch reference on real photos, and the record that travels with the artifact.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact, hashes
from u2export.files import make_folder, publish, staging, write_json
from u2export.install import how_to_install
from u2export.reference.image import Contract, Floats
from u2export.version import __version__

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration
    from u2export.reference.source import Source


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
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> AbstractContextManager[Runner]:
        """Open the artifact on this machine; `arithmetic` is one of `arithmetics(artifact)`."""

    def adopts(self, path: Path) -> bool:
        """Whether this target opens a file that has no record."""
        return False

    def contract_of(self, path: Path) -> Contract:
        """The image contract to assume for such a file."""
        return Contract()

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
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
        with self._load(artifact, self.arithmetics(artifact)[0], processors()) as runner:
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

    def load(self, artifact: Artifact, arithmetic: str = "", threads: int = 0) -> AbstractContextManager[Runner]:
        """Open an artifact on this machine.

        Args:
            artifact: what to open.
            arithmetic: one of `arithmetics(artifact)`; the first by default.
            threads: processors to use where the runtime can be told; 0 for all this process may use.

        Raises:
            Unavailable: this machine cannot run it.
            UserError: no such arithmetic.
        """
        if problem := self.missing_runtime():
            raise problem
        arithmetics = self.arithmetics(artifact)
        if arithmetic and arithmetic not in arithmetics:
            raise UserError(
                f"{artifact.name} cannot run as {arithmetic} here", f"choose one of {', '.join(arithmetics)}"
            )
        return self._load(artifact, arithmetic or arithmetics[0], threads or processors())

    @contextmanager
    def streams(self, artifact: Artifact, arithmetic: str, threads: int, count: int) -> Iterator[Sequence[Runner]]:
        """`count` runners to be used at the same time, each with its share of the threads; raises as `load`."""
        share = max(1, (threads or processors()) // count)
        with ExitStack() as stack:
            yield [stack.enter_context(self.load(artifact, arithmetic, share)) for _ in range(count)]


def missing_modules(title: str, needs: Sequence[str], extra: str) -> Unavailable | None:
    """Unavailable naming the modules of `needs` that are not installed, or None."""
    lost = [module for module in needs if find_spec(module) is None]
    if not lost:
        return None
    return Unavailable(f"{title} is not available here: {', '.join(lost)} not installed", how_to_install(extra, lost))


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*modules: str) -> dict[str, str]:
    """Installed versions of distributions, those not installed left out."""
    from importlib.metadata import distributions

    installed = {d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}
    return {name: installed[name] for name in modules if name in installed}
