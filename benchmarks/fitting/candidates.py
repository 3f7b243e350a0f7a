"""What `fit` tries: targets, precisions and sizes, and their export without a judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from u2export.calibration.dataset import Calibration
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.open import read_artifact
from u2export.reference.source import Source

# Masks are judged later, on the photos of the caller.
ANY_MASKS = {"mae": 1.0, "mae_worst": 1.0, "iou_worst": 0.0, "class_iou_worst": 0.0}
# Files that store weights in a lower precision and compute as fp32 does: the same time, and masks no closer.
STORED_ONLY = {"openvino": ("fp16",), "litert": ("fp16",), "coreml": ("int8", "palette8", "palette6", "palette4")}
SAME = ("onnx",)  # ONNX Runtime runs its own target's file at least as fast
HELD_BACK, ENOUGH = 4, 16  # of the calibration photos, as for an export


@dataclass(frozen=True)
class Candidate:
    """One file to export.

    Attributes:
        exporter: its target.
        precision: one of the target's.
        source: the weights at one input size.
        calibration, held_back: photos, where the precision needs them.
    """

    exporter: Exporter
    precision: str
    source: Source
    calibration: Calibration | None = None
    held_back: Calibration | None = None

    @property
    def label(self) -> str:
        """Target, precision and size in words."""
        c = self.source.contract
        return f"{self.exporter.name} {self.precision} {c.height}x{c.width}"

    @property
    def may_get_float(self) -> bool:
        """Whether float layers can help where its masks miss the budget."""
        return self.precision in self.exporter.calibrated and self.precision == "int8"

    def export(self, folder: Path, progress: Callable[[str], None]) -> Artifact:
        """Export in the pure precision; the masks are not judged against a limit.

        Raises:
            UserError, Unavailable: as `Exporter.export`.
        """
        return self._exported(folder, ANY_MASKS, 0.0, progress)

    def export_with_float(
        self, folder: Path, budget: Mapping[str, float], max_float: float, progress: Callable[[str], None]
    ) -> Artifact | None:
        """Export with the float layers that keep the budget on verification photos and held-back photos.

        Where the share that is allowed does not keep the budget, this is the closest artifact. None where no float
        layer is added: the file then equals the pure one.

        Raises:
            UserError, Unavailable: as `Exporter.export`.
        """
        try:
            made = self._exported(folder, budget, max_float, progress)
        except UserError as error:
            refused = folder / "refused" / self.exporter.filename(self.source, self.precision)
            if error.option != "budget" or not refused.exists():
                raise
            made = read_artifact(refused)
        return made if made.added_float.get("float_layers") else None

    def _exported(
        self, folder: Path, budget: Mapping[str, float], max_float: float, progress: Callable[[str], None]
    ) -> Artifact:
        request = Request(
            self.precision, self.calibration, budget=budget, held_back=self.held_back, max_float=max_float,
            progress=progress,
        )  # fmt: skip
        made = self.exporter.export(self.source, folder, request)
        return self.exporter.built(made, folder) or made if self.exporter.builds else made


def targets(wanted: Sequence[str], here: bool) -> tuple[list[Exporter], dict[str, str]]:
    """Return the targets to try, and why others are left out.

    Args:
        wanted: their names; empty for all that can be exported, and run here if the device is this machine.
        here: whether the device is this machine.

    Raises:
        UserError: a name is unknown, or nothing is left.
        Unavailable: a named target cannot be exported, or cannot run on this machine.
    """
    if unknown := [name for name in wanted if name not in EXPORTERS]:
        raise WrongValue(f"no target named {unknown[0]!r}", f"choose among {', '.join(EXPORTERS)}", "targets")
    found, left_out = [], {}
    for name in wanted or [n for n in EXPORTERS if n not in SAME]:
        exporter = EXPORTERS[name]
        problem = exporter.missing() or (exporter.missing_hardware() if here else None)
        if problem and wanted:
            raise problem
        if problem:
            left_out[name] = problem.problem
        else:
            found.append(exporter)
    if not found:
        raise Unavailable("no target can be exported and run here", next(iter(left_out.values())))
    return found, left_out


def candidates(
    exporters: Sequence[Exporter], sources: Sequence[Source], calibrations: Sequence[Calibration | None]
) -> tuple[list[Candidate], dict[str, str]]:
    """Return what to export, sizes one after another, and why something is left out.

    Args:
        exporters: the targets.
        sources: the weights at each size.
        calibrations: the photos at each size; None for none, and then no precision that needs photos is tried.
    """
    found, left_out = [], {}
    for source, photos in zip(sources, calibrations, strict=True):
        rest, held_back = photos.split(HELD_BACK) if photos and len(photos) >= ENOUGH else (photos, None)
        for exporter in exporters:
            for precision in sorted(exporter.precisions, key=lambda p: p != "fp32"):  # fp32 tells what the size costs
                if precision in STORED_ONLY.get(exporter.name, ()):
                    continue
                one = Candidate(exporter, precision, source, rest, held_back)
                if precision in exporter.calibrated and photos is None:
                    left_out[one.label] = "needs calibration photos"
                elif precision not in exporter.calibrated:
                    found.append(replace(one, calibration=None, held_back=None))
                else:
                    found.append(one)
    return found, left_out
