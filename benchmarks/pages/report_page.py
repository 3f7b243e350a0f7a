"""The report: one page that holds everything, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from u2export.benchmarks.pages import plots
from u2export.benchmarks.pages.pictures import Gallery
from u2export.benchmarks.report import Report, Row, compact
from u2export.benchmarks.tables.columns import COLUMNS, NONE, note, table_of
from u2export.benchmarks.tables.gather import is_published, ordered
from u2export.benchmarks.tables.legend import BLANKS, LEGEND, codes, facts, label
from u2export.benchmarks.tables.markdown_page import device_names
from u2export.errors import Unavailable
from u2export.install import how_to_install
from u2export.text import one_line
from u2export.version import __version__

LARGEST = 5_000_000  # bytes of a page
ROOM_FOR_PICTURES, ROOM_FOR_DATA = 2_700_000, 900_000
# The library of the charts, in the order of loading, with the licence that has to go with each copy.
LIBRARY = (("d3.min.js", "d3.LICENSE"), ("plot.umd.min.js", "plot.LICENSE"))
HINT = "Hover over a point, or go from point to point with the arrow keys."
FRONT = "Large points are on the front: nothing is both faster and closer."
# Values of a machine's state that change from minute to minute, in words.
STATE = {"load": "load", "clocks": "clocks in MHz", "governor": "governor", "temperatures": "temperatures in °C"}


@dataclass(frozen=True)
class TableCell:
    """One cell: its text, the number to sort by (None sorts last), whether it stands right, and why it is empty."""

    text: str
    value: float | None
    right: bool
    why: str = ""


@dataclass(frozen=True)
class TableRow:
    """One line of the table of all results; `section` is the number of the device's section."""

    device: str
    section: int
    cells: tuple[TableCell, ...]
    note: str
    empty: bool


@dataclass(frozen=True)
class Chart:
    """A chart: its title, what its axis shows, how to use it, and what the page's script draws."""

    title: str
    axis: str
    hint: str
    values: plots.Front | plots.Distribution


@dataclass(frozen=True)
class Section:
    """What the page says of one device."""

    title: str
    published: bool
    facts: tuple[str, ...]
    charts: tuple[Chart, ...]
    state: tuple[tuple[str, str, str], ...]
    command: str
    install: str
    artifacts: tuple[tuple[str, str], ...]
    name: str
    data: str
    bytes: int


def page(reports: Sequence[Report], gallery: Gallery | None = None) -> str:
    """Return the page.

    Args:
        reports: one for each device; figures that others published stand last.
        gallery: photos and masks; without it the page says how to get them.

    Raises:
        Unavailable: Jinja2 is not installed (extra `report`).
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise Unavailable("a page needs Jinja2", how_to_install("report")) from None
    shown = ordered(reports)
    texts = {name: _text(name) for name in ("report.html", "report.css", "charts.js", "report.js")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts), autoescape=lambda name: name == "report.html", trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_harmless,
    )  # fmt: skip
    columns, rows = _table(shown)
    sections = [_section(report, i, ROOM_FOR_DATA // len(shown)) for i, report in enumerate(shown)]
    values = [asdict(chart.values) for section in sections for chart in section.charts]
    return environment.get_template("report.html").render(
        version=__version__, columns=columns, rows=rows, gallery=gallery, sections=sections,
        codes=[*codes(table_of(report) for report in shown), LEGEND], library=Markup(_library()),
        charts=jinja2.utils.htmlsafe_json_dumps(values),
    )  # fmt: skip


def _text(name: str) -> str:
    return (resources.files("u2export.benchmarks.pages") / name).read_text(encoding="utf-8")


def _library() -> str:
    """Return the library of the charts as a script."""
    return "\n".join(f"/*\n{_text(f'vendored/{terms}')}*/\n{_text(f'vendored/{code}')}" for code, terms in LIBRARY)


def _harmless(value: Any) -> Any:
    """Return a text of others as one line of visible characters; markup of Jinja2 stays."""
    return one_line(value) if type(value) is str else value


def _table(reports: Sequence[Report]) -> tuple[list[str], list[TableRow]]:
    """Return the titles of all columns that any report has, and a line for each row of each report."""
    tables = [table_of(report) for report in reports]
    present = {column.title for table in tables for column in table.columns}
    columns = [column for column in COLUMNS if column.title in present and column.title != "note"]
    rows = []
    names = device_names(reports)
    for section, table in enumerate(tables, 1):
        cells, name = table.by_title(), names[section - 1] or label(table.report.device)
        for i, row in enumerate(table.report.rows):
            texts = [cells[c.title][i] if c.title in cells else NONE for c in columns]
            made = tuple(_cell(text, column.right) for text, column in zip(texts, columns, strict=True))
            rows.append(TableRow(name, section, made, note(row), bool(row.reason)))
    return [column.title for column in columns], rows


def _cell(text: str, right: bool) -> TableCell:
    number = re.match(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text) if right else None
    return TableCell(text, float(number[0]) if number else None, right, BLANKS.get(text, ""))


def _section(report: Report, i: int, room: int) -> Section:
    name, data, size = _download(report, i, room)
    return Section(
        title=label(report.device), published=is_published(report), facts=tuple(facts(report)),
        charts=tuple(_charts(report)), state=tuple(_states(report)),
        command=_command(report), install=_install(report),
        artifacts=tuple((row.name, row.digest) for row in report.rows if row.digest), name=name, data=data, bytes=size,
    )  # fmt: skip


def _charts(report: Report) -> Iterator[Chart]:
    if front := plots.front(report):
        yield Chart("Fidelity against latency", FRONT, HINT, front)
    if fidelities := plots.fidelities(report):
        yield Chart("Fidelity of each photo", fidelities[0], "", fidelities[1])
    if latencies := plots.latencies(report):
        yield Chart("Latency", latencies[0], "", latencies[1])


def _download(report: Report, i: int, room: int) -> tuple[str, str, int]:
    """Return name, address and size of the raw results as JSON, compressed where it is large.

    The address is empty where the results exceed the room in bytes.
    """
    raw = compact(report.to_json()).encode("utf-8", "backslashreplace")
    if len(raw) <= room // 3:
        return f"results-{i + 1}.json", f"data:application/json;base64,{base64.b64encode(raw).decode()}", len(raw)
    packed = gzip.compress(raw, mtime=0)
    if len(packed) > room:
        return "", "", len(raw)
    return f"results-{i + 1}.json.gz", f"data:application/gzip;base64,{base64.b64encode(packed).decode()}", len(packed)


def _states(report: Report) -> Iterator[tuple[str, str, str]]:
    """Give what the machine told of its state before and after the bench."""
    before, after = (report.environment.get(when) for when in ("before", "after"))
    if not isinstance(before, dict):
        return
    later = after if isinstance(after, dict) else {}
    for key, value in before.items():
        if value not in (None, {}, [], ""):
            yield STATE.get(key, key.replace("_", " ")), _plain(value), _plain(later.get(key, ""))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _command(report: Report) -> str:
    """Return the command that measures the same again; "" for rows of others."""
    ours = [row for row in report.rows if row.provenance == "measured" and row.exporter != "pytorch"]
    if not ours:
        return ""
    s = report.settings
    files = dict.fromkeys(shlex.quote(_file(row)) for row in ours)
    how = [f"--tier {s.tier}"] if s.tier != "custom" else [f"--samples {s.samples} --seconds {s.seconds:g}",
                                                           f"--rounds {s.rounds}"]  # fmt: skip
    how += [f"--scenario throughput --batch {s.batch} --streams {s.streams}"] if s.scenario != "latency" else []
    how += [f"--sustained {s.sustained:g} --cooldown {s.cooldown:g}"] if s.sustained else []
    how += [f"--threads {s.threads}"] if s.threads else []
    how = how if any(row.latency.ns for row in ours) else ["--no-latency"]
    return f"u2export bench {' '.join(files)} --images PHOTOS {' '.join(how)} --json results.json"


def _file(row: Row) -> str:
    """Return the name of the artifact's file: that of the row without the arithmetic behind it."""
    found = re.match(r".+?\.\w+(?= |$)", row.name)
    return found[0] if found else row.name


def _install(report: Report) -> str:
    """Return the command that installs the versions of the bench."""
    versions = [
        f"{name}=={version}" for name, version in report.environment.items()
        if name not in ("python", "kernel") and re.fullmatch(r"\d+(\.\d+)+([.+\w]*)", str(version))
    ]  # fmt: skip
    return f"pip install {' '.join(map(shlex.quote, versions))}" if versions else ""
