"""Reports as one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from u2export.benchmarks.report import Report, Row
from u2export.benchmarks.tables.columns import Column, Table, note, table_of
from u2export.benchmarks.tables.gather import is_published, ordered
from u2export.benchmarks.tables.legend import BLANKS, about, label
from u2export.text import one_line

STYLE = """
:root { color-scheme: light dark; --line: #d8dbe0; --pale: #6b7078; --head: #f3f4f6; --warn: #a15c00 }
@media (prefers-color-scheme: dark) { :root { --line: #3a3d42; --pale: #9aa0a8; --head: #24272b; --warn: #f0a840 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem; padding: 0 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top }
th { background: var(--head); white-space: nowrap } .n { text-align: right; white-space: nowrap }
td { white-space: nowrap } tr.note td { padding-top: 0; white-space: normal }
tr.note span { display: block; max-width: 70rem; position: sticky; left: .6rem }
.code, ul, tr.note { color: var(--pale) } ul { font-size: 13px; padding-left: 1.2rem }
tr.empty td, tr.empty + tr.note td { color: var(--warn) } tr.row td, tr.empty td { border-top: 1px solid var(--line) }
"""


def page(reports: Iterable[Report]) -> str:
    """Return a page with one table for each device; figures that others published stand last."""
    sections = "\n".join(_section(table_of(report)) for report in ordered(reports))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>u2export results</title><style>{STYLE}</style></head>\n<body><h1>Mask fidelity and latency</h1>\n"
        f"{sections}\n</body></html>\n"
    )


def _section(table: Table) -> str:
    report = table.report
    title = _escaped(label(report.device)) + (" (published by others)" if is_published(report) else "")
    head = "".join(f"<th{' class=n' if c.right else ''}>{_escaped(c.title)}</th>" for c in _columns(table))
    body = "\n".join(_row(table, row, cells) for row, cells in zip(report.rows, table.rows, strict=True))
    lines = "".join(f"<li>{_escaped(line)}</li>" for line in about(table))
    rows = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f"<h2>{title}</h2>\n<div class=wide>{rows}</div>\n<ul>{lines}</ul>"


def _escaped(text: str) -> str:
    return html.escape(one_line(text))


def _columns(table: Table) -> list[Column]:
    """Return all columns except the note, which stands below its row, across the table."""
    return [column for column in table.columns if column.title != "note"]


def _row(table: Table, row: Row, cells: Sequence[str]) -> str:
    """Return a row, and the row of its note if it has one."""
    columns = _columns(table)  # the note is the last of COLUMNS, so the cells before it fit these columns
    values = "".join(_cell(column, value) for column, value in zip(columns, cells, strict=False))
    text = _escaped(note(row))
    below = f'<tr class="note"><td colspan="{len(columns)}"><span>{text}</span></td></tr>' if text else ""
    return f'<tr class="{"empty" if row.reason else "row"}">{values}</tr>{below}'


def _cell(column: Column, value: str) -> str:
    kind = " ".join(filter(None, ("n" if column.right else "", "code" if value in BLANKS else "")))
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{_escaped(value)}</td>"
