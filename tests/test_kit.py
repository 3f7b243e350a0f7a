from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import SMALL, random_source
from conftest import ROOT, Cli, two_lines
from hypothesis import given
from hypothesis import strategies as st
from test_importers import EXECUTED, PRINTED_BY_LITERT

from u2export.benchmarks.imports.device_json import KIT_FORMAT
from u2export.benchmarks.imports.kit import artifact_of, judge, write
from u2export.benchmarks.imports.rows import Claim, reports
from u2export.benchmarks.imports.timed_model import TimedModel
from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.studies import phones
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.exporter import Request
from u2export.reference.source import Source

for _module in ("torch", "onnx", "onnxsim", "onnxruntime"):
    pytest.importorskip(_module)


@pytest.fixture(scope="module")
def source() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def artifact(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    from u2export.exporters.ort import Ort

    return Ort(mobile=True).export(source, tmp_path_factory.mktemp("art"), Request("fp32"))


@pytest.fixture(scope="module")
def kit(source: Source, artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(artifact, source, "android", tmp_path_factory.mktemp("kits"))


def run_on_this_machine(kit: Path, folder: Path, change: float = 0.0) -> Path:
    """What the kit's program does on a phone, by the same runtime: masks of all inputs, and a result."""
    import onnxruntime

    data = json.loads((kit / "kit.json").read_text())
    session = onnxruntime.InferenceSession(str(kit / data["artifact"]), providers=["CPUExecutionProvider"])
    masks = {}
    folder.mkdir(exist_ok=True)
    for file in sorted((kit / "inputs").glob("*.bin")):
        x = np.fromfile(file, "<f4").reshape(session.get_inputs()[0].shape)
        d0 = session.run(None, {session.get_inputs()[0].name: x})[0]
        if change:
            d0[..., : d0.shape[-1] // 2] = change
        d0.astype("<f4").tofile(folder / f"{file.stem}.mask")
        masks[file.stem] = f"{file.stem}.mask"
    result = {
        "format": KIT_FORMAT, "device": {"model": "test phone"}, "runtime": "ONNX Runtime", "compute_unit": "CPU",
        "runtime_version": onnxruntime.__version__, "artifact_sha256": data["artifact_sha256"], "timed": "one Run call",
        "load_ms": [5.0], "first_ms": 3.0, "masks": masks, "predict_ms": [2.0, 2.5, 3.0],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder / "result.json"


def imported(kit: Path, result: Path) -> Report:
    (report,) = reports(result, "kit", Claim(artifact=artifact_of(kit)), None, judge(kit, result))
    return report


@pytest.mark.slow
def test_masks_of_the_real_runtime_come_back_faithful(kit: Path, tmp_path: Path) -> None:
    (row,) = imported(kit, run_on_this_machine(kit, tmp_path / "back")).rows
    assert list(row.images) == ["golden", "astronaut", "chelsea", "coffee", "rocket"]
    assert row.fidelity and row.fidelity.mae_worst < 1e-4 and row.fidelity.raw_mae < 1e-5
    assert row.provenance == "imported" and row.weights.random and row.latency.p50 == 2.5
    assert not any("no fidelity" in note for note in row.notes)


@pytest.mark.slow
def test_wrong_masks_show(kit: Path, tmp_path: Path) -> None:
    (row,) = imported(kit, run_on_this_machine(kit, tmp_path / "back", change=0.9)).rows
    assert row.fidelity and row.fidelity.mae > 0.05 and row.fidelity.raw_mae > 0.05


@pytest.mark.slow
def test_results_that_do_not_belong_are_refused(kit: Path, tmp_path: Path) -> None:
    result = run_on_this_machine(kit, tmp_path / "back")
    data = json.loads(result.read_text())
    result.write_text(json.dumps({**data, "artifact_sha256": "0" * 64}))
    with pytest.raises(UserError, match="of another artifact"):
        imported(kit, result)
    result.write_text(json.dumps({**data, "masks": {"golden": "golden.mask"}}))
    with pytest.raises(UserError, match="names no mask of astronaut"):
        imported(kit, result)
    result.write_text(json.dumps({**data, "masks": {**data["masks"], "golden": "../../secret.mask"}}))
    with pytest.raises(UserError, match="no such mask") as caught:
        imported(kit, result)
    assert ".." not in caught.value.problem and caught.value.problem.endswith("back/secret.mask")
    result.write_text(json.dumps(data))
    (result.parent / "golden.mask").write_bytes(b"1234")
    with pytest.raises(UserError, match="has 4 bytes"):
        imported(kit, result)


@pytest.mark.slow
def test_android_kit_is_complete(kit: Path, artifact: Artifact) -> None:
    import onnx
    from onnx import numpy_helper

    data = json.loads((kit / "kit.json").read_text())
    assert data["artifact"] == artifact.name and "not run on hardware" in data["notes"][0]
    assert (
        data["artifact_sha256"] in (kit / "bench.cc").read_text() and "@ARTIFACT@" not in (kit / "bench.cc").read_text()
    )
    readme = (kit / "README.md").read_text()
    assert artifact.name in readme and "not run on hardware" in readme and not re.search(r"\{\w+\}", readme)
    assert all(word in readme for word in ("adb push", "onnxruntime_perf_test", "u2export import results/result.json"))
    tensor = numpy_helper.to_array(onnx.load_tensor(kit / "test_data_set_0" / "input_0.pb"))
    golden = np.fromfile(kit / "inputs" / "golden.bin", "<f4")
    assert tensor.shape == SMALL.shape and (tensor.ravel() == golden).all()
    assert artifact_of(kit).files == artifact.files
    (kit.parent / "copy").mkdir(exist_ok=True)
    copy = Path(shutil.copytree(kit, kit.parent / "copy" / kit.name))
    (copy / artifact.name).write_bytes(b"other")
    with pytest.raises(UserError, match="is not the file its record"):
        artifact_of(copy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("exporter", "options", "form", "printed"),
    [("litert", {"nhwc": True, "embed_preprocess": False}, "litert-benchmark", PRINTED_BY_LITERT),
     ("executorch", {}, "executorch", EXECUTED)],
)  # fmt: skip
def test_masks_of_a_makers_program(
    source: Source, artifact: Artifact, tmp_path: Path, exporter: str, options: dict[str, bool], form: str, printed: str
) -> None:
    """The kit never opens the file; the tests of both targets do this with a real file and the real runtime."""
    made = write(replace(artifact, exporter=exporter, options=options), source, "android", tmp_path)
    data, readme = json.loads((made / "kit.json").read_text()), (made / "README.md").read_text()
    assert f"--as {form}" in readme and artifact.name in readme and not re.search(r"\{\w+\}", readme)
    assert ("--input_layer_shape=1,64,64,3" in readme) == (exporter == "litert") and "not run on hardware" in readme
    result, digest = made / "results" / "result.txt", made / "results" / "artifact.sha256"
    result.write_text(printed.replace("m.tflite", artifact.name).replace("u2netp.pte", artifact.name))

    def row() -> Row:
        claim = Claim("phone", artifact=artifact)
        return reports(result, form, claim, None, judge(made, result))[0].rows[0]

    assert not row().images and any("no fidelity" in note for note in row().notes)
    for name in data["pictures"]:
        x = np.fromfile(made / "inputs" / f"{name}.bin", "<f4")
        x = x.reshape(64, 64, 3).transpose(2, 0, 1) if options else x.reshape(3, 64, 64)
        source.predict(np.ascontiguousarray(x[None])).astype("<f4").tofile(made / "results" / f"{name}.mask")
    with pytest.raises(UserError, match=r"no such file: .*artifact\.sha256"):
        row()
    digest.write_text(f"{'0' * 64}  {artifact.name}\n")
    with pytest.raises(UserError, match="is of another file"):
        row()
    digest.write_text(f"{artifact.files[artifact.name]}  {artifact.name}\n")
    found = row().fidelity
    assert found and found.mae_worst < 1e-6 and len(row().images) == 5
    (made / "results" / "golden.mask").unlink()
    with pytest.raises(UserError, match="names no mask of golden"):
        row()


@pytest.mark.slow
def test_kits_want_the_right_artifact(source: Source, artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no artifact for a kit for coreml"):
        write(artifact, source, "coreml", tmp_path)
    other = replace(source, weights=replace(source.weights, sha256="0" * 64))
    with pytest.raises(UserError, match="was made from other weights"):
        write(artifact, other, "android", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_coreml_kit_and_a_stretched_mask(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from PIL import Image

    from u2export.exporters.coreml.exporter import CoreML
    from u2export.exporters.coreml.ports import picture
    from u2export.reference.image import saliency

    source = random_source()
    made = CoreML().export(source, tmp_path, Request("fp16", condition=False, budget={"mae": 1, "mae_worst": 1}))
    source = random_source(made.contract)
    kit = write(made, source, "coreml", tmp_path)
    assert (kit / made.name).is_dir() and made.name in (kit / "README.md").read_text()
    # What Core ML would give, by the evaluator of the saved package; the picture is read back from the kit's PNG.
    masks = {}
    with CoreML().load(made) as runner:
        for file in sorted((kit / "inputs").glob("*.png")):
            with Image.open(file) as image:
                pixels = np.asarray(image)
            x = made.contract.tensor(pixels)
            assert (picture(x, made.contract)[0].transpose(1, 2, 0).round() == pixels).all()
            saliency(runner(x)[0, 0]).astype("<f4").tofile(kit / "results" / f"{file.stem}.mask")
            masks[file.stem] = f"{file.stem}.mask"
    digest = json.loads((kit / "kit.json").read_text())["artifact_sha256"]
    result = kit / "results" / "result.json"
    result.write_text(json.dumps({
        "format": KIT_FORMAT, "device": {"model": "iPhone16,1"}, "runtime": "Core ML", "artifact_sha256": digest,
        "masks": masks, "predict_ms": [3.0],
    }))  # fmt: skip
    (report,) = reports(result, "coreml", Claim(artifact=artifact_of(kit)), None, judge(kit, result))
    fidelity = report.rows[0].fidelity
    assert fidelity and fidelity.mae < 0.05 and fidelity.finite


def test_the_study_of_phones_judges_and_times_its_artifacts(artifact: Artifact, tmp_path: Path) -> None:
    words = [str(artifact.path), "--sets", f"four={ROOT / 'reference' / 'photos'}", "--photos", "2", "--rounds", "6"]
    assert phones.STUDY.main([*words, "--weights", "random-u2netp", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "phones.json").read_text())["rows"]
    assert row["fidelity"]["all"]["mae"] < 1e-5 and row["ratio"] == [1, 1, 1] and min(row["ns"]) > 1e5
    page = (tmp_path / "phones.md").read_text()
    assert f"| {artifact.name} | ONNX Runtime" in page and "## Limits" not in page


def test_the_study_of_phones_compares_int8_with_its_limits() -> None:
    masks = {"mae": 0.0025, "iou": 0.9931, "iou_worst": 0.9522}
    row = {"artifact": "m.tflite", "exporter": "litert", "precision": "int8", "fidelity": {"all": masks},
           "ratio": [0.31, 0.3, 0.32]}  # fmt: skip
    told = phones.limits([row, {**row, "precision": "fp16"}, {**row, "artifact": "m.pte", "exporter": "executorch"}])
    assert [line.strip("| ").split(" | ")[1:] for line in told.splitlines() if line.startswith("| m.")] == [
        ["MAE", "at most 0.0024", "0.0025", "no"], ["CPU time", "at most 0.32", "0.31", "yes"],
        ["IoU", "at least 0.992", "0.9931", "yes"], ["IoU worst", "at least 0.96", "0.9522", "no"],
        ["MAE", "at most 0.003", "0.0025", "yes"], ["IoU", "at least 0.99", "0.9931", "yes"],
        ["IoU worst", "at least 0.95", "0.9522", "yes"],
    ]  # fmt: skip


def test_a_folder_that_is_no_kit(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text("{}")
    two_lines(cli("import", file, "--as", "kit", "--kit", tmp_path), "no such file")
    (tmp_path / "kit.json").write_text("[]")
    two_lines(cli("import", file, "--as", "kit", "--kit", tmp_path), "is not of a kit")
    with pytest.raises(UserError):
        judge(tmp_path, file)(TimedModel("kit"))


MANIFEST = {"schema": 1, "pictures": ["golden"], "artifact": "m.ort", "artifact_sha256": "", "output": "d0"}


@given(st.sampled_from(list(MANIFEST)), st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers()))
def test_damaged_kits_are_user_errors(tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "kit.json").write_text(json.dumps({**MANIFEST, key: value}))
    with pytest.raises(UserError) as caught:
        judge(folder, folder / "r.json")(TimedModel("kit", masks={"golden": "golden.mask"}))
    assert caught.value.problem and caught.value.hint
