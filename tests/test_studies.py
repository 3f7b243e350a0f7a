"""The skeleton of the studies, and the studies that need no artifact."""

from __future__ import annotations

import json
import os
import random
import re
import socket
from argparse import ArgumentParser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import make_corpus
import pytest
from builders import mixed_report
from conftest import ROOT
from PIL import Image

from u2export.benchmarks.studies import __main__ as entry
from u2export.benchmarks.studies import fuzz, gate_coverage, kills
from u2export.benchmarks.studies.photo_sets import folders
from u2export.benchmarks.studies.reliability import fuzz_seeds, fuzz_worker
from u2export.benchmarks.studies.study import COMMAND, Pages, repeats
from u2export.errors import UserError

CORPUS = ROOT / "tests" / "corpus"
HELPERS = {
    "__init__",
    "__main__",
    "photo_sets",
    "study",
}


def test_every_study_can_be_named() -> None:
    room = {path.stem for path in (ROOT / "benchmarks" / "studies").glob("*.py")}
    assert room - HELPERS == set(entry.NAMES)


@pytest.mark.parametrize("name", entry.NAMES)
def test_studies_share_a_skeleton(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("onnx") is None or find_spec("torch") is None:
        pytest.skip("a study imports the exporters")
    found = entry.study(name)
    assert found.name == name and found.about.endswith((".", "?"))
    with pytest.raises(SystemExit):
        found.main(["--help"])
    shown = capsys.readouterr().out
    assert f"{COMMAND} {name}" in shown and f"{found.stem}.json" in shown


def test_unknown_studies_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["gate"]) == 1
    assert "there is no study 'gate'" in capsys.readouterr().err
    assert entry.main([]) == 0 and "gate_coverage" in capsys.readouterr().out
    with pytest.raises(UserError, match="is not NAME=FOLDER"):
        folders(["horses"])


def test_the_line_that_repeats_a_study_has_no_path_of_this_machine(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--photos", type=int, default=22)
    parser.add_argument("--counts", type=int, nargs="+", default=[1])
    parser.add_argument("--shipped", action="store_true")
    words = [f"a={tmp_path}", "--calib", str(tmp_path), "--keep", str(tmp_path / "k.txt"), "--counts", "2", "3"]
    line = repeats("x", parser, parser.parse_args([*words, "--shipped"]))
    assert line == f"{COMMAND} x a=FOLDER --calib FOLDER --keep k.txt --counts 2 3 --shipped"
    assert repeats("x", parser, parser.parse_args(["a=b", "--calib", "c"])) == f"{COMMAND} x a=FOLDER --calib c"


def test_pages_resume_only_the_same_inputs(tmp_path: Path) -> None:
    pages = Pages(tmp_path, "x", "again")
    assert pages.resumed({"size": 1}) is None
    pages.publish({"size": 1, "rows": [2]}, "page\n")
    assert pages.resumed({"size": 1}) == {"size": 1, "rows": [2]} and (tmp_path / "x.md").read_text() == "page\n"
    with pytest.raises(UserError, match=r"other inputs \(size\)"):
        pages.resumed({"size": 2})


def test_gate_coverage_with_few_simulations(tmp_path: Path) -> None:
    words = ["--runs", "40", "--photos", "4", "--rounds", "6", "--out", str(tmp_path)]
    assert gate_coverage.STUDY.main(words) in (0, 1)
    data = json.loads((tmp_path / "coverage.json").read_text())
    assert len(data["losses"]) == len(gate_coverage.LOSSES) and data["runs"] == 40
    assert data["rerun"] == f"{COMMAND} gate_coverage --runs 40 --photos 4 --rounds 6 --out FOLDER"
    assert "| lognormal, sigma 1 | 4 |" in (tmp_path / "coverage.md").read_text()


def test_the_committed_coverage_is_what_the_intervals_claim() -> None:
    data = json.loads((ROOT / "benchmarks" / "results" / "gate" / "coverage.json").read_text())
    assert data["runs"] >= 10_000 and data["confidence"] == 0.95
    wanted = {(name, n) for name in ("normal", "lognormal, sigma 1") for n in (4, 8, 18, 30)}
    assert wanted <= {(row["losses"], row["photos"]) for row in data["losses"]}
    assert all(row["covered"] >= 0.93 for row in [*data["losses"], *data["times"]])


def test_committed_pages_name_the_command_that_made_them() -> None:
    results = ROOT / "benchmarks" / "results"
    texts = {path: path.read_text(encoding="utf-8") for path in (*results.rglob("*.md"), *results.rglob("*.json"))}
    assert not [path for path, text in texts.items() if "python -m u2export" in text]
    named = {word for text in texts.values() for word in text.replace("`", " ").split() if word in entry.NAMES}
    assert named >= set(entry.NAMES) - {"coreml_fidelity", "trt_fidelity"}


@pytest.mark.skipif(os.name == "nt", reason="the study waits for pipes, which Windows cannot")
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    for module in ("torch", "onnx", "safetensors", "yaml"):
        pytest.importorskip(module)
    assert fuzz.STUDY.main(["--count", "150", "--corpus", str(CORPUS), "--out", str(tmp_path)]) == 0
    data = json.loads((tmp_path / "fuzz.json").read_text())
    absent = {kind for kind, module in fuzz_seeds.NEEDS.items() if not find_spec(module)}
    assert not data["findings"] and set(data["kinds"]) <= set(fuzz.SHARES) - absent
    total = {what: sum(row[what] for row in data["kinds"].values()) for what in fuzz.OUTCOMES}
    assert sum(total.values()) == 150 and total["read"] > 20 < total["refused"]
    assert "| all | 150 |" in (tmp_path / "fuzz.md").read_text()


@pytest.mark.parametrize("kind", sorted({str(path.parent.relative_to(CORPUS)) for path in CORPUS.rglob("*.*")}))
def test_the_corpus_is_read(kind: str, tmp_path: Path) -> None:
    """Intact files of every form, and files that were once a fault; a name says which are refused."""
    for module in ("torch", "onnx", "onnxruntime", "safetensors", "yaml"):
        pytest.importorskip(module)
    found = [seed for seed in fuzz_seeds.corpus(CORPUS) if seed[0] == kind.replace(os.sep, " ")]
    for whole, name, data in found:
        path = tmp_path / name
        path.write_bytes(data)
        got = fuzz_worker.outcome(whole, path, make_corpus.number(whole))
        assert got["outcome"] == ("refused" if name.startswith("refused-") else "read"), (name, got)
        assert got["seconds"] < 30, (name, got)  # imports of a runtime count


@pytest.mark.skipif(os.name == "nt", reason="the study waits for pipes, which Windows cannot")
def test_a_crash_and_a_hang_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys, time\nfor line in sys.stdin:\n    time.sleep(60) if int(line) else sys.exit(3)\n"
    (tmp_path / "toy_worker.py").write_text(script)
    monkeypatch.setattr(fuzz, "MODULE", "toy_worker")
    monkeypatch.setattr(fuzz, "STARTING", 2.0)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with fuzz.Worker(tmp_path, 1, 2.0) as worker:
        assert worker.outcome(0)["what"] == "the process ended with 3"
        assert worker.outcome(1)["what"] == "no answer within 2 s"


def test_kills_leave_nothing_half_written(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    mixed_report().save(inputs / "r.json")
    found = kills.try_writer(kills.WRITERS[1], inputs, tmp_path / "csv", 4, 60.0, random.Random(0))
    assert found.kills <= 4 <= found.kills + found.late and not found.faults


def test_two_processes_write_one_file_at_once(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    mixed_report().save(inputs / "r.json")
    writer = next(writer for writer in kills.WRITERS if writer.name == "table csv")
    assert kills.at_once(writer, inputs, tmp_path) == []
    assert kills.outputs(tmp_path / "both").keys() == {"t.csv"}


def test_the_kills_of_two_runs_are_added() -> None:
    row = {"kills": 2, "writing": 0, "late": 1, "faults": 0}
    first = {"rerun": "a", "writers": {"table md": row}, "trials": {"x": "not run"}, "faults": ["f"]}
    more = {"rerun": "b", "writers": {"table md": row, "kit": row}, "trials": {"x": "done"}, "faults": []}
    both = kills.added(first, more)
    assert both["writers"] == {"table md": {"kills": 4, "writing": 0, "late": 2, "faults": 0}, "kit": row}
    assert both["trials"] == {"x": "done"} and both["faults"] == ["f"] and both["rerun"] == "a\n    b"


def test_kills_see_what_is_half_written() -> None:
    found = kills.Found()
    known = {"a.json": b'{"a": 1}', "b.csv": b"a,b\r\n", "c.png": b"whole"}
    kills._judge(found, known, {"a.json": b'{"a"', "b.csv": b"a,", "c.png": b"who"}, known, "x")
    kills._judge(found, known, {"a.json": b'{"a": 2}', "b.csv": b"a,b\r\n"}, known, "y")
    assert len(found.faults) == 4 and found.faults[3] == "y: c.png vanished"


def test_the_page_of_wrong_masks_shows_the_figures_of_its_study() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "masks" / "wrong_masks.json").read_text())["rows"]
    measured = {(round(sum(r["mae"]) / len(r["mae"]), 4), round(min(r["iou"]), 3)) for r in rows}
    page = (ROOT / "docs" / "wrong-mask.md").read_text(encoding="utf-8")
    shown = {(float(mae), float(iou)) for mae, iou in re.findall(r"\| (\.\d{4}) \| (\.\d{3}) \|", page)}
    assert len(shown) >= 30 and shown <= measured


def test_the_study_of_a_cluster_counts_what_kills_did(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("onnx")
    from u2export.benchmarks.studies import cluster

    calm = replace(mixed_report(), photos=("a.png", "b.png"))
    row = calm.rows[1]
    other = replace(row, images={"a.png": row.images["b.png"]})
    assert cluster.lost_and_doubled(calm, calm, 2) == {"lost": 0, "doubled": 0, "other": 0}
    hurt = replace(calm, rows=(calm.rows[0], other, *calm.rows[2:]))
    assert cluster.lost_and_doubled(calm, hurt, 2) == {"lost": 1, "doubled": 1, "other": 1}


def test_the_study_of_a_cluster_makes_different_photos_of_few(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("onnx")
    from u2export.benchmarks.studies import cluster

    sources = sorted((ROOT / "reference" / "photos").glob("*.jpg"))[:2]
    size = cluster.make_photos(sources, 7, 160, tmp_path)
    made = sorted(tmp_path.iterdir())
    assert len({path.read_bytes() for path in made}) == 7 and size == sum(path.stat().st_size for path in made)
    for path in made:
        with Image.open(path) as picture:
            assert max(picture.size) == 160


def test_a_forecast_grows_with_the_work_and_is_full_where_the_client_is() -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("onnx")
    from u2export.benchmarks.studies.reliability import cluster_page

    runs = [{"tasks": 64, "scheduler_cpu_s": 1.0, "cpu_s": 2.0, "bytes": 1000},
            {"tasks": 164, "scheduler_cpu_s": 1.1, "cpu_s": 2.2, "bytes": 3000}]  # fmt: skip
    cost = cluster_page.constants(runs)
    assert (round(cost.scheduler_s, 6), round(cost.client_s, 6), cost.moved) == (0.001, 0.002, 20)
    found = cluster_page.forecast(1600, 10, 0.05, cost, chunk=16)
    assert (found.tasks, found.work_s, found.moved) == (200, 8, 4000)
    assert round(found.workers_at_most, 6) == 200  # a chunk takes 0.8 s, and its two tasks 4 ms of the client


@pytest.mark.skipif(
    not Path("/proc/net/dev").exists(), reason="only Linux counts the bytes of its loopback device here"
)
def test_bytes_over_loopback_are_counted() -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("onnx")
    from u2export.benchmarks.studies.reliability import cluster_client

    before = cluster_client.loopback_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(bytes(1000))
    assert cluster_client.loopback_bytes() >= before + 1000
