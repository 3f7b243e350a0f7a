from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import noise_pictures, stub_artifact
from conftest import Cli, two_lines
from PIL import Image
from processors import all_processors

from u2export.benchmarks.measuring import timing
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.machine import Machine
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import TIERS, Plan, settings
from u2export.benchmarks.measuring.rows import ReferenceChoice, named
from u2export.benchmarks.measuring.worker import STEADY, steady
from u2export.benchmarks.measuring.worker_process import WorkerFailed, WorkerProcess
from u2export.benchmarks.report import Report, Row, Settings
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.open import read_artifact
from u2export.files import write_json
from u2export.reference.image import Contract
from u2export.reference.onnx_session import timed_session
from u2export.reference.photos import read_photo
from u2export.reference.weights import Identity

HOSTILE = (sys.executable, str(Path(__file__).with_name("hostile_worker.py")))
SMALL = Contract(height=24, width=32)
WEIGHTS = Identity("toy", "a" * 64)
QUICK = Settings("custom", samples=10, seconds=0.0, rounds=5)
Make = Callable[..., Artifact]


@pytest.fixture
def hostile(tmp_path: Path) -> Make:
    """An artifact of the test's own target; its name says how it behaves."""

    def make(arithmetic: str, weights: Identity = WEIGHTS, contract: Contract = SMALL) -> Artifact:
        path = tmp_path / f"{arithmetic}.hostile"
        stub_artifact(path, "hostile", contract, weights, "toy")
        return read_artifact(path)

    return make


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    return photos_in(noise_pictures(tmp_path / "photos", (f"p{i}.png" for i in range(3))))


def run(artifacts: list[Artifact], photos: dict[str, Path], **changes: Any) -> Report:
    extra = {k: changes.pop(k) for k in ("earlier", "saved") if k in changes}
    plan = Plan(artifacts, photos, settings=QUICK, reference=str(artifacts[0].path), worker=HOSTILE, timeout=60)
    return measure(replace(plan, **changes), **extra)


def row(report: Report, name: str) -> Row:
    found = report.row(name)
    assert found is not None, [r.name for r in report.rows]
    return found


def test_rows_are_measured_in_full(hostile: Make, photos: dict[str, Path]) -> None:
    seen: list[Report] = []
    report = run([hostile("one"), hostile("two")], photos, saved=seen.append)
    one, two = row(report, "one.hostile"), row(report, "two.hostile")
    assert report.complete and not seen[-2].complete and report.baseline == "one.hostile"
    assert [len(turn) for turn in two.latency.rounds] == [2] * 5 and min(two.latency.ns) > 0
    assert two.reference == "one.hostile" and not one.images and list(two.images) == list(photos)
    assert two.fidelity and two.fidelity.mae == 0.0 and two.fidelity.iou == 1.0
    assert len(two.load_ns) == 2 and two.first_ns > 0 and len(two.warmup_ns) > 0
    assert two.memory["peak"] >= two.memory["start"] > 2**20
    assert two.runtime["arithmetic"] == "two" and two.runtime["runtime"] == "Hostile 1"
    assert len(two.preprocess_ns) == len(two.inference_ns) == len(two.postprocess_ns) == 3
    assert [len(ns) for ns in two.opening_ns.values()] == [2, 2] and {"import", "compile"} == two.opening_ns.keys()
    assert all(sum(parts) <= whole for *parts, whole in zip(*two.opening_ns.values(), two.load_ns, strict=True))
    assert len(report.states) == 5 and all("load" in state for state in report.states)
    assert (two.scenario, two.batch, two.streams, two.latency.spans) == ("latency", 1, 1, ())
    ratio = report.speedup(two)
    assert ratio and ratio.value > 0 and ratio.samples == 5 and not ratio.known  # five rounds: no 95 % interval


@pytest.mark.parametrize(
    ("arithmetic", "reason", "says"),
    [
        ("segfault", "crashed", "SIGSEGV"),
        ("oom", "crashed", "killed, perhaps because memory ran out"),
        ("exit", "crashed", "exit code 3"),
        ("raise", "failed", "ValueError: a bug in a runtime"),
        ("shape", "refused", "d0 has shape (1, 1, 7, 7)"),
        ("missing", "unavailable", "no such device here (buy one)"),
        ("refuse", "refused", "refuse.hostile is of a newer version"),
    ],
)
def test_a_row_that_fails_says_why_and_the_others_go_on(
    hostile: Make, photos: dict[str, Path], arithmetic: str, reason: str, says: str, tmp_path: Path
) -> None:
    report = run([hostile("good"), hostile(arithmetic), hostile("fine")], photos, latency=False)
    bad, fine = row(report, f"{arithmetic}.hostile"), row(report, "fine.hostile")
    assert (bad.reason, bad.images) == (reason, {}) and says in bad.problem
    assert str(tmp_path) not in bad.problem
    assert fine.fidelity and fine.fidelity.mae == 0.0 and not fine.reason and report.complete


def test_a_row_that_hangs_is_given_up(hostile: Make, photos: dict[str, Path]) -> None:
    start = time.monotonic()
    report = run([hostile("good"), hostile("hang")], photos, latency=False, timeout=8)
    assert row(report, "hang.hostile").reason == "timeout" and time.monotonic() - start < 120
    assert row(report, "good.hostile").runtime


def test_a_row_that_dies_while_it_is_timed_keeps_its_fidelity(hostile: Make, photos: dict[str, Path]) -> None:
    two = {name: path for name, path in photos.items() if name != "p2.png"}
    report = run([hostile("good"), hostile("segfault")], two)
    bad = row(report, "segfault.hostile")
    assert bad.reason == "crashed" and bad.fidelity and bad.fidelity.mae == 0.0 and not bad.latency.ns
    assert len(row(report, "good.hostile").latency.ns) == 10


def test_nan_is_seen(hostile: Make, photos: dict[str, Path]) -> None:
    bad = row(run([hostile("good"), hostile("nan")], photos, latency=False), "nan.hostile")
    assert bad.fidelity and not bad.fidelity.finite and bad.fidelity.mae > 0.1


def test_a_broken_photo_is_counted_or_fatal(hostile: Make, photos: dict[str, Path]) -> None:
    photos["p1.png"].write_bytes(photos["p1.png"].read_bytes()[:60])
    report = run([hostile("a"), hostile("b")], photos, latency=False)
    assert list(report.broken) == ["p1.png"] and report.photos == ("p0.png", "p2.png")
    assert len(row(report, "b.hostile").images) == 2
    assert "/" not in report.broken["p1.png"]
    with pytest.raises(UserError, match=r"p1\.png"):
        run([hostile("a"), hostile("b")], photos, latency=False, strict=True)


def test_all_photos_broken(hostile: Make, photos: dict[str, Path]) -> None:
    for path in photos.values():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="none of 3 photos can be read"):
        run([hostile("a")], photos)


def test_groups_have_references_of_their_own(hostile: Make, photos: dict[str, Path], tmp_path: Path) -> None:
    other = Identity("other", "b" * 64)
    artifacts = [hostile("a"), hostile("b"), hostile("c", other), hostile("d", contract=Contract(height=16, width=16))]
    report = run(artifacts, photos, latency=False)
    assert row(report, "b.hostile").fidelity and row(report, "b.hostile").reference == "a.hostile"
    for name in ("c.hostile", "d.hostile"):
        assert row(report, name).reference == "" and not row(report, name).images and not row(report, name).reason
    with pytest.raises(UserError, match="other weights than the artifacts"):
        run([hostile("a")], photos, reference=str(artifacts[2].path))


def test_reference_maps_travel_as_npz(hostile: Make, photos: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "maps.npz"
    run([hostile("a")], photos, latency=False, save_reference=file)
    with np.load(file) as maps:
        d0 = maps[next(k for k in maps if k != "about")]
    assert np.array_equal(d0, SMALL.tensor(read_photo(photos["p0.png"]))[0, :1])
    report = run([hostile("b")], photos, latency=False, reference=str(file))
    b = row(report, "b.hostile")
    assert b.reference == "maps.npz" and b.fidelity and b.fidelity.mae == 0.0
    more = dict(photos)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "new.png")
    more["new.png"] = tmp_path / "new.png"
    with pytest.raises(UserError, match="has no map of photo 4"):
        run([hostile("b")], more, latency=False, reference=str(file))
    with pytest.raises(UserError, match="other weights"):
        run([hostile("c", Identity("other", "b" * 64))], photos, reference=str(file))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="no reference maps"):
        run([hostile("b")], photos, reference=str(file))


def test_resume_continues_where_it_stopped(hostile: Make, photos: dict[str, Path]) -> None:
    artifacts = [hostile("a"), hostile("b")]

    class Stop(Exception):
        pass

    kept: list[Report] = []

    def until_round_two(report: Report) -> None:
        kept.append(report)
        if min((len(r.latency.rounds) for r in report.rows), default=0) == 2:
            raise Stop

    with pytest.raises(Stop):
        run(artifacts, photos, saved=until_round_two)
    half = kept[-1]
    assert not half.complete
    full = run(artifacts, photos, earlier=half)
    for name in ("a.hostile", "b.hostile"):
        before, after = row(half, name), row(full, name)
        assert after.latency.rounds[:2] == before.latency.rounds and len(after.latency.rounds) == 5
        assert after.images == before.images and after.preprocess_ns == before.preprocess_ns
    assert full.complete

    changed = hostile("b", replace(WEIGHTS, name="renamed"))
    changed.path.write_text("another model")
    write_json(replace(changed, files=hashes(changed.path)).to_json(), changed.record)
    again = run([artifacts[0], read_artifact(changed.path)], photos, earlier=full)
    assert row(again, "b.hostile").preprocess_ns != row(full, "b.hostile").preprocess_ns
    # Whole rounds: two clocks may well show one and the same nanosecond, not the same round.
    assert not set(row(again, "a.hostile").latency.rounds) & set(row(full, "a.hostile").latency.rounds)


def test_what_the_runtime_is_given_is_made_before_the_clock_starts(hostile: Make, photos: dict[str, Path]) -> None:
    """Its `prepare` takes a tenth of a second, its `predict` next to nothing."""
    prepared = row(run([hostile("good"), hostile("prepare")], photos), "prepare.hostile")
    assert prepared.fidelity and prepared.fidelity.mae == 0.0
    assert min(prepared.latency.ns) < 100e6 and min(prepared.inference_ns) < 100e6


def test_throughput_overlaps_streams(hostile: Make, photos: dict[str, Path]) -> None:
    """Each request sleeps 20 ms: three streams of two pictures are six times as many pictures a second."""
    artifacts = [hostile("good"), hostile("sleep")]
    plan = replace(QUICK, samples=60, scenario="throughput")
    one = run(artifacts, photos, settings=plan)
    six = run(artifacts, photos, settings=replace(plan, batch=2, streams=3))
    alone, slow = row(one, "sleep.hostile throughput"), row(six, "sleep.hostile throughput batch 2 3 streams")
    assert slow.fidelity and slow.fidelity.mae == 0.0 and (slow.batch, slow.streams) == (2, 3)
    assert slow.reference == "good.hostile throughput batch 2 3 streams" == six.baseline
    assert [len(turn) for turn in slow.latency.rounds] == [12] * 5 and len(slow.latency.spans) == 5
    # They did overlap, in every round by its own times: a stall of the machine lengthens both.
    assert all(span < sum(turn) for span, turn in zip(slow.latency.spans, slow.latency.rounds, strict=True))
    assert alone.latency.throughput <= 50 and slow.latency.throughput <= 300
    assert six.speedup(slow) is not None


def test_a_batch_that_the_graph_does_not_take_is_refused(hostile: Make, photos: dict[str, Path]) -> None:
    plan = replace(QUICK, scenario="throughput", batch=4)
    report = run([hostile("good"), hostile("single")], photos, settings=plan)
    bad = row(report, "single.hostile throughput batch 4")
    assert bad.reason == "refused" and "takes no batch of 4: dimension 0 is 1" in bad.problem and bad.fidelity
    assert row(report, "good.hostile throughput batch 4").latency.batch == 4


def test_sustained_runs(hostile: Make, photos: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A row whose calls take 2 ms, and 10 ms from the 300th on, has a knee; each row has its run once."""
    monkeypatch.setattr(timing, "SLICE", 0.4)
    plan = replace(QUICK, sustained=2.0)
    kept: list[Report] = []
    report = run([hostile("good"), hostile("tire")], photos, settings=plan, saved=kept.append)
    tired = row(report, "tire.hostile").sustained
    assert len(tired.slices.rounds) == len(tired.states) == 5 and "load" in tired.states[-1]
    assert tired.knee > 1.0
    half = next(r for r in reversed(kept) if len(row(r, "tire.hostile").sustained.slices.rounds) == 2)
    again = run([hostile("good"), hostile("tire")], photos, settings=plan, earlier=half)
    assert row(again, "good.hostile").sustained == row(half, "good.hostile").sustained  # whole: kept
    new, old = (row(r, "tire.hostile").sustained.slices.rounds for r in (again, half))
    assert len(new) == 5 and not set(new) & set(old)  # broken off: started anew


def test_what_must_be_built_is_built_where_it_is_measured(
    hostile: Make, photos: dict[str, Path], tmp_path: Path
) -> None:
    class Elsewhere(Machine):
        here = False

        def workshop(self) -> str:
            return str(tmp_path / "workshop")

    artifacts = [hostile("good"), hostile("build")]
    here = row(run(artifacts, photos, latency=False), "build.hostile")
    there = row(run(artifacts, photos, latency=False, machine=Elsewhere(HOSTILE)), "build.hostile")
    assert (here.arithmetic, here.size, here.notes) == ("build", len("model build"), ())
    assert (there.arithmetic, there.size) == ("engine", len("made of model build"))
    assert there.notes == ("built on the device",) and there.runtime["arithmetic"] == "engine"
    assert there.digest == here.digest and there.images == here.images


def test_resume_refuses_what_is_not_the_same(hostile: Make, photos: dict[str, Path]) -> None:
    report = run([hostile("a")], photos, latency=False)
    with pytest.raises(UserError, match="other settings"):
        run([hostile("a")], photos, earlier=report, settings=replace(QUICK, samples=11))
    newer = replace(report, environment={**report.environment, "onnxruntime": "99"})
    with pytest.raises(UserError, match="other versions of the runtimes"):
        run([hostile("a")], photos, earlier=newer)
    with pytest.raises(UserError, match="another device"):
        run([hostile("a")], photos, earlier=replace(report, device=replace(report.device, cpu="Z80")))
    with pytest.raises(UserError, match="other photos"):
        run([hostile("a")], {"p0.png": photos["p0.png"]}, earlier=report)


def test_baseline_must_be_a_row(hostile: Make, photos: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="no row named"):
        run([hostile("a")], photos, baseline="b.hostile")
    assert run([hostile("a"), hostile("b")], photos, baseline="b.hostile", latency=False).baseline == "b.hostile"


def test_same_names_get_their_folder(hostile: Make, tmp_path: Path) -> None:
    first = hostile("a")
    (tmp_path / "x").mkdir()
    for file in (first.path, first.record):
        shutil.copy(file, tmp_path / "x")
    second = read_artifact(tmp_path / "x" / "a.hostile")
    assert list(named([first, second])) == [f"{tmp_path.name}/a.hostile", "x/a.hostile"]
    with pytest.raises(UserError, match="given twice"):
        named([first, first])


def test_settings() -> None:
    assert settings("normal") == Settings("normal", 128, 10.0, rounds=64)
    assert settings("quick") == Settings("quick", 64, 6.0, rounds=10) == settings("quick", samples=64, rounds=10)
    assert settings("quick", samples=8).tier == settings("normal", rounds=10).tier == "custom"
    assert set(TIERS) == {"quick", "normal", "official"}
    assert settings("quick", scenario="throughput", streams=2).streams == 2
    wrong = ({"samples": 0}, {"seconds": float("inf")}, {"scenario": "speed"}, {"streams": 2}, {"batch": 0},
             {"scenario": "throughput", "sustained": 5.0}, {"sustained": -1.0}, {"cooldown": float("nan")})  # fmt: skip
    for values in wrong:
        with pytest.raises(UserError):
            settings("quick", **values)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no tier named"):
        settings("rapid")


def test_photos_are_spread_evenly(photos: dict[str, Path]) -> None:
    folder = next(iter(photos.values())).parent
    assert list(photos_in(folder, 2)) == ["p0.png", "p1.png"] and list(photos_in(folder, 99)) == list(photos)
    assert list(photos_in(folder / "p1.png")) == ["p1.png"]


def test_steady() -> None:
    assert not steady([10] * 9) and steady([10] * 10)
    assert not steady([20, 18, 16, 15, 14, 13, 12, 12, 11, 10]) and steady([99, *[10] * 9])
    limit = round(1000 * (1 + STEADY))
    assert not steady([1000] * 5 + [limit] * 5) and steady([1000] * 5 + [limit - 1] * 5)


def test_kinds_of_reference() -> None:
    kinds = {"auto": "auto", "pytorch": "pytorch", "w.pth": "weights", "m.NPZ": "maps", "a.onnx": "artifact"}
    assert {text: ReferenceChoice(text).kind for text in kinds} == kinds


def test_child_answers_in_time_or_is_killed(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "log", 60, HOSTILE) as child:
        with pytest.raises(WorkerFailed) as failure:
            child.ask("describe", artifact=str(tmp_path / "nothing.onnx"))
        assert failure.value.reason == "refused" and "no such artifact" in failure.value.problem
        os.kill(child.process.pid, signal.SIGTERM)
        with pytest.raises(WorkerFailed, match="SIGTERM"):
            child.ask("memory")
    assert child.process.returncode == -signal.SIGTERM


def test_child_that_cannot_start(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such module')")
    with (
        WorkerProcess(tmp_path / "log", 60, command) as child,
        pytest.raises(WorkerFailed, match="exit code 1: no such module"),
    ):
        child.ask("memory")


def test_child_that_talks_nonsense(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "print('Welcome!', flush=True); input()")
    with (
        WorkerProcess(tmp_path / "log", 60, command) as child,
        pytest.raises(WorkerFailed, match="answered 'memory' with b'Welcome!'"),
    ):
        child.ask("memory")


# With the real runtimes


def test_bench_on_the_command_line(cli: Cli, tiny: Callable[[str, float], Path], photos: dict[str, Path]) -> None:
    folder = photos["p0.png"].parent
    first, second, out = tiny("first.onnx", 1.0), tiny("second.onnx", 1.01), folder.parent / "out"
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    words = ("bench", first, second, "--images", folder, "--reference", first, "--samples", 5, "--seconds", 0,
             "--rounds", 5, "--sustained", 0.2, "--cooldown", 0, "--json", out / "r.json",
             "--contact-sheet", out / "s.png")  # fmt: skip
    result = cli(*words)
    assert result.returncode == 0, result.stderr
    assert "second.onnx" in result.stdout and "no record" in result.stdout and "bad.jpg" in result.stderr
    assert result.stdout.splitlines()[-2:] == [str(out / "r.json"), str(out / "s.png")]
    report = Report.load(out / "r.json")
    other = row(report, "second.onnx")
    assert other.reference == "first.onnx" and other.fidelity and 1e-5 < other.fidelity.mae < 0.02
    assert other.runtime["runtime"].startswith("ONNX Runtime") and len(other.latency.ns) == 5
    assert len(other.sustained.states) == 1 and other.sustained.knee > 0
    assert "user" not in (out / "r.json").read_text().lower() and str(folder.parent) not in (out / "r.json").read_text()
    with Image.open(out / "s.png") as sheet:
        assert sheet.width > 500 and len(set(sheet.convert("RGB").getdata())) > 100
    assert cli("table", out / "r.json", "--format", "md").stdout.count("| second.onnx |") == 1


def test_an_interrupted_bench_leaves_a_file_that_resumes(
    cli: Cli, tiny: Callable[[str, float], Path], photos: dict[str, Path]
) -> None:
    model, out = tiny("first.onnx", 1.0), photos["p0.png"].parent.parent / "r.json"
    words = ["bench", str(model), "--images", str(photos["p0.png"]), "--json", str(out), "--samples", "1",
             "--seconds", "6", "--rounds", "30", "--reference", str(model)]  # fmt: skip
    command = [sys.executable, "-m", "u2export", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if out.exists() and any(r["latency_ns"] for r in json.loads(out.read_text())["rows"]):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    half = Report.load(out)
    done = len(half.rows[0].latency.rounds)
    assert not half.complete and 0 < done < 30 and "interrupted" in stdout and "Traceback" not in stderr
    assert "--resume" in stderr and "incomplete: the run was interrupted" in cli("table", out).stdout
    assert cli(*words, "--resume").returncode == 0
    full = Report.load(out)
    assert full.complete and full.rows[0].latency.rounds[:done] == half.rows[0].latency.rounds


def test_bench_errors(cli: Cli, tiny: Callable[[str, float], Path], photos: dict[str, Path], tmp_path: Path) -> None:
    model, folder = tiny("first.onnx", 1.0), photos["p0.png"].parent
    two_lines(cli("bench", model, "--images", tmp_path / "nowhere"), "no such file or folder")
    two_lines(cli("bench", model, "--images", folder, "--resume"), "resuming needs the results of an earlier run")
    two_lines(cli("bench", model, "--images", folder, "--masks", folder / "p0.png"), "no such folder")
    two_lines(cli("bench", model, "--images", folder, "--streams", 2), "make no sense for latency", code=2)
    two_lines(cli("bench", model, "--images", folder, "--device", "ssh://me:secret@host"), "holds a password", code=2)
    (tmp_path / "file").write_text("")
    two_lines(cli("bench", model, "--images", folder, "--json", tmp_path / "file" / "r.json"), "cannot write")


@all_processors()
def test_streams_of_openvino_share_one_model(tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    """Two requests at the same time, each with its own result; and the runtime tells reading from compiling."""
    openvino = pytest.importorskip("openvino")
    from u2export.exporters.openvino import OpenVINO

    path = tmp_path / "tiny.xml"
    openvino.save_model(openvino.convert_model(tiny("first.onnx", 1.0)), path, compress_to_fp16=False)
    contract = Contract(height=32, width=48)
    artifact = Artifact("openvino", "fp32", "toy", WEIGHTS, contract, path, hashes(path, path.with_suffix(".bin")))
    inputs = np.random.default_rng(0).random((2, 1, 3, 32, 48), np.float32)
    with OpenVINO().load(artifact, "f32") as alone, OpenVINO().streams(artifact, "f32", 2, 2) as runners:
        want = [alone(x) for x in inputs]
        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                got = list(pool.map(lambda runner, x: runner(x), runners, inputs))
                assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
    assert alone.opening.keys() == {"read", "compile"} and min(alone.opening.values()) > 0


def test_onnx_runtime_tells_reading_from_compiling(tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    """By its profiler, which leaves no file behind and is over before the first inference."""
    session, opening = timed_session(tiny("first.onnx", 1.0), "CPUExecutionProvider", 1)
    assert opening.keys() == {"read", "compile"} and min(opening.values()) > 0
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 32, 48), np.float32)})
    assert not list(tmp_path.rglob("opening*")) and session.end_profiling() == ""


@pytest.mark.slow
def test_published_weights_against_pytorch(u2netp: Path) -> None:
    """The published file in ONNX Runtime and PyTorch's reference of the same weights: the same masks."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from u2export.reference.verification import verification_photos

    photos = {p.name: p for p in verification_photos()[:2]}
    plan = Plan(
        [read_artifact(u2netp)], photos, settings=Settings("custom", 2, 0.0, 2, threads=1), arithmetics="default"
    )
    report = measure(plan)
    torch, ort = report.rows
    assert torch.name == "u2netp-320-pytorch-fp32" and torch.runtime["arithmetic"] == "fp32" == ort.arithmetic
    assert ort.reference == torch.name and ort.fidelity and ort.fidelity.mae < 1e-5 and ort.fidelity.iou_worst > 0.9999
    assert report.baseline == torch.name and report.speedup(ort) is not None
