"""Reports as tables for the terminal, by rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from u2export.benchmarks.report import REASONS, Report, Row
from u2export.benchmarks.tables.columns import note, table_of
from u2export.benchmarks.tables.legend import about
from u2export.text import one_line, rich_text

WIDTH = 120
# The columns of one stack share a cell, one value above the other, so that a row fits WIDTH columns.
STACKS = (
    ("artifact", "runs as"), ("MB", "peak MB"), ("MAE", "MAE worst"), ("IoU", "IoU worst"),
    ("boundary F", "boundary F worst"), ("area worst", "knee"), ("p50 ms", "p90 ms"), ("speed-up", "95 % interval"),
    ("load ms", "first ms"), ("pictures/s", "J"), ("maxF", "MAE to truth", "S"),
)  # fmt: skip
SHORT = {"boundary F": "bound. F", "boundary F worst": "worst", "MAE worst": "worst", "IoU worst": "worst",
         "area worst": "area", "95 % interval": "95 % int.", "MAE to truth": "MAE"}  # fmt: skip


def terminal(report: Report) -> RenderableType:
    """Return a report for rich: the table, the notes of its rows, and what a reader must know."""
    table = table_of(report)
    cells = table.by_title()
    stacks = [shown for stack in STACKS if (shown := [title for title in stack if title in cells])]
    stacked = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for stack in stacks:
        _add_column(stacked, stack)
    for i, row in enumerate(report.rows):
        values = [_above_each_other([cells[title][i] for title in stack]) for stack in stacks]
        stacked.add_row(*values, end_section=True, style="yellow" if row.reason else None)
    return Group(stacked, Text(), *_notes(report.rows), *(rich_text(line, "dim") for line in about(table)))


def _add_column(table: RichTable, stack: Sequence[str]) -> None:
    """Add the column of a stack. Names stand left and may break; numbers stand right and may not."""
    title = "\n".join(SHORT.get(title, title) for title in stack)
    if stack[0] == "artifact":
        table.add_column(title, justify="left", overflow="fold", min_width=24)
    else:
        table.add_column(title, justify="right", overflow="fold", no_wrap=True)


def _above_each_other(values: Sequence[str]) -> Text:
    """Return the values as one cell; all except the first are dim."""
    text = rich_text(values[0])
    for value in values[1:]:
        text.append(f"\n{one_line(value)}", style="dim")
    return text


def _notes(rows: Sequence[Row]) -> Iterable[Text]:
    """Return the notes below the table, each with the title of its row."""
    titles = [row.title for row in rows]
    for row in rows:
        if text := note(row):
            name = row.title if titles.count(row.title) == 1 else f"{row.title}, {row.ran_as}"
            reason = f" [{REASONS[row.reason]}]" if row.reason in REASONS else ""
            yield Text.assemble((one_line(name), "bold"), one_line(f": {text}{reason}"))
