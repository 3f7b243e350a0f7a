"""The search for layers to keep in float: on a chain whose one bad layer is known, then by command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from u2export.calibration.activation_ranges import observe
from u2export.calibration.float_search import Search, load_of, search_float_layers, stage_of, surest
from u2export.calibration.layer_work import layer_macs, saved_time
from u2export.calibration.quant_plan import ONNX_RUNTIME
from u2export.calibration.quantize import quantize
from u2export.calibration.sensitivity import Sensitivity, read_keep_float
from u2export.errors import UserError
from u2export.reference.fidelity import Fidelity, ImageFidelity
from u2export.reference.image import Floats
from u2export.reference.onnx_session import open_graph

SIDE, LAYERS = 32, 12


def chain(bad: int) -> onnx.ModelProto:
    """Convolutions in three stages; number `bad` has one channel whose weights are all but lost in 8 bit."""
    random = np.random.default_rng(3)
    nodes, constants, x = [], [], "image"
    for i in range(LAYERS):
        inputs, outputs = (3 if i == 0 else 6), (1 if i == LAYERS - 1 else 6)
        weight = random.normal(size=(outputs, inputs, 3, 3)) / np.sqrt(inputs * 9 / 2)
        if i == bad:
            weight[:, 0, 0, 0] = 30.0  # reads a channel that is nearly always 0: only the scale suffers
        if i == bad - 1:
            weight[0] = 0.0
        bias = random.normal(size=outputs) * 0.1
        if i == bad - 1:
            bias[0] = 1e-4
        name = f"/stage{i // 4 + 1}/conv{i}"
        constants += [
            numpy_helper.from_array(weight.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{i}"),
        ]
        last = i == LAYERS - 1
        nodes.append(helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"s{i}"], f"{name}/Conv", pads=[1] * 4))
        x = "mask" if last else f"r{i}"
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"s{i}"], [x], f"{name}/Act"))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(model: onnx.ModelProto, count: int = 3) -> list[tuple[Floats, Floats]]:
    random = np.random.default_rng(4)
    coarse = random.normal(size=(count, 1, 3, SIDE // 4, SIDE // 4)).astype(np.float32)
    opened = open_graph(model)
    inputs = [c.repeat(4, 2).repeat(4, 3) for c in coarse]
    return [(x, opened.run(None, {"image": x})[0]) for x in inputs]


def search(bad: int = 6, **budget: float) -> Search:
    model = chain(bad)
    found = samples(model)
    ranges = observe(model, [x for x, _ in found])
    return Search(model, ranges, {}, ONNX_RUNTIME, found, budget)


def name(i: int) -> str:
    return f"/stage{i // 4 + 1}/conv{i}/Conv"


def test_the_bad_layer_is_found_and_little_else_kept() -> None:
    looking = search(6, mae=1.0)
    everything = looking.fidelity(frozenset()).mae
    looking.budget = {"mae": 0.6 * everything}
    found = looking.run("chain")
    assert found.met and found.keep_float == (name(6),)
    assert found.chosen.mae <= 0.6 * everything
    assert found.evaluations < 2 * LAYERS  # blocks without the layer are not looked into


def test_a_budget_that_is_met_at_once_keeps_nothing_in_float() -> None:
    found = search(6, mae=1.0).run()
    assert found.met and found.keep_float == () and found.evaluations == 1


def test_a_budget_nothing_meets_is_said_so() -> None:
    found = search(6, mae=0.0, iou=1.0).run()
    assert not found.met or found.chosen.mae == 0


def test_held_back_photos_widen_a_choice_that_suits_only_the_others() -> None:
    """The stretched masks of faint photos magnify every error: what serves the others does not serve them."""
    model = chain(6)
    others = samples(model)
    faint = [(0.02 * x, open_graph(model).run(None, {"image": 0.02 * x})[0]) for x, _ in others]
    ranges, budget = observe(model, [x for x, _ in others]), {"mae": 0.02}

    def run(limits: dict[str, float], back: list[tuple[Floats, Floats]]) -> Sensitivity:
        return Search(model, ranges, {}, ONNX_RUNTIME, others, limits, back).run()

    alone, checked = run(budget, []), run(budget, faint)
    assert alone.met and not alone.held_back and checked.held_back["photos"] == len(faint)
    assert set(checked.keep_float) > set(alone.keep_float)
    assert checked.chosen.keep_float == checked.keep_float
    # Float layers must improve the faint photos by the ratio by which they improve the others to the budget.
    pure = run({"mae": 1.0}, faint)
    harder = pure.held_back["mae"] / pure.chosen.mae
    assert harder > 1.5 and alone.keep_float
    assert checked.met == (checked.held_back["mae"] <= 0.02 * harder)
    # Faint photos need not keep a budget that all photos of the search keep at once.
    assert run({"mae": 1.01 * pure.chosen.mae}, faint).keep_float == ()


def test_photos_of_which_the_reference_is_surest_keep_their_order() -> None:
    x = np.zeros((1, 3, 2, 2), np.float32)
    given = [(x, np.full((1, 1, 2, 2), v, np.float32)) for v in (0.5, 0.99, 0.6, 0.02, 0.0)]
    assert [float(d0[0, 0, 0, 0]) for _, d0 in surest(given, 3)] == pytest.approx([0.99, 0.02, 0.0])
    assert len(surest(given, 9)) == 5


def test_the_front_falls_with_float_work_and_the_result_reads_back(tmp_path: Path) -> None:
    looking = search(6, mae=1.0)
    looking.budget = {"mae": 0.3 * looking.fidelity(frozenset()).mae}
    found = looking.run("chain")
    front = found.pareto
    assert [p.float_share for p in front] == sorted({p.float_share for p in front})
    assert [p.mae for p in front] == sorted({p.mae for p in front}, reverse=True)
    assert front[0].keep_float == ()
    written = found.write(tmp_path)
    assert read_keep_float(written) == found.keep_float
    data = json.loads(written.read_text())
    assert data["schema"] == 1 and data["budget"] == found.budget and len(data["points"]) == found.evaluations
    spec = replace(ONNX_RUNTIME, keep_float=found.keep_float)
    made = quantize(looking.model, looking.ranges, spec)
    assert {n.name for n in made.graph.node} >= set(found.keep_float)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    search(6, mae=0.01).run("chain").write(tmp_path)
    with Image.open(tmp_path / "pareto.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 300 and pixels.std() > 5


def test_macs_and_stages() -> None:
    macs = layer_macs(chain(6))
    assert macs[name(0)] == 3 * 6 * 9 * SIDE**2 and macs[name(LAYERS - 1)] == 6 * 9 * SIDE**2
    assert stage_of("/stage1d/rebnconv2d/conv_s1/Conv") == "stage1d"
    assert stage_of("/side3/Conv") == stage_of("/outconv/Conv") == "heads"
    free = chain(6)
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    free.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UserError, match="fixed size"):
        layer_macs(free)


def test_load_is_one_at_the_limit() -> None:
    image = ImageFidelity(mae=0.002, max_abs=0.1, iou=0.98, boundary_f=1.0, area=1.0, raw_mae=0.0)
    fidelity = Fidelity((image,))
    assert load_of(fidelity, {"mae": 0.002}) == pytest.approx(1)
    assert load_of(fidelity, {"mae": 0.004, "iou": 0.98}) == pytest.approx(1)
    assert load_of(fidelity, {"mae": 0.004, "iou": 0.96}) == pytest.approx(0.5)
    assert load_of(Fidelity((replace(image, finite=False),)), {"mae": 1}) == float("inf")


def test_saved_time_names_every_layer() -> None:
    looking = search(6, mae=1.0)
    made = quantize(looking.model, looking.ranges, looking.spec)
    saved = saved_time(looking.model, made, looking.samples[0][0], rounds=2)
    assert saved.keys() == set(looking.layers) and min(saved.values()) >= 1


def test_refusals(tmp_path: Path) -> None:
    model = chain(6)
    ranges = observe(model, [x for x, _ in samples(model)])
    with pytest.raises(UserError, match="no photos"):
        Search(model, ranges, {}, ONNX_RUNTIME, [], {"mae": 1})
    with pytest.raises(UserError, match="no budget"):
        Search(model, ranges, {}, ONNX_RUNTIME, samples(model), {})
    for text, problem in (("[", "not JSON"), ("{}", "lists no layers"), ("[1]", "lists no layers")):
        file = tmp_path / "keep.json"
        file.write_text(text)
        with pytest.raises(UserError, match=problem):
            read_keep_float(file)
    with pytest.raises(UserError, match="no such file"):
        read_keep_float(tmp_path / "none.json")


def test_pareto_of_nothing_measured_twice() -> None:
    found = search(6, mae=0.01).run()
    assert isinstance(found, Sensitivity)
    kept = [p.keep_float for p in found.points]
    assert len(set(kept)) == len(kept) == found.evaluations


def test_from_photos_to_a_choice(tmp_path: Path) -> None:
    from PIL import Image

    from u2export.calibration.scenes import scene
    from u2export.reference.image import Contract

    for name, first in (("calib", 0), ("images", 10)):
        (tmp_path / name).mkdir()
        for seed in range(first, first + 3):
            Image.fromarray(scene(seed, 64, 64)[0]).save(tmp_path / name / f"{seed}.png")
    told: list[str] = []
    found = search_float_layers(
        "random-u2netp", tmp_path / "calib", tmp_path / "images", {"mae": 1.0}, contract=Contract(32, 32), photos=3,
        progress=told.append,
    )  # fmt: skip
    assert found.met and found.keep_float == () and found.weights == "u2netp (random weights)"
    assert (found.photos, found.held_back["photos"]) == (2, 1)
    told = [what for what in told if not what.startswith("rounding weights")]  # an earlier run may have kept them
    assert told[:2] == ["reading random-u2netp", "conditioning and calibrating"] and told[2].startswith("graph 1: all")
    with pytest.raises(UserError, match="belong to the evaluation set"):
        search_float_layers("random-u2netp", tmp_path / "calib", tmp_path / "calib", {"mae": 1.0})
    with pytest.raises(UserError, match="no scheme named 'tpu'"):
        search_float_layers("random-u2netp", tmp_path / "calib", tmp_path / "images", {"mae": 1.0}, scheme="tpu")


def test_a_cluster_finds_what_this_machine_finds() -> None:
    pytest.importorskip("distributed")
    from u2export.benchmarks.cluster.models import cluster_models

    model = chain(6)
    found = samples(model, 5)
    ranges = observe(model, [x for x, _ in found])
    budget = {"mae": 0.6 * Search(model, ranges, {}, ONNX_RUNTIME, found[:3], {"mae": 1.0}).fidelity(frozenset()).mae}
    here = Search(model, ranges, {}, ONNX_RUNTIME, found[:3], budget, found[3:]).run("chain")
    with cluster_models("local:2") as models:
        there = Search(model, ranges, {}, ONNX_RUNTIME, found[:3], budget, found[3:], judge=models.graphs).run("chain")
    assert there.to_json() == here.to_json() and there.evaluations > 1
