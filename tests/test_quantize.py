"""Q/DQ graphs: ranges, scales, placement, regions left in float, bias correction; on a small graph, then u2netp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import random_source
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from u2export.calibration.activation_ranges import METHODS, ActivationRange, observe
from u2export.calibration.bias_correction import bias_errors
from u2export.calibration.dataset import Calibration
from u2export.calibration.quant_plan import (
    ONNX_RUNTIME,
    PAIR,
    TENSORRT,
    QuantSpec,
    float_nodes,
    round_weight,
    weight_scale,
)
from u2export.calibration.quantize import calibrated, quantize
from u2export.errors import UserError
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import activations, conv_nodes, head_nodes
from u2export.reference.onnx_session import open_graph
from u2export.reference.photos import read_input
from u2export.reference.source import Source

SIDE = 24


def small() -> onnx.ModelProto:
    """One U of U²-Net in little: conv, pool, conv, resize, concat, conv, residual sum, head."""
    random = np.random.default_rng(0)
    weights = {
        "a.weight": random.normal(size=(8, 3, 3, 3)), "b.weight": random.normal(size=(8, 8, 3, 3)),
        "c.weight": random.normal(size=(8, 16, 3, 3)), "side.weight": random.normal(size=(1, 8, 3, 3)),
    }  # fmt: skip
    constants = {k: (v / np.sqrt(v[0].size)).astype(np.float32) for k, v in weights.items()}
    constants |= {
        k.replace("weight", "bias"): random.normal(size=len(v)).astype(np.float32) for k, v in weights.items()
    }
    constants["size"] = np.array([1, 8, SIDE, SIDE], np.int64)

    def conv(name: str, x: str) -> onnx.NodeProto:
        return helper.make_node(
            "Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{name}_sum"], f"/{name}/Conv", pads=[1] * 4
        )

    nodes = [
        conv("a", "image"),
        helper.make_node("Relu", ["a_sum"], ["a_out"], "/a/Relu"),
        helper.make_node("MaxPool", ["a_out"], ["pooled"], "/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "pooled"),
        helper.make_node("Relu", ["b_sum"], ["b_out"], "/b/Relu"),
        helper.make_node("Resize", ["b_out", "", "", "size"], ["up"], "/Resize", mode="linear"),
        helper.make_node("Concat", ["up", "a_out"], ["both"], "/Concat", axis=1),
        conv("c", "both"),
        helper.make_node("Relu", ["c_sum"], ["c_out"], "/c/Relu"),
        helper.make_node("Add", ["c_out", "a_out"], ["block"], "/Add"),
        conv("side", "block"),
        helper.make_node("Sigmoid", ["side_sum"], ["mask"], "/Sigmoid"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def photos(count: int = 4, side: int = SIDE) -> list[Floats]:
    random = np.random.default_rng(1)
    return [random.normal(size=(1, 3, side, side)).astype(np.float32) for _ in range(count)]


def run(model: onnx.ModelProto, x: Floats, *names: str) -> list[Floats]:
    return open_graph(model, optimise=False).run(list(names) or None, {"image": x})  # type: ignore[no-any-return]


def pairs(model: onnx.ModelProto) -> set[str]:
    """The activations that have a Q/DQ pair."""
    return {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}


def scale_of(model: onnx.ModelProto, tensor: str) -> float:
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return float(constants[f"{tensor}_scale"])


def test_only_stored_activations_are_candidates() -> None:
    assert activations(small()) == ["image", "a_out", "pooled", "b_out", "up", "both", "c_out", "block"]


def test_heads_begin_behind_the_last_sum() -> None:
    assert head_nodes(small()) == {"/side/Conv", "/Sigmoid"}


def test_minmax_is_the_true_range() -> None:
    model, images = small(), photos()
    ranges = observe(model, iter(images))  # a stream is enough: one pass
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(helper.make_tensor_value_info("block", TensorProto.FLOAT, None))
    values = [run(watched, x, "block")[0] for x in images]
    assert ranges["block"].low == pytest.approx(min(v.min() for v in values), abs=1e-6)
    assert ranges["block"].high == pytest.approx(max(v.max() for v in values), rel=1e-6)
    assert ranges["image"].high == pytest.approx(max(x.max() for x in images))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_method_stays_inside_the_true_range(method: str, signed: bool) -> None:
    model, images = small(), photos()
    full, found = observe(model, images), observe(model, iter(images), method=method, signed=signed)
    assert found.keys() == full.keys()
    for name, r in found.items():
        # A bin's width of slack: histograms know values no more closely.
        slack = 1e-3 * full[name].peak
        assert full[name].low - slack <= r.low <= r.high <= full[name].high + slack
        assert r.high > 0.1 * full[name].high


def test_an_outlier_is_cut_off() -> None:
    """One pixel of 1000 among values of size 1 must not coarsen all others."""
    model, images = small(), photos(side=SIDE)
    images[2][0, 0, 0, 0] = 1000.0
    assert observe(model, images, ["image"])["image"].high == 1000.0
    assert observe(model, images, ["image"], "entropy")["image"].high < 500
    assert observe(model, images, ["image"], "percentile")["image"].high == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize(("spec", "method"), [(TENSORRT, "mse"), (ONNX_RUNTIME, "minmax")])
def test_the_default_method_clips_where_activations_are_signed(spec: QuantSpec, method: str) -> None:
    model, images = small(), photos(side=SIDE)
    made = calibrated(model, images, spec)
    assert made == calibrated(model, images, spec, method)
    assert made != calibrated(model, images, spec, "mse" if method == "minmax" else "minmax")


def test_mse_beats_minmax_where_it_claims_to() -> None:
    random = np.random.default_rng(2)
    x = random.laplace(size=(1, 3, SIDE, SIDE)).astype(np.float32)

    def error(r: ActivationRange) -> float:
        step = r.peak / 127
        return float(np.mean((np.clip(np.rint(x / step), -127, 127) * step - x) ** 2))

    model = small()
    assert error(observe(model, [x], ["image"], "mse", signed=True)["image"]) <= error(
        observe(model, [x], ["image"])["image"]
    )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (TENSORRT, {"image", "a_out", "b_out", "up", "c_out"}),
        (replace(TENSORRT, heads=True), {"image", "a_out", "b_out", "up", "c_out", "block"}),
        (replace(TENSORRT, placement="conv-input"), {"image", "pooled", "both"}),
        (ONNX_RUNTIME, {"image", "a_out", "pooled", "b_out", "up", "both", "c_out", "block"}),
    ],
)
def test_placement(spec: QuantSpec, expected: set[str]) -> None:
    model = small()
    assert pairs(quantize(model, observe(model, photos()), spec)) == expected


def test_no_pair_between_conv_and_relu_and_no_int32_unless_asked() -> None:
    model = small()
    made = quantize(model, observe(model, photos()), TENSORRT)
    assert not pairs(made) & {"a_sum", "b_sum", "c_sum", "side_sum"}
    types = {t.data_type for t in made.graph.initializer}
    assert TensorProto.INT32 not in types and TensorProto.UINT8 not in types
    assert all(not numpy_helper.to_array(t).any() for t in made.graph.initializer if t.name.endswith("zero_point"))


def test_pooling_and_concatenation_share_a_scale() -> None:
    model = small()
    ranges = observe(model, photos())
    made = quantize(model, ranges, TENSORRT)
    assert scale_of(made, "up") == scale_of(made, "a_out")  # both go into the concatenation
    assert scale_of(made, "a_out") == pytest.approx(max(ranges["a_out"].peak, ranges["up"].peak) / 127)
    everywhere = quantize(model, ranges, ONNX_RUNTIME)
    assert scale_of(everywhere, "pooled") == scale_of(everywhere, "a_out")
    assert scale_of(everywhere, "up") == scale_of(everywhere, "b_out")


@pytest.mark.parametrize("spec", [TENSORRT, replace(TENSORRT, placement="conv-input"), ONNX_RUNTIME])
def test_masks_stay_close_and_shape_and_names_stay_the_same(spec: QuantSpec) -> None:
    model, images = small(), photos(8)
    made = quantize(model, observe(model, images[:4]), spec)
    assert [o.name for o in made.graph.output] == ["mask"]
    for x in images[4:]:
        assert np.abs(run(made, x)[0] - run(model, x)[0]).mean() < 0.02


def test_the_float_graph_is_left_as_it_was() -> None:
    model = small()
    before = model.SerializeToString()
    quantize(model, observe(model, photos()), ONNX_RUNTIME)
    assert model.SerializeToString() == before


def test_all_in_float_is_the_float_graph() -> None:
    model = small()
    made = quantize(model, observe(model, photos()), replace(ONNX_RUNTIME, keep_float=(".*",)))
    assert not pairs(made)
    x = photos(1)[0]
    np.testing.assert_array_equal(run(made, x)[0], run(model, x)[0])


def test_a_float_layer_reads_what_was_never_rounded() -> None:
    """Keeping c in float takes the concatenation and the resize before it along, up to the layers that compute."""
    model, spec = small(), replace(ONNX_RUNTIME, keep_float=("/c/Conv",))
    assert float_nodes(model, spec) == {"/c/Conv", "/Concat", "/Resize"}
    made = quantize(model, observe(model, photos()), spec)
    readers = {n.name: n.input for n in made.graph.node}
    assert readers["/c/Conv"][0] == "both" and list(readers["/Concat"]) == ["up", "a_out"]
    assert readers["/Resize"][0] == "b_out"
    assert readers["/MaxPool"][0] == "a_out_dequantized"  # while those in 8 bit still read the pair
    assert readers["/c/Conv"][1] == "c.weight"


def test_without_raw_entry_only_the_layer_itself_is_float() -> None:
    model, spec = small(), replace(ONNX_RUNTIME, keep_float=("/c/Conv",), raw_entry=False)
    assert float_nodes(model, spec) == {"/c/Conv"}
    both = replace(spec, keep_float=("/b/Conv", "/c/Conv"))
    assert float_nodes(model, both) == {"/b/Conv", "/c/Conv", "/Resize", "/Concat"}
    readers = {n.name: n.input for n in quantize(model, observe(model, photos()), spec).graph.node}
    assert readers["/c/Conv"][0] == "both_dequantized"


def test_a_near_constant_channel_is_safe_only_with_its_region_in_float() -> None:
    """The trap of the published weights in little: a large constant that the next layer's bias cancels."""
    model = small()
    constants = {t.name: t for t in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(constants[f"b.{k}"]).copy() for k in ("weight", "bias"))
    weight[3], bias[3] = 0.01 * weight[3], 228.0
    after = numpy_helper.to_array(constants["c.weight"]).copy()
    after[:, 3, 1, 1] = 1.0
    cancel = numpy_helper.to_array(constants["c.bias"]) - 228.0 * after[:, 3].sum((1, 2))
    for name, value in (("b.weight", weight), ("b.bias", bias), ("c.weight", after), ("c.bias", cancel)):
        constants[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))
    ranges, x = observe(model, photos()), photos(1)[0]

    def error(spec: QuantSpec) -> float:
        return float(np.abs(run(quantize(model, ranges, spec), x, "c_out")[0] - run(with_c, x, "c_out")[0]).mean())

    with_c = onnx.ModelProto()
    model.graph.output.append(helper.make_tensor_value_info("c_out", TensorProto.FLOAT, None))
    with_c.CopyFrom(model)
    kept = replace(ONNX_RUNTIME, keep_float=("/c/Conv",))
    assert error(kept) < 0.25 * error(ONNX_RUNTIME)
    assert error(kept) < 0.25 * error(replace(kept, raw_entry=False))


def test_bias_correction_takes_the_mean_error_away() -> None:
    model, images = small(), photos(8)
    spec = replace(TENSORRT, pair_safe=True, placement="conv-input")
    ranges = observe(model, images)
    errors = bias_errors(model, ranges, spec, iter(images))
    assert errors.keys() == {"/a/Conv", "/b/Conv", "/c/Conv"}  # the head stays in float
    again = bias_errors(with_biases(model, errors), ranges, spec, images)
    # Only the first layer sees the same input again; there what is left must be nothing but float rounding.
    assert np.abs(errors["/a/Conv"]).max() > 1e-4
    first = quantize(model, ranges, spec, errors)
    constants = {t.name: numpy_helper.to_array(t) for t in first.graph.initializer}
    given = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_allclose(constants["a.bias_corrected"], given["a.bias"] - errors["/a/Conv"], rtol=1e-5)
    assert np.abs(again["/a/Conv"] - errors["/a/Conv"]).max() < 1e-5  # the error itself does not depend on biases


def with_biases(model: onnx.ModelProto, errors: dict[str, np.ndarray]) -> onnx.ModelProto:  # type: ignore[type-arg]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        node = f"/{tensor.name.removesuffix('.bias')}/Conv"
        if tensor.name.endswith(".bias") and node in errors:
            tensor.CopyFrom(
                numpy_helper.from_array((numpy_helper.to_array(tensor) - errors[node]).astype(np.float32), tensor.name)
            )
    return copy


def test_bias_correction_lowers_the_mean_error_of_what_comes_out() -> None:
    model, images = small(), photos(8)
    spec = ONNX_RUNTIME
    ranges = observe(model, images)
    errors = bias_errors(model, ranges, spec, images)

    def bias(made: onnx.ModelProto) -> float:
        return abs(float(np.mean([run(made, x)[0] - run(model, x)[0] for x in images])))

    assert bias(quantize(model, ranges, spec, errors)) < bias(quantize(model, ranges, spec))


def test_a_constant_channel_keeps_its_value_with_an_int32_bias() -> None:
    """Conditioning adds channels of zero weights and a constant bias: the scale must come from the bias."""
    model = small()
    for tensor in model.graph.initializer:
        if tensor.name in ("a.weight", "a.bias"):
            value = numpy_helper.to_array(tensor).copy()
            value[0] = 0.0 if tensor.name == "a.weight" else 3.0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    made = quantize(model, observe(model, photos()), ONNX_RUNTIME)
    made.graph.output.append(helper.make_tensor_value_info("a_sum", TensorProto.FLOAT, None))
    np.testing.assert_allclose(run(made, photos(1)[0], "a_sum")[0][0, 0], 3.0, rtol=1e-5)


FINITE = st.floats(-1e4, 1e4, width=32)
WEIGHTS = st.integers(1, 5).flatmap(lambda channels: arrays(np.float32, (3, channels, 3, 3), elements=FINITE))


@given(WEIGHTS, st.booleans())
def test_rounded_weights_are_within_half_a_step(weight: Floats, pair_safe: bool) -> None:
    scale = weight_scale(weight, pair_safe=pair_safe)
    assert (scale > 0).all() and np.isfinite(scale).all()
    rounded = round_weight(weight, scale)
    assert np.abs(rounded.astype(int)).max() <= 127
    steps = scale.reshape(-1, 1, 1, 1).astype(np.float64)
    assert (np.abs(rounded * steps - weight) <= 0.501 * steps).all()


def saturating(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """What vpmaddubsw makes of u8 values and s8 weights: products of neighbours, added and cut to 16 bits."""
    products = pixels.astype(int) * weights.astype(int)
    return np.asarray((products[..., ::2] + products[..., 1::2]).clip(-(2**15), 2**15 - 1))


def even(row: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([row, np.zeros_like(row[..., : row.shape[-1] % 2])], -1)


@given(WEIGHTS)
def test_sums_of_pair_safe_weights_never_saturate(weight: Floats) -> None:
    """The worst input of a pair is 255 where its weights have one sign, and 0 elsewhere."""
    taps = round_weight(weight, weight_scale(weight, pair_safe=True)).transpose(0, 2, 3, 1)
    for row in (even(taps), even(taps.reshape(len(taps), -1))):
        for pixels in (np.full_like(row, 255, int), 255 * (row > 0), 255 * (row < 0)):
            products = pixels * row.astype(int)
            assert (saturating(pixels, row) == products[..., ::2] + products[..., 1::2]).all()


def test_every_pair_of_weights_that_scales_allow_fits_into_16_bits() -> None:
    """All pairs of real weights on a fine grid whose sum keeps the bound, rounded, times 255."""
    a, b = np.meshgrid(np.arange(-127, 127.01, 0.25), np.arange(-127, 127.01, 0.25))
    allowed = (np.maximum(a, 0) + np.maximum(b, 0) <= PAIR) & (np.maximum(-a, 0) + np.maximum(-b, 0) <= PAIR)
    x, y = np.rint(a[allowed]), np.rint(b[allowed])
    for left in (0, 255):
        for right in (0, 255):
            assert np.abs(left * x + right * y).max() < 2**15
    assert 255 * (127 + 127) > 2**15  # plain 8-bit weights do not fit


def test_pair_safe_weights_use_more_steps_than_seven_bits() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 32, 3, 3)).astype(np.float32)
    peak = np.abs(weight).reshape(64, -1).max(1)
    assert np.median(peak / weight_scale(weight, pair_safe=True)) > 80


@given(st.floats(-1e6, 1e6, width=32), st.floats(2.0**-20, 8, width=32))
def test_biases_always_fit_into_int32(bias: float, entry: float) -> None:
    weight = np.full((1, 1, 1, 1), 1e-9, np.float32)
    scale = weight_scale(weight, np.array([bias]), np.float32(entry))
    assert abs(bias / (float(np.float32(entry)) * float(scale[0]))) < 2**31


def test_refusals() -> None:
    model = small()
    ranges = observe(model, photos())
    with pytest.raises(UserError, match="no Q/DQ placement"):
        QuantSpec(placement="nowhere")
    with pytest.raises(UserError, match="no calibration method"):
        observe(model, photos(), method="guess")
    with pytest.raises(UserError, match="no tensor 'nothing'"):
        observe(model, photos(), ["nothing"])
    with pytest.raises(UserError, match="no photos"):
        observe(model, [])
    with pytest.raises(UserError, match="NaN or infinite"):
        observe(model, [np.full((1, 3, SIDE, SIDE), np.nan, np.float32)])
    with pytest.raises(UserError, match="NaN or infinite"):
        observe(model, [np.full((1, 3, SIDE, SIDE), np.inf, np.float32)], method="mse")
    with pytest.raises(UserError, match="no node is named"):
        quantize(model, ranges, replace(TENSORRT, keep_float=("/d/Conv",)))
    with pytest.raises(UserError, match="regular expression"):
        quantize(model, ranges, replace(TENSORRT, keep_float=("/a/(",)))
    with pytest.raises(UserError, match="no range was observed for the activation a_out"):
        quantize(model, {k: v for k, v in ranges.items() if k != "a_out"})
    with pytest.raises(UserError, match="the activation image has the range 0 to 0"):
        quantize(model, {**ranges, "image": ActivationRange(0.0, 0.0)})
    with pytest.raises(UserError, match=r"range -1 to inf"):
        quantize(model, {**ranges, "image": ActivationRange(-1.0, float("inf"))})
    with pytest.raises(UserError, match="quantised already"):
        quantize(quantize(model, ranges), ranges)
    model.opset_import[0].version = 12
    with pytest.raises(UserError, match="needs opset 13"):
        quantize(model, ranges)


def test_a_random_u2netp_in_both_schemes() -> None:
    """The whole network, small: structure, and masks of quantised graphs near the float ones."""
    from u2export.reference.onnx_export import Graph, to_onnx

    source = random_source()
    model = to_onnx(source.model, source.contract, Graph(), {})
    images = photos(2, 64)
    ranges = observe(model, images)
    assert len(conv_nodes(model)) == 119 and len(head_nodes(model)) == 6 + 5 + 1 + 1 + 1
    for spec, quantised in ((TENSORRT, 112), (ONNX_RUNTIME, 119)):
        made = quantize(model, ranges, spec)
        weights = [n for n in made.graph.node if n.op_type == "DequantizeLinear" and n.name.startswith("")]
        int8 = {t.name for t in made.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4}
        assert sum(n.input[0] in int8 for n in weights) == quantised
        assert np.abs(run(made, images[0])[0] - run(model, images[0])[0]).mean() < 0.1


@pytest.mark.slow
def test_published_weights_conditioned_and_corrected(shared: Path, published: Source) -> None:
    """The recipe of `u2export ort --int8` holds its promise on photos it never saw."""
    from u2export.calibration.prepare import conditioned
    from u2export.exporters.embedding import of_pixels
    from u2export.exporters.head_rewrite import with_fast_head
    from u2export.exporters.ort import int8_spec
    from u2export.reference.fidelity import Fidelity, compare
    from u2export.reference.onnx_export import Graph, to_onnx
    from u2export.reference.photos import find_photos

    source = of_pixels(published)  # the photos and the contract of test_coreml.py: conditioned once for both
    calibration = Calibration.open(shared / "bsds500" / "images", source.contract, limit=12)
    held_back = [read_input(source.contract, p) for p in find_photos([shared / "u2net_official" / "images"])[::3]]
    module, _ = conditioned(source.model, calibration)
    graph = with_fast_head(to_onnx(module, source.contract, Graph(), {}))
    made = calibrated(graph, calibration, int8_spec())
    opened = open_graph(made)
    masks = [opened.run(None, {"image": x})[0][0, 0] for x in held_back]
    got = Fidelity(tuple(compare(m, source.predict(x)[0, 0]) for m, x in zip(masks, held_back, strict=True)))
    # With 12 calibration photos, one photo has .014; with the 32 of an export, the mean of all 18 photos is .0020.
    assert not got.broken({"mae": 0.005, "iou": 0.985}), got.summary()
