"""The table of target runtimes. A new target is one module, and one line here."""

from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.exporter import CoreML
from u2export.exporters.executorch.exporter import ExecuTorch
from u2export.exporters.exporter import Exporter
from u2export.exporters.litert.exporter import LiteRT
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.exporters.runtime import Runner
from u2export.exporters.trt.exporter import TensorRT

EXPORTERS: dict[str, Exporter] = {
    e.name: e for e in (Onnx(), Ort(), OpenVINO(), TensorRT(), CoreML(), LiteRT(), ExecuTorch())
}

__all__ = ["EXPORTERS", "Artifact", "Exporter", "Runner"]
