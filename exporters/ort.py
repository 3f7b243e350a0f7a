"""ONNX Runtime on CPUs and phones: the graph in the form its kernels are fastest in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import UserError
from u2export.exporters.exporter import Made, Request, versions
from u2export.exporters.onnx import TOOLS, OnnxRuntimeRunner
from u2export.reference.onnx_export import Graph, to_onnx

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.quant_plan import QuantSpec
    from u2export.reference.source import Source


@dataclass(frozen=True)
class Ort(OnnxRuntimeRunner):
    """A model file for ONNX Runtime, static in size, d0 only.

    Attributes:
        mobile: ONNX Runtime's own format, optimised for ARM, for its mobile and reduced builds.
        mixed: int8 with the layers in float that `presets` lists for the network.
        keep_float: int8 with these nodes in float: names, or regular expressions that match whole names.
        weight_bits: of int8 weights. 7 is right on every processor; 8 saturates on x86 without VNNI.
    """

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp32", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    mobile: bool = False
    mixed: bool = False
    keep_float: tuple[str, ...] = ()
    weight_bits: int = 7

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; mixed precision says so, and ONNX Runtime's format ends in .ort."""
        stem = super().filename(source, precision).removesuffix(self.suffix)
        mark = "-mixed" if precision == "int8" and (self.mixed or self.keep_float) else ""
        return stem + mark + (".ort" if self.mobile else self.suffix)

    def adopts(self, path: Path) -> bool:
        """Files in ONNX Runtime's own format; .onnx is the other target's."""
        return path.suffix == ".ort"

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; options of int8 mean nothing beside another precision."""
        super().check(request, calibrated)
        if request.precision != "int8" and (self.mixed or self.keep_float or self.weight_bits != 7):
            raise UserError("--mixed, --keep-float and --weight-bits are options of int8", "add --int8")
        if self.weight_bits not in (7, 8):
            raise UserError(f"{self.weight_bits}-bit weights are not supported", "choose 7 or 8")

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        kept = (*self.keep_float, *(preset(source.variant) if self.mixed else ()))
        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        model = to_onnx(module, source.contract, Graph(), source.stamp(request.precision, tools))
        notes: tuple[str, ...] = ()
        if request.precision == "int8":
            assert request.calibration
            from u2export.calibration.quantize import PHOTOS, calibrated

            spec = int8_spec(self.weight_bits, kept)
            notes = (_share(model, spec),) if kept else ()
            model = calibrated(model, request.calibration.subset(PHOTOS), spec)
        if self.mobile:
            to_ort_format(model, path)
        else:
            onnx.save(model, path)
        return Made(tools=tools, condition=report, notes=notes)


def _share(model: onnx.ModelProto, spec: QuantSpec) -> str:
    from u2export.calibration.quant_plan import float_nodes
    from u2export.reference.onnx_graph import conv_nodes

    convs, floats = conv_nodes(model), float_nodes(model, spec)
    return f"{sum(n.name in floats for n in convs)} of {len(convs)} convolutions in float"


def preset(variant: str) -> tuple[str, ...]:
    """Layers of a published network that are worth keeping in float; the file says how they were picked.

    Raises:
        UserError: there is no preset for the network.
    """
    from u2export.calibration.sensitivity import read_keep_float

    path = Path(str(resources.files("u2export.calibration"))) / f"keep_float_{variant}.json"
    if not path.is_file():
        raise UserError(
            f"no preset of layers to keep in float for {variant}",
            "search with u2export sensitivity, then give its result as --keep-float FILE",
        )
    return read_keep_float(path)


def int8_spec(weight_bits: int = 7, keep_float: tuple[str, ...] = ()) -> QuantSpec:
    """The scheme ONNX Runtime's CPU kernels are fastest in: u8 activations everywhere, s8 weights, s32 biases.

    Beside layers kept in float the heads are too: 0.4 % of the work for a fifth of the error that is left.
    """
    from u2export.calibration.quant_plan import ONNX_RUNTIME

    return replace(ONNX_RUNTIME, weight_bits=weight_bits, keep_float=keep_float, heads=not keep_float)


def to_ort_format(model: onnx.ModelProto, path: Path) -> None:
    """Write ONNX Runtime's own format, its optimisations done once, to `path` (….ort).

    What onnxruntime.tools.convert_onnx_models_to_ort does for ARM, without its temporary files left open.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["NchwcTransformer"],  # its blocked layout is for x86 alone
    )
