from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli, two_lines
from PIL import Image

from u2export.commands.targets import PHONES
from u2export.exporters.trt.installed import devices

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "coremltools", "tensorrt", "scipy", "matplotlib", "cv2",
         "litert_torch", "ai_edge_litert", "jax", "executorch")  # fmt: skip


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["onnx", "--help"], ["bench", "--help"], ["weights", "list"]]
)
def test_light_commands_load_nothing_heavy(cli: Cli, words: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['u2export', *sys.argv[1:]]\nfrom u2export.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip().splitlines()[-1] == "LOADED []", result.stdout + result.stderr


def test_help_names_every_command(cli: Cli) -> None:
    text = cli("--help").stdout
    for word in ("onnx", "ort", "openvino", "bench", "predict", "targets", "weights", "golden"):
        assert word in text


def test_usage_errors_exit_with_2(cli: Cli) -> None:
    assert cli("onnx", "--nope").returncode == 2
    assert cli("fly").returncode == 2


def test_targets(cli: Cli) -> None:
    rows = json.loads(cli("targets", "--json").stdout)
    assert {"onnx", "ort", "openvino", "litert"} <= {row["target"] for row in rows}
    for row in rows:
        assert row["when"]
        for step in ("export", "build", "run", "simulate"):
            answer = row[step] or {"possible": True}
            assert answer["possible"] or (answer["why"] and answer["fix"])
    found = {row["target"]: row for row in rows}
    assert found["onnx"]["build"] is None and found["onnx"]["simulate"] is None
    if not devices():  # typed ONNX in ONNX Runtime, and a package in PyTorch, are simulations
        assert found["trt"]["run"]["why"] == "no CUDA device" and found["trt"]["simulate"] == found["trt"]["export"]
    assert found["coreml"]["run"]["possible"] <= (sys.platform == "darwin")


def test_targets_names_the_measured_figures_of_phones() -> None:
    file = Path(__file__).parents[1] / "benchmarks/results/phones/xeon/phones.json"
    rows = {row["artifact"]: row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
    for (name, *told), suffix in zip(PHONES, (".tflite", ".pte", ".ort"), strict=True):
        row = rows[f"u2netp-320-{name.split()[0]}-int8{suffix}"]
        found = row["fidelity"]["all"]
        figures = (
            f"{found['mae']:.4f}",
            f"{found['iou_worst']:.3f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['ratio'][0]:.2f}",
        )
        assert told == [figure.removeprefix("0") for figure in figures]


def test_targets_on_a_narrow_terminal(cli: Cli) -> None:
    shown = cli("targets", env={"COLUMNS": "80"}).stdout
    assert "no CUDA device" in shown or devices()
    assert "litert      an Android app or a Linux board runs it" in shown
    table = shown.split("\n\n")[0]
    assert all(len(line) <= 80 for line in table.splitlines()) and "w8a8" in table


def test_wrong_requests_are_two_lines(cli: Cli, tmp_path: Path) -> None:
    two_lines(cli("onnx", "--size", "big"), "'big'", code=2)
    two_lines(cli("onnx", "--size", "0"), "0x0", code=2)
    two_lines(cli("onnx", "--opset", "12"), "opset 12", code=2)
    two_lines(cli("onnx", "--fp32", "--fp16"), "exclude", code=2)
    two_lines(cli("onnx", "--budget", "mae=x"), "mae=x", code=2)
    two_lines(cli("predict", tmp_path / "gone.jpg", "--model", "m.onnx"), "m.onnx")
    two_lines(cli("weights", "pull", "u2nett"), "u2nett")
    for module in ("onnxsim", "onnxruntime"):
        pytest.importorskip(module)
    two_lines(cli("onnx", "--weights", "u2nett"), "u2nett")


@pytest.fixture(scope="module")
def artifact(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxsim")
    out = tmp_path_factory.mktemp("artifacts")
    result = cli("onnx", "--weights", "random-u2netp", "--size", "64", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "random weights" in result.stderr
    return Path(result.stdout.strip())


def test_export_prints_the_path_or_the_record(cli: Cli, artifact: Path, tmp_path: Path) -> None:
    assert artifact.is_file()
    result = cli("onnx", "--weights", "random-u2netp", "--size", "32x64", "--out", tmp_path, "--json")
    record = json.loads(result.stdout)
    assert Path(record["path"]).is_file() and record["contract"]["height"] == 32 and record["contract"]["width"] == 64


def test_predict_writes_masks_and_cutouts(cli: Cli, artifact: Path, photo: Path, tmp_path: Path) -> None:
    result = cli("predict", photo, "--model", artifact, "--out", tmp_path / "m")
    assert result.stdout.strip() == str(tmp_path / "m" / "photo.png")
    with Image.open(tmp_path / "m" / "photo.png") as mask:
        assert mask.mode == "L" and mask.size == (120, 90)
    record = artifact.with_name(artifact.name + ".json")
    assert cli("predict", photo, "--model", record, "--out", tmp_path / "c", "--cutout").returncode == 0
    with Image.open(tmp_path / "c" / "photo.png") as cutout:
        assert cutout.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(cutout)[..., :3], np.asarray(Image.open(photo)))


def test_predict_reports_and_counts_bad_photos(cli: Cli, artifact: Path, photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "good.png").write_bytes(photo.read_bytes())
    (folder / "sub" / "good.png").write_bytes(photo.read_bytes())
    (folder / "bad.jpg").write_text("no")
    result = cli("predict", folder, "--model", artifact, "--out", tmp_path / "m")
    assert result.returncode == 0
    assert "bad.jpg" in result.stderr and "1 of 3 photos skipped" in result.stderr
    assert (tmp_path / "m" / "good.png").is_file() and (tmp_path / "m" / "sub" / "good.png").is_file()
    two_lines(cli("predict", folder, "--model", artifact, "--out", tmp_path / "s", "--strict"), "bad.jpg")
    two_lines(cli("predict", folder / "bad.jpg", "--model", artifact, "--out", tmp_path / "s"), "bad.jpg")


def test_predict_never_overwrites_photos_or_results(cli: Cli, artifact: Path, photo: Path, tmp_path: Path) -> None:
    two_lines(cli("predict", photo, "--model", artifact, "--out", photo.parent), "overwrite the photo")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.png").write_bytes(photo.read_bytes())
    twice = (photo, tmp_path / "in" / "photo.png")
    two_lines(cli("predict", *twice, "--model", artifact, "--out", tmp_path / "m"), "both write")


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX")
def test_a_full_disk_leaves_earlier_output_alone(artifact: Path, photo: Path, tmp_path: Path) -> None:
    import resource

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))

    out = tmp_path / "m"
    out.mkdir()
    (out / "photo.png").write_bytes(b"earlier")
    command = [sys.executable, "-m", "u2export", "predict", str(photo), "--model", str(artifact), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=full, timeout=300)
    two_lines(result, "too large")
    assert [(p.name, p.read_bytes()) for p in out.iterdir()] == [("photo.png", b"earlier")]


def test_unwritable_output(
    cli: Cli, artifact: Path, photo: Path, tmp_path: Path, obeys_modes: Callable[[], None] | None
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    words = ("predict", photo, "--model", artifact, "--out", tmp_path / "locked" / "m")
    two_lines(cli(*words, preexec_fn=obeys_modes), "cannot write")


def test_output_folder_that_is_a_file(cli: Cli, artifact: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    two_lines(cli("predict", photo, "--model", artifact, "--out", tmp_path / "file"), "cannot write")
    two_lines(cli("onnx", "--weights", "random-u2netp", "--size", "64", "--out", tmp_path / "file"), "cannot write")


def test_quiet_keeps_results_only(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("onnxsim")
    result = cli("-q", "onnx", "--weights", "random-u2netp", "--size", "64", "--out", tmp_path)
    assert result.stderr == "" and Path(result.stdout.strip()).is_file()


def test_weights_info_and_convert(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    facts = json.loads(cli("weights", "info", "random-u2netp", "--json").stdout)
    assert (facts["variant"], facts["parameters"], facts["tensors"]) == ("u2netp", 1_131_181, 798)
    assert cli("weights", "convert", "random-u2netp", "--to", tmp_path / "w.safetensors").returncode == 0
    assert json.loads(cli("weights", "info", tmp_path / "w.safetensors", "--json").stdout)["variant"] == "u2netp"
    two_lines(cli("weights", "convert", "random-u2netp", "--to", tmp_path / "w.h5"), ".h5", code=2)
