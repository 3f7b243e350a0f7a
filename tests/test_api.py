"""The Python API: light to import, typed, and the same files as the command line."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Cli
from PIL import Image

import u2export as u2
from u2export.errors import UserError

LOOSE = "mae=1,mae_worst=1"


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file but the records, which hold the time."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".json")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_import_loads_nothing() -> None:
    code = (
        "import sys; import u2export as u2; print(sorted(n for n in sys.modules if n.startswith('u2export.')), "
        "'numpy' in sys.modules, 'rich' in sys.modules, set(u2.__all__) <= set(dir(u2)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['u2export.errors', 'u2export.version'] False False True"


def test_every_public_name_loads() -> None:
    for name in u2.__all__:
        assert getattr(u2, name) is not None
    with pytest.raises(AttributeError, match="fly"):
        u2.fly  # noqa: B018


def test_the_facade_says_for_types_what_it_loads() -> None:
    lines = (ROOT / "src/u2export/__init__.py").read_text().splitlines()
    typed = {
        name.strip(): line.split()[1]
        for line in lines
        if line.startswith("    from u2export.api.")
        for name in line.partition(" import ")[2].split(",")
    }
    assert typed == u2._MODULES


@pytest.mark.parametrize(
    ("target", "precision", "options", "words"),
    [
        ("onnx", "fp16", {}, ()),
        pytest.param(
            "onnx", "", {"all_outputs": True, "opset": 16}, ("--all-outputs", "--opset", "16"), marks=pytest.mark.slow
        ),
        ("ort", "int8", {"calib": "calibration/", "weight_bits": 8}, ("--calib", "calibration/", "--weight-bits", "8")),
    ],
    ids=["onnx fp16", "onnx with options", "ort int8"],
)
def test_python_and_the_command_line_write_the_same_bytes(
    target: str, precision: str, options: dict[str, Any], words: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("onnxsim")
    here, there = tmp_path / "python", tmp_path / "command"
    made = u2.export(target, precision, weights="random-u2netp", size=64, out=here, budget=LOOSE, **options)
    flag = (f"--{precision}",) if precision else ()
    common = ("--weights", "random-u2netp", "--size", "64", "--budget", LOOSE)
    result = cli(target, *flag, *words, *common, "--out", there)
    assert result.returncode == 0, result.stderr
    assert hashes(here) == hashes(there) and made.files
    record, other = u2.read_artifact(made.path), u2.read_artifact(Path(result.stdout.strip()))
    assert (record.options, record.calibration, record.fidelity) == (other.options, other.calibration, other.fidelity)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> u2.Artifact:
    pytest.importorskip("onnxsim")
    return u2.export("onnx", weights="random-u2netp", size=64, out=tmp_path_factory.mktemp("api"))


def test_masks_are_those_of_the_command_line(artifact: u2.Artifact, cli: Cli, photo: Path, tmp_path: Path) -> None:
    (mask,) = u2.predict(artifact, photo).values()
    assert mask.shape == (90, 120) and mask.dtype == np.uint8
    assert cli("predict", photo, "--model", artifact.path, "--out", tmp_path / "m").returncode == 0
    with Image.open(tmp_path / "m" / "photo.png") as written:
        np.testing.assert_array_equal(np.asarray(written), mask)
    made = u2.write_masks(artifact, [photo], tmp_path / "p")
    assert hashes(tmp_path / "p") == hashes(tmp_path / "m") and not made.skipped


def test_photos_that_cannot_be_read_are_errors_or_handed_over(
    artifact: u2.Artifact, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        u2.predict(artifact, [photo, bad])
    skipped: list[Path] = []
    masks = u2.predict(artifact, [photo, bad], skip=lambda path, error: skipped.append(path))
    assert (list(masks), skipped) == ([photo], [bad])


def test_an_open_artifact_runs_inputs_and_photos(artifact: u2.Artifact, photo: Path) -> None:
    with u2.open_artifact(artifact.path, threads=1) as runner:
        d0 = runner(runner.input(photo))
        assert d0.shape == (1, 1, 64, 64) and d0.dtype == np.float32
        with Image.open(photo) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        np.testing.assert_array_equal(runner.mask(pixels), runner.mask(str(photo)))
        assert runner.info["threads"] == "1"
    with pytest.raises(UserError, match="cannot run as int4"), u2.open_artifact(artifact, "int4"):
        pass


@pytest.mark.parametrize(
    ("words", "options", "problem"),
    [
        (("tflite",), {}, "no target named 'tflite'"),
        (("onnx", "int8"), {}, "ONNX has no int8"),
        (("ort", "int8"), {}, "needs calibration photos"),
        (("onnx",), {"mobile": True}, "ONNX has no option 'mobile'"),
        (("onnx",), {"size": "320,640"}, "takes one size"),
        (("onnx",), {"size": "big"}, "'big' is not a size"),
        (("onnx",), {"resize": "nearest"}, "no resize named 'nearest'"),
        (("onnx",), {"budget": {"speed": 1.0}}, "no measure named 'speed'"),
        (("coreml",), {"target": "ios9"}, "no Core ML target named 'ios9'"),
    ],
)
def test_wrong_exports(words: tuple[str, ...], options: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        u2.export(*words, **options)
    assert caught.value.hint


def test_several_sizes_are_an_option_of_core_ml(monkeypatch: pytest.MonkeyPatch) -> None:
    from u2export.api import exporting

    exporter = exporting._exporter("coreml", [(256, 384)], {"target": "ios18", "group": 8})
    assert (exporter.sizes, exporter.target, exporter.group) == (((256, 384),), "ios18", 8)  # type: ignore[attr-defined]
    assert exporting._sizes("320, 256x384") == [(320, 320), (256, 384)]


def test_a_hint_names_the_option_for_python_and_for_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    from u2export.commands.console import fail

    error = UserError("it needs photos", "give calibration photos", "keep_float")
    assert fail(error, 2) == 2
    assert capsys.readouterr().err == "u2export: it needs photos\n  give calibration photos (--keep-float)\n"
    if sys.version_info >= (3, 11):
        assert error.__notes__ == ["give calibration photos (keep_float=)"]
