from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ANY_MASKS, SMALL, random_source
from hypothesis import given
from hypothesis import strategies as st

from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.coreml.exporter import INPUT, OUTPUT, CoreML
from u2export.exporters.coreml.ports import FLAT, picture, unstretched
from u2export.exporters.coreml.simulated_runner import SIMULATED
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.inspection import inspect
from u2export.exporters.open import read_artifact
from u2export.install import how_to_install
from u2export.reference.fidelity import Fidelity, compare
from u2export.reference.image import Contract, Floats, saliency
from u2export.reference.photos import find_photos, read_input
from u2export.reference.weights import Identity

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from u2export.exporters.coreml.evaluate import Program  # noqa: E402
from u2export.exporters.coreml.package import Package  # noqa: E402
from u2export.reference.model import U2Net  # noqa: E402
from u2export.reference.source import Source  # noqa: E402


def plain(precision: str, calibration: Calibration | None = None) -> Request:
    return Request(precision, calibration, condition=False, budget=ANY_MASKS)


@pytest.fixture(scope="module")
def small() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def fp16(small: Source, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """One package for all tests that only look at it."""
    return CoreML().export(small, tmp_path_factory.mktemp("fp16"), plain("fp16"))


# Options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"target": "ios12"}, "no Core ML target named 'ios12'"),
        ({"output": "jpeg"}, "no Core ML output named 'jpeg'"),
        ({"sizes": ((320, 300),)}, "320x300 cannot be one of several sizes"),
        ({"sizes": ((0, 32),)}, "0x32 cannot be one of several sizes"),
        ({"group": 8}, "grouped palettes need iOS 18, the target is ios16"),
        ({"group": -1, "target": "ios18"}, "cannot be shared by -1 channels"),
    ],
)
def test_options_are_checked(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        CoreML(**options)


@pytest.mark.parametrize(
    ("exporter", "precision", "calibrated", "problem"),
    [
        (CoreML(), "int4", False, "Core ML has no int4"),
        (CoreML(), "w8a8", True, "8-bit activations need iOS 17, the target is ios16"),
        (CoreML("ios17"), "w8a8", False, "needs calibration photos"),
        (CoreML("ios18", group=8), "int8", False, "int8 has no palettes to group"),
    ],
)
def test_requests_are_checked_before_anything_is_done(
    exporter: CoreML, precision: str, calibrated: bool, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        exporter.check(Request(precision), calibrated)


@pytest.mark.parametrize(
    ("exporter", "channels", "maps", "contract", "problem"),
    [
        (CoreML(), 4, 1, SMALL, "Core ML pictures have 1 or 3 channels, the network takes 4"),
        (CoreML(output="image"), 3, 4, SMALL, "a grey picture holds one map, the network gives 4"),
        (CoreML(sizes=((32, 32),)), 3, 1, Contract(72, 64), "72x64 cannot be one of several sizes"),
    ],
)
def test_networks_that_do_not_fit_are_refused(
    exporter: CoreML, channels: int, maps: int, contract: Contract, problem: str, tmp_path: Path
) -> None:
    source = Source(Identity("x", "0" * 64), U2Net("u2netp", channels, maps), contract.with_channels(channels))
    with pytest.raises(UserError, match=problem):
        exporter.export(source, tmp_path, plain("fp16"))
    assert not list(tmp_path.iterdir())


def test_every_precision_has_a_budget() -> None:
    assert set(CoreML.limits) == set(CoreML.precisions)


# Inputs and outputs of the runner


@given(st.integers(2, 255), st.integers(0, 2**32 - 1))
def test_the_picture_of_a_network_input_is_the_one_it_was_made_of(peak: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, peak, (8, 8, 3), np.uint8)
    pixels[0, 0, 0], pixels[0, 0, 1] = peak, peak - 1  # neighbours, so that no smaller maximum explains the input
    contract = Contract(8, 8, rounded=True)
    back = picture(contract.tensor(pixels), contract)
    assert np.array_equal(back[0].transpose(1, 2, 0), pixels)


@given(st.floats(0, 0.5), st.floats(0.01, 0.5), st.integers(0, 2**32 - 1))
def test_unstretching_keeps_the_mask(low: float, spread: float, seed: int) -> None:
    d0 = np.float32(low) + np.float32(spread) * np.random.default_rng(seed).random((1, 1, 6, 6), np.float32)
    mask = ((d0 - d0.min()) / max(d0.max() - d0.min(), FLAT)).astype(np.float16).astype(np.float32)
    back = unstretched(mask, d0, "tensor")
    assert np.abs(back - d0).max() < 1e-3
    assert np.abs(saliency(back) - mask).max() < 1e-3
    assert np.array_equal(unstretched(mask, d0, "raw"), mask)
    eight = unstretched(mask * 255, d0, "image")
    assert np.abs(eight - d0).max() <= (d0.max() - d0.min()) * (0.5 / 255 + 2**-11) + 1e-6


# A package


def test_record_and_masks(fp16: Artifact, small: Source) -> None:
    assert read_artifact(fp16.path).files == fp16.files
    assert fp16.name == "random-u2netp-64-coreml-fp16.mlpackage"
    assert fp16.contract == replace(SMALL, rounded=True)
    assert fp16.fidelity["photos"] >= 4
    assert 0 < fp16.fidelity["mae"] < 5e-3
    assert 0 < fp16.fidelity["raw_mae"] < 5e-3
    assert set(fp16.tools) == {"u2export", "torch", "coremltools"}


def test_files_are_the_three_of_a_package_and_readable(fp16: Artifact) -> None:
    inside = {str(p.relative_to(fp16.path)) for p in fp16.path.rglob("*") if p.is_file()}
    data = "Data/com.apple.CoreML"
    assert inside == {"Manifest.json", f"{data}/model.mlmodel", f"{data}/weights/weight.bin"}
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in fp16.path.rglob("*") if p.is_file())


def test_what_xcode_shows(fp16: Artifact, small: Source) -> None:
    description = Package(fp16.path).spec.description
    assert "Qin" in description.metadata.author
    assert description.metadata.license
    stamped = description.metadata.userDefined
    assert stamped["u2export.weights_sha256"] == small.weights.sha256
    assert Contract.from_json(stamped["u2export.contract"]) == fp16.contract
    assert [f.name for f in description.input] == [INPUT]
    assert [f.name for f in description.output] == [OUTPUT]
    assert "RGB" in description.input[0].shortDescription


def test_runs_are_marked_simulated(fp16: Artifact) -> None:
    if sys.platform == "darwin":
        pytest.skip("a Mac runs the package")
    assert CoreML().arithmetics(fp16) == tuple(SIMULATED)
    threads = torch.get_num_threads()
    with CoreML().load(fp16, "simulated fp16 accumulate", threads=1) as runner:
        assert "not run on hardware" in runner.info["simulated"]
        assert runner.info["arithmetic"] == "fp16-accumulate"
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads
    with pytest.raises(UserError, match="cannot run as int8 here"):
        CoreML().load(fp16, "int8")


def test_a_batch_is_its_pictures(fp16: Artifact, small: Source) -> None:
    contract = fp16.contract
    rng = np.random.default_rng(0)
    photos = [contract.tensor(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(2)]
    with CoreML().load(fp16) as runner:
        together = runner(np.concatenate(photos))
        assert together.shape == (2, 1, 64, 64)
        for one, x in zip(together, photos, strict=True):
            assert np.array_equal(one, runner(x)[0])


def test_a_package_without_its_record_is_adopted(fp16: Artifact, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fp16.path, tmp_path / "copy.mlpackage"))
    adopted = read_artifact(copy)
    assert adopted.exporter == "coreml"
    assert adopted.contract == fp16.contract


def test_packages_of_others_are_refused(fp16: Artifact, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(fp16.path, tmp_path / "copy.mlpackage"))
    package = Package(copy)
    package.spec.description.metadata.userDefined.clear()
    (copy / "Data" / "com.apple.CoreML" / "model.mlmodel").write_bytes(package.spec.SerializeToString())
    with pytest.raises(UserError, match="not written by u2export"):
        read_artifact(copy)


def test_a_missed_budget_writes_nothing(small: Source, fp16: Artifact, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:  # the same package again, without converting it again
        export = lambda self, source, path, request: (shutil.copytree(fp16.path, path), MADE)[1]  # noqa: E731
        from u2export.exporters.exporter import Made

        MADE = Made()
        patch.setattr(CoreML, "_export", export)
        with pytest.raises(UserError, match="differ from PyTorch's by more than allowed"):
            CoreML().export(small, tmp_path, replace(plain("fp16"), budget={"mae": 1e-9}))
    assert not [p for p in tmp_path.rglob("*.mlpackage") if p.parent == tmp_path]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("u2export.exporters.runtime.find_spec", lambda name: None)
    problem = CoreML().missing()
    assert isinstance(problem, Unavailable)
    assert "coremltools" in problem.problem
    assert problem.hint == how_to_install("coreml", ["torch", "coremltools"])


# Inspection


def test_inspection_counts_every_convolution(fp16: Artifact) -> None:
    found = inspect(fp16.path)
    assert found.kind == "Core ML program, specification 7, CoreML6"
    assert found.bytes == fp16.size
    assert found.operations["conv"] == len(found.layers) == 119
    assert found.weights == {"float16": 119}
    assert found.activations == {"float16": 119}
    assert found.layers[0].name == "stage1_rebnconvin_conv_s1"
    assert found.layers[0].shape == (64, 3, 3, 3)
    assert found.layers[0].bytes == 64 * 3 * 9 * 2
    assert [(p.kind, p.shape) for p in found.inputs] == [("picture, rgb, 8 bit", ("64x64",))]
    assert [(p.kind, p.shape) for p in found.outputs] == [("float16", ("1", "1", "64", "64"))]
    assert found.metadata["precision"] == "fp16"


def test_inspect_command(fp16: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    from u2export.commands.inspect import inspect as command

    command(fp16.record, layers=True)
    text = capsys.readouterr().out
    assert "119 conv" in text
    assert "weights: 119 float16" in text
    assert "stage1_rebnconvin_conv_s1" in text
    command(fp16.path, as_json="-")
    data = json.loads(capsys.readouterr().out)
    assert data["operations"]["conv"] == 119
    assert data["record"]["precision"] == "fp16"


def test_inspection_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        inspect(tmp_path / "none.onnx")
    (tmp_path / "x.ncnn").write_bytes(b"x")
    with pytest.raises(UserError, match=r"no reader for \.ncnn files"):
        inspect(tmp_path / "x.ncnn")
    for name, module in (("x.onnx", "onnx"), ("x.xml", "openvino")):
        pytest.importorskip(module)
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(UserError, match="not an"):
            inspect(tmp_path / name)


def test_inspection_of_onnx_and_openvino(small: Source, tmp_path: Path) -> None:
    pytest.importorskip("onnxsim")
    pytest.importorskip("openvino")
    from u2export.exporters.onnx import Onnx
    from u2export.exporters.openvino import OpenVINO

    # The faster head of OpenVINO folds the 1x1 fusion, one of 119 convolutions, into those of the side outputs.
    exporters: list[tuple[Exporter, str, str, int]] = [
        (Onnx(), "Conv", "ONNX", 119), (OpenVINO(), "Convolution", "OpenVINO IR", 118)
    ]  # fmt: skip
    for exporter, kind, title, convolutions in exporters:
        artifact = exporter.export(small, tmp_path, plain("fp16"))
        found = inspect(artifact.path)
        assert found.kind.startswith(title)
        assert found.bytes == artifact.size
        assert found.operations[kind] == len(found.layers) == convolutions
        assert found.weights == {"float16": convolutions}
        assert sum(layer.bytes for layer in found.layers) > 2.2e6
        assert found.layers[0].shape == (64, 3, 3, 3)
        assert found.metadata["weights_sha256"] == small.weights.sha256


def test_inspection_of_eight_bit_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    constants = {
        "w": np.ones((2, 3, 1, 1), np.int8),
        "s": np.full(2, 0.5, np.float32),
        "xs": np.float32(1),
        "z": np.uint8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "z"], ["dq"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0),
        helper.make_node("Conv", ["dq", "wf"], ["y"], name="/first/Conv"),
    ]
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], tensors)), tmp_path / "q.onnx")
    (layer,) = inspect(tmp_path / "q.onnx").layers
    assert (layer.name, layer.weight, layer.activation) == ("first/Conv", "int8 per channel", "int8")
    assert layer.bytes == 6 + 8
    assert layer.compressed


# The command


def test_the_command_maps_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from u2export.api import exporting
    from u2export.cli import app

    given: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def export(*words: str, **options: Any) -> Artifact:
        given.append((words, options))
        raise UserError("far enough", "")

    def command(text: str) -> str:
        problem = CliRunner().invoke(app, ["coreml", *text.split()]).exception
        return problem.problem if isinstance(problem, UserError) else repr(problem)

    monkeypatch.setattr(exporting, "export", export)
    assert command("--size 320,256x384 --palette 6 --group 8 --target ios18 --output raw") == "far enough"
    assert command("") == "far enough"
    (words, options), (plain_words, _) = given
    assert words == ("coreml", "palette6") and options["size"] == "320,256x384"
    assert (options["target"], options["output"], options["group"]) == ("ios18", "raw", 8)
    assert plain_words[0] == "coreml" and plain_words[1] in ("", "fp16")
    assert "no palettes of 5 bits" in command("--palette 5")
    assert "exclude each other" in command("--int8 --w8a8")


# The benchmark


def test_photos_without_an_object_are_counted_apart() -> None:
    from u2export.benchmarks.studies.photo_sets import spread, summarise

    object_, nothing = np.zeros((2, 8, 8), np.float32)
    object_[2:6, 2:6], nothing[0, 0] = 0.9, 0.01
    images = [compare(object_ + np.float32(0.001), object_), compare(nothing[::-1].copy(), nothing)]
    summary = summarise(images)
    assert (summary["photos"], summary["empty"]["photos"]) == (1, 1)
    assert summary["iou_worst"] == 1.0  # that of the empty one is 0
    assert summary["empty"]["raw_mae_worst"] == pytest.approx(0.02 / 64)
    assert spread(list(range(10)), 3) == [0, 4, 9]


# Slow: more conversions, real weights, real photos


@pytest.mark.slow
def test_weights_are_written_the_same_twice(fp16: Artifact, small: Source, tmp_path: Path) -> None:
    again = CoreML().export(small, tmp_path, plain("fp16"))
    name = f"{fp16.name}/Data/com.apple.CoreML/weights/weight.bin"
    assert again.files[name] == fp16.files[name]


@pytest.mark.slow
def test_eight_bit_grey_output(fp16: Artifact, small: Source, tmp_path: Path) -> None:
    artifact = CoreML(output="image").export(small, tmp_path, plain("fp16"))
    assert artifact.name.endswith("-image.mlpackage")
    assert inspect(artifact.path).outputs[0].kind == "picture, grayscale, 8 bit"
    assert 0 < artifact.fidelity["mae"] < fp16.fidelity["mae"] + 0.5 / 255


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(72, 100), (33, 64)])
def test_odd_sizes_are_exact(height: int, width: int, tmp_path: Path) -> None:
    source = random_source(Contract(height, width))
    artifact = CoreML(output="raw").export(source, tmp_path, Request("fp32"))
    assert artifact.fidelity["max_abs"] < 1e-4


@pytest.mark.slow
def test_enumerated_sizes_are_exact_at_each(small: Source, tmp_path: Path) -> None:
    artifact = CoreML(output="raw", sizes=((96, 64), (32, 128))).export(small, tmp_path, Request("fp32"))
    package = Package(artifact.path)
    assert inspect(artifact.path).inputs[0].shape == ("64x64 or 96x64 or 32x128",)
    program = Program(package, "fp32")
    for height, width in ((64, 64), (96, 64), (32, 128)):
        contract = Contract(height, width, rounded=True)
        x = contract.tensor(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
        got = program.run({INPUT: picture(x, contract)})[OUTPUT]
        # fp32 of two libraries: the last bits of their sums depend on the processor (1.1e-5 was seen).
        assert np.abs(got - small.predict(x)).max() < 5e-5


@pytest.mark.slow
def test_a_full_size_network(tmp_path: Path) -> None:
    source = random_source(Contract(96, 96), "u2net")
    artifact = CoreML().export(source, tmp_path, plain("fp16"))
    assert 80e6 < artifact.size < 95e6
    assert artifact.fidelity["raw_mae"] < 5e-3


@pytest.fixture(scope="module")
def trained(u2netp: Path, shared: Path) -> tuple[Source, Calibration]:
    """Real weights, conditioned once; `model` is the conditioned network."""
    source = Source.open("u2netp", Contract(rounded=True))
    calibration = Calibration.open(shared / "bsds500" / "images", source.contract, limit=12)
    module: Any = prepared(source, "fp16", calibration)[0]
    return replace(source, model=module), calibration


@pytest.fixture(scope="module")
def expected(trained: tuple[Source, Calibration], shared: Path) -> list[tuple[Floats, Floats]]:
    """Inputs and d0 of the published network, not conditioned, for photos of two evaluation sets."""
    source = Source.open("u2netp", trained[0].contract)
    folders = (shared / "weizmann_horse" / "images", shared / "u2net_official" / "images")
    photos = [p for folder in folders for p in find_photos([folder])[1::30][:2]]
    inputs = [read_input(source.contract, p) for p in photos]
    return [(x, source.predict(x)) for x in inputs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exporter", "precision", "megabytes", "limits"),
    [
        (CoreML(), "fp16", 2.6, {"mae": 5e-4, "iou": 0.998}),
        (CoreML(), "int8", 1.6, {"mae": 4e-3, "iou": 0.985, "iou_worst": 0.93}),
        (CoreML("ios17"), "w8a8", 1.8, {"mae": 8e-3}),
    ],
)
def test_masks_of_trained_weights(
    exporter: CoreML,
    precision: str,
    megabytes: float,
    limits: dict[str, float],
    trained: tuple[Source, Calibration],
    expected: list[tuple[Floats, Floats]],
    tmp_path: Path,
) -> None:
    artifact = exporter.export(trained[0], tmp_path, plain(precision, trained[1]))
    assert artifact.size < megabytes * 1e6
    with exporter.load(artifact, next(iter(SIMULATED))) as runner:
        fidelity = Fidelity(tuple(compare(runner(x)[0, 0], d0[0, 0]) for x, d0 in expected))
    assert not fidelity.broken(limits), fidelity.summary()
    found = inspect(artifact.path)
    if precision != "fp16":
        assert found.weights["int8 per channel"] == 111
        assert len(found.kept) == 8
        assert artifact.notes[0].startswith("weights compressed: 111 of 119; kept: stage1_rebnconvin")
    if precision == "w8a8":
        assert found.activations["int8"] > 100


@pytest.mark.slow
def test_int8_activations_that_miss_the_budget_leave_layers_in_float(small: Source, tmp_path: Path) -> None:
    photos = Calibration.bundled(SMALL).subset(2)
    request = Request("w8a8", photos, budget={"mae": 1e-9}, max_float=0.0045)  # no set of layers keeps this
    with pytest.raises(UserError, match="more than allowed"):
        CoreML("ios17").export(small, tmp_path, request)
    (path,) = (tmp_path / "refused").glob("*.mlpackage")
    artifact = read_artifact(path)
    floats = {name.strip("/").removesuffix("/Conv").replace("/", "_") for name in artifact.added_float["float_layers"]}
    assert floats and "pure int8 missed the budget" in artifact.notes[-2]
    for layer in Package(path).layers():
        assert layer.weight == "float16" or layer.name not in floats, layer
        assert layer.activation == "int8" or layer.name in floats, layer
    assert artifact.fidelity["mae"] == pytest.approx(artifact.added_float["with_float"]["mae"])
    assert artifact.added_float["with_float"]["mae"] <= artifact.added_float["pure_int8"]["mae"]


@pytest.mark.slow
def test_palettes_compress_and_say_what_they_left(small: Source, tmp_path: Path) -> None:
    artifact = CoreML("ios18", group=8).export(small, tmp_path, plain("palette6"))
    found = inspect(artifact.path)
    compressed = [layer for layer in found.layers if layer.compressed]
    assert {layer.weight.partition(",")[0] for layer in compressed} == {"palette of 6 bits"}
    assert artifact.notes[0].startswith(f"weights compressed: {len(compressed)} of 119")


# On a Mac


@pytest.fixture
def mac() -> Callable[[Artifact, str], Any]:
    if sys.platform != "darwin":
        pytest.skip("Core ML runs on a Mac only")
    return lambda artifact, unit: CoreML().load(artifact, unit)


@pytest.mark.parametrize("unit", ["all", "cpu and ne", "cpu and gpu", "cpu only"])
def test_core_ml_agrees_with_pytorch(unit: str, mac: Any, fp16: Artifact, small: Source) -> None:
    with mac(fp16, unit) as runner:
        assert "Core ML on macOS" in runner.info["runtime"]
        assert runner.info["placement"]
        rounded = replace(small, contract=fp16.contract)
        assert rounded.compare(runner).mae < 2e-2
