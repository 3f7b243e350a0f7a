"""Reports as Markdown: a table for each device, one table of all devices, and a table inside a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from u2export.benchmarks.report import Report
from u2export.benchmarks.tables import markdown
from u2export.benchmarks.tables.columns import Table, table_of
from u2export.benchmarks.tables.gather import is_in_browser, is_published, ordered
from u2export.benchmarks.tables.legend import LEGEND, about, codes, facts, sources
from u2export.errors import UserError

# What a reader compares devices by. The table of one device shows the rest.
OVERVIEW = ("artifact", "runs as", "unit", "by", "MAE", "MAE worst", "IoU worst", "p50 ms", "p90 ms", "speed-up", "MB",
            "peak MB", "load ms", "note")  # fmt: skip
# Published figures have no mask, and they rarely say which statistic a time is.
OVERVIEW_PUBLISHED = ("artifact", "runs as", "unit", "p50 ms", "peak MB", "note")
BEGIN, END = "<!-- table: begin", "<!-- table: end -->"


def page(reports: Sequence[Report]) -> str:
    """Return one table for each device; figures that others published stand last."""
    return "\n\n".join(_section(table_of(report)) for report in ordered(reports)) + "\n"


def _section(table: Table) -> str:
    titles = [column.title for column in table.columns]
    return f"{markdown.table(titles, table.rows, _align(table))}\n\n{_list(about(table))}"


def overview(reports: Sequence[Report]) -> str:
    """Return one table of all devices, and below it, apart, one of browsers, and one of what others published."""
    ours = [table_of(r, OVERVIEW) for r in reports if not is_published(r) and not is_in_browser(r)]
    browsers = [table_of(report, OVERVIEW) for report in reports if is_in_browser(report)]
    theirs = [table_of(report, OVERVIEW_PUBLISHED) for report in reports if is_published(report)]
    parts = [_measured(ours)] if ours else [] if browsers or theirs else ["Nothing has been measured yet."]
    if browsers:
        parts += ["Measured in a browser, which is slower than a native app on the same device:", _measured(browsers)]
    if theirs:
        parts += ["Published by others, not measured by this project:", _published(theirs)]
    return "\n\n".join(parts) + "\n"


def _measured(tables: Sequence[Table]) -> str:
    titles = [column.title for column in tables[0].columns]
    names = device_names([table.report for table in tables])
    notes = [_list(facts(table.report, name)) for table, name in zip(tables, names, strict=True)]
    return "\n".join((f"{_by_device(titles, tables)}\n", *notes, _list((LEGEND, *codes(tables)))))


def _published(tables: Sequence[Table]) -> str:
    # The titles do not call a time the median, because the figures are of several kinds.
    titles = [column.title.replace("p50 ms", "ms") for column in tables[0].columns]
    notes = chain.from_iterable(sources(table.report.rows) for table in tables)
    return f"{_by_device(titles, tables)}\n\n{_list((*notes, *codes(tables)))}"


def _by_device(titles: Sequence[str], tables: Sequence[Table]) -> str:
    """Return the tables of several devices as one table; its first column names the device."""
    names = device_names([table.report for table in tables])
    rows = [(name, *cells) for table, name in zip(tables, names, strict=True) for cells in table.rows]
    return markdown.table(("device", *titles), rows, "l" + _align(tables[0]))


def device_names(reports: Sequence[Report]) -> list[str]:
    """Return a name for the device of each report; measured reports of one name also name what sets them apart.

    These are the instructions for 8-bit networks, the number of threads, and where neither does, the fingerprint.
    """
    short = [report.device.model or report.device.cpu for report in reports]
    measured = [bool(report.device.cores) for report in reports]
    made = []
    for i, (name, report) in enumerate(zip(short, reports, strict=True)):
        others = [r for k, r in enumerate(reports) if k != i and short[k] == name and measured[k]]
        apart = []
        if measured[i] and any(r.device.int8_instructions != report.device.int8_instructions for r in others):
            apart.append(report.device.int8_instructions)
        if measured[i] and any(_threads(r) != _threads(report) for r in others):
            apart.append(_threads(report))
        made.append(", ".join(filter(None, (name, *apart))))
    alike = [{r.device.fingerprint for r, other, m in zip(reports, made, measured, strict=True) if m and other == name}
             for name in made]  # fmt: skip
    return [
        f"{name}, {report.device.fingerprint[:4]}" if m and len(prints) > 1 else name
        for name, report, prints, m in zip(made, reports, alike, measured, strict=True)
    ]


def _threads(report: Report) -> str:
    threads = report.settings.threads
    return f"{threads} thread{'s' if threads > 1 else ''}" if threads else "all cores"


def _align(table: Table) -> str:
    return "".join("r" if column.right else "l" for column in table.columns)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {markdown.escaped(line)}" for line in dict.fromkeys(lines))


def inserted(text: str, table: str, where: str) -> str:
    """Return the text of a page with the table between its two marks.

    Args:
        text: the page.
        table: what to put between the marks; it replaces what stands there.
        where: the name of the page, for the error.

    Raises:
        UserError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    mark, closing, rest = rest.partition("-->\n")
    _, end, after = rest.partition(END)
    if not (begin and closing and end):
        raise UserError(f"{where} has no place for a table", f"put the lines {BEGIN} --> and {END} where it belongs")
    return f"{before}{begin}{mark}{closing}\n{table}\n{end}{after}"
