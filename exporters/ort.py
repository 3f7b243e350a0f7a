"""ONNX Runtime on CPUs and phones: the graph in the form its kernels are fastest in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.exporters.base import Made, Request, versions
from u2export.exporters.onnx import TOOLS, OnnxRuntimeRunner
from u2export.reference.graph import Graph, to_onnx

if TYPE_CHECKING:
    from u2export.reference.source import Source


@dataclass(frozen=True)
class Ort(OnnxRuntimeRunner):
    """An ONNX file for ONNX Runtime, static in size, d0 only."""

    name: ClassVar[str] = "ort"
    title: ClassVar[str] = "ONNX Runtime"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp32",)
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        tools = versions(*TOOLS)
        module, report = source.prepared(request)
        model = to_onnx(module, source.contract, Graph(), source.stamp(request.precision, tools))
        onnx.save(model, path)
        return Made(tools=tools, condition=report)
