"""TensorRT as users meet it: exports, engines of RTX, trust, commands; and the runner as far as a machine allows."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import SMALL, random_source
from conftest import ROOT, Cli, two_lines

from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.exporters.open import read_artifact
from u2export.exporters.trt import cuda as trt_cuda
from u2export.exporters.trt import trust as trt_trust
from u2export.exporters.trt.build import Built, build
from u2export.exporters.trt.engine import EngineRunner, open_engine
from u2export.exporters.trt.engine_file import save_engine
from u2export.exporters.trt.exporter import TensorRT
from u2export.exporters.trt.installed import devices, load
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import Recipe
from u2export.exporters.trt.trust import check_trust, trust
from u2export.reference.image import Contract

for name in ("torch", "onnx", "onnxsim", "onnxruntime"):
    pytest.importorskip(name)

from u2export.calibration.dataset import Calibration  # noqa: E402
from u2export.exporters.inspection import inspect  # noqa: E402
from u2export.reference.source import Source  # noqa: E402

API = json.loads((ROOT / "tests" / "tensorrt_api.json").read_text(encoding="utf-8"))
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed: pip install tensorrt_rtx"
)
no_gpu = pytest.mark.skipif(bool(devices()), reason="this machine has a GPU")


@pytest.fixture(autouse=True)
def own_register(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trt_trust, "_register", lambda: tmp_path / "trusted.json")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("trt")
    return TensorRT().export(random_source(), folder, Request("fp16"))


def test_an_export_has_a_recipe_that_fits(exported: Artifact) -> None:
    recipe, graph = Recipe.read(exported.path)
    assert graph == exported.path and set(recipe.layers.values()) == {"fp16"} and recipe.shape == SMALL.shape
    assert {"random-u2netp-64-trt-fp16.onnx", "random-u2netp-64-trt-fp16.recipe.json"} == set(exported.files)
    assert "not run on hardware" in exported.notes[0] and exported.fidelity["mae"] < 1e-3
    told = json.loads(exported.path.with_suffix(".recipe.json").read_text())
    assert told["tensorrt"]["8.6"]["typing"] == ["weak"] and told["trtexec"]
    assert read_artifact(exported.path).files == exported.files


@pytest.mark.parametrize(
    ("exporter", "precision", "problem"),
    [(TensorRT("conv-input"), "fp16", "are for int8"), (TensorRT(rest="fp16"), "fp32", "are for int8"),
     (TensorRT(keep_float=("x",)), "fp32", "in int8 and fp16 only"), (TensorRT("nowhere"), "int8", "placement"),
     (TensorRT(rest="int4"), "int8", "int4")],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(exporter: TensorRT, precision: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        exporter.check(Request(precision), calibrated=True)


def test_layers_kept_in_fp32_show_in_graph_and_recipe(tmp_path: Path) -> None:
    exporter = TensorRT(keep_float=("/stage2d/rebnconv1d/conv_s1/Conv",))
    made = exporter.export(random_source(), tmp_path, Request("fp16"))
    recipe, _ = Recipe.read(made.path)
    assert [n for n, p in recipe.layers.items() if p == "fp32"] == ["/stage2d/rebnconv1d/conv_s1/Conv"]
    assert set(recipe.islands) >= {"/stage2d/rebnconv1d/relu_s1/Relu", "/stage2d/Add"}
    assert "--layerPrecisions=" in recipe.commands()["8.5 to 10, weak typing"]


# --- engines ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_rtx
@no_gpu
def test_an_engine_on_a_machine_without_gpu(cli: Cli, exported: Artifact, tmp_path: Path) -> None:
    recipe = exported.path.with_suffix(".recipe.json")
    env = {"U2EXPORT_HOME": str(tmp_path / "home")}
    words = ("trt", "build", recipe, "--runtime", "rtx", "--target", "sm86", "--out", tmp_path)
    done = cli(*words, env=env)
    assert done.returncode == 0, done.stderr
    assert "119 fp16" in done.stderr and "not run on hardware" in " ".join(done.stderr.split())
    engine = Path(done.stdout.strip())
    artifact = read_artifact(engine)
    assert artifact.weights == exported.weights and artifact.fidelity == {} and artifact.options["typing"] == "strong"
    assert artifact.options["precisions"] == {"wanted": {"fp16": 119}, "got": {"fp16": 119}, "changed": {}}
    found = inspect(engine)
    if artifact.options["version"] == "1.7.1.116":
        kinds = {"correlation": 113, "kgen": 36, "maxpool": 33, "runtime_fusion": 6, "runtime_function": 4}
        assert found.operations == kinds
    assert len(found.layers) == 119 and found.weights == {"float16": 119}
    assert [p.name for p in (*found.inputs, *found.outputs)] == ["image", "mask"]

    table = engine.with_suffix(".layers.txt")
    checked = cli("trt", "check", recipe, table)
    assert checked.returncode == 0 and "119 fp16" in checked.stdout
    lied = tmp_path / "lied.txt"
    lied.write_text(table.read_text().replace("Datatype: Half", "Datatype: Float"))
    two_lines(cli("trt", "check", recipe, lied), "falls back")
    assert "119 float16" in cli("inspect", table).stdout

    results = tmp_path / "results.json"
    photos = ("--images", ROOT / "reference" / "photos", "--limit", 1, "--no-latency", "--json", results)
    benched = cli("bench", engine, *photos)
    assert benched.returncode == 0, benched.stderr
    (row,) = [r for r in json.loads(results.read_text())["rows"] if r["name"] == engine.name]
    assert row["reason"] == "unavailable" and "no CUDA device" in row["problem"]
    two_lines(cli("predict", ROOT / "reference" / "photos", "--model", engine, "--out", tmp_path), "no CUDA device")


@pytest.mark.slow
@no_gpu
def test_what_cannot_be_built_here_is_said_with_the_way_on(cli: Cli, exported: Artifact, tmp_path: Path) -> None:
    recipe = exported.path.with_suffix(".recipe.json")
    two_lines(cli("trt", "build", recipe), "")
    two_lines(cli("trt", "build", recipe, "--target", "sm87"), "Jetson Orin")
    two_lines(cli("trt", "build", tmp_path / "gone.recipe.json", "--target", "sm87"), "Jetson Orin")
    two_lines(cli("trt", "--fp16", "build", recipe), "--fp16 before build", code=2)
    words = ("trt", "--weights", "random-u2netp", "--size", "64", "--out", tmp_path)
    prepared = cli(*words, "--prepare-only")
    assert str(tmp_path / "random-u2netp-64-trt-fp16.recipe.json") in prepared.stdout and prepared.returncode == 0


def test_a_calibration_cache_takes_the_version(cli: Cli, exported: Artifact, tmp_path: Path) -> None:
    recipe = exported.path.with_suffix(".recipe.json")
    two_lines(cli("trt", "cache", recipe, "--out", tmp_path / "c", "--tensorrt", "8.6.2"), "no scales")


def test_foreign_engines_are_not_opened(tmp_path: Path) -> None:
    engine = tmp_path / "x.engine"
    engine.write_bytes(b"native code")
    with pytest.raises(UserError, match="not built on this machine"):
        check_trust(engine)
    trust(engine)
    check_trust(engine)
    engine.write_bytes(b"other native code")
    with pytest.raises(UserError, match="not built on this machine"):
        check_trust(engine)


def test_a_saved_engine_is_trusted_and_recorded(exported: Artifact, tmp_path: Path) -> None:
    recipe, graph = Recipe.read(exported.path)
    facts = {"runtime": "tensorrt", "version": "10.3.0", "typing": "strong", "flags": []}
    made = save_engine(Built(b"plan", "", None, None, facts), read_artifact(graph), recipe, Options(), tmp_path)
    assert made.path.read_bytes() == b"plan" and made.tools["tensorrt"] == "10.3.0"
    assert any("precisions not confirmed" in note for note in read_artifact(made.path).notes)
    check_trust(made.path)


# --- the runner -------------------------------------------------------------------------------------------------


@no_gpu
def test_without_a_gpu_nothing_is_opened(exported: Artifact, tmp_path: Path) -> None:
    engine = tmp_path / "x.engine"
    engine.write_bytes(b"plan")
    artifact = read_artifact(engine)
    assert artifact.exporter == "trt"
    with pytest.raises(Unavailable, match="no CUDA device"):
        TensorRT().arithmetics(artifact)
    with pytest.raises(Unavailable, match="no CUDA device"), open_engine(artifact):
        pass


class HostCuda:
    """CUDA's part of the runner on host memory: addresses are looked up, copies copy, a launch is a call."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.log: list[str] = []

    def alloc(self, size: int) -> int:
        self.memory[4096 * (len(self.memory) + 1)] = np.zeros(size, np.uint8)
        return 4096 * len(self.memory)

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def to_device(self, address: int, host: Any) -> None:
        self.log.append("in")
        self.memory[address][:] = host.reshape(-1).view(np.uint8)

    def to_host(self, host: Any, address: int) -> None:
        self.log.append("out")
        host.reshape(-1).view(np.uint8)[:] = self.memory[address]

    def stream(self) -> int:
        return 7

    def synchronise(self) -> None:
        self.log.append("wait")

    def event(self) -> int:
        return len(self.log)

    def milliseconds(self, start: int, end: int) -> float:
        return float(end - start)

    def capture(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        self.log.append("capture")
        return enqueue

    def used(self) -> int:
        return sum(a.nbytes for a in self.memory.values())


class Doubler:
    """An engine of two tensors that doubles its input, with the members that all versions share, and no others."""

    def __init__(self, cuda: HostCuda, shape: tuple[int, ...]) -> None:
        self.cuda, self.shape, self.addresses = cuda, shape, {}  # type: ignore[var-annotated]
        self.num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("image", "mask")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"image": "INPUT", "mask": "OUTPUT"}[name]

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name="FLOAT")

    def create_execution_context(self) -> Doubler:
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return name == "image" and shape == self.shape

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        self.cuda.log.append("run")
        source, target = (self.cuda.memory[self.addresses[n]].view(np.float32) for n in ("image", "mask"))
        target[:] = 2 * source
        return stream_handle == 7


@pytest.fixture
def doubling() -> Iterator[tuple[EngineRunner, HostCuda, ExitStack]]:
    cuda, shape = HostCuda(), (1, 1, 4, 4)
    severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, WARNING=2)
    trt = SimpleNamespace(
        __version__="10.3.0", ILogger=type("ILogger", (), {"Severity": severity}),
        TensorIOMode=SimpleNamespace(INPUT="INPUT"),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: Doubler(cuda, shape)),
    )  # fmt: skip
    with ExitStack() as stack:
        yield EngineRunner(trt, cuda, b"plan", shape, stack), cuda, stack  # type: ignore[arg-type]


def test_the_runner_copies_launches_and_times(doubling: tuple[EngineRunner, HostCuda, ExitStack]) -> None:
    engine, cuda, stack = doubling
    assert cuda.log == ["run", "run", "wait", "capture"] and engine.memory == 128
    cuda.log.clear()
    x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    first, second = engine(x), engine(x + 1)
    np.testing.assert_array_equal(first, 2 * x)  # not overwritten by the next run
    np.testing.assert_array_equal(second, 2 * x + 2)
    assert cuda.log == ["in", "run", "out", "wait"] * 2
    assert engine.timing.copy_in == engine.timing.compute == engine.timing.copy_out == [1.0, 1.0]
    with pytest.raises(UserError, match="takes"):
        engine(np.zeros((2, 1, 4, 4), np.float32))
    stack.close()
    assert not cuda.memory


# What the code calls TensorRT's objects, by the classes of its bindings.
CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "profile": "IOptimizationProfile", "layer": "ILayer", "runtime": "Runtime", "engine": "ICudaEngine",
    "context": "IExecutionContext",
}  # fmt: skip
# Members that the code takes only where a version has the feature.
GUARDED = {
    "IBuilderConfig": {"progress_monitor", "num_compute_capabilities", "set_compute_capability", "cuda_graph_strategy"},
    "ICudaEngine": {"create_runtime_config"},
    "ILayer": {"precision", "set_output_type"},  # weak typing
}


def called() -> set[tuple[str, str]]:
    """Classes and members of TensorRT that are named in the modules that get TensorRT as `trt`."""
    found = set()
    for path in (ROOT / "exporters" / "trt").glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        if not any(isinstance(node, ast.arg) and node.arg == "trt" for node in nodes):
            continue
        for node in nodes:
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                name = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                if name in CLASSES:
                    found.add((CLASSES[name], node.attr))
    return found


@pytest.mark.parametrize("version", API)
def test_only_members_that_every_version_has_are_called(version: str) -> None:
    members = called()
    assert {kind for kind, _ in members} == set(CLASSES.values()) and len(members) >= 35
    unguarded = {(kind, name) for kind, name in members if name not in GUARDED.get(kind, ())}
    assert not {pair for pair in unguarded if pair[1] not in API[version]["classes"][pair[0]]}


@needs_rtx
def test_rtx_has_what_the_runner_asks_it_for() -> None:
    trt = load("rtx")
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE") and hasattr(trt.ICudaEngine, "create_runtime_config")
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")


def test_cuda_python_answers_are_unpacked() -> None:
    runtime = trt_cuda.cuda_runtime()
    if runtime is None or devices():
        pytest.skip("cuda-python is not installed, or this machine has a GPU")
    source = (ROOT / "exporters" / "trt" / "cuda.py").read_text(encoding="utf-8")
    names = set(re.findall(r"self\.rt\.(\w+)", source))
    assert len(names) >= 15 and not [n for n in names if not hasattr(runtime, n)]
    with pytest.raises(Unavailable, match="CUDA: cudaError"):
        trt_cuda.CudaPython()


# --- real weights -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_rtx
def test_int8_of_the_real_weights_end_to_end(u2netp: Path, tmp_path: Path) -> None:
    source = Source.open("u2netp")
    calibration = Calibration.bundled(source.contract).subset(16)
    made = TensorRT().export(source, tmp_path, Request("int8", calibration))
    # Few photos to calibrate on, most of them drawn, and four hard ones to judge by: .0043 was measured here, .0026 and
    # .0023 on the evaluation sets with 32 photos of BSDS500.
    assert made.fidelity["mae"] <= 0.005 and made.fidelity["iou_worst"] >= 0.93, made.fidelity
    recipe, graph = Recipe.read(made.path)
    built = build(load("rtx"), graph, recipe, Options(targets=("sm86",)))
    assert built.comparison and list(built.comparison.to_json()["got"].items()) == [("int8", 112), ("fp32", 7)]


@pytest.mark.slow
@needs_rtx
def test_full_size_u2net_builds_in_fp16(tmp_path: Path) -> None:
    loose = Request("fp16", condition=False, budget={"mae": 1.0, "mae_worst": 1.0})  # untrained: structure alone counts
    made = TensorRT().export(random_source(Contract(96, 96), "u2net"), tmp_path, loose)
    recipe, graph = Recipe.read(made.path)
    built = build(load("rtx"), graph, recipe, Options(targets=("sm86",)))
    assert built.comparison and not built.comparison.changed and len(built.plan) > 80e6


# --- the table of costs -----------------------------------------------------------------------------------------


def cost(variant: str, seconds: float, masks: bool = True) -> dict[str, Any]:
    step = {"cpu_seconds": seconds, "peak_bytes": 2e9}
    engine = {
        "plan_bytes": 5e6, "activation_bytes": 7e6, "table": {"layers": 9, "traffic_bytes": 3e6},
        "precisions": {"got": {"int8": 3, "fp32": 1}},
    }  # fmt: skip
    fidelity = {"horses": {"mae": 0.002, "iou": 0.99, "iou_worst": 0.98}} if masks else {}
    return {
        "variant": variant, "prepare": step, "build": step, "onnx_bytes": 1e6, "engine": engine, "fidelity": fidelity
    }  # fmt: skip


def test_costs_are_ratios_within_a_network() -> None:
    from u2export.benchmarks.studies.trt_fidelity import VARIANTS, costs

    labels = [v.label for v in VARIANTS]
    assert len(set(labels)) == len(labels) and "fp16 not conditioned" in labels
    random = "fp32, random-u2net, structure only"
    assert random in labels
    found = [cost("fp32", 2), cost("int8", 5), cost(random, 10, False), cost(random.replace("fp32", "int8"), 40, False)]
    rows = [line.split(" | ") for line in costs(found).splitlines()[2:]]
    assert [row[2] for row in rows] == ["1.0 x, 2000 MB", "2.5 x, 2000 MB", "1.0 x, 2000 MB", "4.0 x, 2000 MB"]
    assert rows[1][1] == "3 int8, 1 fp32" and "0.00200, 0.9900 / 0.9800" in rows[1][-1]
    assert "0.99" not in rows[2][-1]
