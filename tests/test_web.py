"""The browser as a device, in a real Chromium: whole benches, strangers, lost and hidden pages."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browser import CHROMIUM, Page, ask
from builders import ANY_MASKS, noise_pictures, random_source

from u2export.benchmarks.imports.kit import artifact_of, judge, write
from u2export.benchmarks.imports.rows import Claim, reports
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.measuring.photos import photos_in
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.measuring.worker_process import WorkerFailed
from u2export.benchmarks.report import Report, Settings
from u2export.benchmarks.tables.render import render
from u2export.benchmarks.web.announcement import code
from u2export.benchmarks.web.browser_worker import BrowserWorker
from u2export.benchmarks.web.channel import Channel
from u2export.benchmarks.web.identity import identity
from u2export.benchmarks.web.machine import PORT, WebMachine, port_of
from u2export.benchmarks.web.runtime_files import FILES, runtime_files
from u2export.errors import Unavailable, UserError
from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact

QUICK = Settings("custom", 3, 0.05, 2)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An untrained U²-Net-small at 64 x 64, with its record."""
    pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from u2export.exporters.exporter import Request
    from u2export.exporters.onnx import Onnx

    request = Request("fp32", condition=False, budget=ANY_MASKS)
    return Onnx().export(random_source(), tmp_path_factory.mktemp("net"), request)


@dataclass
class Run:
    """A bench in a thread of its own, and the addresses that it announced."""

    result: Future[Report] = field(default_factory=Future)
    lines: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def announce(self, line: str) -> None:
        self.lines.append(line)
        if "http://" in line:
            self.ready.set()

    @property
    def secure(self) -> str:
        return next(line.strip() for line in self.lines if "https://" in line)

    @property
    def plain(self) -> str:
        return next(line.strip() for line in self.lines if "http://" in line)


def start(artifacts: list[Artifact], photos: dict[str, Path], **changes: Any) -> Run:
    """Start a bench; its page can be opened when this returns."""
    run = Run()
    changes = {"settings": QUICK, "reference": "auto", "timeout": 60, **changes}
    machine = WebMachine(run.announce, port=0, **changes.pop("machine", {}))
    extra = {k: changes.pop(k) for k in ("earlier",) if k in changes}
    plan = Plan(artifacts, photos, machine=machine, **changes)

    def look(report: Report, paths: Any, judged: Any) -> None:
        run.judged += [Judged(j.reference, j.want, {k: np.array(v) for k, v in j.rows.items()}) for j in judged]

    def work() -> None:
        try:
            run.result.set_result(measure(plan, run.reports.append, look=look, **extra))
        except BaseException as error:
            run.result.set_exception(error)
            run.ready.set()

    threading.Thread(target=work, daemon=True).start()
    assert run.ready.wait(60)
    return run


def photos_of(folder: Path, count: int = 2) -> dict[str, Path]:
    return photos_in(noise_pictures(folder / "photos", (f"p{i}.png" for i in range(count))))


def finish(run: Run, page: Page, seconds: float = 60) -> Report:
    """Wait for the report while the browser works; Playwright runs its events only while it waits."""
    for _ in range(int(seconds * 10)):
        if run.result.done():
            break
        page.page.wait_for_timeout(100)
    return run.result.result(timeout=0)


def test_a_whole_bench_in_a_browser(visit: Callable[..., Page], net: Artifact, tmp_path: Path) -> None:
    photos = photos_of(tmp_path)
    run = start([net], photos, save_reference=tmp_path / "reference.npz")
    page = visit(run.secure)
    page.begin()
    report = finish(run, page)
    one, two = report.rows[0], report.rows[1] if len(report.rows) > 1 else None
    assert report.complete and not one.reason, one.problem
    assert report.device.model == "Test phone" and report.device.accelerators["browser"].startswith("Chromium ")
    assert one.provenance == "measured, browser" and one.runtime["device"] == "browser, WASM, 1 thread"
    assert one.runtime["arithmetic"] == "fp32 wasm" and one.runtime["threads"] == "1"
    if report.device.cores > 1:
        assert two and two.name == f"{net.name} fp32 wasm {two.runtime['threads']} threads"
    assert len(one.latency.rounds) == 2 and one.first_ns > 0 and one.load_ns and not one.preprocess_ns

    (judged,) = run.judged
    assert judged.want is not None
    for maps in judged.rows.values():
        assert np.abs(maps - judged.want).max() < 1e-5
    assert report.environment["onnxruntime-web"] and report.environment["isolated"] is True
    text = render([report], "md")
    assert "measured, browser" in text and "| B |" in text
    page.wait_for(lambda: page.stage.startswith("Finished"))
    assert page.errors == [] and page.hosts - {""} == {urlsplit(run.secure).netloc}


def test_strangers_get_nothing(visit: Callable[..., Page], tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    artifact = read_artifact(tiny("guarded.onnx", 0.25))
    run = start([artifact], photos_of(tmp_path), latency=False)
    token = urlsplit(run.plain).path.strip("/")
    for address in (run.plain, run.secure):
        assert ask(address, "GET", f"/{token}/page.js")[0] == 200
        assert ask(address, "GET", f"/{token[:-1]}x/page.js")[0] == 404
        assert ask(address, "GET", "/")[0] == 404
    for path in ("../web/server.py", "%2e%2e/%2e%2e/pyproject.toml", "private/model-1-0", "/etc/passwd", "page.js/"):
        status, body = ask(run.plain, "GET", f"/{token}/{path}", X_Session="guess")
        assert status == 404 and len(body) < 20, path
    assert ask(run.plain, "GET", f"/{token}/next", X_Session="guess")[0] == 403
    assert ask(run.plain, "POST", f"/{token}/answer", b"{}", X_Session="guess")[0] == 403
    for body, expected in ((b"[]", 400), (b"{" * 3000, 400), (b"\xff", 400), (b" " * 70_000, 413)):
        assert ask(run.plain, "POST", f"/{token}/hello", body)[0] == expected

    page = visit(run.secure)
    second = visit(run.plain)
    page.begin()
    page.page.wait_for_selector("#bench")
    page.wait_for(lambda: page.stage not in ("", "Starting …"))
    second.begin("Another phone")
    second.page.wait_for_selector("#problem:not([hidden])")
    assert "Another browser" in second.page.inner_text("#problem")
    report = finish(run, page)
    assert report.device.model == "Test phone"
    with pytest.raises(OSError):
        ask(run.plain, "GET", f"/{token}/")


def test_strangers_are_slowed_down(chromium: Any, tiny: Callable[[str, float], Path], tmp_path: Path) -> None:
    run = start([read_artifact(tiny("slow.onnx", 0.5))], photos_of(tmp_path), machine={"patience": 2})
    statuses = [ask(run.plain, "GET", f"/guess{i}/")[0] for i in range(40)]
    assert statuses[0] == 404 and statuses[-1] == 429
    with pytest.raises(UserError, match="no browser started the bench"):
        run.result.result(timeout=20)


def test_onnxruntime_web_is_fetched_once_and_checked(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", offline)
    found = runtime_files()  # as the fixture fetched them, or an earlier run
    assert set(found) == set(FILES)
    monkeypatch.setenv("U2EXPORT_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="cannot fetch onnxruntime-web"):
        runtime_files()
    folder = tmp_path / found["ort.wasm.min.mjs"].parent.name
    shutil.copytree(found["ort.wasm.min.mjs"].parent, folder)
    assert runtime_files()["ort.wasm.min.mjs"].parent == folder
    (folder / "ort.wasm.min.mjs").write_bytes(b"other")
    with pytest.raises(Unavailable, match="no network"):
        runtime_files()


def test_the_code_in_the_terminal_is_the_address() -> None:
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("qrcode")
    address = "https://192.168.178.20:8622/MwDpVv3-abcDEF_0123456/"
    halves = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0), "\xa0": (0, 0)}
    lines = [[halves[letter] for letter in line] for line in code(address)]
    pixels = np.array([[half[part] for half in line] for line in lines for part in (0, 1)], np.uint8)
    picture = np.kron(np.pad(pixels, 4, constant_values=1) * 255, np.ones((8, 8), np.uint8))
    assert cv2.QRCodeDetector().detectAndDecode(picture)[0] == address


@pytest.mark.parametrize("device", ["web:", "web:x", "web:65535", "web:-1"])
def test_a_device_that_is_no_port(device: str) -> None:
    with pytest.raises(UserError, match="is no browser"):
        port_of(device)
    assert port_of("web") == PORT and port_of("web:9000") == 9000


def test_what_a_browser_tells_is_bounded() -> None:
    told = {
        "model": "x" * 5000 + "\x1b[2J", "agent": 7, "cores": float("nan"), "memory": "8", "gpu": [], "data": "no",
        "isolated": "yes", "clock_us": -3,
    }  # fmt: skip
    found = identity(json.loads(json.dumps(told)))
    assert len(found.device.model) == 100 and found.device.cores == 1 and found.threads == 1 and not found.gpu
    phone = identity({
        "agent": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.2 Mobile/15E148 Safari/604.1",
        "model": "iPhone 15", "cores": 6,
    })  # fmt: skip
    assert phone.device.os == "iOS 18.2" and phone.environment["browser"] == "Safari 18.2"
    assert phone.device.label == "iPhone 15, 6 cores, iOS 18.2, Safari 18"
    for graphics, name in (
        ("ANGLE (Qualcomm, Adreno (TM) 740, OpenGL ES 3.2)", "Adreno (TM) 740"),
        ("Apple GPU", "Apple GPU"),
        ("ANGLE (Google, Vulkan 1.3.0 (SwiftShader Device (Subzero)), SwiftShader driver)", "SwiftShader (no GPU)"),
    ):
        assert identity({"graphics": graphics}).device.accelerators["gpu"] == name


def test_a_closed_page_ends_the_bench_and_resume_goes_on(
    visit: Callable[..., Page], tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    artifacts = [read_artifact(tiny(name, weight)) for name, weight in (("one.onnx", 0.5), ("two.onnx", 0.25))]
    photos = photos_of(tmp_path)
    same: dict[str, Any] = {"settings": Settings("custom", 6, 0.1, 6), "arithmetics": "default"}
    run = start(artifacts, photos, **same)
    page = visit(run.secure)
    page.begin()
    page.wait_for(lambda: bool(run.reports and run.reports[-1].states))
    page.page.goto("about:blank")
    with pytest.raises(UserError, match="closed or loaded again") as lost:
        run.result.result(timeout=30)
    assert "--resume" in lost.value.hint
    earlier = run.reports[-1]
    done = [row.latency.rounds for row in earlier.rows]
    assert not earlier.complete and all(1 <= len(rounds) < 6 for rounds in done)

    again = start(artifacts, photos, **same, earlier=earlier)
    page = visit(again.secure)
    page.begin()
    report = finish(again, page)
    assert report.complete and page.errors == []
    for row, rounds in zip(report.rows, done, strict=True):
        kept = min(map(len, done))
        assert len(row.latency.rounds) == 6 and row.latency.rounds[:kept] == rounds[:kept]

    other = start(artifacts, photos, **same, earlier=earlier)
    page = visit(other.secure)
    page.begin("Another phone")
    with pytest.raises(UserError, match="of another device"):
        finish(other, page)


def test_turns_of_a_hidden_page_are_timed_again(
    visit: Callable[..., Page], tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    artifact = read_artifact(tiny("hidden.onnx", 0.75))
    run = start([artifact], photos_of(tmp_path, 1), settings=Settings("custom", 1, 1.5, 1), arithmetics="default")
    page = visit(run.secure)
    page.page.evaluate("""() => {
        window.shown = "visible";
        Object.defineProperty(document, "visibilityState", { get: () => window.shown });
        window.change = (state) => { window.shown = state; document.dispatchEvent(new Event("visibilitychange")); };
    }""")
    page.begin()
    page.wait_for(lambda: page.stage == "Timing")
    page.page.wait_for_timeout(300)
    page.page.evaluate("change('hidden')")
    page.page.wait_for_timeout(1800)
    assert not run.result.done(), "the second try waits until the page is in front"
    page.page.evaluate("change('visible')")
    (row,) = finish(run, page).rows
    assert page.errors == []
    assert "timed again: the page was hidden" in row.notes and len(row.latency.rounds) == 1


def test_a_page_that_is_not_heard_of_is_lost() -> None:
    channel = Channel(silence=0.1)
    session = channel.claim({})
    seq = channel.send({"do": "open"})
    with pytest.raises(UserError, match="not been heard of"):
        channel.answer(seq, 5)
    assert channel.knows(session) and not channel.knows("guess") and channel.claim({}) == ""
    channel.put(seq, {"first": True})
    channel.put(seq, {"first": False})  # sent twice by a network that lost the reply
    assert channel.answer(seq, 0) == {"first": True}


def test_webgpu_on_a_software_adapter_is_simulated(
    chromium: Any, tiny: Callable[[str, float], Path], tmp_path: Path
) -> None:
    artifact = read_artifact(tiny("graphics.onnx", 0.5))
    run = start([artifact], photos_of(tmp_path), latency=False)
    browser = chromium.browser_type.launch(
        executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    )
    try:
        page = Page(browser.new_page(ignore_https_errors=True))
        page.page.goto(run.secure)
        page.begin()
        report = finish(run, page)
    finally:
        browser.close()
    row = report.row(f"{artifact.name} fp32 webgpu")
    if row is None:
        pytest.skip("this Chromium has no adapter for WebGPU")
    assert not row.reason, row.problem
    assert row.runtime["provider"] == "WebGPU" and "simulated: WebGPU ran on a software adapter" in row.notes
    (judged,) = run.judged
    maps = list(judged.rows.values())
    assert all(np.abs(other - maps[0]).max() < 1e-5 for other in maps)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"inference_ns": 5, "type": "float32", "dims": [1, 1, 9, 9], "d0": ""}, "no map"),
        ({"inference_ns": 5, "type": "float32", "dims": [1, 1, 1, 1], "d0": "AACAPw=="}, "shape"),
        ({"inference_ns": -5, "type": "float32", "dims": [1, 1, 32, 48], "d0": b64encode(bytes(6144)).decode()}, "-5"),
        ({"error": 7}, "an error in the browser"),
        ({"error": {"kind": "rm -rf", "problem": "x" * 9999}}, "xxx"),
    ],
)
def test_answers_of_another_form_fail_their_row(
    answer: dict[str, Any], problem: str, tiny: Callable[[str, float], Path], photo: Path
) -> None:
    channel, artifact = Channel(), read_artifact(tiny("answers.onnx", 0.5))
    channel.claim({})
    page = identity({"cores": 2})
    worker = BrowserWorker(1, channel, {}, {str(artifact.path): artifact}, page, 0, 5)
    opened = {"load_ns": 5, "opening_ns": {}, "threads": 1}

    def reply() -> None:
        for seq, value in ((1, opened), (2, answer)):
            while not any(
                message["seq"] == seq for message in (channel.messages(seq - 1) or {"messages": []})["messages"]
            ):
                time.sleep(0.01)
            channel.put(seq, value)

    threading.Thread(target=reply, daemon=True).start()
    worker.ask("open", artifact=str(artifact.path), mode="")
    with pytest.raises(WorkerFailed) as failure:
        worker.ask("predict", photos=[str(photo)])
    assert problem in failure.value.problem and len(failure.value.problem) < 400


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address where a host serves it that sends no headers of its own."""
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://localhost:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files and prints nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_kit_runs_on_any_host_and_its_result_is_judged(
    visit: Callable[..., Page], net: Artifact, host: tuple[Path, str], photo: Path
) -> None:
    folder, address = host
    kit = write(net, random_source(), "web", folder)
    manifest = json.loads((kit / "kit.json").read_text())
    assert (manifest["samples"], manifest["rounds"]) == (64, 10)
    (kit / "kit.json").write_text(json.dumps({**manifest, "samples": 4, "seconds": 0.1, "rounds": 2}))

    page = visit(f"{address}/{kit.name}/")
    page.page.wait_for_selector("#go:enabled")
    titles = page.page.locator("#unit option").all_inner_texts()
    threads = page.page.evaluate("navigator.hardwareConcurrency")
    assert titles[0] == "WebAssembly, 1 thread"
    assert threads == 1 or "threads" in titles[1], "the service worker isolates the page"
    page.page.set_input_files("#photo", str(photo))
    told = functools.partial(page.page.inner_text, "#told")
    page.wait_for(lambda: told() == "The mask is ready.")
    assert "made here in" in page.page.inner_text("#made")
    page.page.click("#camera")
    page.wait_for(lambda: told().startswith("Live"))
    page.page.click("#camera")
    page.wait_for(lambda: told() == "The camera is off.")
    page.page.select_option("#unit", titles[-1])
    page.begin()
    page.page.wait_for_selector("#save:not([hidden])", timeout=60_000)
    with page.page.expect_download() as saved:
        page.page.click("#save")
    result = folder / "result.json"
    saved.value.save_as(result)
    assert page.errors == [] and page.hosts - {""} == {urlsplit(address).netloc}

    (report,) = reports(result, "kit", Claim(artifact=artifact_of(kit)), None, judge(kit, result))
    (row,) = report.rows
    assert report.device.model == "Test phone" and row.runtime["device"] == f"browser, {titles[-1]}".replace(
        "WebAssembly", "WASM"
    )
    assert list(row.images) == manifest["pictures"] and row.fidelity
    assert max(image.max_abs for image in row.images.values()) < 1e-4 and row.fidelity.raw_mae < 1e-5
    assert len(row.latency.ns) >= 4 and row.first_ns > 0

    data = json.loads(result.read_text())
    data["maps"]["golden"] = data["maps"]["golden"][:400]
    result.write_text(json.dumps(data))
    with pytest.raises(UserError, match="holds a map of 300 bytes"):
        reports(result, "kit", Claim(artifact=artifact_of(kit)), None, judge(kit, result))
