"""The builder against TensorRT-RTX itself, and its branches against what the bindings of other versions offer."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from u2export.errors import Unavailable, UserError
from u2export.exporters.trt import build as trt_build
from u2export.exporters.trt import installed as trt_installed
from u2export.exporters.trt.build import build
from u2export.exporters.trt.build_log import BuildLog
from u2export.exporters.trt.installed import choose_builder, limits_of, load, strong_only, typing_of
from u2export.exporters.trt.options import Options, parse_shapes
from u2export.exporters.trt.recipe import VERSIONS, Recipe
from u2export.reference.onnx_graph import GraphView

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text(encoding="utf-8"))
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)
RECIPE = Recipe("x.onnx", "", "fp16", "fp16", 17, "image", (1, 3, 64, 64), "mask", {"/a/Conv": "fp16"})
INT8 = replace(RECIPE, precision="int8", rest="fp32", layers={"/a/Conv": "int8"})


# --- a TensorRT made of a snapshot ------------------------------------------------------------------------------

MAKES = {
    "create_network": "INetworkDefinition", "create_builder_config": "IBuilderConfig", "get_error": "ParserError",
    "create_optimization_profile": "IOptimizationProfile", "create_timing_cache": "ITimingCache",
    "get_timing_cache": "ITimingCache", "deserialize_cuda_engine": "ICudaEngine", "get_layer": "ILayer",
    "create_engine_inspector": "EngineInspector", "create_execution_context": "IExecutionContext",
}  # fmt: skip


class Strict:
    """An object with exactly the members its class has in a version; calls have to fit the recorded signature."""

    def __init__(self, fake: Fake, kind: str) -> None:
        vars(self).update(_fake=fake, _kind=kind, _members=fake.api["classes"][kind])

    def __getattr__(self, name: str) -> Any:
        if name not in self._members:
            raise AttributeError(f"{self._kind} of {self._fake.__version__} has no {name}")
        if self._members[name] == "property":
            return self._fake.answers.get(name, 0)
        return lambda *args, **kwargs: self._call(name, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._members.get(name) != "property":
            raise AttributeError(f"{self._kind} of {self._fake.__version__} has no property {name}")
        self._fake.calls.append((f"{self._kind}.{name}", (value,)))

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fits(self._members[name], args, kwargs)
        self._fake.calls.append((f"{self._kind}.{name}", (*args, *kwargs.values())))
        answer = self._fake.answers.get(name)
        return Strict(self._fake, MAKES[name]) if name in MAKES and answer is None else answer


def fits(signature: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError where a call does not fit `name(self: X, a: int, b: str = …) -> …`."""
    if "(*args" in signature or "(" not in signature:
        return
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    names = re.findall(r"(?:^|, )(\w+):(.*?)(?=, \w+: |$)", inside)
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    taken = [inspect.Parameter(n, kind, default=None if " = " in rest else empty) for n, rest in names if n != "self"]
    inspect.Signature(taken).bind(*args, **kwargs)


class Fake(SimpleNamespace):
    """A module with the classes and enums of one version; `answers` are what its members give, by name."""

    def __init__(self, version: str, **answers: Any) -> None:
        super().__init__(__version__=version, api=API[version], calls=[], float32="float32")
        for name, values in self.api["enums"].items():
            setattr(self, name, IntEnum(name, values))
        self.ILogger = type("ILogger", (), {"Severity": self.Severity})
        if "IProgressMonitor" in self.api["classes"]:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
        layers = {"Layers": [{"Name": "/a/Conv", "LayerType": "CaskConvolution", "Inputs": [tensor("FP16")]}]}
        self.answers = {
            "parse_from_file": True, "build_serialized_network": b"plan", "add_optimization_profile": 0,
            "num_layers": 1, "name": "/a/Conv", "get_engine_information": json.dumps(layers), "num_errors": 0,
            "serialize": b"times", "set_timing_cache": True, **answers,
        }  # fmt: skip

    def Builder(self, logger: Any) -> Strict:  # noqa: N802
        return Strict(self, "Builder")

    def OnnxParser(self, network: Any, logger: Any) -> Strict:  # noqa: N802
        return Strict(self, "OnnxParser")

    def Runtime(self, logger: Any) -> Strict:  # noqa: N802
        return Strict(self, "Runtime")

    def called(self, name: str) -> list[Any]:
        return [args for call, args in self.calls if call == name]

    @property
    def flags(self) -> set[str]:
        return {args[0].name for args in self.called("IBuilderConfig.set_flag")}


def tensor(kind: str) -> dict[str, Any]:
    return {"Name": "t", "Dimensions": [1, 3, 64, 64], "Format/Datatype": f"Row major linear {kind}"}


@pytest.fixture(autouse=True)
def no_graph(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Test branches without a graph."""
    if "graphs" not in request.fixturenames:
        monkeypatch.setattr(trt_build, "_check_graph", lambda trt, graph: None)


WEAK, BOTH, STRONG = ("8.6.1",), ("10.0.1", "10.3.0", "10.16.1"), ("11.0.0",)


@pytest.mark.parametrize("version", API)
def test_features_are_told_apart(version: str) -> None:
    trt = Fake(version)
    assert strong_only(trt) == (version in STRONG)
    assert limits_of(trt) == {**dict.fromkeys(WEAK, "8.5"), **dict.fromkeys(BOTH, "10.0")}.get(version, "11.0")
    assert typing_of(trt, "auto", RECIPE) == ("weak" if version in WEAK else "strong")
    assert typing_of(trt, "auto", INT8) == ("strong" if version in STRONG else "weak")
    for wanted, lacking in (("weak", STRONG), ("strong", WEAK)):
        if version in lacking:
            with pytest.raises(UserError, match=f"no {wanted} typing"):
                typing_of(trt, wanted, RECIPE)
        else:
            assert typing_of(trt, wanted, RECIPE) == wanted


@pytest.mark.parametrize("version", API)
def test_creation_flags_come_from_the_enum(version: str) -> None:
    trt = Fake(version)
    build(trt, Path("x.onnx"), RECIPE, Options())
    ((flags,),) = trt.called("Builder.create_network")
    values = API[version]["enums"]["NetworkDefinitionCreationFlag"]
    expected = sum(1 << values[n] for n in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if n in values)
    assert flags == expected == {"8.6.1": 1, "11.0.0": 1}.get(version, 3)


@pytest.mark.parametrize("version", API)
def test_precision_flags_are_of_weak_typing_alone(version: str) -> None:
    half, int8 = Fake(version), Fake(version)
    build(half, Path("x.onnx"), RECIPE, Options())
    assert half.flags == ({"FP16"} if version in WEAK else set())
    layers = {"Layers": [{"Name": "/a/Conv", "LayerType": "CaskConvolution", "Inputs": [tensor("Int8")]}]}
    int8.answers["get_engine_information"] = json.dumps(layers)
    built = build(int8, Path("x.onnx"), INT8, Options())
    assert int8.flags == (set() if version in STRONG else {"INT8", "FP16"})
    assert built.facts["typing"] == ("strong" if version in STRONG else "weak") and built.plan == b"plan"
    assert built.comparison and built.comparison.changed == {}


@pytest.mark.parametrize("version", API)
def test_islands_are_held_in_weak_typing(version: str) -> None:
    trt = Fake(version)
    layers = {"Layers": [{"Name": "/a/Conv", "LayerType": "CaskConvolution", "Inputs": [tensor("FP32")]}]}
    trt.answers["get_engine_information"] = json.dumps(layers)
    build(trt, Path("x.onnx"), replace(RECIPE, islands=("/a/Conv",), layers={"/a/Conv": "fp32"}), Options())
    weak = version in WEAK
    assert ("OBEY_PRECISION_CONSTRAINTS" in trt.flags) == weak
    assert trt.called("ILayer.precision") == ([("float32",)] if weak else [])


@pytest.mark.parametrize("version", API)
def test_a_silent_fallback_fails_the_build(version: str) -> None:
    trt = Fake(version)  # whose table says fp16
    with pytest.raises(UserError, match=r"falls back: /a/Conv computes in fp16, the recipe asks for int8"):
        build(trt, Path("x.onnx"), INT8, Options())


@pytest.mark.parametrize("version", API)
def test_every_option_reaches_the_builder(version: str, tmp_path: Path) -> None:
    trt, cache = Fake(version), tmp_path / "times.cache"
    dynamic = replace(RECIPE, shape=(-1, 3, 64, 64))
    shapes = parse_shapes("1,2,4", dynamic)
    options = Options(
        workspace=256, level=4, timing_cache=cache, shapes=shapes, version_compatible=True, hardware_compatible=True
    )
    seen: list[tuple[str, int, int]] = []
    build(trt, Path("x.onnx"), dynamic, options, lambda *step: seen.append(step))
    assert trt.called("IBuilderConfig.set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 256 << 20)]
    assert trt.called("IBuilderConfig.builder_optimization_level") == [(4,)]
    assert trt.called("IOptimizationProfile.set_shape") == [("image", *((n, 3, 64, 64) for n in (1, 2, 4)))]
    assert "VERSION_COMPATIBLE" in trt.flags
    assert trt.called("IBuilderConfig.hardware_compatibility_level") == [(trt.HardwareCompatibilityLevel.AMPERE_PLUS,)]
    assert cache.read_bytes() == b"times"
    monitors = trt.called("IBuilderConfig.progress_monitor")
    assert len(monitors) == (version not in WEAK)
    for ((monitor),) in monitors:
        monitor.phase_start("Tactics", None, 3)
        assert monitor.step_complete("Tactics", 1) is True
        monitor.phase_finish("Tactics")
        assert seen == [("Tactics", 0, 3), ("Tactics", 2, 3), ("Tactics", 3, 3)]
    build(trt, Path("x.onnx"), dynamic, options)
    assert trt.called("IBuilderConfig.create_timing_cache")[-1] == (b"times",)


@pytest.mark.parametrize("version", API)
def test_dla_where_there_are_cores(version: str) -> None:
    with pytest.raises(UserError, match="0 DLA cores"):
        build(Fake(version, num_DLA_cores=0), Path("x.onnx"), RECIPE, Options(dla=0))
    trt = Fake(version, num_DLA_cores=2, can_run_on_DLA=True)
    built = build(trt, Path("x.onnx"), RECIPE, Options(dla=1))
    assert built.facts["dla_layers"] == {"possible": 1, "all": 1} and "GPU_FALLBACK" in trt.flags
    assert trt.called("IBuilderConfig.DLA_core") == [(1,)]
    with pytest.raises(UserError, match="fixed shapes"):
        build(Fake(version, num_DLA_cores=2), Path("x.onnx"), replace(RECIPE, shape=(-1, 3, 64, 64)), Options(dla=1))


@pytest.mark.parametrize("version", API)
def test_parser_errors_come_with_the_node(version: str) -> None:
    answers = {"desc": "must have type FP8, FP4,\n Int8", "node": 7, "node_name": "bias/DQ", "node_operator": "DQ"}
    trt = Fake(version, parse_from_file=False, num_errors=2, **answers)
    where = "node 7" if version in WEAK else r"bias/DQ \(DQ\)"
    with pytest.raises(UserError, match=f"at {where}: must have type FP8, FP4, Int8, and 1 more") as caught:
        build(trt, Path("x.onnx"), RECIPE, Options())
    assert "\n" not in caught.value.problem and "biases" in caught.value.hint


def test_a_builder_without_result_or_profile_is_an_error() -> None:
    with pytest.raises(UserError, match="gave no reason"):
        build(Fake("10.3.0", build_serialized_network=None), Path("x.onnx"), RECIPE, Options())
    dynamic = replace(RECIPE, shape=(-1, 3, 64, 64))
    with pytest.raises(UserError, match="there is no profile"):
        build(Fake("10.3.0"), Path("x.onnx"), dynamic, Options())
    for shapes in ("4,2,8", "1x3x64x64,2x3x64x64,4x3x96x64"):
        with pytest.raises(UserError, match="do not fit"):
            build(Fake("10.3.0"), Path("x.onnx"), dynamic, Options(shapes=parse_shapes(shapes, dynamic)))
    with pytest.raises(UserError, match="refuses the profile"):
        profile = parse_shapes("1,2,4", dynamic)
        build(Fake("10.3.0", add_optimization_profile=-1), Path("x.onnx"), dynamic, Options(shapes=profile))
    with pytest.raises(UserError, match="free axes"):
        build(Fake("10.3.0"), Path("x.onnx"), RECIPE, Options(shapes=profile))


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "1,2,4,8", "1x3,1x3,1x3"])
def test_shapes_of_another_form(text: str) -> None:
    with pytest.raises(UserError, match="the shapes"):
        parse_shapes(text, replace(RECIPE, shape=(-1, 3, 64, 64)))


def test_messages_are_sorted() -> None:
    trt = Fake("10.3.0")
    log = BuildLog(trt)
    log.logger.log(trt.Severity.WARNING, "uint8 is not supported. Defaulting to INT8 instead")
    log.logger.log(trt.Severity.ERROR, "something")
    log.logger.log(trt.Severity.ERROR, "[checkMacros.cpp] cudaError 35")
    log.logger.log(trt.Severity.INFO, "Total Activation Memory: 1024 bytes")
    assert log.errors == ["something"] and log.activation == 1024 and "Defaulting" in log.fatal


# --- what is chosen ---------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names: list[str] = []
    monkeypatch.setattr(trt_installed, "installed", lambda: names)
    monkeypatch.setattr(trt_installed, "devices", list)
    monkeypatch.setattr(trt_installed, "load", lambda name: None)
    return names  # type: ignore[return-value]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, here: list[str]) -> None:
    monkeypatch.setattr(trt_installed, "devices", lambda: ["Orin (sm87)"])


def test_the_runtime_that_can_build_is_chosen(here: list[str], gpu: None) -> None:
    with pytest.raises(Unavailable, match="neither tensorrt nor tensorrt_rtx"):
        choose_builder()
    here.append("rtx")
    with pytest.raises(Unavailable, match="tensorrt is not installed"):
        choose_builder("tensorrt")
    assert choose_builder() == "rtx"
    here.insert(0, "tensorrt")
    assert choose_builder() == "tensorrt"
    assert choose_builder(targets=("sm86",)) == "rtx"
    with pytest.raises(UserError, match="GPU of this machine only"):
        choose_builder("tensorrt", ("sm86",))


def test_without_a_gpu_only_named_targets_are_built(here: list[str]) -> None:
    here.append("rtx")
    assert choose_builder(targets=("sm86",)) == "rtx"
    with pytest.raises(Unavailable, match="no CUDA device") as caught:
        choose_builder(recipe=Path("a/x.recipe.json"))
    assert "u2export trt build a/x.recipe.json on the device" in caught.value.hint


def test_a_runtime_that_does_not_load_is_not_chosen(here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here.append("rtx")
    monkeypatch.setattr(trt_installed, "load", load)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(Unavailable, match="tensorrt_rtx does not load"):
        choose_builder(targets=("sm86",))


@pytest.mark.parametrize("target", ["sm53", "sm62", "sm72", "sm87", "sm110"])
def test_jetsons_are_refused_with_the_way_out(here: list[str], target: str) -> None:
    here.append("rtx")
    with pytest.raises(Unavailable, match="Jetson") as caught:
        choose_builder("rtx", (target,))
    assert "u2export trt build RECIPE" in caught.value.hint


@pytest.mark.parametrize(
    ("runtime", "targets", "problem"),
    [
        ("other", ("local",), "no runtime"),
        ("rtx", ("gpu",), "no target"),
        ("rtx", ("sm86", "local"), "exclude"),
        ("auto", (), "no target is named"),
    ],
)
def test_nonsense_is_refused(here: list[str], runtime: str, targets: tuple[str, ...], problem: str) -> None:
    here.append("rtx")
    with pytest.raises(UserError, match=problem):
        choose_builder(runtime, targets)


# --- TensorRT-RTX itself ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rtx() -> Any:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install tensorrt_rtx")
    return load("rtx")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Recipe]]:
    """The toy network in every precision, each with its recipe."""
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name)
    import onnx
    from toy_unet import photos, toy

    from u2export.calibration.quant_plan import TENSORRT
    from u2export.calibration.quantize import calibrated
    from u2export.exporters.trt import typed_graph as g

    fp32 = toy()
    int8 = calibrated(fp32, photos(), TENSORRT)
    view = GraphView(fp32)
    island = g.island(view, next(n for n in view.nodes if n.name == "/up/Conv"))
    made = {
        "fp32": (fp32, "fp32", ()), "fp16": (g.to_half(fp32), "fp16", ()), "int8": (int8, "fp32", ()),
        "island": (g.to_half(fp32, island), "fp16", tuple(sorted(island))), "int8-fp16": (g.to_half(int8), "fp16", ()),
        "dynamic": (toy("batch"), "fp32", ()),
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("graphs")
    found = {}
    for name, (graph, rest, kept) in made.items():
        path = folder / f"{name}.onnx"
        onnx.save(graph, path)
        precision = "int8" if "int8" in name else rest
        found[name] = path, Recipe.of(graph, path, precision=precision, rest=rest, islands=kept)
    return found


@needs_rtx
@pytest.mark.parametrize(
    ("name", "counts"),
    [("fp32", {"fp32": 4}), ("fp16", {"fp16": 4}), ("int8", {"int8": 3, "fp32": 1}),
     ("int8-fp16", {"int8": 3, "fp16": 1}), ("island", {"fp16": 3, "fp32": 1})],
)  # fmt: skip
def test_rtx_keeps_every_precision(rtx: Any, graphs: Any, name: str, counts: dict[str, int]) -> None:
    path, recipe = graphs[name]
    built = build(rtx, path, recipe, Options(targets=("sm86",)))
    assert built.comparison and Counter(built.comparison.got.values()) == counts
    assert built.facts["runtime"] == "rtx" and built.facts["typing"] == "strong" and not built.facts["flags"]
    assert built.table and len(built.plan) == built.facts["plan_bytes"] > 1e4 and built.facts["activation_bytes"] > 0
    if name == "island":
        assert built.comparison.got["/up/Conv"] == "fp32"


@needs_rtx
def test_rtx_structure_of_the_pinned_version(rtx: Any, graphs: Any) -> None:
    if rtx.__version__ != "1.7.1.116":
        pytest.skip(f"golden structure is of 1.7.1.116, here is {rtx.__version__}")
    path, recipe = graphs["fp16"]
    built, again = (build(rtx, path, recipe, Options(targets=("sm86",))) for _ in range(2))
    assert built.plan == again.plan and built.table
    assert dict(built.table.kinds) == {"correlation": 3, "kgen": 3, "maxpool": 1, "runtime_fusion": 1}


@needs_rtx
def test_rtx_takes_several_targets_and_profiles(rtx: Any, graphs: Any) -> None:
    path, recipe = graphs["dynamic"]
    options = Options(targets=("sm80", "sm120"), shapes=parse_shapes("1,2,4", recipe))
    assert recipe.dynamic and len(build(rtx, path, recipe, options).plan) > 1e4
    with pytest.raises(UserError, match="of its own"):
        build(rtx, path, recipe, replace(options, targets=("sm75", "sm80")))
    with pytest.raises(UserError, match="does not build for sm70"):
        build(rtx, path, recipe, replace(options, targets=("sm70",)))


@needs_rtx
def test_rtx_folds_a_lone_island_back_and_the_build_says_so(
    rtx: Any, graphs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from u2export.exporters.trt.typed_graph import to_half

    path, _ = graphs["fp32"]
    lone = to_half(onnx.load(path), {"/down/Conv"})
    folded = path.with_name("lone.onnx")
    onnx.save(lone, folded)
    recipe = Recipe.of(lone, folded, precision="fp16", rest="fp16")
    with pytest.raises(UserError, match="lone island"):
        build(rtx, folded, recipe, Options(targets=("sm86",)))
    monkeypatch.setattr(trt_build, "_check_graph", lambda trt, graph: None)
    with pytest.raises(UserError, match="falls back: /down/Conv computes in fp16, the recipe asks for fp32"):
        build(rtx, folded, recipe, Options(targets=("sm86",)))


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "problem"),
    [("uint8", "another network: .*Defaulting to INT8"), ("shift", "[Nn]on-zero zero point"),
     ("bias", "must have type FP8"), ("scale", "cannot (parse|build)")],
)  # fmt: skip
def test_rtx_refuses_what_the_graph_rules_are_for(
    rtx: Any, graphs: Any, damage: str, problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnx
    from onnx import helper, numpy_helper

    path, recipe = graphs["int8"]
    model = onnx.load(path)
    stored = {t.name: t for t in model.graph.initializer}
    pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    if damage in ("uint8", "shift"):
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[2] == pair.input[2]:
                value = np.uint8(0) if damage == "uint8" else np.int8(3)
                stored[pair.input[2]].CopyFrom(numpy_helper.from_array(np.asarray(value), pair.input[2]))
    elif damage == "scale":
        stored[pair.input[1]].CopyFrom(numpy_helper.from_array(np.float32(0), pair.input[1]))
    else:
        conv = next(n for n in model.graph.node if n.op_type == "Conv")
        channels = stored[conv.input[2]].dims[0]
        model.graph.initializer.extend([
            numpy_helper.from_array(np.ones(channels, np.int32), "bias_q"),
            numpy_helper.from_array(np.full(channels, 0.01, np.float32), "bias_s"),
            numpy_helper.from_array(np.zeros(channels, np.int32), "bias_z"),
        ])  # fmt: skip
        added = helper.make_node("DequantizeLinear", ["bias_q", "bias_s", "bias_z"], ["bias_f"], "bias/DQ", axis=0)
        model.graph.node.insert(0, added)
        conv.input[2] = "bias_f"
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    with pytest.raises(UserError, match="not built"):
        build(rtx, broken, recipe, Options(targets=("sm86",)))
    monkeypatch.setattr(trt_build, "_check_graph", lambda trt, graph: None)
    with pytest.raises(UserError, match=problem) as caught:
        build(rtx, broken, recipe, Options(targets=("sm86",)))
    assert "\n" not in caught.value.problem and caught.value.hint


def test_limits_are_known_for_every_generation() -> None:
    assert {limits_of(Fake(v)) for v in API} | {"rtx"} <= set(VERSIONS)
