"""OpenVINO IR, for Intel and other CPUs, Intel GPUs and NPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from u2export.exporters.base import Artifact, Exporter, Made, Request, Runner, missing_modules, versions
from u2export.reference.graph import Graph, to_onnx
from u2export.reference.image import Floats

from u2export.errors import Unavailable, UserError

if TYPE_CHECKING:
    from u2export.reference.source import Source

# Reduced arithmetics by the capability a device names it with; f32 is everywhere.
REDUCED = {"BF16": "bf16", "FP16": "f16"}


@dataclass(frozen=True)
class OpenVINO(Exporter):
    """OpenVINO IR: fp32, or fp16 weights that the CPU computes with in f32."""

    name: ClassVar[str] = "openvino"
    title: ClassVar[str] = "OpenVINO"
    suffix: ClassVar[str] = ".xml"
    precisions: ClassVar[Sequence[str]] = ("fp32", "fp16")
    needs: ClassVar[Sequence[str]] = ("torch", "onnx", "onnxsim", "openvino")
    extra: ClassVar[str] = "openvino"

    def missing_runtime(self) -> Unavailable | None:
        """OpenVINO alone."""
        return missing_modules(self.title, ("openvino",), self.extra)

    def modes(self, artifact: Artifact) -> Sequence[str]:
        """f32, then the reduced arithmetics that this CPU has: each is a row of its own, never a silent default."""
        import openvino

        there = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("f32", *(mode for capability, mode in REDUCED.items() if capability in there))

    def _export(self, source: Source, path: Path, request: Request) -> Made:
        import openvino

        tools = versions("torch", "onnx", "onnxsim", "openvino")
        module, report = source.prepared(request)
        model = self._converted(module, source, request, tools)
        for key, value in source.stamp(request.precision, tools).items():
            model.set_rt_info(value if isinstance(value, str) else str(value), ["u2export", key])
        openvino.save_model(model, path, compress_to_fp16=request.precision == "fp16")
        return Made((path.with_suffix(".bin"),), tools, report)

    def _converted(self, module: Any, source: Source, request: Request, tools: dict[str, str]) -> Any:
        import onnx
        import openvino

        graph = to_onnx(module, source.contract, Graph(), source.stamp(request.precision, tools))
        # Through a file: convert_model reads the names of inputs and outputs from there, and core.read_model, which
        # takes bytes, writes biases in a form that NNCF's bias correction does not see.
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.onnx"
            onnx.save(graph, file)
            return openvino.convert_model(file)

    @contextmanager
    def _load(self, artifact: Artifact, mode: str, threads: int) -> Iterator[Runner]:
        import openvino

        hints = {
            # Left alone, a CPU with AVX512-BF16 runs even an FP32 IR in bfloat16: mask MAE .008 to .013.
            "INFERENCE_PRECISION_HINT": mode,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": str(threads),
        }
        try:
            compiled = openvino.Core().compile_model(artifact.path, "CPU", hints)
        except RuntimeError as error:
            last = [line for line in str(error).splitlines() if line.strip()][-1]
            raise UserError(f"OpenVINO cannot open {artifact.path}: {last}", "export it again") from None
        arithmetic = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        layers = _layer_types(compiled)
        if arithmetic != mode:
            raise UserError(f"{artifact.name}: asked for {mode}, OpenVINO runs {arithmetic}", "choose another mode")
        request = compiled.create_infer_request()

        def predict(batch: Floats) -> Floats:
            # The runtime's tensor is a view that the next call overwrites.
            return np.array(request.infer({0: batch}, share_inputs=True)[0], np.float32)

        yield Runner(
            predict,
            {
                "runtime": f"OpenVINO {openvino.__version__.partition('-')[0]}",
                "device": ",".join(compiled.get_property("EXECUTION_DEVICES")),
                "arithmetic": arithmetic,
                "convolutions": ", ".join(f"{n} {kind}" for kind, n in layers.most_common()),
                "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
            },
        )


def _layer_types(compiled: Any) -> Counter[str]:
    """In what precision the convolutions really run, by the runtime's own execution graph."""
    found: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) == "Convolution":
            found[info["runtimePrecision"].astype(str)] += 1
    return found
