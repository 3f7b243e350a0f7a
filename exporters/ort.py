"""ONNX Runtime on CPUs and phones: the graph in the form its kernels are fastest in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.embedding import MARK, embedded_in_onnx, note, of_pixels
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.head_rewrite import with_fast_head
from u2export.exporters.int8 import in_onnx_runtime, quantised
from u2export.exporters.onnx_runtime import TOOLS, OnnxRuntime
from u2export.exporters.runtime import versions
from u2export.reference.image import Floats
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.reference.onnx_session import open_session, write_ort_format

if TYPE_CHECKING:
    import onnx

    from u2export.calibration.quant_plan import QuantSpec
    from u2export.reference.source import Source


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ort(OnnxRuntime, Exporter):
    """A model file for ONNX Runtime, static in size, d0 only.

    Attributes:
        mobile: write ONNX Runtime's own format, optimised for ARM, for its mobile and reduced builds.
        mixed: int8 with the float layers that `preset` lists for the network.
        keep_float: int8 with these nodes in float: names, or regular expressions that match whole names.
        embed_preprocess: the file takes pixels, (1, H, W, C) uint8, and gives the stretched mask (see `embedding`).
        weight_bits: retired. It is accepted and changes nothing: weights have 8 bits that are right on every processor.
    """

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp32", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = TOOLS
    extra: ClassVar[str] = "onnx"
    when: ClassVar[str] = "ONNX Runtime runs it; --mobile is for apps"

    mobile: bool = False
    mixed: bool = False
    keep_float: tuple[str, ...] = ()
    weight_bits: int = 0
    embed_preprocess: bool = False

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; a file that takes uint8 is judged by the reference of pictures of 8 bit."""
        return super().export(of_pixels(source) if self.embed_preprocess else source, folder, request)

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says that a precision is mixed, and ONNX Runtime's format ends in .ort."""
        stem = super().filename(source, precision).removesuffix(self.suffix)
        mark = "-mixed" if precision == "int8" and (self.mixed or self.keep_float) else ""
        mark += MARK if self.embed_preprocess else ""
        return stem + mark + (".ort" if self.mobile else self.suffix)

    def adopts(self, path: Path) -> bool:
        """Whether the file is in ONNX Runtime's own format; .onnx files belong to the target `onnx`."""
        return path.suffix == ".ort"

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; options of int8 are refused beside another precision."""
        super().check(request, calibrated)
        if request.precision != "int8" and (self.mixed or self.keep_float or self.weight_bits):
            raise WrongValue("mixed precision, float layers and bits of weights are for int8", "choose int8")
        if self.weight_bits not in (0, 7, 8):
            raise UserError(f"{self.weight_bits}-bit weights are not supported", "leave the option out")
        if self.weight_bits:
            _log.warning("weight_bits is retired and changes nothing: 8-bit weights are now right on every processor")

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        kept = (*self.keep_float, *(preset(source.variant) if self.mixed else ()))
        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        model = to_onnx(module, source.contract, Graph(), source.stamp(request.precision, tools))
        # Measured to pay on x86 in fp32 and in int8. fp32 in the format of phones was not measured on Arm.
        if not kept and (request.precision == "int8" or not self.mobile):
            model = with_fast_head(model)
        notes: list[str] = []
        added: Mapping[str, Any] = {}
        if request.precision == "int8":
            spec = int8_spec(kept)
            notes += [_share(model, spec)] if kept else []

            def opened(graph: onnx.ModelProto) -> Callable[[Floats], Floats]:
                return in_onnx_runtime(open_session(graph, spinning=False))

            made = quantised(self, model, source, request, spec, opened)
            model, added = made.graph, made.added
            notes += [made.note] if made.note else []
        if self.embed_preprocess:
            model = embedded_in_onnx(model, source.contract)
            notes.append(note(source.contract))
        if self.mobile:
            write_ort_format(model, path)
        else:
            onnx.save(model, path)
        return Made(tools=tools, condition=report, notes=tuple(notes), added_float=added)


def _share(model: onnx.ModelProto, spec: QuantSpec) -> str:
    """The note on how many convolutions stay in float."""
    from u2export.calibration.quant_plan import float_nodes
    from u2export.reference.onnx_graph import conv_nodes

    convs, floats = conv_nodes(model), float_nodes(model, spec)
    return f"{sum(n.name in floats for n in convs)} of {len(convs)} convolutions in float"


def preset(variant: str) -> tuple[str, ...]:
    """The float layers of a published network's mixed precision; the file says how they were picked.

    Raises:
        UserError: there is no preset for the network.
    """
    from u2export.calibration.sensitivity import read_keep_float

    path = Path(str(resources.files("u2export.calibration"))) / f"keep_float_{variant}.json"
    if not path.is_file():
        raise UserError(
            f"no preset of layers to keep in float for {variant}",
            "search with u2export sensitivity, then give its result",
            "keep_float",
        )
    return read_keep_float(path)


def int8_spec(keep_float: tuple[str, ...] = ()) -> QuantSpec:
    """The scheme in which ONNX Runtime's CPU kernels are fastest: u8 activations everywhere, s8 weights, s32 biases.

    With float layers, the heads stay in float too: this costs 0.4 % of the work and removes a fifth of the error left.
    """
    from u2export.calibration.quant_plan import ONNX_RUNTIME

    return replace(ONNX_RUNTIME, keep_float=keep_float, heads=not keep_float)
