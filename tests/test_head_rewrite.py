"""The faster head computes the same maps: at any size, with any number of maps, in fp32 and in 8 bit."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import ANY_MASKS, SMALL, random_source, untrained
from toy_unet import toy

from u2export.calibration.dataset import Calibration
from u2export.exporters.exporter import Request
from u2export.exporters.head_rewrite import upsampling, with_fast_head
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort, int8_spec
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.reference.onnx_graph import conv_nodes
from u2export.reference.onnx_session import open_graph
from u2export.reference.source import Source
from u2export.reference.verification import verification_inputs


@cache
def exported(height: int, width: int, channels: int = 3, maps: int = 1) -> onnx.ModelProto:
    contract = Contract(height, width).with_channels(channels)
    module = untrained("u2netp", channels, maps).eval()
    for parameter in module.outconv.parameters():
        parameter.data *= 0.05  # logits of a size as those of trained weights; rounding grows with them
    return to_onnx(module, contract, Graph(), {})


def d0(model: onnx.ModelProto, x: Floats) -> Floats:
    made: Floats = open_graph(model).run(None, {model.graph.input[0].name: x})[0]
    return made


@pytest.mark.parametrize(
    ("height", "width", "channels", "maps", "blocks"),
    [(64, 64, 3, 1, 2), (72, 100, 3, 1, 1), (50, 67, 3, 1, 0), (64, 96, 4, 3, 2)],
    ids=["square", "half size is odd", "odd", "four channels, three maps"],
)
def test_the_maps_are_the_same(height: int, width: int, channels: int, maps: int, blocks: int) -> None:
    model = exported(height, width, channels, maps)
    made = with_fast_head(model)
    counts = {kind: sum(n.op_type == kind for n in made.graph.node) for kind in ("DepthToSpace", "MatMul", "Conv")}
    assert counts == {"DepthToSpace": blocks, "MatMul": 6, "Conv": 118}
    onnx.checker.check_model(made)
    random = np.random.default_rng(1)
    shape = (1, channels, height, width)
    for x in (random.normal(size=shape), np.zeros(shape), np.full(shape, 2.6)):
        before, after = (d0(m, x.astype(np.float32)) for m in (model, made))
        assert before.shape == after.shape and before.std() > 1e-4
        assert np.abs(before - after).max() < 1e-6


def test_the_published_weights_keep_their_maps(u2netp: Path) -> None:
    source = Source.open("u2netp")
    photos = list(verification_inputs(source.contract))
    for contract, more in ((source.contract, photos), (Contract(100, 138), [])):
        model = to_onnx(source.model, contract, Graph(), {})
        made = with_fast_head(model)
        assert made is not model
        before, after = open_graph(model), open_graph(made)
        noise = np.random.default_rng(0).normal(size=contract.shape).astype(np.float32)
        for x in (noise, np.full_like(noise, -2.0), *more):  # -2 is nearly black
            maps = [session.run(None, {session.get_inputs()[0].name: x})[0] for session in (before, after)]
            assert np.abs(maps[0] - maps[1]).max() < 1e-6


def test_graphs_of_another_form_stay_as_they_are() -> None:
    free, more = onnx.ModelProto(), onnx.ModelProto()
    for copy in (free, more):
        copy.CopyFrom(exported(64, 64))
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    more.graph.output.append(onnx.helper.make_tensor_value_info("/side1/Conv_output_0", onnx.TensorProto.FLOAT, None))
    for model in (toy(), free, more):
        assert with_fast_head(model) is model


def test_a_head_that_is_not_the_same_function_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported(64, 64)

    def wrong(small: int, large: int) -> Floats:
        return upsampling(small, large)[::-1]

    monkeypatch.setattr("u2export.exporters.head_rewrite.upsampling", wrong)
    assert with_fast_head(model) is model


def test_upsampling_is_bilinear() -> None:
    torch = pytest.importorskip("torch")
    for small, large in ((3, 12), (5, 7), (1, 4), (160, 320)):
        x = torch.randn(1, 1, small, 1)
        want = torch.nn.functional.interpolate(x, size=(large, 1), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(upsampling(small, large) @ x[0, 0].numpy(), want[0, 0].numpy(), atol=1e-6)


def test_every_convolution_of_the_new_head_runs_in_8_bit(tmp_path: Path) -> None:
    """ONNX Runtime leaves a convolution in float if no Q/DQ pair follows it."""
    import onnxruntime

    from u2export.calibration.quantize import calibrated

    model = with_fast_head(exported(64, 64))
    made = calibrated(model, Calibration.bundled(SMALL).subset(2), int8_spec())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(conv_nodes(model)) == 118 and "Conv" not in kinds
    assert not any(kind.startswith("FusedConv") for kind in kinds)


RUN = """
import sys, numpy as np
from pathlib import Path
from u2export.exporters.open import read_artifact
from u2export.exporters.openvino import OpenVINO
with OpenVINO().load(read_artifact(Path(sys.argv[1]))) as runner:
    random = np.random.default_rng(0)
    grids = random.normal(size=(3, 1, 3, 8, 8)).astype(np.float32)
    np.save(sys.argv[2], np.concatenate([runner(g.repeat(8, 2).repeat(8, 3)) for g in grids]))
"""


def test_openvino_gives_the_same_masks_without_vnni(tmp_path: Path) -> None:
    """Kernels for AVX2 add pairs of products in 16 bits; weights that saturate there give other masks."""
    if OpenVINO().missing():
        pytest.skip("OpenVINO is missing")
    request = Request("int8", Calibration.bundled(SMALL).subset(3), condition=False, budget=ANY_MASKS)
    made = OpenVINO().export(random_source(), tmp_path, request)
    maps = []
    for isa in ("ALL", "AVX2"):
        file = tmp_path / f"{isa}.npy"
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
        subprocess.run([sys.executable, "-c", RUN, str(made.path), str(file)], env=environment, check=True)
        maps.append(np.load(file))
    assert np.abs(maps[0] - maps[1]).max() < 0.01


def test_fp32_of_onnx_runtime_has_the_faster_head_where_it_was_measured_to_pay(tmp_path: Path) -> None:
    if problem := Ort().missing():
        pytest.skip(str(problem))
    small, request = random_source(SMALL), Request("fp32", budget=ANY_MASKS)
    plain, mobile = (Ort(mobile=mobile).export(small, tmp_path, request) for mobile in (False, True))
    assert "DepthToSpace" in {node.op_type for node in onnx.load(plain.path).graph.node}
    assert b"DepthToSpace" not in mobile.path.read_bytes()
    assert plain.fidelity["raw_mae"] < 1e-6


def test_the_same_head_in_pytorch_for_the_study_of_core_ml() -> None:
    pytest.importorskip("coremltools")
    import torch

    from u2export.benchmarks.studies.head import with_fast_head_in_torch

    small = random_source(SMALL)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        (made,) = with_fast_head_in_torch(small.model)(x)
        assert (made - small.model(x)[0]).abs().max() < 1e-6
    assert len(small.model(x)) == 7  # the network itself is as it was
