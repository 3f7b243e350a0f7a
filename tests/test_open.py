"""Artifacts as they come from other people: ONNX of several files, records that lie, and all that `folder/*` names."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import SMALL, picture, random_source, stub_artifact
from conftest import Cli, two_lines
from PIL import Image

import u2export as u2
from u2export.api import inspecting, lower_precision
from u2export.benchmarks import roofline
from u2export.benchmarks.gate.baseline import Accepted
from u2export.benchmarks.measuring.bench import WITHOUT_REFERENCE
from u2export.benchmarks.measuring.rows import ReferenceChoice, find_weights, missing_references
from u2export.benchmarks.measuring.ssh import Address, SshMachine
from u2export.benchmarks.report import Row
from u2export.errors import UserError
from u2export.exporters.artifact import read_record
from u2export.exporters.exporter import Request
from u2export.exporters.open import read_artifact, read_artifacts, target_of
from u2export.reference import weights
from u2export.reference.weights import Identity, file_digest, weights_digest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxsim")
pytest.importorskip("onnxruntime")

from u2export.exporters.onnx import Onnx  # noqa: E402


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Onnx().export(random_source(), tmp_path_factory.mktemp("one"), Request("fp32")).path


@pytest.fixture
def parted(exported: Path, tmp_path: Path) -> Path:
    """A model without a record whose weights lie in `m.onnx.data` beside it."""
    folder = tmp_path / "parted"
    folder.mkdir()
    onnx.save(
        onnx.load(exported), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=1024
    )
    return folder / "m.onnx"


# ONNX of several files


def test_all_files_of_a_model_count(parted: Path) -> None:
    data = parted.with_name("m.onnx.data")
    artifact = read_artifact(parted)
    assert artifact.files == {p.name: file_digest(p) for p in (parted, data)}
    assert artifact.size == parted.stat().st_size + data.stat().st_size == inspecting.inspect(parted)[0].bytes
    assert artifact.weights.sha256 == weights_digest(parted) != file_digest(parted)
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    data.write_bytes(changed)
    other = read_artifact(parted)
    assert other.weights.sha256 == weights_digest(parted) != artifact.weights.sha256


def test_all_files_of_a_model_are_sent(parted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(machine: SshMachine, files: dict[str, Path]) -> None:
        for name, path in files.items():
            (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, tmp_path / "there" / name)

    monkeypatch.setattr(SshMachine, "_send", send)
    machine = SshMachine(Address("board"))
    machine.folder = str(tmp_path / "there")
    here = read_artifact(parted)
    machine.send_artifact(here)
    there = read_artifact(Path(machine.path(parted)))
    assert there.files == here.files and there.weights == here.weights
    with target_of(there).load(there) as runner:
        assert runner(SMALL.tensor(picture(0))).shape == (1, 1, 64, 64)


def missing(path: Path) -> None:
    path.with_name("m.onnx.data").unlink()


def cut(path: Path) -> None:
    data = path.with_name("m.onnx.data")
    data.write_bytes(data.read_bytes()[:-1])


def located(where: str) -> Callable[[Path], None]:
    def move(path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = where.format(folder=path.parent)
        path.write_bytes(model.SerializeToString())

    return move


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (missing, "its external data m.onnx.data is missing"),
        (cut, "its external data m.onnx.data is cut short"),
        (located("../x"), "outside its folder: '../x'"),
        (located("{folder}/m.onnx.data"), "outside its folder"),
    ],
)
def test_bad_external_data_is_named_by_every_reader(parted: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(parted)
    readers: tuple[Callable[[Path], object], ...] = (
        read_artifact,
        inspecting.inspect,
        lower_precision.weak_layers,
        lambda path: roofline.estimate(path, "none", local=False),
        lambda path: weights.load(str(path)),
        weights_digest,
    )
    for reader in readers:
        with pytest.raises(UserError) as caught:
            reader(parted)
        assert says in caught.value.problem and "\n" not in caught.value.problem and caught.value.hint


def test_shapes_that_contradict_each_other(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, (2, 5, 1, 1), [0.0] * 10)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", kind, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [1, 7, 9, 9])], [weight],
    )  # fmt: skip
    path = tmp_path / "wrong.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(UserError) as caught:
        weights.load(str(path))
    assert "\n" not in caught.value.problem


# Records


def nothing(record: dict[str, Any], _: Path) -> None:
    record["files"] = {}


def other_file(record: dict[str, Any], folder: Path) -> None:
    record["files"] = {"beside.bin": file_digest(folder / "beside.bin")}


def outside(record: dict[str, Any], folder: Path) -> None:
    record["files"]["../evil"] = file_digest(folder.parent / "evil")


def absolute(record: dict[str, Any], folder: Path) -> None:
    record["files"][str(folder / "beside.bin")] = file_digest(folder / "beside.bin")


def link(record: dict[str, Any], folder: Path) -> None:
    (folder / "link").symlink_to("../evil")
    record["files"]["link"] = file_digest(folder / "link")


def linked_folder(record: dict[str, Any], folder: Path) -> None:
    (folder / "sub").symlink_to("..")
    record["files"]["sub/evil"] = file_digest(folder.parent / "evil")


def values(**changes: Any) -> Callable[[dict[str, Any], Path], None]:
    return lambda record, _: record.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nothing, "its list of files lacks a.onnx"),
        (other_file, "its list of files lacks a.onnx"),
        (outside, "outside its folder"),
        (absolute, "outside its folder"),
        (link, "a link to another folder"),
        (linked_folder, "a link to another folder"),
        (values(files={"a.onnx": "short"}), "no sha256"),
        (values(files={"a.onnx": 7}), "no text"),
        (values(files=["a.onnx"]), "damaged"),
        (values(path=""), "damaged"),
        (values(path=7), "damaged"),
        (values(path=".."), "damaged"),
        (values(exporter=None), "damaged"),
        (values(exporter=["onnx"]), "damaged"),
        (values(precision=8), "damaged"),
        (values(notes="text"), ""),
        (values(notes=[1]), "no text"),
        (values(weights="u2netp"), "damaged"),
        (values(weights={"name": "u2netp", "sha256": 1}), "damaged"),
        (values(weights={}), "damaged"),
        (values(fidelity=[0.1]), "damaged"),
        (values(fidelity={"mae": float("nan")}), "nan is not a finite number"),
        (values(options={"deep": [{"x": float("inf")}]}), "inf is not a finite number"),
        (values(options=3), "damaged"),
        (values(contract={"version": 1, "height": 64.5}), "damaged"),
        (values(contract={"version": 1, "mean": ["a"], "std": [1]}), "damaged"),
        (values(contract={"version": 1, "mean": [0.0], "std": [1.0, 1.0]}), "damaged"),
        (values(contract=[]), ""),
        (values(schema=[1]), "schema"),
        (values(created=1), "damaged"),
    ],
)
def test_records_that_lie(tmp_path: Path, change: Callable[[dict[str, Any], Path], None], says: str) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (tmp_path / "evil").write_text("evil")
    (folder / "beside.bin").write_text("beside")
    artifact = stub_artifact(folder / "a.onnx", "onnx")
    assert read_artifact(artifact.path).files == artifact.files
    record = json.loads(artifact.record.read_text())
    change(record, folder)
    artifact.record.write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        read_artifact(artifact.path)
    assert says in caught.value.problem and "\n" not in caught.value.problem


def test_unknown_targets_are_named(tmp_path: Path) -> None:
    artifact = stub_artifact(tmp_path / "a.bin", "vulkan")
    with pytest.raises(UserError, match="unknown target 'vulkan'"), u2.open_artifact(artifact.path):
        pass


# Globs


def test_a_glob_over_a_folder(tmp_path: Path, cli: Cli, photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = cli(
        "trt", "--weights", "random-u2netp", "--size", 64, "--prepare-only", "--budget", "mae=1,mae_worst=1",
        "--out", tmp_path / "artifacts",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "artifacts"
    (folder / "results.json").write_text('{"schema": 2, "device": {}, "rows": [], "settings": {}}')
    (folder / "broken.json").write_text("{")
    (folder / "weights.bin").write_bytes(b"x")
    (folder / "calibration").mkdir()
    Image.new("L", (4, 4)).save(folder / "masks.png")

    def check_skipped(lines: list[str], count: int) -> None:
        skipped = [line for line in lines if "skipped" in line and "it is no artifact" in line]
        assert len(skipped) == count and any("results.json" in line for line in skipped)
        assert any(".recipe.json" in line for line in skipped)

    assert [a.exporter for a in read_artifacts(sorted(folder.glob("*.json")))] == ["trt"]
    check_skipped(caplog.messages, 3)
    done = cli("bench", *sorted(folder.glob("*")), "--images", photo, "--no-latency", "--json", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    check_skipped(done.stderr.splitlines(), 6)
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["exporter"] for row in rows if row["exporter"] != "pytorch"] == ["trt"]
    no_artifacts = [folder / "results.json", folder / "masks.png"]
    two_lines(cli("bench", *no_artifacts, "--images", photo), "none of the 2 paths is an artifact")
    two_lines(cli("bench", folder / "results.json", "--images", photo), "is not an artifact's record")


def test_an_artifact_counts_once_and_damage_stays_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (stub_artifact(tmp_path / f"{name}.onnx", "onnx") for name in "ab")
    (tmp_path / "sub").mkdir()
    around = tmp_path / "sub" / ".." / "a.onnx"
    assert [a.name for a in read_artifacts([one.path, one.record, around, one, two.record])] == ["a.onnx", "b.onnx"]
    with caplog.at_level(logging.WARNING):
        assert len(read_artifacts([one.path, tmp_path / "sub"])) == 1
    assert "skipped" in caplog.text
    with pytest.raises(UserError, match="no such artifact"):
        read_artifacts([one.path, tmp_path / "gone.onnx"])
    two.record.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_artifacts([one.path, two.record])
    two.path.write_text("changed")
    one.path.write_text("changed")
    with pytest.raises(UserError, match="is not the file"):
        read_artifacts([one.path, two.path])


# Own weights


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the name of published weights and other values."""
    path = tmp_path_factory.mktemp("own") / "u2netp.pth"
    weights.save(random_source().model, path)
    return path


@pytest.fixture(scope="module")
def own(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> u2.Artifact:
    return u2.export("onnx", weights=tuned, out=tmp_path_factory.mktemp("own"), size=64)


def test_fine_tuned_weights_do_not_take_a_published_name(tuned: Path, own: u2.Artifact) -> None:
    digits = file_digest(tuned)[:8]
    assert own.name == f"u2netp-{digits}-64-onnx-fp32.onnx" and own.weights.label == f"u2netp-{digits}"
    assert own.weights.name not in weights.WEIGHTS


def test_the_record_keeps_where_own_weights_are_and_results_do_not(
    tuned: Path, own: u2.Artifact, exported: Path
) -> None:
    recorded = json.loads(own.record.read_text())["weights"]
    assert recorded["path"] == str(tuned.resolve()) and recorded["sha256"] == file_digest(tuned)
    assert read_record(own.record).weights.path == str(tuned.resolve())
    assert "path" not in json.loads(exported.with_name(exported.name + ".json").read_text())["weights"]
    row = Row("a", "onnx", "fp32", "fp32", "u2netp", own.weights, SMALL.to_json())
    for plain in (row.to_json(), Accepted.of(row).to_json()):
        assert str(tuned.parent) not in json.dumps(plain) and plain["weights"]["sha256"] == own.weights.sha256


def test_bench_finds_own_weights_where_they_were(tuned: Path, own: u2.Artifact, photo: Path) -> None:
    report = u2.bench([own], photo, latency=False)
    row = report.row(own.name)
    assert row and row.reference == f"{own.weights.name}-64-pytorch-fp32" and not row.notes
    assert row.fidelity and row.fidelity.mae < 1e-3
    assert str(tuned.parent) not in json.dumps(report.to_json())


@pytest.mark.parametrize("change", ["moved", "changed", "old record"])
def test_bench_says_at_the_start_what_to_pass(
    tmp_path: Path, tuned: Path, own: u2.Artifact, photo: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    copy = tmp_path / "copy.pth"
    if change == "changed":
        copy.write_bytes(tuned.read_bytes() + b"0")
    identity = replace(own.weights, path="" if change == "old record" else str(copy))
    artifact = replace(own, weights=identity)
    if change != "moved":
        told = missing_references([artifact], ReferenceChoice())
        assert identity.sha256 in told[identity.sha256] and "--reference FILE" in told[identity.sha256]
        return
    with caplog.at_level(logging.WARNING):
        report = u2.bench([artifact], photo, latency=False)
    said = [r.message for r in caplog.records if "--reference FILE" in r.message]
    assert len(said) == 1 and identity.sha256 in said[0] and "compared with the fp32 ONNX" in said[0]
    assert WITHOUT_REFERENCE in report.rows[0].notes
    caplog.clear()
    report = u2.bench([artifact], photo, latency=False, reference=str(tuned))
    assert not caplog.records and report.rows[0].exporter == "pytorch" and not report.rows[1].notes


def test_whose_reference_is_missing(tmp_path: Path, own: u2.Artifact) -> None:
    lost = replace(own, weights=replace(own.weights, path=str(tmp_path / "gone.pth")), precision="int8")
    assert "compared with nothing" in missing_references([lost], ReferenceChoice())[own.weights.sha256]
    assert not missing_references([own], ReferenceChoice())
    assert not missing_references([lost], ReferenceChoice("pytorch"))
    for identity in (Identity("random-u2netp", "1" * 64, True), Identity("u2netp", "2" * 64)):
        assert not missing_references([replace(own, weights=identity)], ReferenceChoice())
    assert not missing_references([replace(lost, variant="unknown")], ReferenceChoice())


def test_weights_of_several_files_are_a_reference(parted: Path) -> None:
    identity = Identity("m", weights_digest(parted), path=str(parted))
    assert find_weights(identity, ReferenceChoice()) == str(parted)
    parted.with_name("m.onnx.data").unlink()
    assert find_weights(identity, ReferenceChoice()) == ""
