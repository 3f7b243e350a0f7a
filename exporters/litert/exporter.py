"""The LiteRT target: a .tflite file, run by LiteRT's own interpreter with XNNPACK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Made, Request
from u2export.exporters.litert.conversion import converted, with_fp16_weights, with_int8_weights
from u2export.exporters.litert.runner import arithmetic_of, contract_of_file, open_runner
from u2export.exporters.litert.tflite import stamped
from u2export.exporters.runtime import Runner, missing_modules, versions
from u2export.reference import stamp
from u2export.reference.image import Contract

if TYPE_CHECKING:
    from u2export.reference.source import Source

TOOLS = ("torch", "litert-torch", "ai-edge-quantizer", "ai-edge-litert")


@dataclass(frozen=True)
class LiteRT(Exporter):
    """A .tflite file, static in size, d0 only; input and output are float32 and (N, C, H, W), as in PyTorch."""

    name: ClassVar[str] = "litert"
    title: ClassVar[str] = "LiteRT"
    suffix: ClassVar[str] = ".tflite"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16", "dynamic-int8")
    needs: ClassVar[Sequence[str]] = ("torch", "litert_torch", "ai_edge_quantizer", "ai_edge_litert")
    extra: ClassVar[str] = "litert"
    limits: ClassVar[Mapping[str, Mapping[str, float]]] = {
        **Exporter.limits,
        "dynamic-int8": Exporter.limits["int8"],
    }

    def missing_runtime(self) -> Unavailable | None:
        """Why this machine cannot run the artifacts; the interpreter is enough, a device needs no PyTorch."""
        return missing_modules(self.title, ("ai_edge_litert",), "litert-runtime")

    def arithmetics(self, artifact: Artifact) -> Sequence[str]:
        """The one arithmetic of the file, by the types of its convolutions; fp16 weights are computed with in fp32."""
        return (arithmetic_of(artifact.path),)

    def adopts(self, path: Path) -> bool:
        """Whether a file without a record is a .tflite."""
        return path.suffix == self.suffix

    def contract_of(self, path: Path) -> Contract:
        """The contract that u2export stamped into a file; otherwise the standard one with the file's input size.

        Raises:
            UserError: the file cannot be read, or its input is not one picture.
            Unavailable: LiteRT is not installed.
        """
        if problem := self.missing_runtime():
            raise problem
        return contract_of_file(path)

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        tools = versions(*TOOLS)
        module, report = prepared(source, request.precision, request.calibration, request.condition)
        model = converted(module, source.contract, path.with_suffix(".fp32.tflite"))
        if request.precision == "fp16":
            model = with_fp16_weights(model)
        if request.precision == "dynamic-int8":
            model = with_int8_weights(model)
        texts = stamp.texts(source.contract, source.stamp(request.precision, tools), graph=asdict(self))
        path.write_bytes(stamped(model, stamp.prefixed(texts)))
        return Made(tools=tools, condition=report)

    @contextmanager
    def _load(self, artifact: Artifact, arithmetic: str, threads: int) -> Iterator[Runner]:
        yield open_runner(artifact, arithmetic, threads)
