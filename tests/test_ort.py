"""Int8, mixed precision and the mobile format of the ONNX Runtime target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import ANY_MASKS, SMALL, random_source

from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.exporters.open import read_artifact
from u2export.exporters.ort import Ort, preset
from u2export.reference.source import Source


@pytest.fixture(scope="module")
def source() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def photos() -> Calibration:
    return Calibration.bundled(SMALL).subset(3)


def int8(photos: Calibration) -> Request:
    return Request("int8", photos, condition=False, budget=ANY_MASKS)


@pytest.fixture(scope="module")
def plain(source: Source, photos: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Everything in 8 bit."""
    return Ort().export(source, tmp_path_factory.mktemp("plain"), int8(photos))


def operators(path: Path) -> dict[str, set[str]]:
    """Node names by operator."""
    import onnx

    found: dict[str, set[str]] = {}
    for node in onnx.load(path).graph.node:
        found.setdefault(node.op_type, set()).add(node.name)
    return found


def test_int8_is_recorded_close_and_small(plain: Artifact, source: Source, photos: Calibration, tmp_path: Path) -> None:
    assert plain.name == "random-u2netp-64-ort-int8.onnx"
    assert plain.calibration["photos"] == 3 and "weights" not in plain.options
    assert plain.fidelity["raw_mae"] < 0.05
    assert plain.size < 0.5 * Ort().export(source, tmp_path, Request("fp32")).size
    with Ort().load(read_artifact(plain.path)) as runner:
        assert runner(next(iter(photos))).shape == (1, 1, 64, 64)


def test_weights_leave_the_sums_of_old_processors_room(plain: Artifact) -> None:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(plain.path).graph
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == 118  # the 1x1 fusion is part of the side outputs
    largest = 0
    for tensor in weights:
        taps = numpy_helper.to_array(tensor).astype(int).transpose(0, 2, 3, 1)
        row = taps.reshape(len(taps), -1) if taps.shape[-1] % 2 else taps
        row = np.concatenate([row, np.zeros_like(row[..., : row.shape[-1] % 2])], -1)
        for sign in (1, -1):  # vpmaddubsw adds two products of u8 and s8 into 16 bits
            assert np.maximum(sign * row, 0).reshape(len(row), -1, 2).sum(-1).max() * 255 < 2**15
        largest = max(largest, int(np.abs(taps).max()))
    assert largest > 64  # more than 7 bits


def test_kept_layers_have_float_weights_and_a_name_of_their_own(
    source: Source, photos: Calibration, tmp_path: Path
) -> None:
    kept = ("/stage1d/rebnconv1d/conv_s1/Conv", "/stage6/.*")
    artifact = Ort(keep_float=kept).export(source, tmp_path, int8(photos))
    assert artifact.name.endswith("-int8-mixed.onnx") and "16 of 119 convolutions in float" in artifact.notes
    dequantised = operators(artifact.path)["DequantizeLinear"]
    assert "stage1d.rebnconv2d.conv_s1.weight/DequantizeLinear" in dequantised
    assert "stage1d.rebnconv1d.conv_s1.weight/DequantizeLinear" not in dequantised
    assert not any(name.startswith("stage6.") for name in dequantised)


def test_mobile_format_computes_the_same(plain: Artifact, source: Source, photos: Calibration, tmp_path: Path) -> None:
    mobile = Ort(mobile=True).export(source, tmp_path, int8(photos))
    assert mobile.path.suffix == ".ort" and mobile.path.read_bytes()[4:8] == b"ORTM"
    x = next(iter(photos))
    with Ort().load(plain) as a, Ort(mobile=True).load(mobile) as b:
        assert np.abs(a(x) - b(x)).max() < 0.02  # one step of 8 bit may fall on the other side


def test_options_of_int8_beside_fp32_are_refused(source: Source, tmp_path: Path) -> None:
    for exporter in (Ort(mixed=True), Ort(keep_float=("x",)), Ort(weight_bits=8)):
        with pytest.raises(UserError, match="are for int8"):
            exporter.check(Request("fp32"), calibrated=False)
    with pytest.raises(UserError, match="5-bit"):
        Ort(weight_bits=5).check(Request("int8"), calibrated=True)
    with pytest.raises(UserError, match="needs calibration photos"):
        Ort().check(Request("int8"), calibrated=False)


def test_the_bits_of_weights_are_retired_with_a_warning(
    source: Source, photos: Calibration, plain: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        made = Ort(weight_bits=8).export(source, tmp_path, int8(photos))
    assert "weight_bits is retired" in caplog.text and made.files == plain.files


def test_an_unknown_layer_is_refused_and_nothing_written(source: Source, photos: Calibration, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no node is named"):
        Ort(keep_float=("/stage9/Conv",)).export(source, tmp_path, int8(photos))
    assert not list(tmp_path.iterdir())


def test_the_preset_names_layers_of_the_network(source: Source) -> None:
    from u2export.calibration.quant_plan import float_nodes
    from u2export.exporters.ort import int8_spec
    from u2export.reference.onnx_export import Graph, to_onnx
    from u2export.reference.onnx_graph import conv_nodes

    model = to_onnx(source.model, source.contract, Graph(), {})
    floats = float_nodes(model, int8_spec(keep_float=preset("u2netp")))
    kept = [n.name for n in conv_nodes(model) if n.name in floats]
    assert "/stage1d/rebnconv2d/conv_s1/Conv" in kept and "/stage1d/rebnconvin/conv_s1/Conv" not in kept
    assert len(kept) == 107


def test_no_preset_for_other_networks() -> None:
    with pytest.raises(UserError, match="no preset of layers"):
        preset("u2net-custom")
