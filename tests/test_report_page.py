"""The page of results: whole, small, escaped, and what it does in a browser (headless Chromium)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import imported_report, measured_row, mixed_report, noise_pictures, report
from conftest import Cli, two_lines
from test_hostile_names import NAMES, harmless, hostile

from u2export.api.pages import write_report
from u2export.benchmarks.gate.saved_masks import SavedMasks, key
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.pages.report_page import LARGEST, LIBRARY, ROOM_FOR_DATA, ROOM_FOR_PICTURES, page
from u2export.benchmarks.report import Report
from u2export.errors import UserError, WrongValue
from u2export.reference.fidelity import ImageFidelity

pytest.importorskip("jinja2")
CHROMIUM = Path("/usr/bin/chromium")
PHOTOS = ("near.png", "far.png", "middle.png")
MAES, OTHERS = (0.001, 0.1, 0.01), (0.0005, 0.005, 0.05)


def with_masks(folder: Path) -> tuple[Report, Path, Path]:
    """A report of two artifacts on three photos, the photos, and the masks."""
    photos = noise_pictures(folder / "photos", PHOTOS)
    images = {photo: ImageFidelity(mae, 0.3, 0.99, 0.98, 1.0, 0.002) for photo, mae in zip(PHOTOS, MAES, strict=True)}
    others = {photo: replace(images[photo], mae=mae) for photo, mae in zip(PHOTOS, OTHERS, strict=True)}
    one, other = measured_row("one.onnx", images=images), measured_row("other.onnx", images=others)
    made = report(one, other, baseline="one.onnx", photos_digest="3" * 64)
    want = np.zeros((3, 1, 32, 48), np.float32)
    want[..., 8:24, 12:36] = 1
    wrong = want.copy()
    wrong[1, :, :8] = 1
    keys = {row.name: key(row) for row in made.rows}
    saved = SavedMasks(made.photos, made.photos_digest, {"one.onnx": wrong, "other.onnx": want},
                       {keys["one.onnx"]: want}, keys)  # fmt: skip
    saved.save(folder / "masks.npz")
    return made, photos, folder / "masks.npz"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def shown(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of three devices with photos, open in a browser; whatever it loads or complains about is a failure."""
    folder = tmp_path_factory.mktemp("page")
    made, photos, masks = with_masks(folder)
    path = write_report([mixed_report(), imported_report(), made], folder / "r.html", images=photos, masks=masks)
    wrong: list[str] = []
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
    opened.on("console", lambda said: wrong.append(said.text))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(path.as_uri())
    yield opened
    assert not wrong


def column(shown: Any, title: str) -> list[str]:
    """The visible cells of a column of the table."""
    script = """title => { const heads = [...document.querySelectorAll('#results th')];
        const i = heads.findIndex(h => h.textContent.trim() === title);
        return [...document.querySelectorAll('#results tbody tr')].filter(r => !r.hidden).map(
            r => r.cells[i].textContent.trim()) }"""
    return list(shown.evaluate(script, title))


def test_the_table_sorts_and_filters(shown: Any) -> None:
    button = shown.locator("#results th button", has_text="p50 ms")
    for turn in (1, -1):
        button.click()
        cells = column(shown, "p50 ms")
        known = [float(cell.rstrip("~?¹").split(" ")[0].split("–")[0]) for cell in cells if cell[0].isdigit()]
        assert known == sorted(known, reverse=turn < 0) and len(known) == 9
        assert all(not cell[0].isdigit() for cell in cells[len(known) :])
    shown.fill("#filter", "OPENVINO fp16")
    assert column(shown, "artifact") == ["u2netp-320-openvino-fp16.xml"]
    assert shown.inner_text("#counted") == "1 of 10 rows"
    shown.fill("#filter", "")
    shown.select_option("#device", index=3)
    assert set(column(shown, "device")) == {"Board"} and len(column(shown, "device")) == 2
    shown.select_option("#device", index=0)


def told(chart: Any) -> str:
    """The text of the box beside a point, once there is one."""
    box = chart.locator("g[aria-label=tip] text")
    box.wait_for()
    return "".join(box.text_content().split()).replace("\u200b", "")


def test_the_front_speaks_to_mouse_and_keyboard(shown: Any) -> None:
    chart = shown.locator(".chart").first
    points = chart.locator("[role=img]")
    said = ["".join(point.get_attribute("aria-label").split()) for point in points.all()]
    assert len(said) == 3 and len(set(said)) == 3
    points.nth(1).hover()
    assert told(chart) == said[1]
    shown.locator("h1").hover()
    points.nth(0).focus()
    for i, press in ((0, "ArrowRight"), (1, "ArrowRight"), (2, "ArrowRight"), (0, "ArrowLeft")):
        assert told(chart) == said[i]
        shown.keyboard.press(press)
    shown.keyboard.press("Tab")
    assert chart.locator("g[aria-label=tip] text").count() == 0


def test_distributions_speak_to_the_keyboard(shown: Any) -> None:
    """One stop for each row, with its name whole and its middle and its end in words."""
    for chart, words in ((shown.locator(".chart").nth(1), "worst"), (shown.locator(".chart").nth(2), "samples")):
        assert ", AMD EPYC" in chart.locator(":scope > svg").get_attribute("aria-label")
        names = chart.locator("g[aria-label=text] text").all_text_contents()
        rows = chart.locator("[role=img]").all()
        assert len(names) == len(rows) >= 2
        for name, one in zip(names, rows, strict=True):
            one.focus()
            said = one.get_attribute("aria-label")
            assert said.startswith(f"{name}: ") and words in said and told(chart) == "".join(said.split())
        shown.keyboard.press("Tab")


def test_the_library_is_that_of_its_authors_and_goes_with_its_licence() -> None:
    text, folder = page([mixed_report()]), resources.files("u2export.benchmarks.pages") / "vendored"
    form = r"\| (\S+\.js) \| .* \| ([\d.]+) \| ISC .*\(([^)]+)\)\) \| (\w{64}) \|"
    rows = re.findall(form, (folder / "README.md").read_text(encoding="utf-8"))
    assert {code for code, *_ in rows} == {code for code, _ in LIBRARY}
    for code, version, terms, digest in rows:
        content = (folder / code).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        script, licence = content.decode("utf-8"), (folder / terms).read_text(encoding="utf-8")
        assert f" v{version} Copyright" in script[:99] and "</script" not in script
        assert "Permission to use, copy, modify" in licence and licence in text and script in text
    assert "unsafe-eval" not in text and sum(len(s) for s in re.findall("<script>(.*?)</script>", text, re.S)) < 600_000


def test_a_full_page_keeps_its_limit() -> None:
    """Pictures and data fill their rooms; the library and half a megabyte for tables and charts fit beside them."""
    assert ROOM_FOR_PICTURES + 4 * ROOM_FOR_DATA // 3 + len(page([])) + 500_000 <= LARGEST


def test_photos_stand_worst_first_and_a_slider_parts_them(shown: Any) -> None:
    def order() -> list[str]:
        return [text.split(" ")[0] for text in shown.locator("figcaption b").all_inner_texts()]

    assert order() == ["far.png", "middle.png", "near.png"]
    shown.select_option("#artifact", "other.onnx")
    assert order() == ["middle.png", "far.png", "near.png"]
    shown.select_option("#artifact", "one.onnx")
    figure = shown.locator("figure").first
    assert figure.locator("img.left").get_attribute("data-view") == "reference"
    assert figure.locator("img.right").get_attribute("data-view") == "mask"
    shown.select_option("#left", "photo")
    shown.select_option("#right", "difference")
    assert figure.locator("img.left").get_attribute("alt") == "the photo far.png"
    assert figure.locator("img.right").get_attribute("alt") == "difference of one.onnx"
    slider = figure.locator("input")
    slider.focus()
    for _ in range(10):
        shown.keyboard.press("ArrowRight")
    assert "inset(0px 0px 0px 60%)" in figure.locator("img.right").evaluate("i => getComputedStyle(i).clipPath")
    assert all(shown.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))


def test_it_follows_light_dark_phone_and_paper(shown: Any) -> None:
    def ground() -> str:
        return str(shown.evaluate("getComputedStyle(document.body).backgroundColor"))

    shown.emulate_media(color_scheme="dark")
    dark = ground()
    shown.click("#theme")
    assert ground() != dark
    shown.emulate_media(media="print", color_scheme="dark")
    assert ground() == "rgb(255, 255, 255)" and not shown.locator("#filter").is_visible()
    shown.emulate_media(media="screen", color_scheme="light")
    for width in (360, 800):
        shown.set_viewport_size({"width": width, "height": 800})
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.set_viewport_size({"width": 1200, "height": 900})


def test_nothing_lies_beside_the_screen_of_a_phone(shown: Any) -> None:
    """Wide tables and charts scroll in frames of their own, and the page itself does not scroll sideways."""
    shown.set_viewport_size({"width": 375, "height": 800})
    shown.evaluate("document.querySelector('#device').add(new Option('a long name of a device '.repeat(9)))")
    beside = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, .chart svg'))
        .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 99))"""
    assert shown.evaluate(beside) == []
    shown.evaluate("document.querySelector('#device').lastChild.remove()")
    shown.set_viewport_size({"width": 1200, "height": 900})


def test_it_prints_whole_words_and_colours(shown: Any, tmp_path: Path) -> None:
    """The page as PDF: wide paper, and no cell of the table is broken inside a word."""
    made = shown.pdf(prefer_css_page_size=True, path=tmp_path / "page.pdf")
    assert made.startswith(b"%PDF") and len(made) < LARGEST
    shown.emulate_media(media="print")
    shown.set_viewport_size({"width": 1040, "height": 720})  # landscape A4 less its margins
    broken = """() => [...document.querySelectorAll('#results .n, #results thead button')].filter(e => {
        const words = e.textContent.trim().split(/[ \u2013-]+/), range = document.createRange();
        range.selectNodeContents(e);
        return new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > words.length }).length"""
    assert shown.evaluate(broken) == 0
    assert shown.evaluate("document.querySelector('#results').scrollWidth") <= 1040
    assert shown.evaluate("getComputedStyle(document.querySelector('.chart figure')).printColorAdjust") == "exact"
    shown.emulate_media(media="screen")
    shown.set_viewport_size({"width": 1200, "height": 900})
    if shutil.which("pdftotext"):
        told = subprocess.run(["pdftotext", "-layout", tmp_path / "page.pdf", "-"], capture_output=True, text=True)
        assert "u2netp-320-openvino-fp16.xml" in told.stdout and "Fidelity against latency" in told.stdout


def test_the_raw_results_can_be_downloaded(shown: Any, tmp_path: Path) -> None:
    with shown.expect_download() as waiting:
        shown.locator("a[download]").first.click()
    waiting.value.save_as(tmp_path / "raw.json")
    assert Report.load(tmp_path / "raw.json") == mixed_report()


class Seen(HTMLParser):
    """The tags of a page, and the names of their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, name) for name, _ in (*attrs, ("", None))}


@pytest.mark.parametrize("name", [*NAMES, "<img src=x onerror=alert(1)>", "</script><b>", '"onmouseover="x'])
def test_names_are_text(name: str) -> None:
    text = page([hostile(name), mixed_report()])
    assert Seen(text).found == Seen(page([hostile("x"), mixed_report()])).found
    harmless(text.replace("\n", "")[: text.index("<script>")])


def test_the_page_stays_small_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    made, photos, masks = with_masks(tmp_path)
    path = write_report([made], tmp_path / "r.html", images=photos, masks=masks, photos=2)
    text = path.read_text(encoding="utf-8")
    assert "1 more photos are left out" in text and "near.png" not in text.split('id="photos"')[1].split("<h2")[0]
    rng = np.random.default_rng(0)
    samples = tuple(tuple(int(v) for v in rng.integers(10**8, 10**9, 400)) for _ in range(500))
    row = replace(made.rows[0], latency=replace(made.rows[0].latency, rounds=samples))
    assert len(page([replace(made, rows=(row,))])) < LARGEST // 2


def test_a_bench_without_times_is_repeated_without_times() -> None:
    silent = replace(measured_row("my net.onnx"), latency=Latency())
    assert "u2export bench &#39;my net.onnx&#39; --images PHOTOS --no-latency --json" in page([report(silent)])
    assert "--no-latency" not in page([mixed_report()])


def test_what_does_not_belong_together(cli: Cli, tmp_path: Path) -> None:
    made, photos, masks = with_masks(tmp_path)
    with pytest.raises(WrongValue, match="images without masks"):
        write_report([made], tmp_path / "r.html", images=photos)
    with pytest.raises(UserError, match="other photos"):
        write_report([mixed_report()], tmp_path / "r.html", images=photos, masks=masks)
    shutil.move(photos / "far.png", tmp_path / "far.png")
    with pytest.raises(UserError, match=r"no photo far\.png"):
        write_report([made], tmp_path / "r.html", images=photos, masks=masks)
    made.save(tmp_path / "r.json")
    two_lines(cli("report", tmp_path / "gone.json"), "gone.json")
    done = cli("report", tmp_path / "r.json", "--out", tmp_path / "r.html", "--json")
    assert json.loads(done.stdout) == {"written": [str(tmp_path / "r.html")]}
    address = (tmp_path / "r.html").read_text().split("data:application/json;base64,")[1].split('"')[0]
    (tmp_path / "again.json").write_bytes(base64.b64decode(address))
    assert Report.load(tmp_path / "again.json") == made
