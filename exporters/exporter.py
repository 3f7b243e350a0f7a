"""How artifacts of a target are made, and what every target gets for free.

A target writes `_export`, and `_load` of its runtime. The rest is given: the checks of the request, a staging folder,
the comparison of the finished file with the PyTorch reference on real photos, and the record beside the artifact.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.runtime import Runtime, missing_modules, processors
from u2export.files import make_folder, publish, staging, write_json
from u2export.reference.verification import sees_nothing
from u2export.version import __version__

if TYPE_CHECKING:
    from u2export.calibration.dataset import Calibration
    from u2export.reference.source import Source

log = logging.getLogger(__name__)
# Default limits by precision for the worst class of networks with several maps; of all other precisions the last one.
# They are chosen, not measured: an export that loses a class, or much of one, must not pass.
WORST_CLASS = {"fp32": 0.99, "fp16": 0.95}
WORST_CLASS_LOWER = 0.9


@dataclass(frozen=True)
class Request:
    """What the caller wants exported, apart from the target's own options.

    Attributes:
        precision: one of the target's `precisions`.
        calibration: photos, for the precisions that need them and for conditioning.
        condition: re-parametrise the network exactly before its precision is lowered (the default).
        budget: fidelity limits that replace the precision's default limits, by the name of a `Fidelity` field.
        held_back: photos of the caller's own that were not calibrated on. The masks are judged on them and on the
            verification photos.
        max_float: share of the multiply-accumulates that may become float where pure int8 misses the budget, 0 to 1.
        progress: is told what happens now, in a few words.
    """

    precision: str
    calibration: Calibration | None = None
    condition: bool = True
    budget: Mapping[str, float] = field(default_factory=dict)
    held_back: Calibration | None = None
    max_float: float = 0.1
    progress: Callable[[str], None] = lambda what: None


@dataclass(frozen=True)
class Made:
    """What `_export` wrote.

    Attributes:
        more: files beside the main one.
        tools: versions of the packages that took part.
        condition: report of the conditioning, empty where nothing was changed.
        notes: what a reader of a table must know.
        added_float: what became float so that int8 keeps its budget; empty where nothing did.
    """

    more: tuple[Path, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    condition: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    added_float: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exporter(Runtime):
    """One target runtime; its fields are the target's own options. Modules of targets import nothing heavy at the top.

    Class attributes:
        name: the word on the command line; also the name of the module and of the extra.
        title: what people call the target.
        suffix: of the main file.
        precisions: those that the target can write, the default first.
        calibrated: the precisions that need photos.
        needs: modules that an export needs.
        extra: what to install for them.
        builds: whether an export is built into another file before it runs.
        simulation: what computes the masks where the target's own runtime is missing; empty if nothing does.
        limits: default fidelity budget by precision (see `Fidelity.broken`).
        when: when to take the target, in a few words.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    precisions: ClassVar[Sequence[str]] = ("fp32",)
    calibrated: ClassVar[Sequence[str]] = ()
    needs: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str] = ""
    builds: ClassVar[bool] = False
    simulation: ClassVar[str] = ""
    when: ClassVar[str] = ""
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "fp32": {"mae": 1e-4, "mae_worst": 1e-3},
        "fp16": {"mae": 1e-3, "mae_worst": 5e-3},
        "int8": {"mae": 6e-3, "mae_worst": 3e-2},
    }

    @abstractmethod
    def _export(self, source: Source, path: Path, request: Request) -> Made:
        """Write the model to `path`, a name inside a scratch folder."""

    def missing(self) -> Unavailable | None:
        """Why this machine cannot export to the target; None if it can."""
        return missing_modules(self.title, self.needs, self.extra)

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the target's artifacts; None if it can."""
        return self.missing()

    def missing_builder(self) -> Unavailable | None:
        """Why this machine cannot build what was exported; None if it can. Only targets with `builds` are asked."""
        return self.missing()

    def missing_hardware(self) -> Unavailable | None:
        """Why this machine cannot run artifacts in the target's own runtime; None if it can.

        A simulation, see `simulation`, does not count.
        """
        return self.missing_runtime()

    def filename(self, source: Source, precision: str) -> str:
        """`<weights>-<size>-<target>-<precision><suffix>`, a name that a shell takes for one word.

        The READMEs of kits and trtexec's commands hold this name in quotes of their own.
        """
        c = source.contract
        size = f"{c.height}" if c.height == c.width else f"{c.height}x{c.width}"
        weights = re.sub(r"[^\w.+-]+", "-", source.weights.name)
        return f"{weights}-{size}-{self.name}-{precision}{self.suffix}"

    def check(self, request: Request, calibrated: bool) -> None:
        """Refuse what cannot work before any time is spent on it; `calibrated` says whether photos are at hand.

        Raises:
            UserError: the precision is not one of the target's, or photos are needed and missing.
            Unavailable: this machine lacks a package.
        """
        if request.precision not in self.precisions:
            raise WrongValue(f"{self.title} has no {request.precision}", f"choose one of {', '.join(self.precisions)}")
        if request.precision in self.calibrated and not calibrated:
            raise WrongValue(
                f"{self.title} {request.precision} needs calibration photos",
                "give a folder of photos, such as calibration/",
                "calib",
            )
        if problem := self.missing():
            raise problem

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """Write the artifact and its record into `folder`, unless the artifact's masks miss the budget.

        Raises:
            UserError: as `check`; or the folder cannot be written, or the maps, those of all classes, differ from the
                reference by more than the budget. Nothing appears in `folder` then; the refused artifact and its record
                lie in `folder`/refused.
            Unavailable: as `check`.
        """
        self.check(request, request.calibration is not None)
        if held_back := request.held_back:  # read as the reference's photos are: a file that takes uint8 sees 8 bit
            request = replace(request, held_back=replace(held_back, contract=source.contract))
        with staging(folder) as scratch:
            path = scratch / self.filename(source, request.precision)
            made = self._export(source, path, request)
            artifact, broken = self._judged(self._recorded(source, path, request, made), source, request)
            if broken:
                self._refuse(artifact, folder, broken)
            return self._publish(artifact, folder)

    def _recorded(self, source: Source, path: Path, request: Request, made: Made) -> Artifact:
        """The artifact with all that its record says before the masks are judged."""
        return Artifact(
            exporter=self.name,
            precision=request.precision,
            variant=source.variant,
            weights=source.weights,
            contract=source.contract,
            path=path,
            files=hashes(path, *made.more),
            tools={"u2export": __version__, **made.tools},
            options=asdict(self),
            calibration=request.calibration.summary() if request.calibration else {},
            condition=made.condition,
            added_float=made.added_float,
            golden=source.golden,
            notes=made.notes,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def _judged(self, artifact: Artifact, source: Source, request: Request) -> tuple[Artifact, str]:
        """The artifact with its measured fidelity in the record, and the limits it breaks, in words."""
        if self.missing_runtime():
            return replace(artifact, notes=(*artifact.notes, "not run on this machine")), ""
        with self._load(artifact, self.arithmetics(artifact)[0], processors()) as runner:
            fidelity = source.compare(runner, request.held_back or ())
        notes = (*artifact.notes, *_blind(source))
        return replace(artifact, fidelity=fidelity.to_json(), notes=notes), fidelity.broken(self.budget(request))

    def budget(self, request: Request) -> dict[str, float]:
        """The fidelity limits of a request: the precision's default limits, replaced by the request's own."""
        classes = {"class_iou_worst": WORST_CLASS.get(request.precision, WORST_CLASS_LOWER)}
        return {**classes, **self.limits.get(request.precision, {}), **request.budget}

    def _refuse(self, artifact: Artifact, folder: Path, broken: str) -> NoReturn:
        """Save the artifact apart, for whoever looks into it, and raise the error that says what is wrong."""
        problem = f"{artifact.name}: masks differ from PyTorch's by more than allowed: {broken}"
        kept = self._publish(replace(artifact, notes=(*artifact.notes, f"refused: {broken}")), folder / "refused")
        calibrated = artifact.precision in self.calibrated
        hint = "calibrate on other photos, allow more float layers" if calibrated else "choose another precision"
        raise UserError(problem, f"kept with its report at {kept.record}; {hint}, or relax the budget", "budget")

    def _publish(self, artifact: Artifact, folder: Path) -> Artifact:
        """Move the artifact's files into `folder`, and write the record last."""
        scratch = artifact.path.parent
        tops = sorted({Path(name).parts[0] for name in artifact.files})
        make_folder(folder)
        final = replace(artifact, path=folder / artifact.path.name)
        final.record.unlink(missing_ok=True)  # a record must never describe files it does not belong to
        for name in tops:
            publish(scratch / name, folder / name)
        write_json(final.to_json(), final.record)
        return final


def _blind(source: Source) -> tuple[str, ...]:
    """The note on a reference that sees no object on any verification photo; masks that show nothing agree easily."""
    if source.weights.random or not sees_nothing(d0 for _, d0 in source.verification):
        return ()
    note = f"the reference sees no object on any of {len(source.verification)} verification photos"
    log.warning("%s: the comparison proves little; check the weights, the size and the normalisation", note)
    return (note,)
