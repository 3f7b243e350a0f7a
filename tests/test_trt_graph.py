from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from u2export.errors import UserError
from u2export.exporters.trt.recipe import Recipe, calibration_cache

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from toy_unet import CONVS, SHAPE, SIDE, photos, toy  # noqa: E402

from u2export.calibration.quant_plan import TENSORRT, QuantSpec  # noqa: E402
from u2export.calibration.quantize import calibrated  # noqa: E402
from u2export.exporters.trt import typed_graph as g  # noqa: E402
from u2export.exporters.trt.graph_rules import broken_rules, refuse  # noqa: E402
from u2export.reference.onnx_graph import GraphView, opset_of  # noqa: E402


@pytest.fixture(scope="module")
def fp32() -> Any:
    return toy()


@pytest.fixture(scope="module")
def int8(fp32: Any) -> Any:
    return calibrated(fp32, photos(), TENSORRT)


def run(model: Any, x: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def copy(model: Any) -> Any:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made


def test_precisions_are_read_from_the_graph(fp32: Any, int8: Any) -> None:
    assert Counter(g.precisions(fp32).values()) == {"fp32": 4}
    assert Counter(g.precisions(g.to_half(fp32)).values()) == {"fp16": 4}
    assert Counter(g.precisions(int8).values()) == {"int8": 3, "fp32": 1}
    assert Counter(g.precisions(g.to_half(int8)).values()) == {"int8": 3, "fp16": 1}


def test_half_is_close_and_its_ports_are_float(fp32: Any) -> None:
    half = g.to_half(fp32)
    onnx.checker.check_model(half, full_check=True)
    ends = (*half.graph.input, *half.graph.output)
    assert {v.type.tensor_type.elem_type for v in ends} == {TensorProto.FLOAT}
    assert not any(t.data_type == TensorProto.FLOAT and t.dims for t in half.graph.initializer if "weight" in t.name)
    x = photos()[0]
    difference = np.abs(run(half, x) - run(fp32, x)).max()
    assert 0 < difference < 5e-3


def test_half_int8_moves_no_further_than_fp16_rounding(int8: Any) -> None:
    half = g.to_half(int8)
    assert opset_of(half) == 19 and opset_of(int8) == 17
    x = photos()[0]
    assert np.abs(run(half, x) - run(int8, x)).mean() < 0.02
    assert not broken_rules(half, 20)


def test_an_island_spans_its_activation_and_the_sum(fp32: Any) -> None:
    view = GraphView(fp32)
    conv = next(n for n in view.nodes if n.name == "/up/Conv")
    kept = g.island(view, conv)
    assert kept == {conv.name, "/up/Relu", "/sum/Add"}
    half = g.to_half(fp32, kept)
    assert [n for n, p in g.precisions(half).items() if p == "fp32"] == [conv.name]
    assert not broken_rules(half, 20)
    onnx.checker.check_model(half, full_check=True)


def test_islands_form_around_large_biases(fp32: Any) -> None:
    assert g.islands(fp32) == set()
    large = copy(fp32)
    constant(large, "down.bias", np.full(16, 300, np.float32))
    assert g.islands(large) == {"/down/Conv", "/down/Relu"}
    constant(large, "up.bias", np.full(16, -300, np.float32))
    between = {"/wide/Resize", "/both/Concat"}  # what is made and undone again must not pass through fp16
    assert g.islands(large) == {"/down/Conv", "/down/Relu", "/up/Conv", "/up/Relu", "/sum/Add", *between}
    half = g.to_half(large, g.islands(large))
    assert not broken_rules(half, 20)
    assert [n.name for n in half.graph.node if n.op_type == "Cast" and "both" in n.name] == []
    assert g.chosen_islands(fp32, ("/(in|out)/Conv",)) >= {"/in/Conv", "/out/Conv", "/mask/Sigmoid"}
    with pytest.raises(UserError, match="no node"):
        g.chosen_islands(fp32, ("/nothing/like/that",))


def test_a_constant_too_large_for_fp16_is_named(fp32: Any) -> None:
    large = copy(fp32)
    bias = next(t for t in large.graph.initializer if t.name == "out.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(1, 1e5, np.float32), bias.name))
    with pytest.raises(UserError, match=r"out\.bias"):
        g.to_half(large)


@pytest.mark.parametrize("placement", ["producer", "conv-input"])
def test_our_own_graphs_are_clean(fp32: Any, placement: str) -> None:
    made = calibrated(fp32, photos(), QuantSpec(placement=placement))
    assert broken_rules(made, 17) == []


# --- every rule bites, and names the node ------------------------------------------------------------------------


def constant(model: Any, name: str, value: Any) -> None:
    old = next(t for t in model.graph.initializer if t.name == name)
    old.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def first(model: Any, op: str) -> Any:
    return next(n for n in model.graph.node if n.op_type == op)


def unsigned(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    constant(model, node.input[2], np.uint8(0))
    return str(node.name)


def shifted(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    constant(model, node.input[2], np.int8(3))
    return str(node.name)


def int32_bias(model: Any) -> str:
    model.graph.initializer.extend([
        numpy_helper.from_array(np.zeros(16, np.int32), "b"), numpy_helper.from_array(np.float32(1), "s"),
        numpy_helper.from_array(np.int32(0), "z"),
    ])  # fmt: skip
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["b", "s", "z"], ["bias"], "bias/DequantizeLinear"))
    return "bias/DequantizeLinear"


def zero_scale(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    constant(model, node.input[1], np.float32(0))
    return str(node.name)


def tiny_half_scale(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    constant(model, node.input[1], np.float16(1e-6))
    return str(node.name)


def lone_quantiser(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    reader = next(n for n in model.graph.node if node.output[0] in n.input)
    model.graph.node.remove(reader)
    return str(node.name)


def other_scale(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    reader = next(n for n in model.graph.node if node.output[0] in n.input)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    reader.input[1] = "other"
    return str(node.name)


def channel_scales(model: Any) -> str:
    node = first(model, "QuantizeLinear")
    constant(model, node.input[1], np.full(3, 0.1, np.float32))
    return str(node.name)


def other_axis(model: Any) -> str:
    weights = {t.name for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights)
    node.attribute[0].i = 1
    return str(node.name)


def unequal_group(model: Any) -> str:
    view = GraphView(model)
    node = next(n for n in view.nodes if n.op_type == "Concat" and view.rounded(n.output[0]))
    source = view.maker[node.input[0]]
    quantiser = view.maker[source.input[0]]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.77), "other"))
    for n in model.graph.node:
        if n.name in (source.name, quantiser.name):
            n.input[1] = "other"
    return str(node.name)


def split_fusion(model: Any) -> str:
    view = GraphView(model)
    conv = next(n for n in view.nodes if n.op_type == "Conv" and view.after(n)[0].op_type == "Relu")
    relu, pair = view.after(conv)[0], first(model, "QuantizeLinear")
    nodes = [
        helper.make_node("QuantizeLinear", [conv.output[0], *pair.input[1:]], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", *pair.input[1:]], ["dq"], "dq"),
    ]
    at = next(i for i, n in enumerate(model.graph.node) if n.name == relu.name)
    model.graph.node[at].input[0] = "dq"
    for node in reversed(nodes):
        model.graph.node.insert(at, node)
    return str(conv.name)


def nearest(model: Any) -> str:
    node = first(model, "Resize")
    next(a for a in node.attribute if a.name == "mode").s = b"nearest"
    return str(node.name)


def no_size(model: Any) -> str:
    node = first(model, "Resize")
    del node.input[2:]
    return str(node.name)


def corners(model: Any) -> str:
    node = first(model, "Resize")
    next(a for a in node.attribute if a.name == "coordinate_transformation_mode").s = b"align_corners"
    return str(node.name)


def infinite(model: Any) -> str:
    constant(model, "out.bias", np.array([np.inf], np.float32))
    return "out.bias"


DAMAGES: list[tuple[Callable[[Any], str], str]] = [
    (unsigned, "zero point"), (shifted, "zero point"), (int32_bias, "int32 bias"), (zero_scale, "scale"),
    (tiny_half_scale, "scale"), (lone_quantiser, "Q/DQ pair"), (other_scale, "Q/DQ pair"), (channel_scales, "axis"),
    (other_axis, "axis"), (unequal_group, "shared scale"), (split_fusion, "split fusion"), (nearest, "Resize"),
    (no_size, "Resize"), (corners, "Resize"), (infinite, "overflow"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "rule"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_broken_rule_names_what_is_wrong(int8: Any, damage: Callable[[Any], str], rule: str) -> None:
    broken = copy(int8)
    node = damage(broken)
    assert (rule, node) in {(p.rule, p.node) for p in broken_rules(broken, 20)}
    with pytest.raises(UserError, match="not built") as caught:
        refuse(broken_rules(broken, 20))
    assert caught.value.hint


def test_the_opset_of_the_target_is_a_rule(fp32: Any) -> None:
    assert [p.rule for p in broken_rules(fp32, 13)] == ["opset"]


def test_a_lone_island_breaks_a_rule(fp32: Any) -> None:
    view = GraphView(fp32)
    conv = next(n for n in view.nodes if n.name == "/down/Conv")
    assert ("lone island", conv.name) in {(p.rule, p.node) for p in broken_rules(g.to_half(fp32, {conv.name}), 20)}


def test_sizes_that_do_not_halve_break_a_rule(fp32: Any) -> None:
    scaled = copy(fp32)
    scaled.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"))
    node = first(scaled, "Resize")
    node.input[:] = [node.input[0], "", "twice"]
    assert broken_rules(scaled, 20) == []
    scaled.graph.input[0].type.tensor_type.shape.dim[2].dim_value = SIDE + 4
    assert [(p.rule, p.node) for p in broken_rules(scaled, 20)] == [("size", node.name)]


# --- recipe -----------------------------------------------------------------------------------------------------


def test_recipe_round_trip_and_what_it_refuses(int8: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    onnx.save(int8, path)
    recipe = Recipe.of(int8, path, precision="int8", rest="fp32", placement="producer", calibration={"digest": "d"})
    recipe.write(tmp_path / "x.recipe.json")
    for given in ("x.recipe.json", "x.onnx", "x.onnx.json"):
        assert Recipe.read(tmp_path / given) == (recipe, path)
    assert Counter(recipe.layers.values()) == {"int8": 3, "fp32": 1} and set(recipe.layers) == set(CONVS)
    assert recipe.shape == SHAPE and all(s > 0 for s in recipe.scales.values())
    assert set(recipe.scales) == {"image", "in", "down", "wide", "up"}
    assert recipe.scales["in"] == recipe.scales["wide"]  # concatenated on one grid
    assert [k for k in recipe.commands() if "--int8 --fp16" in recipe.commands()[k]] == ["8.5 to 10, weak typing"]
    assert "--stronglyTyped" in recipe.commands()["10, strong typing"]
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="not the file"):
        Recipe.read(path)
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        Recipe.read(path)
    (tmp_path / "x.recipe.json").write_text('{"schema": 1, "onnx": "x.onnx"}')
    with pytest.raises(UserError, match="damaged"):
        Recipe.read(path)


def test_fp16_quantisation_is_not_for_8_5(int8: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    half = g.to_half(int8)
    onnx.save(half, path)
    recipe = Recipe.of(half, path, precision="int8", rest="fp16", placement="producer")
    assert "opset 19" in recipe.builds_with("8.6") and not recipe.builds_with("10.0")
    assert not any(k.startswith("8.5") for k in recipe.commands())


@pytest.mark.parametrize(
    ("version", "header"), [("8.6.2", "TRT-8602"), ("8.4.1.5", "TRT-8401"), ("10.14.1", "TRT-101401")]
)
def test_calibration_cache_is_what_tensorrt_writes(version: str, header: str) -> None:
    lines = calibration_cache({"image": 0.02079247683286667}, version).splitlines()
    assert lines == [f"{header}-EntropyCalibration2", "image: 3caa54fc"]


def test_no_calibration_cache_without_scales_or_for_11() -> None:
    with pytest.raises(UserError, match="no implicit INT8"):
        calibration_cache({"x": 1.0}, "11.0.0")
    with pytest.raises(UserError, match="no scales"):
        calibration_cache({}, "8.6.1")
