"""Weights rounded for the least change of a layer's output: against nearest rounding, and within the bound of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_quantize import small

from u2export.calibration import weight_rounding
from u2export.calibration.activation_ranges import observe
from u2export.calibration.bias_correction import bias_errors
from u2export.calibration.quant_plan import ONNX_RUNTIME, TENSORRT, QuantSpec, pair_peak, round_weight, weight_scale
from u2export.calibration.quantize import quantize
from u2export.calibration.weight_rounding import rounded, rounded_weights, steps_of
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import conv_nodes
from u2export.reference.onnx_session import open_graph


def correlated(size: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Inputs (size, 4000) of which a few causes explain most, as in maps of photos; and their second moments."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(size, 4)) @ random.normal(size=(4, 4000)) + 0.1 * random.normal(size=(size, 4000))
    return x.astype(np.float32), (x @ x.T).astype(np.float32)


@pytest.mark.parametrize("pair_safe", [False, True])
@pytest.mark.parametrize("channels", [7, 16, 24])  # 24: more columns than one block
def test_outputs_change_less_than_by_nearest_rounding(channels: int, pair_safe: bool) -> None:
    weight = np.random.default_rng(1).normal(size=(5, channels, 3, 3)).astype(np.float32)
    x, moments = correlated(channels * 9)
    scale = weight_scale(weight, pair_safe=pair_safe)
    best, nearest = rounded(weight, scale, moments, pair_safe), round_weight(weight, scale)

    def error(steps: np.ndarray) -> float:  # type: ignore[type-arg]
        wrong = steps * scale.reshape(-1, 1, 1, 1) - weight
        return float((wrong.reshape(5, -1) @ x).std())

    assert error(best) < 0.4 * error(nearest)
    assert np.abs(best - weight / scale.reshape(-1, 1, 1, 1)).max() < 12  # no weight is bent beyond recognition
    if pair_safe:
        assert pair_peak(best.astype(np.float32)).max() <= 128


@pytest.mark.parametrize("size", [1, 64, 65, 200])
def test_the_factor_is_that_of_the_inverse(size: int) -> None:
    moments = correlated(size)[1].astype(np.float64) + np.eye(size)
    expected = np.linalg.cholesky(np.linalg.inv(moments)).T
    np.testing.assert_allclose(weight_rounding._factor(moments), expected, atol=1e-9 * np.abs(expected).max())


def test_pairs_keep_their_bound_where_every_weight_is_at_it() -> None:
    for channels in (1, 2, 3, 5):
        weight = np.full((2, channels, 3, 3), 1.0, np.float32) * np.array([1, -1], np.float32).reshape(-1, 1, 1, 1)
        moments = correlated(channels * 9, seed=channels)[1]
        made = rounded(weight, weight_scale(weight, pair_safe=True), moments, pair_safe=True)
        assert pair_peak(made.astype(np.float32)).max() <= 128 and np.abs(made).max() <= 127


def test_inputs_without_information_are_rounded_to_the_nearest_step() -> None:
    weight = np.random.default_rng(2).normal(size=(3, 2, 3, 3)).astype(np.float32)
    scale = weight_scale(weight)
    for moments in (
        np.zeros((18, 18), np.float32),
        np.full((18, 18), np.nan, np.float32),
        np.eye(18, dtype=np.float32),
    ):
        assert (rounded(weight, scale, moments) == round_weight(weight, scale)).all()
    assert (steps_of({}, "a", weight, scale, False) == round_weight(weight, scale)).all()
    known = {"a": np.zeros(weight.shape, np.int8)}
    assert (steps_of(known, "a", weight, scale, False) == 0).all()
    assert steps_of(known, "a", weight, 2 * scale, False).any()  # steps of other scales do not fit


@pytest.mark.parametrize("spec", [replace(ONNX_RUNTIME, fit_weights=True), TENSORRT], ids=["ort", "trt"])
def test_a_graph_comes_closer_to_float(spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    random = np.random.default_rng(3)
    smooth = [
        np.kron(random.normal(size=(1, shape[1], shape[2] // 4, shape[3] // 4)), np.ones((1, 1, 4, 4))).astype(
            np.float32
        )
        for _ in range(12)
    ]
    used, others = smooth[:8], smooth[8:]
    steps = rounded_weights(model, used, spec)
    assert steps.keys() == {n.name for n in conv_nodes(model)}
    assert rounded_weights(model, used, replace(spec, fit_weights=False)) == {}
    monkeypatch.setattr(weight_rounding, "AT_ONCE", 1)  # every layer in a pass of its own
    again = rounded_weights(model, used, spec)
    assert all(np.mean(steps[name] != again[name]) < 0.2 for name in steps)  # other positions are drawn
    ranges = observe(model, used)

    def error(known: dict[str, np.ndarray]) -> float:  # type: ignore[type-arg]
        made = quantize(model, ranges, spec, bias_errors(model, ranges, spec, used, known), known)
        want, got = open_graph(model), open_graph(made)
        name = model.graph.input[0].name
        return float(
            np.mean([np.abs(want.run(None, {name: x})[0] - got.run(None, {name: x})[0]).mean() for x in others])
        )

    assert error(steps) < error({})
