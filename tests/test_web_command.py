"""`u2export bench --device web` as users run it: a process of its own, and a real Chromium that opens its address."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from adb_phone import PHONE, phone
from browser import Page, ask
from builders import ANY_MASKS, free_port, noise_pictures
from conftest import ROOT, Cli, two_lines

from u2export.benchmarks.gate.baseline import updated
from u2export.benchmarks.gate.judging import judge
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.report import Report
from u2export.benchmarks.web.usb import chosen
from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx
from u2export.exporters.ort import Ort
from u2export.reference.image import Contract
from u2export.reference.source import Source

ADB = shutil.which("adb")
QUICK = ("--samples", "3", "--seconds", "0.05", "--rounds", "2")
# What a browser with an odd clock, a battery saver or an empty battery tells its pages.
SLOW_FRAMES = "window.requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 40);"
COARSE_CLOCK = """const exact = performance.now.bind(performance);
performance.now = () => { const time = exact(); return time - time % 100; };
"""
EMPTY_BATTERY = "navigator.getBattery = async () => ({ level: 0.12, charging: false });"


@dataclass
class Command:
    """A running bench, and what it has printed."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def address(self, scheme: str) -> str:
        return next((line.strip() for line in self.lines if line.strip().startswith(f"{scheme}://")), "")

    def wait_for_addresses(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line.rstrip("\n"))
            if "http://" in line:
                break
        threading.Thread(target=self._read, daemon=True).start()
        assert self.address("http"), self.lines

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line.rstrip("\n"))

    def finish(self, page: Page, seconds: float = 120) -> int:
        page.wait_for(lambda: self.process.poll() is not None, seconds)
        return int(self.process.returncode)


Start = Callable[..., Command]


@pytest.fixture
def bench() -> Iterator[Start]:
    """A function that starts a bench, which waits for a browser when the function returns."""
    running: list[subprocess.Popen[str]] = []

    def started(*words: str | Path, images: Path, out: Path) -> Command:
        given = ("bench", *words, "--images", images, "--json", out, "--device", "web:0")
        process = subprocess.Popen(
            [sys.executable, "-m", "u2export", *map(str, given)], env={**os.environ, "NO_COLOR": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        command = Command(process)
        command.wait_for_addresses()
        return command

    yield started
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def small(u2netp: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The published U²-Net-small at 128 x 128 in fp32, fp16 and int8."""
    folder, source = tmp_path_factory.mktemp("small"), Source.open("u2netp", Contract(128, 128))
    photos = Calibration.open(ROOT / "calibration", source.contract, limit=6)
    made = [Onnx().export(source, folder, Request(precision)) for precision in ("fp32", "fp16")]
    made.append(Ort().export(source, folder, Request("int8", photos, budget=ANY_MASKS)))
    return tuple(artifact.path for artifact in made)


def photos_of(folder: Path, count: int = 2) -> Path:
    return noise_pictures(folder / "photos", (f"p{i}.png" for i in range(count)))


def test_masks_and_verdicts_are_those_of_this_machine(
    visit: Callable[..., Page], bench: Start, cli: Cli, small: tuple[Path, ...], tmp_path: Path
) -> None:
    images, native, web = ROOT / "reference" / "photos", tmp_path / "native.json", tmp_path / "web.json"
    maps = tmp_path / "maps.npz"
    words = ("--images", images, "--arithmetics", "default", "--no-latency")
    for done in (
        cli("bench", small[0], *words, "--reference", small[0], "--save-reference", maps),
        cli("bench", *small, *words, "--reference", maps, "--json", native),
    ):
        assert done.returncode == 0, done.stderr

    command = bench(*small, *QUICK, "--reference", maps, images=images, out=web)
    page = visit(command.address("https"))
    page.begin()
    assert command.finish(page) == 0, command.lines
    page.wait_for(lambda: page.stage.startswith("Finished"))
    assert page.errors == []

    here, there = Report.load(native), Report.load(web)
    assert there.complete and {row.reason for row in there.rows} == {""}
    assert {row.provenance for row in there.rows} == {"measured, browser"}
    fp32 = [row for row in there.rows if row.precision == "fp32"]
    # Sums in another order move single pixels on steep edges further, by less than half a step of an 8-bit mask.
    assert all(image.mae < 1e-5 and image.max_abs < 1e-3 for row in fp32 for image in row.images.values())
    assert {row.runtime["provider"] for row in fp32} == {"WebAssembly"}
    if there.device.cores > 1:
        assert {row.runtime["threads"] for row in fp32} == {"1", str(min(4, there.device.cores))}

    wrong = replace(here, rows=tuple(replace(row, images=here.rows[0].images) for row in here.rows))
    for accepted in (here, wrong):
        found = [verdicts(report, accepted) for report in (here, as_if_here(there, here))]
        assert found[0] == found[1] and len(found[0]) == len(small)
    assert "fail" in found[0].values()


def verdicts(report: Report, accepted: Report) -> dict[str, str]:
    """Return the gate's verdict on the masks of each artifact."""
    found = judge(report, updated(accepted, None, True, ""))
    return {judgement.artifact: judgement.verdict for judgement in found.judgements}


def as_if_here(report: Report, native: Report) -> Report:
    """Return the default rows of a report of a browser in the arithmetic of this machine, as the gate asks."""
    rows = [row for row in report.rows if native.row(row.name)]
    plain = [replace(row, runtime={**row.runtime, "arithmetic": row.precision}, latency=Latency()) for row in rows]
    return replace(report, rows=tuple(plain))


def test_only_the_first_browser_with_the_address_takes_part(
    visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    out = tmp_path / "web.json"
    command = bench(tiny("guarded.onnx", 0.25), *QUICK, images=photos_of(tmp_path), out=out)
    fingerprint = next(line.strip() for line in command.lines if line.count(":") == 31)
    for scheme in ("https", "http"):
        address = command.address(scheme)
        token = urlsplit(address).path.strip("/")
        assert ask(address, "GET", f"/{token}/")[0] == 200
        assert ask(address, "GET", f"/{token[:-1]}{'a' if token[-1] != 'a' else 'b'}/")[0] == 404
        assert ask(address, "GET", f"/{token}/../../pyproject.toml")[0] == 404
    shown = ssl.get_server_certificate(("127.0.0.1", urlsplit(command.address("https")).port or 0))
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(shown)).hexdigest().upper()
    assert fingerprint.replace(":", "") == digest

    first, second = visit(command.address("https")), visit(command.address("http"))
    first.begin("First phone")
    first.wait_for(lambda: first.stage not in ("", "Starting …"))
    second.begin("Second phone")
    second.page.wait_for_selector("#problem:not([hidden])")
    assert "Another browser" in second.page.inner_text("#problem")
    assert command.finish(first) == 0, command.lines
    assert Report.load(out).device.model == "First phone" and first.errors == []
    with pytest.raises(OSError):
        ask(command.address("http"), "GET", "/")


def test_over_http_one_thread_remains(
    visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    """A browser that refuses the certificate; it has threads only where the address is this machine's loopback."""
    out = tmp_path / "web.json"
    command = bench(tiny("plain.onnx", 0.5), "--no-latency", images=photos_of(tmp_path), out=out)
    address = command.address("http")
    page = visit(address)
    page.begin()
    assert command.finish(page) == 0, command.lines
    report = Report.load(out)
    loopback = (urlsplit(address).hostname or "").startswith("127.")
    assert report.environment["secure"] is report.environment["isolated"] is loopback
    assert page.errors == [] and all(row.images or row.name == report.rows[0].name for row in report.rows)
    assert loopback or [row.runtime["threads"] for row in report.rows] == ["1"]


def test_an_interrupted_bench_goes_on_with_resume(
    visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    artifact, images, out = tiny("resumed.onnx", 0.5), photos_of(tmp_path), tmp_path / "web.json"
    words = (artifact, "--samples", "6", "--seconds", "1.5", "--rounds", "6", "--arithmetics", "default")
    command = bench(*words, images=images, out=out)
    page = visit(command.address("https"))
    page.begin()
    page.wait_for(lambda: out.exists() and any(row.latency.rounds for row in Report.load(out).rows))
    command.process.send_signal(signal.SIGINT)
    assert command.finish(page) == 130
    page.wait_for(lambda: "stopped on your computer" in page.stage)
    earlier = Report.load(out)
    assert not earlier.complete and any("--resume" in line for line in command.lines)

    again = bench(*words, "--resume", images=images, out=out)
    second = visit(again.address("https"))
    second.begin()
    assert again.finish(second) == 0, again.lines
    (row,), (before,) = Report.load(out).rows, earlier.rows
    done = len(before.latency.rounds)
    assert 0 < done < 6 and len(row.latency.rounds) == 6 and row.latency.rounds[:done] == before.latency.rounds
    assert page.errors == [] and second.errors == []


@contextmanager
def stopped_pages(page: Page) -> Iterator[None]:
    """Stop the processes of all pages, as a device does that sleeps."""
    told = page.page.context.browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")
    pids = [process["id"] for process in told["processInfo"] if process["type"] == "renderer"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_frozen_page_and_savers_are_remarked_on(
    visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    out = tmp_path / "web.json"
    words = ("--samples", "1", "--seconds", "3", "--rounds", "1", "--arithmetics", "default")
    command = bench(tiny("frozen.onnx", 0.5), *words, images=photos_of(tmp_path, 1), out=out)
    page = visit(command.address("https"), SLOW_FRAMES + EMPTY_BATTERY)
    page.begin()
    page.wait_for(lambda: page.stage == "Timing")
    with stopped_pages(page):
        time.sleep(6)
    assert command.finish(page) == 0, command.lines
    (row,) = Report.load(out).rows
    assert page.errors == [] and len(row.latency.rounds) == 1
    for remark in ("the page was frozen", "a battery saver may be on", "nearly empty and not charging"):
        assert any(remark in note for note in row.notes), (remark, row.notes)


def test_times_by_a_coarse_clock_are_void(
    visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    """The Web Worker's clock is made coarse, as browsers do it against fingerprinting."""
    out = tmp_path / "web.json"
    command = bench(
        tiny("coarse.onnx", 0.5), *QUICK, "--arithmetics", "default", images=photos_of(tmp_path, 1), out=out
    )
    page = visit("about:blank")

    def changed(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=COARSE_CLOCK + answer.text())

    page.page.route("**/clock.js", changed)
    page.page.goto(command.address("https"))
    told = page.page.evaluate("""async () => {
        const { remarks } = await import("./turns.js");
        const at = (ms) => remarks(ms, [2e7, 2e7, 3e7]).catch((error) => error.message);
        return [await at(0.1), await at(1), await at(5)];
    }""")
    assert told[0] == [] and told[1] == ["the browser's clock has steps of 1 ms, 5 % of the usual time"]
    assert told[2] == "the browser's clock has steps of 5 ms, too coarse for times of 20 ms"
    page.begin()
    assert command.finish(page) == 0, command.lines
    (row,) = Report.load(out).rows
    assert page.errors == [] and row.reason == "refused" and "clock has steps of 100 ms" in row.problem, row.problem


def test_the_study_of_the_page_times_both_sides_in_turns(
    chromium: Any, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    """In a process of its own: it drives a browser itself. What the ratio is, only a quiet machine tells."""
    words = (tiny("study.onnx", 0.5), "--images", photos_of(tmp_path, 1), "--rounds", "6", "--pairs", "2")
    command = [sys.executable, "-m", "u2export.benchmarks.studies", "browser", *map(str, words), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    data = json.loads((tmp_path / "browser.json").read_text())
    (pair,) = data["pairs"]
    assert [len(times) for times in (*pair["page_ms"], *pair["bare_ms"])] == [2] * 12 and pair["low"] <= pair[
        "ratio"
    ] <= pair["high"]
    assert data["environment"]["isolated"] is True and "| study.onnx |" in (tmp_path / "browser.md").read_text()


def test_the_page_adds_no_more_than_2_percent() -> None:
    """What the committed study found."""
    data = json.loads((ROOT / "benchmarks" / "results" / "browser" / "browser.json").read_text())
    assert data["pairs"] and all(pair["ratio"] <= 1.02 for pair in data["pairs"])


# A phone on a cable


@pytest.fixture
def own_adb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server of adb for this test alone, which knows no phone of this machine."""
    if not ADB:
        pytest.skip("no adb on this machine: apt install adb")
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(free_port()))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    yield
    subprocess.run([ADB, "kill-server"], capture_output=True, timeout=30)


def usb(cli: Cli, artifact: Path, images: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return cli("bench", artifact, "--images", images, "--device", "web:0", "--usb", **more)


def test_a_bench_over_usb(
    own_adb: None, visit: Callable[..., Page], bench: Start, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    """The real adb on this side; the phone is a program that speaks adb's protocol, because no phone is here."""
    assert ADB
    out = tmp_path / "web.json"
    with phone() as (port, phones):
        subprocess.run([ADB, "connect", f"127.0.0.1:{port}"], check=True, capture_output=True, timeout=30)
        command = bench(tiny("cable.onnx", 0.5), *QUICK, "--usb", images=photos_of(tmp_path), out=out)
        address = command.address("http")
        number = urlsplit(address).port
        assert phones[0].history == [f"reverse:forward:tcp:{number};tcp:{number}"]
        assert not command.address("https") and any(f"127.0.0.1:{port}" in line for line in command.lines)
        page = visit(address.replace("localhost", PHONE))
        page.begin()
        assert command.finish(page) == 0, command.lines
        assert page.errors == [] and Report.load(out).complete
        assert phones[0].history[1:] == [f"reverse:killforward:tcp:{number}"] and not phones[0].ports


def test_usb_without_a_phone(own_adb: None, cli: Cli, tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    two_lines(usb(cli, tiny("alone.onnx", 0.5), photos_of(tmp_path)), "adb finds no phone")


def test_usb_without_adb(cli: Cli, tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    done = usb(cli, tiny("alone.onnx", 0.5), photos_of(tmp_path), env={"PATH": str(nothing)})
    two_lines(done, "--usb needs adb, which is not installed")


@pytest.mark.parametrize(
    ("phones", "wanted", "problem"),
    [
        ({}, "", "no phone"),
        ({"A": "device", "B": "device"}, "", "2 phones: A, B"),
        ({"A": "unauthorized"}, "", "'unauthorized'"),
        ({"A": "device"}, "B", "does not find the phone B"),
    ],
)
def test_which_phone(phones: dict[str, str], wanted: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as refused:
        chosen(phones, wanted)
    assert refused.value.hint
    assert chosen({"A": "device", "B": "offline"}, "A") == "A"
