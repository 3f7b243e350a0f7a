from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from builders import ANY_MASKS, SMALL, random_source
from test_importers import EXECUTED

from u2export.errors import UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.executorch.exporter import ExecuTorch
from u2export.exporters.exporter import Request
from u2export.exporters.inspection import inspect
from u2export.exporters.open import adopt, read_artifact
from u2export.reference.golden import picture
from u2export.reference.image import Contract

pytest.importorskip("torch")

from u2export.calibration.dataset import Calibration
from u2export.reference.source import Source


@pytest.fixture(scope="module")
def small() -> Source:
    return random_source()


@pytest.fixture(scope="module")
def exported(small: Source, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """What exports at a precision, once each: lowering takes half a minute whatever the size."""
    if problem := ExecuTorch().missing():
        pytest.skip(str(problem))
    folder, photos = tmp_path_factory.mktemp("executorch"), Calibration.bundled(SMALL).subset(2)

    @cache
    def export(precision: str) -> Artifact:
        int8 = Request("int8", photos, condition=False, budget=ANY_MASKS)
        return ExecuTorch().export(small, folder, Request("fp32") if precision == "fp32" else int8)

    return export


@pytest.mark.parametrize(
    ("precision", "weight", "activation", "most"),
    [
        pytest.param("fp32", "float32", "float32", 1e-5, marks=pytest.mark.slow),
        ("int8", "int8 per channel", "int8", 0.5),
    ],
)
def test_the_program_is_the_network(
    exported: Callable[[str], Artifact], small: Source, precision: str, weight: str, activation: str, most: float
) -> None:
    artifact = exported(precision)
    assert artifact.name == f"random-u2netp-64-executorch-{precision}.pte"
    assert read_artifact(artifact.record).files == artifact.files
    assert any("XNNPACK: 100.0% of the work" in note for note in artifact.notes)
    found = inspect(artifact.path)
    assert [(p.kind, p.shape) for p in (*found.inputs, *found.outputs)] == [
        ("float32", ("1", "3", "64", "64")), ("float32", ("1", "1", "64", "64")),
    ]  # fmt: skip
    assert found.weights == {weight: 119} and found.activations == {activation: 119}
    assert found.layers[0].shape == (64, 3, 3, 3) and found.operations["Conv2d"] == 119
    assert Contract.from_json(found.stamp["contract"]) == SMALL
    assert found.stamp["weights_sha256"] == small.weights.sha256 and found.stamp["tools"]["executorch"]
    x = SMALL.tensor(picture())
    with ExecuTorch().load(artifact, threads=1) as runner:
        d0 = runner(x)
        assert d0.shape == (1, 1, 64, 64) and d0.dtype == np.float32
        error = np.abs(d0 - small.predict(x)).max()
        assert error < most and (error > 1e-4) == (precision == "int8")
        kept = d0.copy()
        runner(x * 0.5)
        np.testing.assert_array_equal(d0, kept)  # not a view the runtime writes to again
        assert runner.info["arithmetic"] == precision and runner.info["threads"] == "1"
        assert runner.info["provider"] == "XNNPACK" and min(runner.opening.values()) > 0


@pytest.mark.slow
def test_a_missed_budget_adds_float_layers(exported: Callable[[str], Artifact], small: Source, tmp_path: Path) -> None:
    raw = exported("int8").fidelity["raw_mae"]
    photos, budget = Calibration.bundled(SMALL).subset(2), {"raw_mae": 0.8 * raw, **ANY_MASKS}
    made = ExecuTorch().export(small, tmp_path, Request("int8", photos, False, budget, max_float=0.3))
    added = read_artifact(made.record).added_float
    assert made.fidelity["raw_mae"] <= 0.8 * raw and added["pure_int8"]["raw_mae"] == pytest.approx(raw, rel=1e-3)
    # PyTorch judged the float layers, and XNNPACK the file.
    assert made.fidelity["raw_mae"] == pytest.approx(added["with_float"]["raw_mae"], rel=0.1)
    assert 0 < added["float_share"] <= 0.301 and any("pure int8 missed the budget" in note for note in made.notes)
    floats = len(added["float_layers"])
    assert inspect(made.path).activations == {"float32": floats, "int8": 119 - floats}
    with ExecuTorch().load(made) as runner:
        assert runner.info["arithmetic"] == "int8" and runner.info["delegated"] == "100.0% of the work"
        assert sorted(runner.info["convolutions"].removesuffix(" in XNNPACK").split(", ")) == sorted(
            [f"{floats} fp32", f"{119 - floats} int8"]
        )


def test_many_damaged_files_are_read_or_refused() -> None:
    """Cases of `nox -s fuzz` for .pte files: a worker inspects each, and opens it in the runtime."""
    if problem := ExecuTorch().missing():
        pytest.skip(str(problem))
    from u2export.benchmarks.studies import fuzz
    from u2export.benchmarks.studies.reliability import fuzz_seeds

    files = [seed for seed in fuzz_seeds.phone_seeds() if seed[0] == "pte"]
    found = fuzz.fuzz(0, 120, 4 << 30, 60.0, files=files)
    assert not found["findings"] and found["kinds"]["pte"]["read"] > 10 < found["kinds"]["pte"]["refused"]


def test_masks_of_a_kit_come_back(exported: Callable[[str], Artifact], small: Source, tmp_path: Path) -> None:
    """What `executor_runner` does with the files of a kit: bytes in, bytes out, by ExecuTorch's runtime."""
    import torch
    from executorch.runtime import Runtime

    from u2export.benchmarks.imports.kit import artifact_of, judge, write
    from u2export.benchmarks.imports.rows import Claim, reports

    artifact = exported("int8")
    kit = write(artifact, small, "android", tmp_path)
    method = Runtime.get().load_program(kit / artifact.name).load_method("forward")
    assert method
    for file in (kit / "inputs").glob("*.bin"):
        d0 = method.execute([torch.from_numpy(np.fromfile(file, "<f4").reshape(SMALL.shape))])[0]
        (kit / "results" / f"{file.stem}.mask").write_bytes(d0.numpy().tobytes())
    result = kit / "results" / "result.txt"
    result.write_text(EXECUTED.replace("u2netp.pte", artifact.name))
    (kit / "results" / "artifact.sha256").write_text(hashlib.sha256(artifact.path.read_bytes()).hexdigest())
    (report,) = reports(result, "executorch", Claim("phone", artifact=artifact_of(kit)), None, judge(kit, result))
    images = report.rows[0].images
    worst = artifact.fidelity["mae_worst"]  # of the same photos, when the file was made
    assert len(images) == 5 and min(abs(image.mae - worst) for image in images.values()) < 1e-6


def test_work_outside_xnnpack_is_counted_and_warned_of(small: Source, caplog: pytest.LogCaptureFixture) -> None:
    from u2export.exporters.executorch.exporter import _notes
    from u2export.exporters.executorch.program import Contents

    held = Contents((), (), Counter({"Conv2d": 100}), Counter({"aten::convolution": 19}), (), (), (90, 100))
    assert _notes(held) == ("XNNPACK: 90.0% of the work, 100 of 119 operations",)
    assert "slow kernels: aten::convolution" in caplog.text


def test_files_without_a_record(exported: Callable[[str], Artifact], tmp_path: Path) -> None:
    path = tmp_path / "theirs.pte"
    shutil.copy(exported("int8").path, path)
    artifact = adopt(path)
    assert artifact.exporter == "executorch" and artifact.contract == SMALL
    assert ExecuTorch().arithmetics(artifact) == ("int8",)
    path.write_bytes(path.read_bytes().replace(b"u2export_", b"somebody_"))  # a file of others: no stamp of ours
    assert inspect(path).stamp == {} and adopt(path).contract == SMALL


@pytest.mark.parametrize("length", [0, 7, 100, 5000, 1_000_000])
def test_damaged_files(exported: Callable[[str], Artifact], tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pte"
    path.write_bytes(exported("int8").path.read_bytes()[:length])
    for opened in (inspect, adopt):
        with pytest.raises(UserError, match=r"cut\.pte"):
            opened(path)
    with pytest.raises(UserError, match=r"cut\.pte"):
        ExecuTorch().load(replace(exported("int8"), path=path))
