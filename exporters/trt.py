"""TensorRT: the typed ONNX from which an engine is built on the device, judged here without one.

TensorRT plans fit one GPU and one version, so what travels is the graph with its precisions written into it: fp16
tensors, or symmetric int8 Q/DQ pairs where TensorRT wants them, which 8.5 to 10 build with --int8 and 11 as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from u2export.errors import UserError
from u2export.exporters.base import Artifact, Made, Request, Runner, versions
from u2export.exporters.onnx import TOOLS, OnnxRuntimeRunner, open_session, runner_of, to_fp16
from u2export.reference.graph import Graph, to_onnx

if TYPE_CHECKING:
    from u2export.reference.source import Source

PHOTOS = 32
PLACEMENTS = ("producer", "conv-input")
# trtexec's own words, by precision; from TensorRT 11 on the file says it all and the flags are gone.
BUILD = {"fp32": "", "fp16": " --fp16", "int8": " --int8 --fp16"}


@dataclass(frozen=True)
class TensorRT(OnnxRuntimeRunner):
    """Typed ONNX for TensorRT 8.5 and later.

    Attributes:
        placement: of Q/DQ pairs: "producer" (least memory traffic) or "conv-input".
        keep_float: int8 with these nodes in float: names, or regular expressions that match whole names.
    """

    name: ClassVar[str] = "trt"
    title: ClassVar[str] = "TensorRT"
    suffix: ClassVar[str] = ".onnx"
    precisions: ClassVar[Sequence[str]] = ("fp16", "fp32", "int8")
    calibrated: ClassVar[Sequence[str]] = ("int8",)
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    placement: str = "producer"
    keep_float: tuple[str, ...] = ()

    def check(self, request: Request, calibrated: bool) -> None:
        """As `Exporter.check`; options of int8 mean nothing beside another precision."""
        super().check(request, calibrated)
        if self.placement not in PLACEMENTS:
            raise UserError(f"no Q/DQ placement named {self.placement!r}", f"choose one of {', '.join(PLACEMENTS)}")
        if request.precision != "int8" and self != TensorRT():
            raise UserError("--placement and --keep-float are options of int8", "add --int8")

    def modes(self, artifact: Artifact) -> Sequence[str]:
        """ONNX Runtime in TensorRT's place: what the graph's roundings do to the mask, not how fast it is."""
        return (f"simulated {artifact.precision}",)

    def adopts(self, path: Path) -> bool:
        """No file by its name alone: a typed ONNX looks like any other."""
        return False

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import onnx

        from u2export.calibration.quantize import TENSORRT, calibrated

        tools = versions(*TOOLS)
        module, report = source.prepared(request)
        model = to_onnx(module, source.contract, Graph(), source.stamp(request.precision, tools))
        if request.precision == "fp16":
            model = to_fp16(model)
        elif request.precision == "int8":
            assert request.calibration
            spec = replace(TENSORRT, placement=self.placement, keep_float=self.keep_float)
            model = calibrated(model, request.calibration.subset(PHOTOS), spec)
        onnx.save(model, path)
        build = f"trtexec --onnx={path.name}{BUILD[request.precision]} --saveEngine={path.stem}.engine"
        notes = (f"masks judged in ONNX Runtime, not run on hardware; build on the device: {build}",)
        return Made(tools=tools, condition=report, notes=notes)

    @contextmanager
    def _load(self, artifact: Artifact, mode: str, threads: int) -> Iterator[Runner]:
        import onnxruntime

        # Optimised, ONNX Runtime would merge Q/DQ pairs into kernels of its own, with other roundings.
        session = open_session(artifact.path, threads=threads, optimise=False)
        info = {
            "runtime": f"ONNX Runtime {onnxruntime.__version__}, in place of TensorRT",
            "device": "CPU",
            "provider": session.get_providers()[0],
            "arithmetic": mode,
            "threads": str(threads),
        }
        yield runner_of(session, artifact.contract, info)
