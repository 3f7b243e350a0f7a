"""The Core ML target: packages for iPhone, iPad and Mac.

A machine without Core ML runs the packages in PyTorch, see `evaluate`; results of such runs are marked as simulated.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.conversion import (
    PALETTES,
    compressed,
    compression_notes,
    converted,
)
from u2export.exporters.coreml.mac_runner import UNITS, open_on_mac
from u2export.exporters.coreml.ports import INPUT, OUTPUT
from u2export.exporters.coreml.simulated_runner import SIMULATED, open_simulated
from u2export.exporters.embedding import of_pixels
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.int8 import ORDERING, FloatLayers, float_layers
from u2export.exporters.runtime import Assumed, Runner, missing_modules, processors, versions
from u2export.reference import stamp
from u2export.reference.image import Contract
from u2export.reference.weights import WEIGHTS

if TYPE_CHECKING:
    from u2export.reference.fidelity import Fidelity
    from u2export.reference.source import Source

TARGETS = {"ios16": 16, "ios17": 17, "ios18": 18, "ios26": 26}
OUTPUTS = ("tensor", "image", "raw")
AUTHOR = "U²-Net: Xuebin Qin et al., Pattern Recognition 2020; converted by u2export"


@dataclass(frozen=True)
class CoreML(Exporter):
    """A Core ML package that takes an RGB picture and gives a mask.

    Attributes:
        target: oldest system that opens the package: ios16, ios17, ios18 or ios26 (macOS 13, 14, 15, 26).
        output: "tensor" (mask 0..1, fp16), "image" (mask 0..255, 8-bit grey), or "raw" (d0 before the min-max stretch).
        sizes: (height, width) of input sizes beside the contract's; multiples of 32.
        group: output channels that share a palette; 0 for one palette per weight. Groups need ios18.

    Raises:
        UserError: an option is unknown, or the target's system does not allow it.
    """

    name: ClassVar[str] = "coreml"
    title: ClassVar[str] = "Core ML"
    suffix: ClassVar[str] = ".mlpackage"
    precisions: ClassVar[Sequence[str]] = ("fp16", "fp32", "int8", "palette8", "palette6", "palette4", "w8a8")
    calibrated: ClassVar[Sequence[str]] = ("w8a8",)
    needs: ClassVar[Sequence[str]] = ("torch", "coremltools")
    extra: ClassVar[str] = "coreml"
    when: ClassVar[str] = "an iPhone, an iPad or a Mac runs it"
    simulation: ClassVar[str] = "PyTorch computes the masks of the saved package"
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        **Exporter.limits,
        **dict.fromkeys(PALETTES, Exporter.limits["int8"]),
        "w8a8": {"mae": 8e-3, "mae_worst": 4e-2},
    }

    target: str = "ios16"
    output: str = "tensor"
    sizes: tuple[tuple[int, int], ...] = ()
    group: int = 0

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise WrongValue(f"no Core ML target named {self.target!r}", f"choose one of {', '.join(TARGETS)}")
        if self.output not in OUTPUTS:
            raise WrongValue(f"no Core ML output named {self.output!r}", f"choose one of {', '.join(OUTPUTS)}")
        if wrong := [s for s in self.sizes if s[0] % 32 or s[1] % 32 or min(s) < 32]:
            height, width = wrong[0]
            raise WrongValue(
                f"{height}x{width} cannot be one of several sizes: only multiples of 32 scale alike at every size",
                "leave it out, or make it the only size of a package of its own",
            )
        if self.group < 0:
            raise WrongValue(f"a palette cannot be shared by {self.group} channels", "give 0, or 4 to 32")
        if self.group and self._ios < 18:
            raise WrongValue(f"grouped palettes need iOS 18, the target is {self.target}", "choose ios18", "target")

    @property
    def _ios(self) -> int:
        return TARGETS[self.target]

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run packages; a Mac needs coremltools, other machines need PyTorch as well."""
        needs = ("coremltools",) if sys.platform == "darwin" else self.needs
        return missing_modules(self.title, needs, self.extra)

    def missing_hardware(self) -> Unavailable | None:
        """Why this machine cannot run packages in Core ML; None on a Mac with coremltools."""
        if sys.platform == "darwin":
            return self.missing_runtime()
        return Unavailable("Core ML runs on Apple devices only", "take the package to a Mac, or a kit to an iPhone")

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The compute units on a Mac, simulations elsewhere. The first two simulations enclose what hardware may do."""
        if sys.platform == "darwin":
            return tuple(UNITS)
        return ("simulated fp32",) if artifact.precision == "fp32" else tuple(SIMULATED)

    def adopts(self, path: Path) -> bool:
        """Whether a file without a record is an .mlpackage."""
        return path.suffix == self.suffix

    def assume(self, path: Path, output_name: str = "") -> Assumed:
        """As `Runtime.assume`, with the contract that u2export stamped into a package.

        Raises:
            UserError: the package has no stamp, or is damaged.
            Unavailable: a package that reads it is not installed.
        """
        super().assume(path, output_name)
        if problem := self.missing_runtime():
            raise problem
        from u2export.exporters.coreml.package import Package

        return Assumed(
            Contract.from_json(Package(path).stamped("contract")),
            notes=("no record: image contract read from the file",),
        )

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says which options differ, so that no variant overwrites another."""
        marks = [self.output] if self.output != "tensor" else []
        marks += [self.target] if self.target != "ios16" else []
        marks += [f"group{self.group}"] if self.group else []
        marks += [f"{height}x{width}" for height, width in self.sizes]
        stem = super().filename(source, precision).removesuffix(self.suffix)
        return "-".join((stem, *marks)) + self.suffix

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; the reference takes pictures rounded to 8 bit, because the package does.

        Raises:
            UserError: as `Exporter.export`, and when the network does not fit the options.
            Unavailable: as `Exporter.export`.
        """
        self._check_source(source)
        return super().export(of_pixels(source), folder, request)

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; also refuse precisions that the target's system or the other options do not allow.

        Raises:
            UserError, Unavailable: as `Exporter.check`.
        """
        super().check(request, calibrated)
        if request.precision == "w8a8":
            if self._ios < 17:
                wrong = f"8-bit activations need iOS 17, the target is {self.target}"
                raise WrongValue(wrong, "choose ios17", "target")
            if problem := missing_modules("the choice of float layers", ORDERING, self.extra):
                raise problem
        if self.group and request.precision not in PALETTES:
            raise WrongValue(
                f"{request.precision} has no palettes to group", "leave it out, or choose a palette", "group"
            )
        if request.precision in PALETTES and (problem := missing_modules("k-means", ("sklearn",), self.extra)):
            raise problem

    def _check_source(self, source: Source) -> None:
        if source.contract.channels not in (1, 3):
            raise UserError(
                f"Core ML pictures have 1 or 3 channels, the network takes {source.contract.channels}",
                "export it to another target",
            )
        if self.output == "image" and source.model.out_channels != 1:
            maps = source.model.out_channels
            raise UserError(f"a grey picture holds one map, the network gives {maps}", "choose tensor", "output")
        if self.sizes and (source.contract.height % 32 or source.contract.width % 32):
            raise WrongValue(
                f"{source.contract.height}x{source.contract.width} cannot be one of several sizes",
                "give multiples of 32",
            )

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        from u2export.exporters.coreml.package import quiet

        tools = versions("torch", "coremltools", *(["scikit-learn"] if request.precision in PALETTES else []))
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        with quiet():
            model = converted(module, source.contract, request.precision, self._ios, self.output, self.sizes)
        floats = FloatLayers()
        if request.precision == "w8a8":
            floats = self._write_w8a8(model, module, source, path, request, tools)
        else:
            with quiet():
                model = compressed(model, request.precision, self.group)
            self._write(model, path, source, request.precision, tools)
        notes = (*compression_notes(path, request.precision), *filter(None, [floats.note]))
        return Made(tools=tools, condition=report, notes=notes, added_float=floats.added)

    def _write_w8a8(
        self, model: Any, network: Any, source: Source, path: Path, request: Request, tools: Mapping[str, str]
    ) -> FloatLayers:
        """Write the package in 8 bit, and return the float layers that it needs to keep the budget."""
        from u2export.exporters.coreml.package import quiet
        from u2export.exporters.coreml.w8a8 import W8A8

        assert request.calibration is not None  # `check` refuses the request otherwise
        with quiet():
            lowering = W8A8(model, request.calibration, path.with_name("float" + path.suffix))

        written: list[Collection[str]] = []

        def write(floats: Collection[str]) -> None:
            if written and set(written[-1]) == set(floats):
                return  # the package is there
            with quiet():
                made = lowering.quantised(floats)
            self._write(made, path, source, request.precision, tools)
            written.append(floats)

        def judge(floats: Collection[str]) -> Fidelity:
            write(floats)
            with open_simulated(path, source.contract, SIMULATED["simulated fp16"], processors()) as runner:
                return source.compare(runner, request.held_back or ())

        found = float_layers(self, network, source, request, judge)
        write(found.names)  # the last package that was judged need not be the choice
        return found

    def _write(self, model: Any, path: Path, source: Source, precision: str, tools: Mapping[str, str]) -> None:
        from u2export.exporters.coreml.package import quiet

        with quiet():
            self._describe(model, source, precision, tools)
            shutil.rmtree(path, ignore_errors=True)
            model.save(str(path))

    def _describe(self, model: Any, source: Source, precision: str, tools: Mapping[str, str]) -> None:
        """Write what Xcode shows, and the stamp that an adopted package is opened by."""
        published = WEIGHTS.get(source.weights.name)
        model.author = AUTHOR
        model.license = published.licence if published else "that of the weights it was made from"
        model.version = source.weights.sha256[:12]
        model.short_description = f"Salient object mask, {source.variant}, {precision}"
        model.input_description[INPUT] = "Picture, RGB, upright, resized to the input size; no other preprocessing"
        model.output_description[OUTPUT] = {
            "tensor": "Mask, 0 background to 1 object, of the input's size",
            "image": "Mask, 0 background to 255 object, of the input's size",
            "raw": "Saliency d0, 0 to 1, not stretched: its largest value tells whether there is an object at all",
        }[self.output]
        texts = stamp.texts(source.contract, source.stamp(precision, tools), output=self.output)
        model.user_defined_metadata.update(stamp.prefixed(texts))

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        if arithmetic in UNITS:
            yield open_on_mac(artifact, arithmetic)
        else:
            with open_simulated(artifact.path, artifact.contract, SIMULATED[arithmetic], threads) as runner:
                yield runner
