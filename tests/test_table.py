from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from builders import BOARD, MS, imported_report, measured_row, mixed_report, report
from conftest import ROOT, Cli, two_lines
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFont
from rich.console import Console

from u2export.benchmarks.latency import Latency, Sustained
from u2export.benchmarks.measuring.judging import Judged
from u2export.benchmarks.report import IN_BROWSER, Settings
from u2export.benchmarks.tables.columns import small, table_of
from u2export.benchmarks.tables.contact_sheet import LESS, MORE, draw, worst
from u2export.benchmarks.tables.fonts import drawable_text, fitting
from u2export.benchmarks.tables.gather import gather
from u2export.benchmarks.tables.legend import about
from u2export.benchmarks.tables.markdown_page import BEGIN, device_names, inserted, overview
from u2export.benchmarks.tables.render import FORMATS, render
from u2export.benchmarks.tables.terminal import SHORT, STACKS, WIDTH, terminal
from u2export.errors import UserError
from u2export.reference.fidelity import ImageFidelity


def test_markdown_is_a_table_of_all_rows() -> None:
    lines = render([mixed_report()], "md").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6 and len({line.replace("\\|", "").count("|") for line in table}) == 1
    cells = dict(zip(*([c.strip() for c in table[i].split(" | ")] for i in (0, 3)), strict=True))
    assert cells["MAE"] == "0.00645" and cells["MAE worst"] == "0.01080" and cells["IoU worst"] == "0.9730"
    assert cells["p50 ms"] == "101" and cells["speed-up"] == "2.00x!" and cells["95 % interval"] == "2.00–2.00"
    assert (cells["MB"], cells["load ms"], cells["first ms"], cells["peak MB"]) == ("4.6", "200", "250", "256")
    assert cells["runs as"] == "ONNX Runtime 1.32.0 fp32" and cells["S"] == "0.932"
    assert "unavailable: no NVIDIA GPU \\| here" in table[5]
    assert "random-u2net-320-onnx-fp32.onnx (random weights)" in table[4] and "27.5~?" in table[4]
    assert "| ref |" in table[2] and "| base |" in table[2]


def test_columns_that_nobody_fills_are_left_out() -> None:
    bare = replace(mixed_report(), rows=tuple(replace(r, latency=Latency(), accuracy={}) for r in mixed_report().rows))
    text = render([bare], "md")
    assert "p50 ms" not in text and "maxF" not in text and "IoU worst" in text and "timed:" not in text


def test_what_a_reader_must_know() -> None:
    text = "\n".join(about(table_of(mixed_report())))
    assert "reference of the masks: PyTorch 2.13.0 fp32 (u2netp-320-pytorch-fp32)\n" in text
    onnx = replace(mixed_report(), rows=(replace(mixed_report().rows[0], exporter="onnx"), mixed_report().rows[1]))
    assert "(u2netp-320-pytorch-fp32), not PyTorch on this machine\n" in "\n".join(about(table_of(onnx)))
    assert "2 photos, 1 could not be read" in text and "onnxruntime 1.32.0" in text
    assert "~ unstable" in text and "? indicative" in text and "busy: load 1.75 on 2 cores" in text
    alone = replace(mixed_report(), rows=(measured_row("x.onnx", reference="", images={}),), complete=False)
    text = "\n".join(about(table_of(alone)))
    assert "reference of the masks: none" in text and "interrupted" in text and "indicative" not in text


def test_terminal_fits_120_columns_and_shows_every_name() -> None:
    text = render([mixed_report()], "term")
    assert max(map(len, text.splitlines())) <= WIDTH == 120
    for r in mixed_report().rows:
        assert r.title.split(" ")[0] in text and r.ran_as in text
    assert "no NVIDIA GPU | here" in text and "this machine cannot run it" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_names_break_between_words(width: int) -> None:
    rows = (measured_row("u2netp-official-320-openvino-fp32.xml"), measured_row("x" * 30), measured_row("a photo.onnx"))
    out = io.StringIO()
    Console(file=out, width=width).print(terminal(report(*rows)))
    table = [line[:24].strip() for line in out.getvalue().splitlines()]
    if width < 120:
        at = table.index("u2netp-official-320-")
        assert table[at + 1] == "openvino-fp32.xml" and "x" * 24 in table
    else:
        assert "u2netp-official-320-openvino-fp32.xml" in out.getvalue()
    assert "a photo.onnx" in table and all(len(line) <= width for line in out.getvalue().splitlines())


def test_csv_is_complete_and_unrounded() -> None:
    records = list(csv.DictReader(io.StringIO(render([mixed_report(), mixed_report()], "csv"))))
    assert len(records) == 8 and {r["device"] for r in records} == {mixed_report().device.fingerprint}
    second, last = records[1], records[3]
    assert float(second["mae"]) == pytest.approx(0.00645) and float(second["speedup"]) == pytest.approx(2, abs=1e-6)
    assert (second["samples"], second["truth_maxf"], second["unstable"]) == ("80", "0.951", "False")
    assert records[2]["random_weights"] == "True" and records[2]["truth_maxf"] == ""
    assert (last["reason"], last["p50_ms"], last["mae"]) == ("unavailable", "", "")


def test_small_numbers() -> None:
    shown = {0.0: "0", 3.2e-7: "3e-7", 1e-5: "0.00001", 0.00217: "0.00217", 0.5: "0.50000", 4e-12: "4e-12"}
    assert {value: small(value) for value in shown} == shown


def test_table_command(cli: Cli, tmp_path: Path) -> None:
    file, out = tmp_path / "r.json", tmp_path / "t.md"
    mixed_report().save(file)
    assert cli("table", file).stdout == render([mixed_report()], "term")
    assert cli("table", file, file, "--format", "csv").stdout.count("openvino-fp16.xml") == 2
    assert cli("table", file, "--format", "md", "--out", out).stdout.strip() == str(out)
    assert out.read_text(encoding="utf-8") == render([mixed_report()], "md")
    file.write_text("{")
    two_lines(cli("table", file), "is not JSON")
    two_lines(cli("table", tmp_path / "none.json"), "no such file")


def test_contact_sheet_shows_where_masks_differ(tmp_path: Path) -> None:
    photos = {}
    for name, size in (("a.png", (60, 40)), ("b.png", (30, 50))):
        Image.new("RGB", size, (10, 200, 30)).save(tmp_path / name)
        photos[name] = tmp_path / name
    want = np.zeros((2, 1, 32, 32), np.float32)
    want[..., 8:24, 8:24] = 1
    more, less = want.copy(), want.copy()
    more[1, :, 0:8], less[1, :, 16:24, 8:24] = 1, 0
    rows = {"ref": want, "more": more, "less": less}
    made = replace(mixed_report(), rows=tuple(measured_row(name, reference="ref") for name in rows))
    draw(made, photos, [Judged("ref", want, rows)], tmp_path / "out" / "s.png", 2)
    with Image.open(tmp_path / "out" / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    columns = np.array_split(pixels[:, 24 : pixels.shape[1] - 24], 3, axis=1)
    red, blue = ([(np.abs(c - np.int64(colour)).max(-1) < 3).sum() for c in columns] for colour in (MORE, LESS))
    assert red[1] > 1000 and red[0] == red[2] == 0 and blue[2] > 1000 and blue[0] == blue[1] == 0
    green = [(np.abs(c - [10, 200, 30]).max(-1) < 3).sum() for c in columns]
    assert green[0] > 5000 and green[1] == green[2] == 0
    draw(made, photos, [Judged("", None, {"more": more})], tmp_path / "no.png", 1)
    assert (tmp_path / "no.png").exists()


def test_worst_photos_come_first() -> None:
    one, other = measured_row("x"), measured_row("y", images={"c.png": ImageFidelity(0.9, 1, 0, 0, 0, 0.9)})
    assert worst([one, other], ["a.png", "b.png", "c.png", "d.png"], 3) == ["c.png", "b.png", "a.png"]


def lines_of(text: str) -> list[dict[str, str]]:
    head, _, *body = [line for line in text.splitlines() if line.startswith("|")]
    titles = [c.strip() for c in head.strip("|").split(" | ")]
    return [dict(zip(titles, (c.strip() for c in line.strip("|").split(" | ")), strict=True)) for line in body]


def test_imported_rows_are_marked_and_their_empty_cells_explained() -> None:
    text = render([imported_report()], "md")
    sampled, stated, mean, spread = lines_of(text)
    assert {line["by"] for line in (sampled, stated, mean, spread)} == {"I"}
    assert sampled["p50 ms"] == "201" and (stated["p50 ms"], stated["p90 ms"]) == ("7.50", "8.25")
    assert (mean["p50 ms"], mean["p90 ms"], spread["p50 ms"]) == ("4.00 mean", "n/t", "2.00–3.00")
    assert stated["load ms"] == "n/t" and "MAE" not in sampled  # a column nobody fills
    assert "timed: GPU compute" in stated["note"] and "n/t: the source does not state the value" in text
    assert f"imported: trtexec t.json, sha256 {'ab' * 8}…" in text and "by: M measured, I imported, P published" in text
    assert "reference of the masks" not in text and "0 cores" not in text
    mixed = replace(imported_report(), rows=(*imported_report().rows, mixed_report().rows[1]))
    assert lines_of(render([mixed], "md"))[0]["MAE"] == "n/m"


def test_no_cell_of_a_table_is_empty() -> None:
    for made in (mixed_report(), imported_report()):
        for line in lines_of(render([made], "md")):
            assert all(line.values())
            unexplained = [t for t, v in line.items() if v == "–" and t not in ("note", "unit")]
            assert not unexplained or line["note"].startswith("unavailable: ")


def test_new_columns_show_where_they_are_filled() -> None:
    first = mixed_report().rows[1]
    rich = replace(
        first, inference_ns=(20 * MS,), preprocess_ns=(3 * MS,), postprocess_ns=(4 * MS,), energy_uj=(500_000,) * 10,
        memory={"peak": 2**28, "device": 2**27}, sustained=Sustained(Latency(((10 * MS,) * 4 + (20 * MS,) * 4,))),
    )  # fmt: skip
    made = replace(mixed_report(), rows=(mixed_report().rows[0], rich))
    line = lines_of(render([made], "md"))[1]
    assert (line["pre ms"], line["infer ms"], line["post ms"], line["device MB"]) == ("3.00", "20.0", "4.00", "128")
    assert line["J"] == "0.0625" and float(line["knee"]) > 1.5
    assert lines_of(render([made], "md"))[0]["pre ms"] == "n/a"
    fast = replace(first, scenario="throughput", batch=4, latency=Latency(((40 * MS,) * 5,), (100 * MS,), 4))
    (only,) = lines_of(render([replace(made, rows=(fast,), baseline="")], "md"))
    assert only["pictures/s"] == "200.0"


def test_html_is_whole_and_escaped() -> None:
    pytest.importorskip("jinja2")
    hostile = replace(imported_report(), rows=(replace(imported_report().rows[0], name="<b>alert(1)</b>"),))
    text = render([mixed_report(), hostile], "html")
    assert "<b>" not in text and "&lt;b&gt;" in text
    checked = Balanced()
    checked.feed(text)
    assert not checked.open and checked.count["tr"] >= 1 + 4 + 1
    # Nothing is loaded from elsewhere: the scripts name only namespaces of XML, and the policy lets them load nothing.
    assert "http" not in text[: text.index("<script>")].replace("http-equiv", "") and "default-src 'none'" in text


class Balanced(HTMLParser):
    """Every element that opens closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.count[tag] += 1
        if tag not in ("meta", "br", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.count[tag] += 1


PUBLISHED = {
    "schema": 1, "source": {"title": "A paper", "url": "https://example.org/p", "read": "2026-01-02"},
    "rows": [{"device": "Phone", "model": "u2net", "runtime": "LiteRT", "precision": "fp16", "ms": 147,
              "compute": "GPU"},
             {"device": "Phone", "model": "u2netp", "runtime": "LiteRT", "precision": "fp16", "fps": [2, 4]}],
}  # fmt: skip


def test_published_figures_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(PUBLISHED))
    mixed_report().save(tmp_path / "r.json")
    (tmp_path / "record.json").write_text("{}")
    reports = gather([tmp_path])
    assert [r.device.model for r in reports] == ["Phone", ""]
    text = overview(reports)
    ours, theirs = text.split("Published by others, not measured by this project:")
    assert "LiteRT" not in ours and "AMD EPYC" not in theirs and "reference of the masks" not in theirs
    assert "147¹" in theirs and "250–500" in theirs and "https://example.org/p" in theirs
    assert render(reports, "md").index("AMD EPYC") < render(reports, "md").index("LiteRT")
    assert all(row.provenance == "published" and not row.images for row in reports[0].rows)


def test_rows_of_a_browser_stay_apart() -> None:
    native = report(measured_row("a.onnx"))
    browser = report(
        measured_row("b.onnx", provenance=IN_BROWSER, runtime={"device": "browser, WASM, 4 threads"}),
        device=replace(BOARD, model="Phone"),
    )
    ours, theirs = overview([native, browser]).split("Measured in a browser")
    assert "a.onnx" in ours and "Phone" not in ours and "| B |" not in ours
    assert "a.onnx" not in theirs and "| browser, WASM, 4 threads | B |" in theirs
    assert overview([browser]).startswith("Measured in a browser")


@pytest.mark.parametrize(
    "change", [{"schema": 9}, {"rows": [{}]}, {"rows": 3}, {"source": {}}, {"rows": [{"device": 1}]}]
)
def test_damaged_published_figures(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**PUBLISHED, **change}))
    with pytest.raises(UserError, match="not published figures"):
        gather([file])


values = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.lists(st.floats(), max_size=3)
)


@given(st.sampled_from(["device", "model", "runtime", "precision", "ms", "fps", "peak_mb", "statistic", "url"]), values)
def test_any_published_row_is_shown_or_refused(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    file = tmp_path_factory.getbasetemp() / "p.json"
    first = {**PUBLISHED["rows"][0], key: value}  # type: ignore[index]
    file.write_text(json.dumps({**PUBLISHED, "rows": [first]}))
    try:
        reports = gather([file])
    except UserError as error:
        assert error.problem and error.hint and "\n" not in error.problem
    else:
        assert overview(reports) and all(render(reports, form) for form in FORMATS)


def test_folders_without_results(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text('{"schema": 1, "rows": []}')
    with pytest.raises(UserError, match="no results in"):
        gather([tmp_path])
    with pytest.raises(UserError, match="holds no bench results"):
        gather([tmp_path / "record.json"])


def test_table_in_a_file(cli: Cli, tmp_path: Path) -> None:
    file, page = tmp_path / "r.json", tmp_path / "page.md"
    mixed_report().save(file)
    page.write_text("before\n<!-- table: begin: command -->\nold\n<!-- table: end -->\nafter\n")
    two_lines(cli("table", file, "--into", page, "--check"), "is stale")
    assert cli("table", file, "--into", page).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table: begin: command -->\n\n| device |") and text.endswith("-->\nafter\n")
    assert "old" not in text and overview([mixed_report()]) in text
    assert cli("table", file, "--into", page, "--check").returncode == 0
    page.write_text("no marks")
    two_lines(cli("table", file, "--into", page), "has no place for a table")
    two_lines(cli("table", file, "--check"), "needs the file to check", code=2)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/ai-hub.md"])
def test_generated_tables_are_fresh(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    if BEGIN not in text:
        pytest.skip(f"{page} holds no table")
    command = re.search(rf"{BEGIN}: u2export table --into {page} ([^>]+) -->", text)
    assert command, "the mark tells the command"
    reports = gather([ROOT / path for path in command[1].split()])
    assert inserted(text, overview(reports), page) == text, f"run u2export table --into {page} {command[1]}"


def test_every_published_figure_names_its_source() -> None:
    reports = gather([ROOT / "benchmarks" / "published"])
    rows = [row for r in reports for row in r.rows]
    assert len(rows) > 100 and all(row.source["url"].startswith("https://") for row in rows)
    assert not any(row.latency.ns or row.images for row in rows)


def test_devices_of_one_name_show_what_sets_them_apart() -> None:
    slow = replace(BOARD, model="", cpu="AMD EPYC", features=("avx", "avx2"))
    fast = replace(slow, features=("avx2", "avx512_vnni", "avx512f"))
    one = report(measured_row("a.onnx"), device=slow)
    two = replace(one, device=fast, settings=Settings(threads=1))
    assert device_names([one]) == ["AMD EPYC"]
    assert device_names([one, replace(one, device=fast)]) == ["AMD EPYC, AVX2", "AMD EPYC, AVX-512 VNNI"]
    assert device_names([one, two]) == ["AMD EPYC, AVX2, all cores", "AMD EPYC, AVX-512 VNNI, 1 thread"]
    newer = replace(one, device=replace(slow, features=("avx", "avx2", "fma")))  # the next generation, of the same name
    prints = [each.device.fingerprint[:4] for each in (one, newer)]
    assert device_names([one, newer, one]) == [f"AMD EPYC, {prints[i]}" for i in (0, 1, 0)]
    text = overview([one, two])
    assert "| AMD EPYC, AVX-512 VNNI, 1 thread | a.onnx |" in text
    # Each report keeps its own lines, also those that are equal.
    assert text.count("reference of the masks") == 2 and "2 cores" not in text and "4 cores with AVX2" in text
    assert "device AMD EPYC, AVX2, all cores: AMD EPYC" in text


@pytest.mark.parametrize(
    "features, name", [((), ""), (("avx2", "amx_int8", "avx512_vnni"), "AMX"), (("asimddp",), "dot product")]
)
def test_label_names_the_instructions_for_8_bit(features: tuple[str, ...], name: str) -> None:
    device = replace(BOARD, features=features)
    assert device.int8_instructions == name
    assert (f"with {name}" in device.label) == bool(name)


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_a_narrow_terminal_names_the_columns_that_it_leaves_out(width: int) -> None:
    made, out = mixed_report(), io.StringIO()
    Console(file=out, width=width).print(terminal(made))
    text = out.getvalue()
    head = text[: text.index("u2netp-320-pytorch")]
    named = " ".join(text[text.index("left out,") : text.index("device: ")].split()) if "left out," in text else ""
    shown = {title for stack in STACKS for title in stack if SHORT.get(title, title) in head.replace("\n", " ")}
    for title in table_of(made).by_title().keys() & {title for stack in STACKS for title in stack}:
        assert title in shown or title in named, title
    assert "p50 ms" in head and "2.00x" in text and (width < 120) == bool(named)
    assert all(len(line) <= width for line in text.splitlines())


def test_a_ratio_from_a_busy_machine_is_marked() -> None:
    busy = mixed_report()
    calm = replace(busy, environment={"before": {"load": 0.5}})
    assert "2.00x!" in render([busy], "md") and "do not rely" in render([busy], "md")
    assert "2.00x " in render([calm], "md") and "2.00x!" not in render([calm], "md")
    assert "more certain than the times" in render([calm], "md") and "more certain" not in render([busy], "md")


def test_a_single_artifact_has_its_pictures_side_by_side(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), (10, 200, 30)).save(tmp_path / "a.png")
    want = np.zeros((1, 1, 32, 32), np.float32)
    want[..., 8:24, 8:24] = 1
    more = want.copy()
    more[..., 0:8, :] = 1
    made = report(*(measured_row(name, reference="ref") for name in ("ref", "one")))
    draw(made, {"a.png": tmp_path / "a.png"}, [Judged("ref", want, {"ref": want, "one": more})], tmp_path / "s.png", 1)
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    columns = np.array_split(pixels[140:, 24 : pixels.shape[1] - 24], 4, axis=1)
    red = [(np.abs(c - np.int64(MORE)).max(-1) < 3).sum() for c in columns]
    white = [(c.min(-1) > 250).sum() for c in columns]
    assert red[3] > 400 and not any(red[:3]) and white[2] > white[1] + 300


def test_names_in_any_script_are_drawn_or_escaped() -> None:
    own = ImageFont.load_default(12)
    assert fitting("plain.png", 12)[0] == "plain.png" and fitting("żółw.png", 12)[0] == "żółw.png"
    text, font = fitting("写真.png", 12)
    missing = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(c)) != missing for c in text)
    assert drawable_text("写真.png", lambda c: c == "写") == "写\\u771f.png" and own.getlength(text) > 0
