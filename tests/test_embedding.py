"""Files that take pixels and give masks: the image contract inside of ONNX Runtime's and OpenVINO's models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SMALL, random_source
from conftest import ROOT, Cli
from PIL import Image

from u2export.exporters import embedding
from u2export.exporters.exporter import Exporter, Request
from u2export.exporters.inspection import inspect
from u2export.exporters.openvino import OpenVINO
from u2export.exporters.ort import Ort
from u2export.reference.golden import picture
from u2export.reference.image import Pixels, saliency
from u2export.reference.photos import open_photo
from u2export.reference.verification import verification_photos

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxsim")

from u2export.calibration.dataset import Calibration
from u2export.reference.source import Source

ANY_MASKS = {"mae": 1.0, "mae_worst": 1.0}
TARGETS = [Ort(embed_preprocess=True), OpenVINO(embed_preprocess=True)]


@pytest.fixture(scope="module")
def small() -> Source:
    return random_source()


def available(exporter: Exporter) -> None:
    if problem := exporter.missing():
        pytest.skip(str(problem))


def masks(path: Path, *pictures: Pixels) -> list[Any]:
    """What the maker's own runtime gives for pictures (H, W, 3), fed as the user of the file feeds them."""
    if path.suffix == ".xml":
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        return [np.array(compiled(pixels[None])[0]) for pixels in pictures]
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return [session.run(["mask"], {"image": pixels[None]})[0] for pixels in pictures]


@pytest.mark.parametrize("exporter", TARGETS, ids=lambda e: e.name)
def test_pixels_of_any_size_give_the_contracts_mask(small: Source, tmp_path: Path, exporter: Exporter) -> None:
    available(exporter)
    artifact = exporter.export(small, tmp_path, Request("fp32"))
    assert artifact.name == f"random-u2netp-64-{exporter.name}-fp32-uint8{exporter.suffix}"
    assert artifact.contract.rounded and artifact.options["embed_preprocess"]
    assert artifact.fidelity["mae"] < 1e-4 and "any size" in artifact.notes[-1]
    photos = [picture(), np.ascontiguousarray(picture()[::3, ::5] // 2), picture()[:64, :64], picture()[:40, :20]]
    for pixels, mask in zip(photos, masks(artifact.path, *photos), strict=True):
        want = saliency(small.predict(SMALL.tensor(pixels)))
        assert mask.shape == (1, 1, 64, 64)
        np.testing.assert_allclose(mask, want, atol=2e-4)
    black = masks(artifact.path, np.zeros((50, 60, 3), np.uint8))[0]
    assert np.isfinite(black).all()  # neither a maximum nor a range to divide by
    with exporter.load(artifact) as runner:
        x = artifact.contract.tensor(picture())
        np.testing.assert_allclose(runner(x), saliency(small.predict(x)), atol=2e-4)
    (entry,), (output,) = (found := inspect(artifact.path)).inputs, found.outputs
    assert (entry.name, entry.kind, output.name, output.shape) == ("image", "uint8", "mask", ("1", "1", "64", "64"))
    assert entry.shape[0] == "1" and entry.shape[3] == "3"


def test_held_back_photos_are_rounded_for_the_reference_too(small: Source, tmp_path: Path) -> None:
    """Else the record counts the rounding of the photo as an error of the file."""
    available(TARGETS[0])
    artifact = TARGETS[0].export(small, tmp_path, Request("fp32", held_back=Calibration.bundled(SMALL).subset(3)))
    assert artifact.fidelity["photos"] == 7 and artifact.fidelity["mae_worst"] < 1e-5


@pytest.mark.parametrize("exporter", TARGETS[:1], ids=lambda e: e.name)
def test_other_filters_stay_outside(small: Source, tmp_path: Path, exporter: Exporter) -> None:
    available(exporter)
    source = replace(small, contract=replace(SMALL, resize="lanczos"))
    artifact = exporter.export(source, tmp_path, Request("fp32"))
    assert "lanczos resize stays outside" in artifact.notes[-1]
    assert inspect(artifact.path).inputs[0].shape == ("1", "64", "64", "3")


@pytest.mark.slow
@pytest.mark.parametrize("exporter", TARGETS, ids=lambda e: e.name)
def test_int8_with_the_contract_inside_equals_int8_without(small: Source, tmp_path: Path, exporter: Exporter) -> None:
    available(exporter)
    request = Request("int8", Calibration.bundled(SMALL).subset(2), condition=False, budget=ANY_MASKS)
    artifact = exporter.export(small, tmp_path, request)
    plain = replace(exporter, embed_preprocess=False).export(embedding.of_pixels(small), tmp_path, request)
    x = artifact.contract.tensor(picture())
    with exporter.load(artifact) as runner, exporter.load(plain) as other:
        assert runner.info["arithmetic"] == "int8"
        np.testing.assert_allclose(runner(x), saliency(other(x)), atol=0.02)  # a step of 8 bit where a value is halfway


@pytest.mark.slow
@pytest.mark.parametrize("exporter", TARGETS, ids=lambda e: e.name)
def test_real_weights_hold_the_budget_and_photos_need_no_resize(
    published: Source, tmp_path: Path, exporter: Exporter
) -> None:
    available(exporter)
    source = published
    artifact = exporter.export(source, tmp_path, Request("fp32"))
    assert artifact.fidelity["mae"] < 1e-5
    photo = np.asarray(open_photo(verification_photos()[0]).pixels, np.uint8)
    want = saliency(source.predict(source.contract.tensor(photo)))
    (mask,) = masks(artifact.path, photo)
    assert np.abs(mask - want).mean() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("ort",), ("ort", "--mobile"), ("openvino",), ("openvino", "--quantizer", "nncf")],
    ids=["ort", "ort mobile", "openvino", "openvino nncf"],
)
def test_int8_of_real_weights_takes_photos_in_every_command(
    u2netp: Path, cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Export, inspect, predict and bench by command; the masks of photos are those of PyTorch within int8's budget."""
    available({"ort": Ort(), "openvino": OpenVINO()}[words[0]])
    options = ("--int8", "--embed-preprocess", "--calib", ROOT / "calibration", "--limit", 8, "--weights", u2netp)
    done = cli(*words, *options, "--out", tmp_path / "a", timeout=900)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    (entry,) = json.loads(cli("inspect", path, "--json").stdout)["inputs"]
    assert (entry["name"], entry["kind"], entry["shape"][3]) == ("image", "uint8", "3")

    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in verification_photos()[:2]:
        shutil.copy(photo, photos)
    assert cli("predict", photos, "--model", path, "--out", tmp_path / "masks").returncode == 0
    for photo in photos.iterdir():
        with Image.open(tmp_path / "masks" / f"{photo.stem}.png") as mask, Image.open(photo) as whole:
            assert mask.size == whole.size

    results = tmp_path / "results.json"
    assert cli("bench", path, "--images", photos, "--no-latency", "--json", results, timeout=300).returncode == 0
    row = next(r for r in json.loads(results.read_text())["rows"] if r["name"] == path.name)
    assert not row["reason"] and row["arithmetic"] == "int8"
    assert np.mean([image["iou"] for image in row["images"].values()]) > 0.95
