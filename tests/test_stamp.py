from __future__ import annotations

from pathlib import Path

import pytest
from builders import random_source

from u2export.exporters.coreml.exporter import CoreML
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.inspection import inspect
from u2export.exporters.onnx import Onnx
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.exporters.trt.exporter import TensorRT
from u2export.reference import stamp
from u2export.reference.image import Contract

pytest.importorskip("torch")
pytest.importorskip("onnxsim")


COMMON = {"contract", "variant", "weights", "weights_sha256", "precision", "tools"}


def test_values_come_back_as_they_were_written() -> None:
    given = {"weights": "{mine", "tools": {"torch": "2.13", "ümlaut": "é"}, "precision": "int8"}
    pairs = stamp.prefixed(stamp.texts(Contract(64, 96), given, graph={"opset": 17, "dynamic": []}))
    assert all(isinstance(value, str) for value in pairs.values())
    found = stamp.read({"author": "me", **pairs})
    assert Contract.from_json(found.pop("contract")) == Contract(64, 96)
    assert found == {**given, "graph": {"opset": 17, "dynamic": []}}


@pytest.mark.parametrize("exporter", [Onnx(), Ort(), Ort(mobile=True), OpenVINO(), TensorRT(), CoreML()])
def test_every_format_says_the_same(tmp_path: Path, exporter: Exporter) -> None:
    if problem := exporter.missing():
        pytest.skip(str(problem))
    small = random_source()
    artifact = exporter.export(small, tmp_path, Request("fp32"))
    found = inspect(artifact.path)
    assert found.stamp.keys() == COMMON | ({"output"} if exporter.name == "coreml" else {"graph"})
    assert Contract.from_json(found.stamp["contract"]) == artifact.contract
    tools = {name: version for name, version in artifact.tools.items() if name != "u2export"}
    assert {k: v for k, v in found.stamp.items() if k in COMMON - {"contract"}} == small.stamp("fp32", tools)
    assert found.stamp.keys() <= found.metadata.keys()
    if exporter.suffix == ".xml":  # once, and not a second time in OpenVINO's note of the graph it converted
        text = artifact.path.read_text(encoding="utf-8")
        assert text.count(small.weights.sha256) == 1 and "{'" not in text
