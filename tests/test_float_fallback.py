"""Int8 that misses its budget gets float layers: on a chain whose bad layer is known, then in whole exports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import SMALL, random_source
from test_sensitivity import SIDE, chain, name, samples

from u2export.calibration.dataset import Calibration
from u2export.calibration.float_fallback import Quantised, quantise_within
from u2export.calibration.layer_work import layer_macs
from u2export.calibration.quant_plan import ONNX_RUNTIME, QuantSpec
from u2export.errors import UserError
from u2export.exporters.artifact import read_record
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.int8 import float_region
from u2export.exporters.openvino import OpenVINO, _opened
from u2export.exporters.ort import Ort
from u2export.exporters.trt.exporter import TensorRT
from u2export.reference.fidelity import Fidelity, compare
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_session import open_graph
from u2export.reference.source import Source

SPEC = ONNX_RUNTIME


class Chain:
    """A chain with the bad layer 6, its calibration photos, and the judgement of a graph on others."""

    def __init__(self, folder: Path) -> None:
        self.model = chain(6)
        given = samples(self.model, 9)
        file = folder / "inputs.npy"
        np.save(file, np.concatenate([x for x, _ in given[:5]]))
        self.photos = Calibration.open(file, Contract(SIDE, SIDE))
        self.others, self.judged = given[5:], 0

    def judge(self, graph: onnx.ModelProto) -> Fidelity:
        self.judged += 1
        session = open_graph(graph)
        return self.judge_runner(lambda x: session.run(None, {"image": x})[0])

    def judge_runner(self, runner: Callable[[Floats], Floats]) -> Fidelity:
        return Fidelity(tuple(compare(runner(x)[0, 0], d0[0, 0]) for x, d0 in self.others))

    def quantised(self, budget: Mapping[str, float], max_float: float) -> Quantised:
        return quantise_within(self.model, self.photos, SPEC, self.judge, budget, max_float)


@pytest.fixture
def links(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def convs_in_float(graph: onnx.ModelProto) -> set[str]:
    weights = {t.name for t in graph.graph.initializer}
    return {n.name for n in graph.graph.node if n.op_type == "Conv" and n.input[1] in weights}


def test_the_bad_layer_becomes_float_and_the_record_says_so(links: Chain) -> None:
    pure = links.judge(links.quantised({"mae": 1.0}, 0.2).graph)
    found = links.quantised({"mae": 0.7 * pure.mae}, 0.2)
    assert name(6) in convs_in_float(found.graph) == set(found.added["float_layers"])
    macs = layer_macs(links.model)
    share = sum(macs[n] for n in found.added["float_layers"]) / sum(macs.values())
    assert found.added["float_share"] == pytest.approx(share) and share <= 0.2
    assert links.judge(found.graph).mae == pytest.approx(found.added["with_float"]["mae"])
    assert found.added["pure_int8"]["mae"] == pytest.approx(pure.mae)
    assert found.added["with_float"]["mae"] <= 0.7 * pure.mae
    assert "of 12 convolutions" in found.note and f"{100 * share:.1f} %" in found.note


def test_a_kept_budget_and_a_share_of_zero_change_nothing(links: Chain) -> None:
    for budget, share in (({"mae": 1.0}, 0.2), ({"mae": 0.0}, 0.0)):
        found = links.quantised(budget, share)
        assert not convs_in_float(found.graph) and not found.added and not found.note and found.spec == SPEC
    assert links.judged == 1  # without a share there is nothing to decide


@pytest.mark.parametrize("most", [0.01, 0.1, 0.5])
def test_a_budget_out_of_reach_gives_the_closest_graph_within_the_share(links: Chain, most: float) -> None:
    pure = links.judge(links.quantised({"mae": 1.0}, most).graph)
    found = links.quantised({"mae": 1e-9}, most)
    assert links.judge(found.graph).mae <= pure.mae
    macs = layer_macs(links.model)
    assert sum(macs[n] for n in convs_in_float(found.graph)) <= most * sum(macs.values())


def test_work_is_known_for_a_graph_of_free_size() -> None:
    model = chain(6)
    fixed = layer_macs(model)
    for port in (model.graph.input[0], model.graph.output[0]):
        port.type.tensor_type.shape.dim[2].dim_param = "height"
    x = np.zeros((1, 3, SIDE, SIDE), np.float32)
    assert layer_macs(model, x) == fixed
    assert layer_macs(model, x[:, :, : SIDE // 2])[name(0)] == fixed[name(0)] // 2


# --- exports ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def photos() -> Calibration:
    return Calibration.bundled(SMALL).subset(3)


@pytest.mark.parametrize(
    ("exporter", "part"), [(Ort(), 0.8), (OpenVINO(), 0.99), (TensorRT(), 0.95)], ids=["ort", "openvino", "trt"]
)
def test_an_export_that_misses_its_budget_adds_float(
    exporter: Exporter, part: float, source: Source, photos: Calibration, tmp_path: Path
) -> None:
    if exporter.missing():
        pytest.skip("a package is missing")
    loose = Request("int8", photos, condition=False, budget={"mae": 1.0, "mae_worst": 1.0})
    pure = exporter.export(source, tmp_path / "pure", loose)
    assert not pure.added_float and pure.fidelity["raw_mae"] > 0
    tight = replace(loose, budget={"raw_mae": part * pure.fidelity["raw_mae"], "mae": 1.0, "mae_worst": 1.0})
    if exporter.name == "ort":
        with pytest.raises(UserError, match="raw_mae"):
            exporter.export(source, tmp_path / "refused", replace(tight, max_float=0.0))
    made = exporter.export(source, tmp_path / "made", replace(tight, max_float=0.3))
    added = read_record(made.record).added_float
    assert made.fidelity["raw_mae"] <= tight.budget["raw_mae"]
    assert added["pure_int8"]["raw_mae"] == pytest.approx(pure.fidelity["raw_mae"], rel=1e-3)
    assert 0 < added["float_share"] <= 0.301 and added["float_layers"]
    # Sums in another order flip roundings, which an untrained network amplifies: .3 % was seen on a busy machine. The
    # file of another choice of layers is further off: the limit is 1 to 20 % below pure int8.
    assert made.fidelity["raw_mae"] == pytest.approx(added["with_float"]["raw_mae"], rel=5e-3)
    assert any("pure int8 missed the budget" in note for note in made.notes)
    assert json.loads(made.record.read_text())["added_float"]["graphs_judged"] >= 2


def test_what_lies_between_float_layers_runs_in_float() -> None:
    """Two blocks: a, b join into c; c is read by d (through a pool) and e. Convolutions are a, b, d, e."""
    sources = {"a": [], "b": ["a"], "c": ["a", "b"], "pool": ["c"], "d": ["pool"], "e": ["c"], "sum": ["d", "e"]}
    convs = set("abde")
    assert float_region(sources, convs, []) == set()
    assert float_region(sources, convs, ["d"]) == {"d", "pool", "c"}  # what d reads is not rounded on its way
    assert float_region(sources, convs, ["e"]) == {"e", "c", "pool"}  # pooling floats in float costs nothing
    assert float_region(sources, convs, ["a", "b"]) == {"a", "b", "c", "pool"}
    assert float_region(sources, convs, ["d", "e"]) == {"d", "e", "pool", "c", "sum"}
    assert float_region(sources, convs, convs) == set(sources)


def test_nncf_leaves_the_float_layers_of_a_spec_out(links: Chain) -> None:
    pytest.importorskip("nncf")
    made = OpenVINO("nncf", "none")
    request = Request("int8", links.photos)
    source = random_source()  # only accuracy control reads it

    def rounded(spec: QuantSpec) -> tuple[set[str], float]:
        model = made._by_nncf(links.model, source, request, spec)
        rounded = {
            op.get_friendly_name().removesuffix("/WithoutBiases")
            for op in model.get_ops()
            if op.get_type_name() == "Convolution" and op.input_value(1).get_node().get_type_name() != "Constant"
        }
        return rounded, links.judge_runner(_opened(model)).mae

    everything, pure = rounded(SPEC)
    assert name(6) in everything
    rest, mixed = rounded(replace(SPEC, keep_float=(name(6),)))
    assert rest == everything - {name(6)} and mixed < pure
