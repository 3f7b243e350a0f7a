"""ONNX, run by ONNX Runtime: the common ancestor of the other targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from u2export.calibration.prepare import prepared
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.onnx_runtime import TOOLS, OnnxRuntime
from u2export.exporters.runtime import versions
from u2export.reference.onnx_export import Graph, to_onnx

if TYPE_CHECKING:
    from u2export.reference.source import Source


@dataclass(frozen=True)
class Onnx(OnnxRuntime, Exporter):
    """ONNX; `graph` says what the graph is to look like."""

    name: ClassVar[str] = "onnx"
    title: ClassVar[str] = "ONNX"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16")
    needs: ClassVar[Sequence[str]] = TOOLS
    extra: ClassVar[str] = "onnx"
    when: ClassVar[str] = "another program or runtime reads ONNX"

    graph: Graph = Graph()  # noqa: RUF009 - frozen

    def export(self, source: Source, folder: Path, request: Request) -> Artifact:
        """As `Exporter.export`; a graph that takes uint8 is judged by the reference of pictures of 8 bit."""
        if self.graph.embed_preprocess:
            source = replace(source, contract=replace(source.contract, rounded=True))
        return super().export(source, folder, request)

    def filename(self, source: Source, precision: str) -> str:
        """As `Exporter.filename`; the name says how the graph differs, so that no variant overwrites another."""
        marks = [*(["uint8"] if self.graph.embed_preprocess else []), *(["7maps"] if self.graph.all_outputs else [])]
        marks += ["dynamic"] if self.graph.dynamic else []
        stem = super().filename(source, precision).removesuffix(self.suffix)
        return "-".join((stem, *marks)) + self.suffix

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        model = to_onnx(module, source.contract, self.graph, source.stamp(request.precision, tools))
        if request.precision == "fp16":
            model = to_fp16(model)
        onnx.save(model, path)
        return Made(tools=tools, condition=report)

    def adopts(self, path: Path) -> bool:
        """Whether the file is an .onnx; whether ONNX Runtime opens it shows when it is loaded."""
        return path.suffix == ".onnx"


def to_fp16(model: Any) -> Any:
    """Weights and activations in fp16, inputs and outputs left in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(model, keep_io_types=True)
