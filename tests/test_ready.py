"""Ready artifacts: what the package ships is whole, is what it says, and runs without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, two_lines
from PIL import Image

import u2export as u2
from u2export.exporters.ready import FOLDER, READY, ready
from u2export.reference.image import Contract, mask_for
from u2export.reference.photos import open_photo
from u2export.reference.verification import verification_photos
from u2export.reference.weights import WEIGHTS, file_digest


@pytest.mark.parametrize("name", READY)
def test_a_shipped_artifact_is_that_of_its_record(name: str) -> None:
    artifact = ready(name)
    assert artifact.files == {artifact.name: file_digest(artifact.path)}
    assert f"sha256:{artifact.weights.sha256}" == WEIGHTS[artifact.weights.name].digest
    assert artifact.contract == Contract() and artifact.size < 3_000_000
    assert artifact.fidelity["iou"] > 0.98 and artifact.calibration["photos"] >= 16
    assert not artifact.weights.path and {p.name for p in FOLDER.iterdir()} == {artifact.name, artifact.record.name}


def test_pull_writes_file_and_record(cli: Cli, tmp_path: Path) -> None:
    done = cli("pull", "u2netp-int8", "--out", tmp_path / "a b")
    (path,) = map(Path, done.stdout.splitlines())
    assert path == tmp_path / "a b" / "u2netp-320-ort-int8.onnx" and "sha256" in done.stderr
    assert u2.read_artifact(path).precision == "int8"
    path.write_bytes(b"damaged")
    assert json.loads(cli("pull", "u2netp-int8", "--out", tmp_path / "a b", "--json").stdout)["precision"] == "int8"
    assert u2.read_artifact(path).path == path


def test_pull_of_what_is_not_there(cli: Cli, tmp_path: Path) -> None:
    two_lines(cli("pull", "u2netp", "--out", tmp_path), "no ready artifact named 'u2netp'")
    (tmp_path / "file").write_text("")
    two_lines(cli("pull", "u2netp-int8", "--out", tmp_path / "file"), "cannot write to")


def test_it_runs_without_torch_and_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code = (
        "import sys; sys.modules.update({name: None for name in ('torch', 'onnx', 'onnxsim', 'openvino', 'nncf')})\n"
        "from u2export.cli import main; sys.exit(main())"
    )
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 48), (200, 40, 40)).save(photo)
    for words in (
        ("pull", "u2netp-int8", "--out", tmp_path),
        ("predict", photo, "--model", tmp_path / "u2netp-320-ort-int8.onnx", "--out", tmp_path / "masks"),
    ):
        done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "masks" / "photo.png") as mask:
        assert mask.size == (64, 48)


@pytest.mark.slow
def test_its_masks_are_those_of_the_published_file(u2netp: Path) -> None:
    pytest.importorskip("onnxruntime")
    ious = []
    with u2.open_artifact(ready("u2netp-int8"), threads=1) as small, u2.open_artifact(u2netp, threads=1) as published:
        for photo in verification_photos():
            pixels = np.asarray(open_photo(photo).pixels)
            want = mask_for(published(published.input(photo))[0, 0], *pixels.shape[:2]) > 127
            got = small.mask(photo) > 127
            ious.append(float((got & want).sum() / (got | want).sum()))
    assert np.mean(ious) > 0.975 and min(ious) > 0.94
