"""Names of files, layers, devices and photos that try to be more than text in an output."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import BOARD, measured_row, picture, report, row
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from u2export import cli as program
from u2export.api import gating, tables
from u2export.benchmarks.gate.trend import trend
from u2export.benchmarks.gate.verdicts import Finding, Judgement, Verdicts
from u2export.benchmarks.report import Report
from u2export.benchmarks.tables import charts, contact_sheet
from u2export.commands import console, inspect, lint, targets, weights
from u2export.errors import Unavailable, UserError
from u2export.exporters.model_file import ModelFile, Port, StoredConvolution
from u2export.text import csv_cell, json_text, one_line, xml_text

NAMES = (
    "u2net[/b].onnx", "[red]u2net[/].onnx", ":smile: [link=https://example.org]x[/link]",
    "a\n::error::owned\n::add-mask::x", "::error file=x::owned", "x" * 24 + "::error::folded", "a ##[error]owned",
    "\r::warning::x", "a\u2028::error::x", "\x1b[31mred\x1b]0;title\x07", "\x9b31m", "nul\0", "\u202egnp.exe\u2066",
    "<script>alert(1)</script>", "<!-- a comment", "<!-- table: begin -->", "<!-- table: end -->", "-->",
    "=cmd|' /C calc'!A0", "+1+2", "-1+2", "@SUM(A1)", "\t=1", "a,b\"c", "a | b", "[x](https://example.org)",
    "# title", "- item", "1. item", "> quote", "~~~", "*b* _i_ `c`", "&lt;b>", "$\\frac$", "\ud800x.onnx",
    "\udcff.onnx",
)  # fmt: skip


def harmless(text: str) -> None:
    """No character that a terminal obeys, no line that GitHub's runner obeys."""
    for line in text.split("\n"):
        assert not line.lstrip().startswith("::"), line
        assert "##[" not in line, line
        found = {c for c in line if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
        assert not found, ascii(line)
        assert not re.search("[\ud800-\udc7f\udd00-\udfff]", line), ascii(line)


def shown(renderable: Any, width: int = 120) -> str:
    """What a console of rich that looks for markup prints."""
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()


def hostile(name: str) -> Report:
    """A report whose every name is hostile."""
    photos = measured_row("x").images
    images = {name: photos["a.png"], f"{name}2": photos["b.png"]}
    told = {"file": name, "tool": name, "version": name, "timed": name, "url": name, "title": name}
    rows = (
        measured_row(name, images=images, reference=f"{name} ref", notes=(name,)),
        measured_row(f"{name}2", images=images, runtime={"runtime": name, "provider": name, "device": name}),
        row(f"{name}3", reason="unavailable", problem=name),
        row(f"{name}4", provenance="imported", source=told, stated={"single": 3.0}),
    )
    device = replace(BOARD, model=name, cpu=name, os=name)
    return report(*rows, device=device, baseline=name, environment={"onnxruntime": name})


def test_names_become_one_line_of_text() -> None:
    for name in NAMES:
        harmless(one_line(name))
        assert "\n" not in one_line(name)
    assert one_line("u2netp-320 é 𝛼 😀 a:b ::1") == "u2netp-320 é 𝛼 😀 a:b ::1"
    assert one_line("a\n\x1b\x9b\u202e") == "a\\n\\x1b\\x9b\\u202e"


@given(st.text())
def test_any_text_becomes_one_harmless_line(text: str) -> None:
    harmless(one_line(text))
    harmless(json_text({text: text}).replace("\n", " "))
    assert json.loads(json_text({text: text})) == {text: text}
    ElementTree.fromstring(ElementTree.tostring(ElementTree.Element("a", b=xml_text(text)), encoding="unicode"))


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_results(name: str) -> None:
    made = hostile(name)
    harmless(shown(tables.report_table(made)))
    for form in ("term", "md"):  # test_report_page.py has names in HTML
        harmless(tables.tables_text([made], form))


@pytest.mark.parametrize("name", NAMES)
def test_markdown_has_its_cells_and_nothing_else(name: str) -> None:
    made = hostile(name)
    for text in (tables.tables_text([made], "md"), tables.overview([made]), verdicts(name, "markdown")):
        assert "<" not in text and "](" not in text
        lines = text.splitlines()
        cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line.startswith("|")}
        assert len(cells) == 1
        assert all(re.match(r"\||- (?!#|>|[-+] |\d+\. |~~)|\*\*|$", line) for line in lines), lines


@pytest.mark.parametrize("name", NAMES)
def test_a_table_stays_between_its_marks(name: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table: begin -->\n<!-- table: end -->\nafter\n", encoding="utf-8")
    tables.update_overview([hostile(name)], page)
    once = page.read_text(encoding="utf-8")
    tables.update_overview([hostile(name)], page)
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith("before\n<!-- table: begin -->\n") and once.endswith("<!-- table: end -->\nafter\n")
    assert once.count("<!--") == 2


@pytest.mark.parametrize("name", NAMES)
def test_csv_has_no_formulas(name: str) -> None:
    text = tables.tables_text([hostile(name)], "csv")
    harmless(text.replace("\r\n", "\n"))
    lines = list(csv.reader(io.StringIO(text, newline="")))
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    for cell in (cell for line in lines for cell in line):
        assert not cell.lstrip().startswith(("=", "+", "-", "@")), cell


def test_numbers_of_csv_stay_numbers() -> None:
    assert csv_cell(-0.5) == -0.5 and csv_cell("u2netp.onnx") == "u2netp.onnx" and csv_cell("=1") == "'=1"


def judged(name: str) -> Verdicts:
    """A failed and an inconclusive artifact of a hostile name."""
    failed = Finding("worst mae", "fail", f"photo {name} lost", 0.1, 0.01, photo=name)
    doubtful = Finding("mean mae", "inconclusive", name, 0.1, 0.01)
    return Verdicts((Judgement(name, (failed,)), Judgement(f"{name}2", (doubtful,))), gating.Policy(), 3)


def verdicts(name: str, form: str) -> str:
    return gating.verdicts_text(judged(name), form)


@pytest.mark.parametrize("name", NAMES)
def test_verdicts(name: str) -> None:
    harmless(shown(gating.verdicts_table(judged(name))))
    for form in ("markdown", "json", "junit"):
        harmless(verdicts(name, form))
    found = ElementTree.fromstring(verdicts(name, "junit"))
    assert [case.get("classname") for case in found] == [xml_text(name), xml_text(f"{name}2")]
    json.loads(verdicts(name, "json"))
    first, second, last = verdicts(name, "github").splitlines()
    assert first.startswith("::error title=") and second.startswith("::warning title=") and last.startswith("fail: ")
    assert first.count("::") >= 2 and "::" not in first[2 : first.index("::", 2)]


@pytest.mark.parametrize("name", NAMES)
def test_trends(name: str) -> None:
    made = hostile(name)
    lines = trend([replace(made, rows=made.rows[:2])] * 2, None, None)
    harmless(shown(gating.trend_table(lines)))
    for form in ("json", "markdown"):
        harmless(gating.trend_text(lines, form))


@pytest.mark.parametrize("name", NAMES)
def test_charts_and_contact_sheets(name: str, tmp_path: Path) -> None:
    from PIL import ImageDraw

    pen = ImageDraw.Draw(Image.new("RGB", (50, 50)))
    contact_sheet._text(pen, 0, 0, name, 12, (0, 0, 0))
    pytest.importorskip("matplotlib")
    charts.draw(hostile(name), ("photos",), ("svg",), tmp_path, "x")
    ElementTree.parse(tmp_path / "x-photos.svg")


def out(capsys: pytest.CaptureFixture[str]) -> str:
    got = capsys.readouterr()
    harmless(got.out)
    harmless(got.err)
    return got.out + got.err


@pytest.mark.parametrize("name", NAMES[:-1])  # the last one is printed as its bytes
def test_messages_and_paths(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console.fail(UserError(f"no such file: {name}", name))
    console.say(name, name)
    console.echo(Path("artifacts") / name.replace("\0", ""), name)
    console.remark(name)
    with console.waiting(name) as show:
        show(name)
    console.LogHandler().emit(logging.LogRecord("u2export", logging.WARNING, "", 0, "%s is odd", (name,), None))
    assert len(out(capsys).splitlines()) == 8


@pytest.mark.parametrize("name", NAMES[:-1])
def test_inspect_weights_lint_and_targets(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tuple(StoredConvolution(n, (1, 1), "int8", n, 4) for n in (name, f"{name}2"))
    port = Port(name, "float32", (name, "3"))
    found = ModelFile(name, 9, (port,), (port,), {name: 2}, layers, {name: name})
    made = {"exporter": name, "precision": name, "created": name, "notes": [name]}
    console.echo(*inspect._lines(Path(name.replace("\0", "")), found, made))
    inspect._print_layers(found)
    facts: dict[str, Any] = {"name": name, "digest": name}
    monkeypatch.setattr(weights.inspecting, "weights_facts", lambda _: facts)
    weights.info(name)
    console.stdout().print(targets._reason(name, "run", Unavailable(name, name)))
    damage = SimpleNamespace(
        index=0, name=name, problems=(name,), weights_sqnr=None, error8=0.1, bias=0.1, dead=1, silent=None
    )
    constant = SimpleNamespace(producer=name, channel=1, low=0.0, high=0.1, obstacle=name)
    weak = SimpleNamespace(layers=[damage], near_constant=[constant], inputs=0)
    lint._show(weak, 5)  # type: ignore[arg-type]
    assert out(capsys)


@pytest.mark.parametrize("name", [n for n in NAMES[:-2] if "/" not in n and "\0" not in n])
def test_calib_check_and_its_photos(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        Image.fromarray(picture(i)).save(tmp_path / f"{name}{i}.png", "PNG")
    (tmp_path / f"{name}damaged.png").write_bytes(b"nothing")
    for more in ((), ("--json",)):
        run(["calib", "check", str(tmp_path), *more])
    assert "damaged" in out(capsys)


@pytest.mark.parametrize("name", NAMES[:-2])  # protobuf holds UTF-8 only
def test_roofline_of_hostile_layers(
    name: str, tiny: Callable[[str, float], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(tiny("plain.onnx", 0.5))
    model.graph.node[0].name = name
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    onnx.save(model, tmp_path / "x.onnx")
    run(["roofline", str(tmp_path / "x.onnx"), "--device", "none", "--no-local", "--layers", "3"])
    run(["inspect", str(tmp_path / "x.onnx"), "--layers"])
    assert "multiply-accumulates" in out(capsys)


def run(words: Iterable[str]) -> None:
    """Run a command in this process."""
    program.app(list(words), standalone_mode=False)


@pytest.mark.parametrize("name", ["a\n::error::owned.png", "[b].png", "\x1b[31m.png"])
def test_predict_and_bench_of_hostile_photos(
    name: str, tiny: Callable[[str, float], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(2):
        Image.new("RGB", (48, 32), (9 * i, 9, 9)).save(photos / f"{i}{name}")
    (photos / f"bad{name}").write_bytes(b"nothing")
    model = str(tiny(name.removesuffix(".png") + ".onnx", 0.5))
    run(["predict", str(photos), "--model", model, "--out", str(tmp_path / "masks")])
    assert "skipped" in out(capsys)
    run(["bench", model, "--images", str(photos), "--no-latency", "--json", str(tmp_path / f"{name}.json")])
    assert "skipped" in out(capsys)
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["rows"]
