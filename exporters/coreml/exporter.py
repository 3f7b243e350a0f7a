"""Core ML packages for iPhone, iPad and Mac; where there is no Core ML they are executed by `mil`, marked simulated."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.mac_runner import UNITS, on_a_mac
from u2export.exporters.coreml.ports import FLAT, INPUT, OUTPUT, picture
from u2export.exporters.coreml.simulated_runner import SIMULATED, simulated, stamped
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.runtime import Runner, missing_modules, versions
from u2export.reference import stamp
from u2export.reference.image import Contract
from u2export.reference.weights import WEIGHTS

if TYPE_CHECKING:
    import torch

    from u2export.calibration.dataset import Calibration
    from u2export.reference.source import Source

TARGETS = {"ios16": 16, "ios17": 17, "ios18": 18, "ios26": 26}
OUTPUTS = ("tensor", "image", "raw")
PALETTES = {"palette8": 8, "palette6": 6, "palette4": 4}
# Weights of fewer elements stay as they are: a scale or a table for each would take the gain back.
SMALL = 2048
AUTHOR = "U²-Net: Xuebin Qin et al., Pattern Recognition 2020; converted by u2export"


@dataclass(frozen=True)
class CoreML(Exporter):
    """A Core ML package: RGB picture in, mask out.

    Attributes:
        target: oldest system that may open it: ios16, ios17, ios18 or ios26 (macOS 13, 14, 15, 26).
        output: "tensor" (mask 0..1, fp16), "image" (8-bit grey), or "raw" (d0 before the min-max stretch).
        sizes: (height, width) of further sizes the package takes beside the contract's; multiples of 32.
        group: output channels that share a palette; 0 for one palette per weight. Needs ios18.
    """

    name: ClassVar[str] = "coreml"
    title: ClassVar[str] = "Core ML"
    suffix: ClassVar[str] = ".mlpackage"
    precisions: ClassVar[Sequence[str]] = ("fp16", "fp32", "int8", "palette8", "palette6", "palette4", "w8a8")
    calibrated: ClassVar[Sequence[str]] = ("w8a8",)
    needs: ClassVar[Sequence[str]] = ("torch", "coremltools")
    extra: ClassVar[str] = "coreml"
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
            raise UserError(f"no Core ML target named {self.target!r}", f"choose one of {', '.join(TARGETS)}")
        if self.output not in OUTPUTS:
            raise UserError(f"no Core ML output named {self.output!r}", f"choose one of {', '.join(OUTPUTS)}")
        if wrong := [s for s in self.sizes if s[0] % 32 or s[1] % 32 or min(s) < 32]:
            height, width = wrong[0]
            raise UserError(
                f"{height}x{width} cannot be one of several sizes: only multiples of 32 scale alike at every size",
                "leave it out, or make it the only size of a package of its own",
            )
        if self.group < 0:
            raise UserError(f"a palette cannot be shared by {self.group} channels", "give 0, or 4 to 32")
        if self.group and self._version < 18:
            raise UserError(f"grouped palettes need iOS 18, the target is {self.target}", "add --target ios18")

    @property
    def _version(self) -> int:
        return TARGETS[self.target]

    def missing_runtime(self) -> Unavailable | None:
        """Core ML itself on a Mac; PyTorch to execute the program elsewhere."""
        needs = ("coremltools",) if sys.platform == "darwin" else self.needs
        return missing_modules(self.title, needs, self.extra)

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """Compute units on a Mac; elsewhere simulations, of which the first two are a band."""
        if sys.platform == "darwin":
            return tuple(UNITS)
        return ("simulated fp32",) if artifact.precision == "fp32" else tuple(SIMULATED)

    def adopts(self, path: Path) -> bool:
        """Any .mlpackage."""
        return path.suffix == self.suffix

    def contract_of(self, path: Path) -> Contract:
        """The contract stamped into a package that u2export wrote."""
        if problem := self.missing_runtime():
            raise problem
        from u2export.exporters.coreml.package import Package

        return Contract.from_json(stamped(Package(path), "contract"))

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; what is not the default says so, lest one overwrite another."""
        marks = [self.output] if self.output != "tensor" else []
        marks += [self.target] if self.target != "ios16" else []
        marks += [f"group{self.group}"] if self.group else []
        marks += [f"{height}x{width}" for height, width in self.sizes]
        stem = super().filename(source, precision).removesuffix(self.suffix)
        return "-".join((stem, *marks)) + self.suffix

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`, held to the reference of pictures rounded to 8 bit, as the package takes them.

        Raises:
            UserError: also when the network or the target does not allow the request.
        """
        self._check_source(source)
        return super().export(replace(source, contract=replace(source.contract, rounded=True)), folder, request)

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; also precisions that the target's system or the other options do not allow."""
        super().check(request, calibrated)
        if request.precision == "w8a8" and self._version < 17:
            raise UserError(f"8-bit activations need iOS 17, the target is {self.target}", "add --target ios17")
        if self.group and request.precision not in PALETTES:
            raise UserError(f"{request.precision} has no palettes to group", "leave out --group, or add --palette")
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
            raise UserError(f"a grey picture holds one map, the network gives {maps}", "choose --output tensor")
        if self.sizes and (source.contract.height % 32 or source.contract.width % 32):
            raise UserError(
                f"{source.contract.height}x{source.contract.width} cannot be one of several sizes",
                "give multiples of 32",
            )

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        from u2export.exporters.coreml.package import quiet

        tools = versions("torch", "coremltools", *(["scikit-learn"] if request.precision in PALETTES else []))
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        with quiet():
            model = self._converted(module, source, request.precision)
            if request.precision == "w8a8":
                assert request.calibration is not None  # `export` has seen to it
                model = _quantized_activations(model, request.calibration, path)
            model = self._compressed(model, request.precision)
            self._describe(model, source, request.precision, tools)
            model.save(str(path))
        return Made(tools=tools, condition=report, notes=tuple(_notes(path, request.precision)))

    def _converted(self, module: torch.nn.Module, source: Source, precision: str) -> Any:
        import coremltools as ct

        c = source.contract
        shape: Any = c.shape
        if self.sizes:
            shapes = [(1, c.channels, h, w) for h, w in dict.fromkeys(((c.height, c.width), *self.sizes))]
            shape = ct.EnumeratedShapes(shapes=shapes, default=c.shape)
        fp32 = precision == "fp32"
        grey, rgb = ct.colorlayout.GRAYSCALE, ct.colorlayout.RGB
        output = (
            ct.ImageType(OUTPUT, color_layout=grey)
            if self.output == "image"
            else ct.TensorType(OUTPUT, dtype=np.float32 if fp32 else np.float16)
        )
        return ct.convert(
            _traced(module, c, self.output),
            convert_to="mlprogram",
            inputs=[ct.ImageType(INPUT, shape=shape, scale=1.0, color_layout=grey if c.channels == 1 else rgb)],
            outputs=[output],
            minimum_deployment_target=ct.target[f"iOS{self._version}"],
            compute_precision=ct.precision.FLOAT32 if fp32 else ct.precision.FLOAT16,
            skip_model_load=True,
        )

    def _compressed(self, model: Any, precision: str) -> Any:
        import coremltools.optimize.coreml as cto

        if precision in ("int8", "w8a8"):
            # Weights beside 8-bit activations must be symmetric for the Neural Engine's integer path.
            mode = "linear" if precision == "int8" else "linear_symmetric"
            op = cto.OpLinearQuantizerConfig(mode=mode, granularity="per_channel", weight_threshold=SMALL)
            with np.errstate(invalid="ignore", divide="ignore"):  # scales that underflow in fp16, of weights near zero
                return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=op))
        if precision in PALETTES:
            grouping = {"granularity": "per_grouped_channel", "group_size": self.group} if self.group else {}
            op = cto.OpPalettizerConfig(mode="kmeans", nbits=PALETTES[precision], weight_threshold=SMALL, **grouping)
            return cto.palettize_weights(model, cto.OptimizationConfig(global_config=op))
        return model

    def _describe(self, model: Any, source: Source, precision: str, tools: Mapping[str, str]) -> None:
        """What Xcode shows, and the stamp that `load` reads."""
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
            yield on_a_mac(artifact, arithmetic)
        else:
            with simulated(artifact, SIMULATED[arithmetic], threads) as runner:
                yield runner


def _traced(module: torch.nn.Module, contract: Contract, output: str) -> torch.jit.ScriptModule:
    """TorchScript of picture (1, C, H, W), 0..255, to the output asked for."""
    import torch

    from u2export.calibration.condition import fold_batch_norm
    from u2export.reference import model as network

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = fold_batch_norm(
                cast("network.U2Net", module)
            )  # else the converter does, and the weights lose their names
            self.mean = torch.tensor(contract.mean).view(1, -1, 1, 1)
            self.std = torch.tensor(contract.std).view(1, -1, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # Bounded above too: an open end becomes an infinite constant in fp16.
            x = x / x.amax((1, 2, 3), keepdim=True).clamp(1.0, 255.0)
            d0: torch.Tensor = self.network((x - self.mean) / self.std)[0]
            if output == "raw":
                return d0
            low, high = d0.amin((2, 3), keepdim=True), d0.amax((2, 3), keepdim=True)
            mask = (d0 - low) / (high - low).clamp(FLAT, 1.0)
            return mask * 255.0 if output == "image" else mask

    import warnings

    # Traced sizes must be numbers: the converter cannot read aten::size with NumPy 2.4 and later, and several
    # enumerated sizes need factors.
    dynamic, network.upsample_to = network.upsample_to, _upsample_static
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            example = torch.zeros(contract.shape)
            traced: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
                Deployed().eval(), example, check_trace=False
            )
            return traced
    finally:
        network.upsample_to = dynamic


def _upsample_static(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`upsample_to` by whole factors where sizes allow it, else to sizes written down as numbers."""
    from torch.nn import functional as F

    (h, w), (height, width) = (tuple(int(n) for n in t.shape[2:]) for t in (x, target))
    if height % h == 0 and width % w == 0:
        return F.interpolate(x, scale_factor=(height / h, width / w), mode="bilinear", align_corners=False)
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def _quantized_activations(model: Any, calibration: Calibration, path: Path) -> Any:
    """8-bit activations, their ranges measured by executing the float package on the calibration photos.

    coremltools' own calibration needs `predict`, and in version 9.0 keeps the range of the last sample only.
    """
    import coremltools.optimize.coreml as cto
    from coremltools.optimize.coreml import _post_training_quantization as passes

    from u2export.exporters.coreml.evaluate import Program, ranges
    from u2export.exporters.coreml.package import Package

    scratch = path.with_name("float" + path.suffix)
    model.save(str(scratch))
    program = Program(Package(scratch))
    photos = replace(calibration, contract=replace(calibration.contract, rounded=True))
    found = ranges(program, ({INPUT: picture(x, photos.contract)} for x in photos))
    statistics = {name: {"rmin": low, "rmax": high} for name, (low, high) in found.items()}
    op = cto.OpLinearQuantizerConfig(mode="linear")
    own = passes._get_activation_calibration_stats
    passes._get_activation_calibration_stats = lambda *_: statistics
    try:
        return cto.linear_quantize_activations(model, cto.OptimizationConfig(global_config=op), [])
    finally:
        passes._get_activation_calibration_stats = own


def _notes(path: Path, precision: str) -> Iterator[str]:
    """What the converter left as it was, which it says in a log line at most."""
    from u2export.exporters.coreml.package import Package

    if precision in ("fp32", "fp16"):
        return
    layers = Package(path).layers()
    kept = [layer for layer in layers if not layer.compressed]
    if len(kept) == len(layers):
        raise UserError(f"coremltools compressed no weight for {precision}", "choose another precision")
    names = ", ".join(layer.name for layer in kept[:4]) + (" …" if len(kept) > 4 else "")
    yield f"weights compressed: {len(layers) - len(kept)} of {len(layers)}" + (f"; kept: {names}" if kept else "")
