"""What commands write: files replaced whole, links followed, devices written to, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from builders import measured_row, mixed_report
from conftest import Cli, two_lines

from u2export.benchmarks.gate.baseline import updated
from u2export.benchmarks.tables.gather import gather
from u2export.errors import UserError
from u2export.files import publish, staged, staging, write_text

fcntl = pytest.importorskip("fcntl", reason="locks, pipes and signals of POSIX")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    mixed_report().save(path)
    return path


def killed(folder: Path, code: str) -> Path:
    """The scratch folder that a process leaves which runs `code` inside `staging(folder)` and kills itself."""
    lines = ["import os, signal", "from pathlib import Path", "from u2export.files import staging, publish",
             f"folder = Path({str(folder)!r})", "with staging(folder) as scratch:",
             *(f"    {line}" for line in code.splitlines()), "    os.kill(os.getpid(), signal.SIGKILL)"]  # fmt: skip
    died = subprocess.run([sys.executable, "-c", "\n".join(lines)], check=False)
    assert died.returncode == -signal.SIGKILL
    (left,) = folder.glob(".u2export-*")
    return left


def test_a_link_stays_and_its_target_gets_the_text(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    write_text("new", link)
    assert link.is_symlink() and real.read_text() == "new"
    dangling = tmp_path / "dangling.txt"
    dangling.symlink_to(tmp_path / "far" / "none.txt")
    write_text("new", dangling)
    assert dangling.is_symlink() and (tmp_path / "far" / "none.txt").read_text() == "new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dangling.txt", "far", "link.txt", "none.txt", "real.txt"]


def test_a_folder_behind_a_link_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    (real / "old").mkdir(parents=True)
    link.symlink_to(real)
    with staging(tmp_path) as scratch:
        (scratch / "link" / "new").mkdir(parents=True)
        publish(scratch / "link", link)
    assert link.is_symlink() and [p.name for p in real.iterdir()] == ["new"]


def test_a_link_to_another_file_system(tmp_path: Path) -> None:
    far = Path("/dev/shm")
    if not far.is_dir() or far.stat().st_dev == tmp_path.stat().st_dev or not os.access(far, os.W_OK):
        pytest.skip("needs two file systems")
    real = far / f"u2export-test-{os.getpid()}.txt"
    try:
        (tmp_path / "link").symlink_to(real)
        with staging(tmp_path) as scratch:
            (scratch / "link").write_text("new")
            publish(scratch / "link", tmp_path / "link")
        assert real.read_text() == "new" and (tmp_path / "link").is_symlink()
    finally:
        real.unlink(missing_ok=True)


def test_links_to_each_other_are_named(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="link to itself"):
        write_text("x", tmp_path / "a")


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_text("gone", Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        write_text("x" * 100_000, Path("/dev/full"))
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_gets_the_text(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
    reader.start()
    write_text("through", pipe)
    reader.join(10)
    assert got == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_as_a_file(cli: Cli, tmp_path: Path, results: Path, name: str) -> None:
    if not Path(name).exists():
        pytest.skip(f"no {name}")
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    with log.open("a") as out:
        words = [sys.executable, "-m", "u2export", "table", str(results), "--format", "csv", "--out", name]
        done = subprocess.run(words, stdout=out, check=False)
    text = log.read_text()
    assert done.returncode == 0 and text.startswith("before\ndevice,") and text.count("\n") > 4


def test_scratch_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    left = killed(tmp_path, "(scratch / 'x.json').write_text('{}')")
    with staging(tmp_path) as mine:
        assert not left.exists() and mine.exists()
        with staging(tmp_path) as other:  # the folder of a living process stays
            assert mine.exists() and other.exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    kept = tmp_path / "model.mlpackage"
    kept.mkdir()
    (kept / "weights").write_text("old")
    left = killed(tmp_path, "(folder / 'model.mlpackage').replace(scratch / 'model.mlpackage.old')")
    assert not kept.exists()
    write_text("x", tmp_path / "other.txt")
    assert (kept / "weights").read_text() == "old" and not left.exists()


def test_no_table_of_a_killed_run(tmp_path: Path, results: Path) -> None:
    hidden = tmp_path / "runs" / ".u2export-abc"
    hidden.mkdir(parents=True)
    shutil.copy(results, hidden / "x.json")
    with pytest.raises(UserError, match="no results"):
        gather([tmp_path / "runs"])
    shutil.copy(results, tmp_path / "runs" / "x.json")
    os.mkfifo(tmp_path / "runs" / "pipe.json")
    assert len(gather([tmp_path / "runs"])) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing_and_say_so(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out"
    code = (
        # Whoever started the tests may ignore a signal, as nohup does with SIGHUP, and children inherit this.
        f"import os, signal, sys\nsignal.signal({int(number)}, signal.default_int_handler if {number == signal.SIGINT} "
        "else signal.SIG_DFL)\nfrom u2export import cli, files\n"
        "def slow(*_):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    import time; time.sleep(5)\n"
        "files.publish = slow\n"
        "sys.exit(cli.main())"
    )  # the signal comes at the worst moment: everything is written and nothing is renamed
    words = [sys.executable, "-c", code, "calib", "synth", "--out", str(out), "--size", "64", "--count", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert "interrupted" in done.stderr and "Traceback" not in done.stderr
    assert not [p for p in out.rglob("*") if p.name.startswith(".u2export-") or p.is_file()]


def test_check_ends_with_1_for_a_regression_only(cli: Cli, tmp_path: Path, results: Path) -> None:
    baseline = tmp_path / "b.json"
    updated(replace(mixed_report(), rows=(measured_row("a.onnx"),)), None, True, "").save(baseline)
    for name, data in (("deep", "[" * 200_000), ("list", "[]"), ("empty", ""), ("huge", '{"schema": 1e999}')):
        damaged = tmp_path / f"{name}.json"
        damaged.write_text(data)
        for words in ((damaged, "--baseline", damaged), (results, "--baseline", damaged)):
            done = cli("check", *words)
            assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    with Path("/dev/full").open("w") as nowhere:
        words = [sys.executable, "-m", "u2export", "baseline", "show", str(baseline)]
        full = subprocess.run(words, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False)
    assert full.returncode == 2 and "Traceback" not in full.stderr, (full.returncode, full.stderr)


def test_a_full_disk_keeps_the_earlier_output(cli: Cli, results: Path) -> None:
    done = cli("table", results, "--format", "csv", "--out", "/dev/full")
    two_lines(done, "No space left")
    assert json.loads(results.read_text())["schema"]


def test_staged_on_an_error_keeps_the_target(tmp_path: Path) -> None:
    target = tmp_path / "t.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="no"), staged(target) as temporary:
        temporary.write_text("half")
        raise ValueError("no")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t.txt"]
