from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import ANY_MASKS, SMALL, random_source
from conftest import Cli
from test_importers import PRINTED_BY_LITERT
from test_ssh import Server, light_python, server  # noqa: F401

from u2export.api import exporting
from u2export.benchmarks.report import Report
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.exporters.inspection import inspect
from u2export.exporters.litert.exporter import LiteRT
from u2export.exporters.open import adopt, read_artifact
from u2export.reference.fidelity import compare
from u2export.reference.golden import picture
from u2export.reference.image import Contract, Floats
from u2export.reference.photos import read_photo
from u2export.reference.verification import verification_photos

torch = pytest.importorskip("torch")

from u2export.calibration.dataset import Calibration  # noqa: E402
from u2export.reference.source import Source  # noqa: E402

OPERATIONS = {
    "CONV_2D": 118, "CONCATENATION": 50, "RESIZE_BILINEAR": 38, "MAX_POOL_2D": 33, "ADD": 16, "TRANSPOSE": 1,
    "LOGISTIC": 1, "RESHAPE": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Source:
    """Untrained weights, with one channel that is constant at 64 as conditioning leaves them: bias without weights."""
    source = random_source()
    unit, reader = (source.model.get_submodule(f"stage2d.rebnconv{n}d") for n in (2, 1))
    with torch.no_grad():
        for tensor, value in ((unit.conv_s1.weight, 0), (unit.conv_s1.bias, 0), (unit.bn_s1.running_mean, 0),
                              (unit.bn_s1.weight, 1), (unit.bn_s1.bias, 64)):  # fmt: skip
            tensor[3] = value
        reader.conv_s1.weight[:, 3] *= 0.01
    return source


@pytest.fixture(scope="module")
def exported(small: Source, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The artifact of each precision. Without conditioning the slow conversion is the same for all, and runs once."""
    if problem := LiteRT().missing():
        pytest.skip(str(problem))
    from u2export.exporters.litert import conversion, exporter

    folder, models = tmp_path_factory.mktemp("litert"), {}
    photos = Calibration.bundled(SMALL).subset(4)

    def once(*words: Any) -> bytes:
        if not models:
            models["fp32"] = conversion.converted(*words)
        return models["fp32"]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporter, "converted", once)
        return {
            precision: LiteRT().export(small, folder, Request(precision, photos, condition=False, budget=budget))
            for precision, budget in (("fp32", {}), *((name, ANY_MASKS) for name in ("fp16", "dynamic-int8", "int8")))
        }


def test_the_file_is_the_network(exported: dict[str, Artifact], small: Source) -> None:
    artifact = exported["fp32"]
    assert artifact.name == "random-u2netp-64-litert-fp32.tflite" and artifact.fidelity["mae"] < 1e-6
    assert read_artifact(artifact.record).files == artifact.files
    found = inspect(artifact.path)
    assert [(p.name, p.kind, p.shape) for p in (*found.inputs, *found.outputs)] == [
        ("serving_default_image", "float32", ("1", "3", "64", "64")),
        ("serving_default_mask_output", "float32", ("1", "1", "64", "64")),
    ]
    assert found.operations == OPERATIONS
    assert {layer.name for layer in found.layers} == {
        name for name, module in small.model.named_modules() if type(module).__name__ == "Conv2d" and name != "outconv"
    }
    assert found.layers[1].shape == (16, 64, 3, 3) and found.layers[1].bytes == 4 * 16 * 64 * 9
    assert Contract.from_json(found.stamp["contract"]) == SMALL
    assert found.stamp["weights_sha256"] == small.weights.sha256 and found.stamp["tools"]["litert-torch"]


@pytest.mark.parametrize(
    ("precision", "weights", "activation", "arithmetic", "most"),
    [("fp32", {"float32": 118}, "float32", "fp32", 1e-5), ("fp16", {"float16": 118}, "float32", "fp32", 1e-2),
     ("dynamic-int8", {"int8 per channel": 112, "int8 per tensor": 6}, "int8, quantised in each run", "dynamic-int8",
      0.2), ("int8", {"int8 per channel": 112, "int8 per tensor": 6}, "int8", "int8", 0.5)],
)  # fmt: skip
def test_each_precision_says_what_is_stored_and_what_ran(
    exported: dict[str, Artifact], small: Source, precision: str, weights: dict[str, int], activation: str,
    arithmetic: str, most: float,
) -> None:  # fmt: skip
    artifact = exported[precision]
    found = inspect(artifact.path)
    assert found.weights == weights and found.activations == {activation: 118}
    assert [p.kind for p in (*found.inputs, *found.outputs)] == ["float32", "float32"]
    assert 0.7 * artifact.size < sum(layer.bytes for layer in found.layers) < artifact.size
    assert (artifact.size < 0.6 * exported["fp32"].size) == (precision != "fp32")
    x = SMALL.tensor(picture())
    assert LiteRT().arithmetics(artifact) == (arithmetic,)
    with LiteRT().load(artifact, threads=1) as runner:
        d0 = runner(x)
        assert d0.shape == (1, 1, 64, 64) and d0.dtype == np.float32
        error = np.abs(d0 - small.predict(x)).max()
        assert error < most and (error > 1e-5) == (precision != "fp32")
        kept = d0.copy()
        runner(x * 0.5)
        np.testing.assert_array_equal(d0, kept)  # not a view the runtime writes to again
        assert runner.info["arithmetic"] == arithmetic and runner.info["convolutions"] == f"118 {arithmetic}"
        assert runner.info["provider"] == "XNNPACK" and runner.info["threads"] == "1"
        done, total = (int(word) for word in runner.info["delegated"].split() if word.isdigit())
        assert total == sum(found.operations.values()) and 0.95 * total < done <= total
        assert min(runner.opening.values()) > 0
    with pytest.raises(UserError, match="cannot run as f64"):
        LiteRT().load(artifact, "f64")


def int8_of(fp32: Artifact, small: Source) -> bytes:
    from u2export.exporters.litert.conversion import calibrated, with_int8
    from u2export.exporters.litert.deployed import Deployed

    network = Deployed(small.model, SMALL, False, False).eval()
    return with_int8(calibrated(fp32.path.read_bytes(), network, list(Calibration.bundled(SMALL).subset(2))))


def test_a_missed_budget_adds_float_layers(
    exported: dict[str, Artifact], small: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from u2export.exporters.litert import exporter

    monkeypatch.setattr(exporter, "converted", lambda *_: exported["fp32"].path.read_bytes())
    raw = exported["int8"].fidelity["raw_mae"]
    budget = {"raw_mae": 0.8 * raw, **ANY_MASKS}
    request = Request("int8", Calibration.bundled(SMALL).subset(4), condition=False, budget=budget, max_float=0.3)
    with pytest.raises(UserError, match="raw_mae"):
        LiteRT().export(small, tmp_path / "refused", replace(request, max_float=0.0))
    made = LiteRT().export(small, tmp_path, request)
    added = read_artifact(made.record).added_float
    assert made.fidelity["raw_mae"] == pytest.approx(added["with_float"]["raw_mae"], rel=1e-3)
    assert made.fidelity["raw_mae"] <= 0.8 * raw == pytest.approx(0.8 * added["pure_int8"]["raw_mae"], rel=1e-3)
    assert 0 < added["float_share"] <= 0.301 and any("pure int8 missed the budget" in note for note in made.notes)
    found = inspect(made.path)
    names = {node.strip("/").removesuffix("/Conv").replace("/", ".") for node in added["float_layers"]}
    assert {layer.name for layer in found.layers if layer.weight == "float32"} == names - {"outconv"}
    with LiteRT().load(made) as runner:
        assert runner.info["arithmetic"] == "int8" and f"{len(names - {'outconv'})} fp32" in runner.info["convolutions"]


def constant_of(model: bytes) -> float:
    """The bias of the channel without weights, as the int8 file holds it: an integer times its scale."""
    from u2export.exporters.litert.tflite import _parsed, module_name

    parsed = _parsed(model)
    graph = parsed.subgraphs[0]
    for op in graph.operators:
        if len(op.inputs) == 3:
            weight, bias = (graph.tensors[int(n)] for n in op.inputs[1:])
            if module_name(weight.name.decode()) == "stage2d.rebnconv2d.conv_s1":
                stored = np.asarray(parsed.buffers[bias.buffer].data, np.uint8).view(np.int32)
                return float(stored[3] * bias.quantization.scale[3])
    raise AssertionError("no such convolution")


def test_a_channel_without_weights_keeps_its_bias(
    exported: dict[str, Artifact], small: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    from u2export.exporters.litert import conversion

    assert constant_of(exported["int8"].path.read_bytes()) == pytest.approx(64, rel=1e-3)
    monkeypatch.setattr(conversion, "_wide_enough", lambda model, ranges: {})
    stock = int8_of(exported["fp32"], small)
    assert constant_of(stock) != pytest.approx(64, rel=0.1)  # what the quantiser does without our ranges


def test_biases_subtract_the_mean_error(exported: dict[str, Artifact], small: Source) -> None:
    """The first convolution reads the image: with its new bias and rounded values, its channels keep their means."""
    from u2export.exporters.litert.bias_correction import corrected, errors_of
    from u2export.exporters.litert.deployed import Deployed
    from u2export.exporters.litert.tflite import convolutions

    fp32, photos = exported["fp32"].path.read_bytes(), list(Calibration.bundled(SMALL).subset(2))
    network = Deployed(small.model, SMALL, False, False).eval()
    ranges = {conv.entry: {"min": -3.0, "max": 2.0} for conv in convolutions(fp32)}
    made = corrected(fp32, errors_of(fp32, network, photos, ranges), {"side1"})
    old, new = ({conv.name: (conv.weight, conv.bias) for conv in convolutions(model)} for model in (fp32, made))
    np.testing.assert_array_equal(old["side1"][1], new["side1"][1])
    assert len(new) == 118 and all((old[name][0] == new[name][0]).all() for name in old)
    weight, bias = new["stage1.rebnconvin.conv_s1"]
    step = 5 / 255
    scale = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    rounded = torch.from_numpy((np.rint(weight / scale) * scale).transpose(0, 3, 1, 2).copy())
    x = torch.from_numpy(np.concatenate(photos))
    entry = ((x / step).round() + 25).clamp(-128, 127).sub(25) * step  # -3 is level -128
    exact, twin = (
        torch.nn.functional.conv2d(values, kernel, torch.from_numpy(b.copy()), padding=1).mean((0, 2, 3))
        for values, kernel, b in (
            (x, torch.from_numpy(weight.transpose(0, 3, 1, 2).copy()), old["stage1.rebnconvin.conv_s1"][1]),
            (entry, rounded, bias),
        )
    )
    assert not np.allclose(bias, old["stage1.rebnconvin.conv_s1"][1], atol=1e-4)
    torch.testing.assert_close(twin, exact, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("last", [False, True])
def test_each_kind_of_input_gets_what_it_takes(last: bool) -> None:
    from u2export.exporters.litert.runner import _feeder

    contract = replace(Contract(48, 64), rounded=True)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    x = contract.tensor(pixels)

    def fed(kind: type, scale: float = 0.0, zero: int = 0) -> Any:
        shape = (1, 48, 64, 3) if last else (1, 3, 48, 64)
        found = _feeder({"shape": np.array(shape), "dtype": kind, "quantization": (scale, zero)}, contract)(x)
        assert found.shape == shape and found.dtype == kind and found.flags["C_CONTIGUOUS"]
        return found if last else found.transpose(0, 2, 3, 1)

    channels_last = x.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(fed(np.float32), channels_last)
    np.testing.assert_allclose(contract.tensor(np.ascontiguousarray(fed(np.uint8)[0])), x, atol=1e-6)
    np.testing.assert_allclose((fed(np.int8, 0.05, -5) + 5.0) * 0.05, channels_last, atol=0.026)
    assert fed(np.int8, 0.01).max() == 127  # what does not fit is cut off, and does not wrap around


def test_files_without_a_record(exported: dict[str, Artifact], tmp_path: Path) -> None:
    path = tmp_path / "theirs.tflite"
    shutil.copy(exported["dynamic-int8"].path, path)
    artifact = adopt(path)
    assert artifact.exporter == "litert" and artifact.contract == SMALL
    x = SMALL.tensor(picture())
    with LiteRT().load(artifact) as ours, LiteRT().load(exported["dynamic-int8"]) as known:
        np.testing.assert_array_equal(ours(x), known(x))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"u2export.", b"somebody."))  # a file of others: no stamp of ours
    assert inspect(path).stamp == {} and adopt(path).contract == SMALL
    path.write_bytes(whole.replace(b'{"height"', b'["height"'))
    with pytest.raises(UserError, match="contract is damaged"):
        adopt(path)


@pytest.mark.parametrize("length", [0, 7, 100, 5000, 1_000_000])
def test_damaged_files(exported: dict[str, Artifact], tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.tflite"
    path.write_bytes(exported["dynamic-int8"].path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"cut\.tflite"):
        inspect(path)
    with pytest.raises(UserError, match=r"cannot open .*cut\.tflite"):
        adopt(path)
    with pytest.raises(UserError, match=r"cannot open .*cut\.tflite"):
        LiteRT().load(replace(exported["dynamic-int8"], path=path))


def test_only_errors_reach_the_terminal(exported: dict[str, Artifact]) -> None:
    """LiteRT greets on standard error, beside Python; so this looks at a process of its own."""
    code = (
        "import sys, pathlib; from u2export.exporters.litert.runner import predictor_of\n"
        "from u2export.reference.image import Contract\n"
        "predictor_of(pathlib.Path(sys.argv[1]), Contract(64, 64), 1); print('still here', file=sys.stderr)"
    )
    words = (sys.executable, "-c", code, str(exported["int8"].path))
    assert subprocess.run(words, capture_output=True, text=True, check=True).stderr == "still here\n"


def test_the_command_maps_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from u2export.cli import app

    given: list[tuple[str, ...]] = []

    def export(*words: str, **_: Any) -> Artifact:
        given.append(words)
        raise UserError("stop", "here")

    monkeypatch.setattr(exporting, "export", export)

    def run(words: Sequence[str]) -> str:
        return str(CliRunner().invoke(app, ["litert", *words]).exception)

    for words, precision in (([], ""), (["--fp16"], "fp16"), (["--dynamic-int8"], "dynamic-int8")):
        run(words)
        assert given.pop() == ("litert", precision)
    assert "--fp32 and --dynamic-int8 exclude each other" in run(["--fp32", "--dynamic-int8"]) and not given


def test_many_damaged_files_are_read_or_refused() -> None:
    """Cases of `nox -s fuzz` for .tflite files: a worker inspects each, and opens it in the runtime."""
    if problem := LiteRT().missing():
        pytest.skip(str(problem))
    from u2export.benchmarks.studies import fuzz
    from u2export.benchmarks.studies.reliability import fuzz_seeds

    files = [seed for seed in fuzz_seeds.phone_seeds() if seed[0] == "tflite"]
    found = fuzz.fuzz(0, 120, 4 << 30, 60.0, files=files)
    assert not found["findings"] and found["kinds"]["tflite"]["read"] > 10 < found["kinds"]["tflite"]["refused"]


# What LiteRT's package needs on a device.
ON_A_DEVICE = (
    "numpy", "numpy.libs", "PIL", "pillow.libs", "ai_edge_litert", "flatbuffers", "google", "ml_dtypes", "tqdm",
    "backports", "typing_extensions.py",
)  # fmt: skip


def test_a_device_needs_litert_alone(
    exported: dict[str, Artifact],
    cli: Cli,
    server: Server,  # noqa: F811 - the fixture of this name
    tmp_path: Path,
) -> None:
    """Over ssh, with a Python that has neither PyTorch nor ONNX Runtime: the same masks as on this machine."""
    from PIL import Image

    python = light_python(tmp_path / "device", "ai_edge_litert", ON_A_DEVICE)
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture()).save(tmp_path / "photos" / "golden.png")
    words = ("bench", exported["int8"].record, exported["dynamic-int8"].record, "--images", tmp_path / "photos",
             "--reference", exported["fp32"].record, "--samples", 5, "--seconds", 0, "--rounds", 5)  # fmt: skip
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    for file, device in ((here, []), (there, replace(server, python=python).words)):
        result = cli(*words, "--json", file, *device)
        assert result.returncode == 0, result.stderr
    one, two = Report.load(here), Report.load(there)
    assert {"ai-edge-litert"} <= set(two.environment) and not {"torch", "onnxruntime"} & set(two.environment)
    assert [r.name for r in two.rows] == [r.name for r in one.rows] and not any(r.reason for r in two.rows)
    for a, b in zip(one.rows, two.rows, strict=True):
        assert b.images == a.images and b.runtime == a.runtime and len(b.latency.ns) == 5
    assert two.rows[-1].runtime["provider"] == "XNNPACK" and server.left == []


def test_masks_of_a_kit_come_back(exported: dict[str, Artifact], small: Source, tmp_path: Path) -> None:
    """What `benchmark_model` does with the files of a kit: bytes in, bytes out, by LiteRT's interpreter."""
    from ai_edge_litert.interpreter import Interpreter

    from u2export.benchmarks.imports.kit import artifact_of, judge, write
    from u2export.benchmarks.imports.rows import Claim, reports

    kit = write(exported["fp32"], small, "android", tmp_path)
    interpreter = Interpreter(model_path=str(kit / exported["fp32"].name))
    interpreter.allocate_tensors()
    entry, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    readme = (kit / "README.md").read_text()
    assert f"--input_layer={entry['name']} --input_layer_shape={','.join(map(str, entry['shape']))} " in readme
    for file in (kit / "inputs").glob("*.bin"):
        interpreter.set_tensor(entry["index"], np.fromfile(file, entry["dtype"]).reshape(entry["shape"]))
        interpreter.invoke()
        (kit / "results" / f"{file.stem}.mask").write_bytes(interpreter.get_tensor(output["index"]).tobytes())
    result = kit / "results" / "result.txt"
    result.write_text(PRINTED_BY_LITERT.replace("m.tflite", exported["fp32"].name))
    (kit / "results" / "artifact.sha256").write_text(hashlib.sha256(exported["fp32"].path.read_bytes()).hexdigest())
    (report,) = reports(result, "litert-benchmark", Claim("phone", artifact=artifact_of(kit)), None, judge(kit, result))
    found = report.rows[0].fidelity
    assert found and found.mae_worst < 1e-5 and len(report.rows[0].images) == 5


class Tiny(torch.nn.Module):
    """What the target reads of U²-Net: six features, their side convolutions and the fusion."""

    out_channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.outconv = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(6, 1, 1)
        for number in range(1, 7):
            self.add_module(f"side{number}", torch.nn.Conv2d(4, 1, 3, padding=1))

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.stem(x).relu()
        return [y, *(torch.nn.functional.avg_pool2d(y, 2**n) for n in range(1, 6))]


@pytest.fixture(scope="module")
def tiny() -> Any:
    torch.manual_seed(0)
    return Tiny().eval()


PORTS = {
    "nhwc": (True, False, ("1", "64", "64", "3"), "float32"),
    "uint8": (False, True, ("1", "64", "64", "3"), "uint8"),
}


def in_each_precision(module: Any, contract: Contract, ports: LiteRT, photos: Sequence[Any], path: Path) -> Any:
    """The model of each precision from one conversion; `photos` calibrate it, and `path` may be used in between."""
    from u2export.exporters.litert import conversion

    network = ports._deployed(module, contract)
    fp32 = conversion.converted(network, contract, path)
    fed = [ports.fed(photo, contract) for photo in photos]
    return {
        "fp32": fp32, "fp16": conversion.with_fp16_weights(fp32), "dynamic-int8": conversion.with_int8_weights(fp32),
        "int8": conversion.with_int8(conversion.calibrated(fp32, network, fed)),
    }  # fmt: skip


@pytest.mark.parametrize("ports", PORTS)
def test_channels_last(tiny: Any, tmp_path: Path, ports: str) -> None:
    """The same maps behind ports with channels last, in every precision, as from the file with channels first."""
    if problem := LiteRT().missing():
        pytest.skip(str(problem))
    from u2export.exporters.litert.conversion import converted
    from u2export.exporters.litert.runner import predictor_of
    from u2export.exporters.litert.tflite import convolutions

    nhwc, pixels, shape, kind = PORTS[ports]
    contract = replace(SMALL, rounded=pixels)
    x = contract.tensor(picture())
    path = tmp_path / "tiny.tflite"

    def of(model: bytes) -> Any:
        path.write_bytes(model)
        return predictor_of(path, contract, 1)(x)

    first = of(converted(LiteRT()._deployed(tiny, contract), contract, path))
    want = (first - first.min()) / (first.max() - first.min()) if pixels else first
    most = {"fp32": 1e-5, "fp16": 5e-3, "dynamic-int8": 0.05, "int8": 0.05}
    made = in_each_precision(tiny, contract, LiteRT(nhwc, pixels), [x], path)
    stem = next(conv for conv in convolutions(made["fp32"]) if conv.name == "stem")
    # The int8 grid is that of the network: nothing of the normalisation is folded into the first weights.
    np.testing.assert_allclose(stem.weight.transpose(0, 3, 1, 2), tiny.stem.weight.detach(), rtol=1e-6)
    for precision, model in made.items():
        np.testing.assert_allclose(of(model), want, atol=most[precision], err_msg=precision)
        found = inspect(path)
        assert [(p.kind, p.shape) for p in (*found.inputs, *found.outputs)] == [
            (kind, shape), ("float32", ("1", "64", "64", "1"))
        ]  # fmt: skip
        assert "TRANSPOSE" not in found.operations  # nothing is turned around inside


@pytest.fixture(scope="module")
def published_maps(published: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Floats]]:
    """d0 (1, 1, H, W) of a photo in each precision, from files of the published weights with these ports."""
    if problem := LiteRT().missing():
        pytest.skip(str(problem))
    from u2export.calibration.prepare import prepared
    from u2export.exporters.litert.runner import predictor_of

    contract = replace(published.contract, rounded=True)
    photos = list(Calibration.bundled(contract).subset(2))
    module, _ = prepared(published, "int8", Calibration.bundled(published.contract).subset(4))
    path = tmp_path_factory.mktemp("published") / "m.tflite"
    x = contract.tensor(read_photo(verification_photos()[0]))

    @cache
    def maps(nhwc: bool = False, pixels: bool = False) -> dict[str, Floats]:
        made = {}
        for precision, model in in_each_precision(module, contract, LiteRT(nhwc, pixels), photos, path).items():
            path.write_bytes(model)
            made[precision] = predictor_of(path, contract, 1)(x)
        return {**made, "reference": published.predict(x)}

    return maps


@pytest.mark.slow
def test_masks_of_the_published_weights(published_maps: Callable[..., dict[str, Floats]]) -> None:
    """Close to PyTorch's in every precision; the files of the next test are compared with these."""
    maps = published_maps()
    for precision, most in (("fp32", 1e-5), ("fp16", 1e-3), ("dynamic-int8", 6e-3), ("int8", 6e-3)):
        found = compare(maps[precision][0], maps["reference"][0])
        assert found.mae < most and found.iou > 0.95, precision


@pytest.mark.slow
@pytest.mark.parametrize("ports", PORTS)
def test_ports_change_no_mask_of_the_published_weights(
    published_maps: Callable[..., dict[str, Floats]], ports: str
) -> None:
    """Channels last, and pixels with our preprocessing inside: the masks are those of the file with channels first.

    In 8 bit a difference of 1e-7 moves values over the edge of a step, and such files differ as two roundings do.
    """
    first, made = published_maps(), published_maps(*PORTS[ports][:2])
    for precision, most in (("fp32", 1e-5), ("fp16", 1e-5), ("dynamic-int8", 3e-3), ("int8", 3e-3)):
        found = compare(made[precision][0], first[precision][0])
        assert found.mae < most and found.iou > 0.99, precision
        assert ports != "nhwc" or np.array_equal(made[precision], first[precision]), precision


@pytest.mark.slow
def test_embedded_preprocessing_is_the_contracts(small: Source, tmp_path: Path) -> None:
    if problem := LiteRT().missing():
        pytest.skip(str(problem))
    request = Request("int8", Calibration.bundled(SMALL).subset(2), condition=False, budget=ANY_MASKS)
    artifact = LiteRT(embed_preprocess=True).export(small, tmp_path, request)
    assert artifact.name.endswith("-int8-uint8.tflite") and artifact.contract.rounded
    found = inspect(artifact.path)
    assert [(p.kind, p.shape) for p in (*found.inputs, *found.outputs)] == [
        ("uint8", ("1", "64", "64", "3")), ("float32", ("1", "64", "64", "1")),
    ]  # fmt: skip
    with LiteRT().load(artifact) as runner:
        mask = runner(artifact.contract.tensor(picture()))
        assert mask.shape == (1, 1, 64, 64) and mask.min() == 0 and mask.max() == pytest.approx(1)
        assert np.isfinite(runner.predict(np.zeros((1, 64, 64, 3), np.uint8))).all()  # black: nothing to divide by
