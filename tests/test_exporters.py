from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL, random_source
from processors import all_processors

from u2export.errors import Unavailable, UserError
from u2export.exporters import EXPORTERS
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.onnx_runtime import to_pixels
from u2export.exporters.open import read_artifact
from u2export.exporters.openvino import HINTS, OpenVINO
from u2export.exporters.ort import Ort
from u2export.exporters.runtime import missing_modules
from u2export.install import how_to_install
from u2export.reference.golden import picture
from u2export.reference.image import Contract
from u2export.reference.onnx_export import Graph, lint, to_onnx

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxsim")
ort = pytest.importorskip("onnxruntime")

from u2export.reference.source import Source  # noqa: E402


@pytest.fixture(scope="module")
def small() -> Source:
    """Untrained weights at 64x64: structure and plumbing in little time."""
    return random_source()


def graph_of(source: Source, graph: Graph) -> Any:
    return to_onnx(source.model, source.contract, graph, source.stamp("fp32", {"torch": "x"}))


@pytest.mark.parametrize("opset", [13, 15, 17, 18])
def test_graph_is_clean(small: Source, opset: int) -> None:
    model = graph_of(small, Graph(opset=opset))
    ops = [n.op_type for n in model.graph.node]
    assert {op: ops.count(op) for op in set(ops)} == {
        "Conv": 119, "Relu": 112, "Concat": 51, "Resize": 38, "MaxPool": 33, "Add": 11, "Sigmoid": 1,
    }  # fmt: skip
    assert [o.version for o in model.opset_import] == [opset]
    assert [i.name for i in model.graph.input] == ["image"] and [o.name for o in model.graph.output] == ["mask"]
    names = {t.name for t in model.graph.initializer}
    assert {"stage1.rebnconvin.conv_s1.weight", "outconv.bias"} <= names
    props = {p.key: p.value for p in model.metadata_props}
    assert Contract.from_json(props["u2export.contract"]) == small.contract
    assert props["u2export.weights_sha256"] == small.weights.sha256


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"opset": 12}, "13"), ({"opset": 19}, "Resize"), ({"dynamic": ("depth",)}, "depth"),
     ({"embed_preprocess": True, "dynamic": ("batch",)}, "fixed")],
)  # fmt: skip
def test_graphs_that_are_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Graph(**wrong)


def test_lint_bites(small: Source) -> None:
    good = graph_of(small, Graph())
    for damage, problem in ((both_sizes_and_scales, "exactly one"), (no_name, "names"), (other_opset, "opset")):
        broken = onnx.ModelProto()
        broken.CopyFrom(good)
        damage(broken)
        with pytest.raises(UserError, match=problem):
            lint(broken, 17)


def both_sizes_and_scales(model: Any) -> None:
    node = next(n for n in model.graph.node if n.op_type == "Resize")
    del node.input[2:]


def no_name(model: Any) -> None:
    model.graph.node[5].name = model.graph.node[6].name


def other_opset(model: Any) -> None:
    model.opset_import[0].version = 16


def test_all_outputs_are_the_modules(small: Source) -> None:
    import torch

    session = ort.InferenceSession(graph_of(small, Graph(all_outputs=True)).SerializeToString())
    x = np.random.default_rng(0).normal(size=SMALL.shape).astype(np.float32)
    with torch.no_grad():
        expected = small.model(torch.from_numpy(x))
    assert [o.name for o in session.get_outputs()] == ["mask", *(f"side{n}" for n in range(1, 7))]
    for ours, theirs in zip(expected, session.run(None, {"image": x}), strict=True):
        np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 53, 96), (3, 3, 33, 37)])
def test_dynamic_axes_take_any_size(small: Source, shape: tuple[int, ...]) -> None:
    import torch

    session = ort.InferenceSession(graph_of(small, Graph(dynamic=("batch", "height", "width"))).SerializeToString())
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = small.model(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(session.run(None, {"image": x})[0], expected, atol=1e-4)


def test_embedded_preprocessing_is_the_contracts(small: Source, tmp_path: Path) -> None:
    artifact = Onnx(Graph(embed_preprocess=True)).export(small, tmp_path, Request("fp32"))
    assert artifact.contract.rounded and artifact.fidelity["mae"] < 1e-4
    session = ort.InferenceSession(artifact.path)
    assert session.get_inputs()[0].type == "tensor(uint8)" and session.get_inputs()[0].shape == [1, 64, 64, 3]
    mask = session.run(None, {"image": np.zeros((1, 64, 64, 3), np.uint8)})[0]
    assert np.isfinite(mask).all()  # black: neither maximum nor range to divide by


@pytest.mark.parametrize("peak", [255, 215, 3])
def test_pixels_are_recovered_from_the_input(peak: int) -> None:
    contract = replace(SMALL, rounded=True)
    pixels = np.random.default_rng(peak).integers(0, peak + 1, (64, 64, 3)).astype(np.uint8)
    pixels[0, 0] = peak
    x = contract.tensor(pixels)
    recovered = to_pixels(x, contract)[0]
    np.testing.assert_allclose(contract.tensor(recovered), x, atol=1e-6)


@pytest.mark.parametrize("exporter", [Onnx(), Ort(), OpenVINO()], ids=lambda e: e.name)
def test_export_record_load(small: Source, tmp_path: Path, exporter: Exporter) -> None:
    if exporter.missing():
        pytest.skip(str(exporter.missing()))
    artifact = exporter.export(small, tmp_path, Request("fp32"))
    assert artifact.path.name == f"random-u2netp-64-{exporter.name}-fp32{exporter.suffix}"
    assert artifact.weights.label == "u2netp (random weights)"
    assert artifact.fidelity["photos"] == 4 and artifact.fidelity["mae"] < 1e-4
    assert not list(tmp_path.glob(".u2export-*"))
    for given in (artifact.path, artifact.record):
        again = read_artifact(given)
        assert again == replace(artifact, fidelity=again.fidelity, golden=again.golden, options=again.options)
        assert again.size == sum((tmp_path / f).stat().st_size for f in again.files)
    x = SMALL.tensor(picture())
    for arithmetic in exporter.arithmetics(artifact):
        with exporter.load(artifact, arithmetic) as runner:
            d0 = runner(x)
            assert d0.shape == (1, 1, 64, 64) and d0.dtype == np.float32
            assert np.abs(d0 - small.predict(x)).max() < (1e-3 if arithmetic == "fp32" else 0.2)
            assert {"runtime", "device", "arithmetic", "threads"} <= set(runner.info)
            kept = d0.copy()
            runner(x * 0.5)
            np.testing.assert_array_equal(d0, kept)  # not a view the runtime writes to again
    with pytest.raises(UserError, match="f64"):
        exporter.load(artifact, "f64")


@all_processors()
def test_openvino_says_what_ran(small: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if OpenVINO().missing():
        pytest.skip(str(OpenVINO().missing()))
    artifact = OpenVINO().export(small, tmp_path, Request("fp32"))
    assert OpenVINO().arithmetics(artifact)[0] == "fp32"
    for arithmetic in OpenVINO().arithmetics(artifact):
        with OpenVINO().load(artifact, arithmetic) as runner:
            assert runner.info["arithmetic"] == arithmetic
            # The faster head folds the 1x1 fusion, one of 119 convolutions, into those of the side outputs.
            assert sum(int(part.split()[0]) for part in runner.info["convolutions"].split(", ")) == 118
    with OpenVINO().load(artifact, "f32") as runner:  # the name that older versions used
        assert runner.info["arithmetic"] == "fp32"
    with OpenVINO().streams(artifact, "f32", 2, 2) as runners:
        assert [r.info["arithmetic"] for r in runners] == ["fp32", "fp32"]
    with monkeypatch.context() as patched:
        patched.setitem(HINTS, "fp16", "f32")
        patched.setattr(OpenVINO, "arithmetics", lambda self, artifact: ("fp32", "fp16"))
        with pytest.raises(Unavailable, match="asked for fp16, OpenVINO runs fp32"):
            OpenVINO().load(artifact, "fp16").__enter__()


def test_a_wrong_export_leaves_nothing_behind_and_the_old_file_alone(
    small: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Ort().export(small, tmp_path, Request("fp32"))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    honest = to_onnx

    def sabotaged(*args: Any) -> Any:
        model = honest(*args)
        tensor = next(t for t in model.graph.initializer if t.name == "outconv.weight")
        tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return model

    monkeypatch.setattr("u2export.exporters.ort.to_onnx", sabotaged)
    with pytest.raises(UserError, match=r"masks differ.*mae"):
        Ort().export(small, tmp_path, Request("fp32"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["refused"]
    assert read_artifact(good.path)


def test_requests_that_are_refused(small: Source, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no fp8"):
        Onnx().export(small, tmp_path, Request("fp8"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        Onnx().export(small, tmp_path / "file", Request("fp32"))


def test_candidates_of_one_export_share_the_maps_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    source, runs = random_source(Contract(32, 32)), []
    one, other = (np.full(source.contract.shape, value, np.float32) for value in (0.0, 1.0))
    predict = Source.predict
    monkeypatch.setattr(Source, "predict", lambda self, x: (runs.append(x), predict(self, x))[1])
    for further in ([one, other], [other.copy(), one]):
        assert source.compare(lambda x: predict(source, x), further).mae == 0
    assert len(runs) == len(source.verification) + 2


def test_damaged_artifacts(small: Source, tmp_path: Path) -> None:
    artifact = Ort().export(small, tmp_path / "good", Request("fp32"))
    record = json.loads(artifact.record.read_text())

    def opened(name: str, **changes: Any) -> Artifact:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        (folder / artifact.record.name).write_text(json.dumps({**record, **changes}))
        return read_artifact(folder / artifact.path.name)

    assert opened("same").files == artifact.files
    with pytest.raises(UserError, match="schema 9"):
        opened("newer", schema=9)
    with pytest.raises(UserError, match="not the file"):
        opened("changed", files={artifact.path.name: "0" * 64})
    with pytest.raises(UserError, match="missing"):
        opened("lost", files={**record["files"], "gone.bin": "0" * 64})
    with pytest.raises(UserError, match="damaged record"):
        opened("odd", colour="blue")
    elsewhere = opened("elsewhere", path=f"../../../etc/{artifact.path.name}")
    assert elsewhere.path.parent == tmp_path / "elsewhere"
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_artifact(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(UserError, match="not an artifact"):
        read_artifact(tmp_path / "y.json")
    with pytest.raises(UserError, match="no such artifact"):
        read_artifact(tmp_path / "gone.onnx")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no runtime here"):
        read_artifact(tmp_path / "notes.txt")
    (tmp_path / "noise.onnx").write_bytes(np.random.default_rng(0).bytes(1000))
    with pytest.raises(UserError, match="not an ONNX file"):
        read_artifact(tmp_path / "noise.onnx")


def test_a_published_file_without_record_is_adopted(u2netp: Path) -> None:
    artifact = read_artifact(u2netp)
    assert artifact.contract == Contract() and artifact.notes
    with EXPORTERS[artifact.exporter].load(artifact) as runner:
        assert runner(Contract().tensor(picture())).shape == (1, 1, 320, 320)


def test_missing_packages_are_named_with_the_cure() -> None:
    problem = missing_modules("Thing", ("json", "no_such_module_at_all"), "ort")
    assert isinstance(problem, Unavailable)
    assert "no_such_module_at_all" in problem.problem
    assert problem.hint == how_to_install("ort", ["no_such_module_at_all"])
    assert missing_modules("Thing", ("json",), "ort") is None


def test_table_of_targets() -> None:
    assert all(name == e.name and e.suffix and e.title and e.precisions and e.extra for name, e in EXPORTERS.items())


@pytest.mark.slow
def test_real_weights_within_the_promise(published: Source, tmp_path: Path) -> None:
    for exporter, precision in ((Onnx(), "fp32"), (OpenVINO(), "fp32"), (OpenVINO(), "fp16"), (Onnx(), "fp16")):
        if exporter.missing():
            pytest.skip(str(exporter.missing()))
        fidelity = exporter.export(published, tmp_path, Request(precision)).fidelity
        assert fidelity["mae"] <= (1e-5 if precision == "fp32" else 4e-4), (exporter.name, precision)
        assert fidelity["iou_worst"] >= 0.995


@pytest.mark.slow
def test_full_size_u2net_takes_the_same_path(tmp_path: Path) -> None:
    source = random_source(Contract(128, 128), "u2net")
    for exporter in (Onnx(), OpenVINO()):
        if not exporter.missing():
            artifact = exporter.export(source, tmp_path, Request("fp32"))
            assert artifact.variant == "u2net" and artifact.size > 170e6
