"""Damaged and mistyped files end in errors of two lines: never a traceback, a hang, or a silent reading."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import mixed_report, pictures

from u2export.api import gating, tables
from u2export.benchmarks.gate.acceptance import accept
from u2export.benchmarks.gate.policy import Policy
from u2export.benchmarks.report import Report
from u2export.errors import UserError
from u2export.exporters.inspection import inspect
from u2export.exporters.open import read_artifact
from u2export.reference.photos import open_photo, read_array

CORPUS = Path(__file__).parent / "corpus"
HUGE = 10**400


# ONNX


def graph(nodes: list[Any], weights: tuple[Any, ...] = (), outputs: tuple[str, ...] = ("y",), fed: bool = True) -> Any:
    """A model of these nodes, valid or not."""
    from onnx import TensorProto, helper

    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, 8, 8)) for name in outputs]
    made = helper.make_graph(nodes, "g", [entry] if fed else [], ends, list(weights))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def kernel(**changes: Any) -> Any:
    """The tensor w, three values in float32, with some fields changed."""
    from onnx import TensorProto, helper

    made = helper.make_tensor("w", TensorProto.FLOAT, (1, 3, 1, 1), [0.1, 0.2, 0.3])
    if "values" in changes:
        del made.float_data[changes["values"] :]
    if "raw" in changes:
        del made.float_data[:]
        made.raw_data = changes["raw"]
    made.data_type = changes.get("type", made.data_type)
    made.dims[0] = changes.get("side", 1)
    return made


def flawed() -> dict[str, tuple[Any, str]]:
    """Graphs by name, each with a part of what its error says."""
    import onnx
    from onnx.helper import make_node as n

    conv, last = n("Conv", ["x", "w"], ["y"], name="c"), n("Conv", ["x", "a"], ["y"])
    odd = graph([conv], (kernel(),)).SerializeToString().replace(b"Conv", b"Con\xff")
    circle = [n("DequantizeLinear", ["b", "s"], ["a"]), n("DequantizeLinear", ["a", "s"], ["b"]), last]
    return {
        "a circle of two": (graph(circle), "reads its own result"),
        "a circle of one": (graph([n("Cast", ["a"], ["a"], to=1), last]), "reads its own result"),
        "no inputs": (graph([n("Conv", [], ["y"], name="c")]), "has 0 inputs, Conv takes 2"),
        "one input": (graph([n("Conv", ["x"], ["y"])]), "has 1 inputs, Conv takes 2"),
        "QLinearConv": (graph([n("QLinearConv", ["x", "w"], ["y"])], (kernel(),)), "has 2 inputs"),
        "no scale": (graph([n("DequantizeLinear", ["w"], ["a"]), last], (kernel(),)), "has 1 inputs"),
        "no result": (graph([n("Conv", ["x", "w"], [])], (kernel(),), ("x",)), "has no output"),
        "short": (graph([conv], (kernel(raw=b"\0\0"),)), "cut short"),
        "two values": (graph([conv], (kernel(values=2),)), "cut short"),
        "huge": (graph([conv], (kernel(side=2**40),)), "cut short"),
        "negative": (graph([conv], (kernel(side=-5),)), "negative side"),
        "type 99": (graph([conv], (kernel(type=99),)), "no known type"),
        "type 0": (graph([conv], (kernel(type=0),)), "no known type"),
        "no output": (graph([conv], (kernel(),), ()), "has no output"),
        "bytes": (onnx.load_from_string(odd), "not UTF-8"),
        "unknown output": (graph([conv], (kernel(),), ("z",)), "no node makes its output"),
    }


@pytest.mark.parametrize(
    "name",
    ["a circle of two", "a circle of one", "no inputs", "one input", "QLinearConv", "no scale", "no result", "short",
     "two values", "huge", "negative", "type 99", "type 0", "no output", "bytes", "unknown output"],
)  # fmt: skip
def test_flawed_graphs(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from u2export.api.lower_precision import weak_layers

    model, says = flawed()[name]
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    readers: tuple[Callable[[], Any], ...] = (
        lambda: inspect(path),
        lambda: weak_layers(path),
        lambda: tables.roofline(path, "none", local=False),
    )
    for read in readers:
        with pytest.raises(UserError, match=says):
            read()


def test_graphs_that_are_sound_but_no_network(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx.helper import make_node as n

    from u2export.api.lower_precision import weak_layers

    path = tmp_path / "x.onnx"
    path.write_bytes(graph([n("Identity", ["x"], ["y"])]).SerializeToString())
    with pytest.raises(UserError, match="no convolution"):
        tables.roofline(path, "none", local=False)
    with pytest.raises(UserError, match="no convolution"):
        weak_layers(path)
    path.write_bytes(graph([n("Conv", ["w", "w"], ["y"])], (kernel(),), fed=False).SerializeToString())
    with pytest.raises(UserError, match=r"has no input|cannot open|0 inputs"):
        read_artifact(path)
    path.write_bytes(
        graph([n("Constant", [], ["a"], value=kernel()), n("Conv", ["x", "a"], ["y"])]).SerializeToString()
    )
    assert inspect(path).layers[0].weight == "computed"


def test_a_convolution_that_is_an_output(tmp_path: Path) -> None:
    """Its only reader is the end of the graph, which is no operator."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx.helper import make_node as n

    from u2export.api.lower_precision import weak_layers

    path = tmp_path / "x.onnx"
    path.write_bytes(graph([n("Conv", ["x", "w"], ["y"])], (kernel(),)).SerializeToString())
    found = weak_layers(path, calib=pictures(tmp_path / "photos", 3))
    assert len(found.layers) == 1 and found.inputs == 3


# Checkpoints


def tensors() -> dict[str, tuple[Callable[[Any], Any], str]]:
    """Ways to store one weight wrongly, each with a part of what the error says."""
    torch = pytest.importorskip("torch")
    return {
        "meta": (lambda w: torch.empty(w.shape, device="meta"), "has no values"),
        "quantised": (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "not a plain dense tensor"),
        "sparse": (lambda w: w.to_sparse(), "not a plain dense tensor"),
        "complex": (lambda w: w.to(torch.complex64), "not a plain dense tensor"),
        "int32": (lambda w: (w * 100).int(), "holds int32, not floating point"),
        "bool": (lambda w: w > 0, "holds bool, not floating point"),
        "none": (lambda _: None, "is NoneType, not a tensor"),
        "scalar": (lambda _: torch.tensor(1.0), "of four dimensions"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["meta", "quantised", "sparse", "complex", "int32", "bool", "none", "scalar"])
def test_weights_of_other_kinds(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from u2export.reference import weights
    from u2export.reference.checkpoint import FIRST
    from u2export.reference.model import U2Net

    change, says = tensors()[name]
    state = U2Net("u2netp").state_dict()
    torch.save({**state, FIRST: change(state[FIRST])}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=says):
        weights.load(str(tmp_path / "x.pth"))


def test_float8_weights_and_keys_that_are_no_names(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from u2export.reference.checkpoint import FIRST, read_checkpoint
    from u2export.reference.model import U2Net

    state = U2Net("u2netp").state_dict()
    state[FIRST] = state[FIRST].to(torch.float8_e4m3fn)
    odd: dict[Any, Any] = {1: torch.ones(1), None: torch.ones(1), (1, 2): torch.ones(1), b"x": torch.ones(1)}
    torch.save({**state, **odd}, tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert read.keys() == state.keys()
    assert read[FIRST].dtype == torch.float32 and torch.equal(read[FIRST], state[FIRST].to(torch.float32))


# Results, accepted states and policies


def written(folder: Path) -> tuple[Path, Path]:
    """Results, and the accepted state of them."""
    whole = mixed_report()
    report = replace(whole, rows=whole.rows[:2])
    report.save(folder / "r.json")
    accept(report, folder / "b.json", masks=None, replace=True, any_device=None, why="")
    return folder / "r.json", folder / "b.json"


def changed(path: Path, place: tuple[Any, ...], value: Any) -> Path:
    """A copy of a JSON file with one other value."""
    data = json.loads(path.read_text(encoding="utf-8"))
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    other = path.with_name(f"changed-{path.name}")
    other.write_text(json.dumps(data), encoding="utf-8")
    return other


WRONG = (math.inf, math.nan, HUGE, 10**19, 1e308, -1, "x", None, [])
PLACES: dict[tuple[Any, ...], tuple[Any, ...]] = {
    ("latency_ns", 0, 0): WRONG,
    ("load_ns", 0): WRONG,
    ("first_ns",): WRONG,
    ("accuracy", "mae"): (math.inf, math.nan, HUGE, -1, "x", None, []),
    ("images", "a.png", "mae"): (math.nan, HUGE, "x", []),  # null is an infinite ratio
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place in PLACES for value in PLACES[place]])
def test_numbers_of_results(place: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    results, _ = written(tmp_path)
    with pytest.raises(UserError, match="damaged results"):
        Report.load(changed(results, ("rows", 1, *place), value))


def test_zero_times_and_missing_photos_are_shown_and_judged(tmp_path: Path) -> None:
    results, baseline = written(tmp_path)
    for place, value in ((("rows", 1, "latency_ns"), [[0] * 8] * 10), (("rows", 1, "images"), {})):
        other = changed(results, place, value)
        for form in tables.FORMATS:
            assert tables.tables_text([Report.load(other)], form)
        if place[-1] == "images":
            with pytest.raises(UserError, match="was not compared"):
                gating.check(other, baseline)
        else:
            assert gating.check(other, baseline).outcome in ("pass", "fail", "inconclusive")


@pytest.mark.parametrize("value", [math.nan, HUGE, "x", []])
def test_numbers_of_accepted_states(value: Any, tmp_path: Path) -> None:
    results, baseline = written(tmp_path)
    name = next(iter(json.loads(baseline.read_text(encoding="utf-8"))["artifacts"]))
    for place in (("images", "mae"), ("images", "iou")):
        columns = json.loads(baseline.read_text(encoding="utf-8"))["artifacts"][name]["images"][place[1]]
        wrong = changed(baseline, ("artifacts", name, *place), [value] * len(columns) or [value])
        with pytest.raises(UserError, match="damaged accepted state"):
            gating.check(results, wrong)
    with pytest.raises(UserError, match="damaged accepted state"):
        gating.check(results, changed(baseline, ("photos",), ["a.png"] * 5))


@pytest.mark.parametrize("text", ["a=" + "[" * 5000, "a=" + "{b=" * 5000])
def test_policies_of_brackets_in_brackets(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="is not TOML"):
        Policy.load(tmp_path / "p.toml")


# Pipes


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_no_photo_array_model_or_checkpoint(tmp_path: Path) -> None:
    def pipe(name: str) -> Path:
        os.mkfifo(tmp_path / name)
        return tmp_path / name

    says = "is not a regular file"
    with pytest.raises(UserError, match=says):
        open_photo(pipe("x.png"))
    with pytest.raises(UserError, match=says):
        read_array(pipe("x.npy"))
    for suffix in (".onnx", ".ort", ".xml", ".engine", ".mlpackage", ".log"):
        with pytest.raises(UserError, match=says):
            inspect(pipe(f"x{suffix}"))
        with pytest.raises(UserError, match=says):
            read_artifact(tmp_path / f"x{suffix}")
    pytest.importorskip("torch")
    from u2export.reference.checkpoint import read_checkpoint

    for suffix in (".pth", ".safetensors"):
        with pytest.raises(UserError, match=says):
            read_checkpoint(pipe(f"y{suffix}"))


# Recipes, layer tables and saved masks: found by the study `fuzz`


@pytest.mark.parametrize(
    "change", [{"onnx": 5}, {"onnx": "9" * 5000}, {"scales": 3}, {"scales": {"a": "x"}}, {"scales": {"a": 1e60}},
               {"shape": ["a"]}, {"layers": {"a": 3}}, {"islands": [None]}]
)  # fmt: skip
def test_recipes_with_values_of_other_types(change: dict[str, Any], tmp_path: Path) -> None:
    from u2export.exporters.trt.recipe import Recipe

    data = json.loads((CORPUS / "json" / "recipe" / "net.recipe.json").read_text())
    (tmp_path / "net.onnx").touch()
    path = tmp_path / "net.recipe.json"
    path.write_text(json.dumps(data))
    assert Recipe.read(path)[0].scales
    path.write_text(json.dumps({**data, **change}))
    with pytest.raises(UserError, match="damaged recipe"):
        Recipe.read(path)


def test_layer_tables_with_numbers_that_are_none() -> None:
    from u2export.exporters.trt.layer_table import parse

    data = json.loads((CORPUS / "json" / "layers" / "tensorrt11.json").read_text())
    data["Layers"][0]["Inputs"][0]["Dimensions"][0] = math.inf
    with pytest.raises(UserError, match="has another form"):
        parse(json.dumps(data))
    text = (CORPUS / "text" / "layers" / "build.log").read_text()
    for number in ("3-64", "9" * 5000):
        assert parse(text.replace("[1,3,64,64]", f"[1,{number},64,64]", 1)).layers


def test_saved_masks_with_a_damaged_header(tmp_path: Path) -> None:
    from u2export.benchmarks.gate.saved_masks import SavedMasks

    whole = (CORPUS / "masks" / "two.npz").read_bytes()
    path = tmp_path / "masks.npz"
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"), }", b"(, }", 1))
    with pytest.raises(UserError, match="holds no saved masks"):
        SavedMasks.load(path)
