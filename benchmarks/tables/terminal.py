"""Reports as tables for the terminal, by rich."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
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
# On a narrow terminal the first of these stay, by the first column of their stack.
KEPT_FIRST = ("artifact", "p50 ms", "speed-up", "MAE", "IoU", "pictures/s", "maxF", "MB", "load ms", "boundary F")
LAST = len(KEPT_FIRST)
NAME_WIDTH, GAP = 24, 2
SHORT = {"boundary F": "bound. F", "boundary F worst": "worst", "MAE worst": "worst", "IoU worst": "worst",
         "area worst": "area", "95 % interval": "95 % int.", "MAE to truth": "MAE"}  # fmt: skip


def terminal(report: Report) -> RenderableType:
    """Return a report for rich: the table, the notes of its rows, and what a reader must know.

    A terminal that is too narrow for all columns gets the most important ones, and a line that names the others.
    """
    return _Fitted(report)


class _Fitted:
    """A table whose columns depend on the width that rich has for it."""

    def __init__(self, report: Report) -> None:
        self.report, self.table = report, table_of(report)
        self.cells = self.table.by_title()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[RenderableType]:
        present = [shown for stack in STACKS if (shown := [title for title in stack if title in self.cells])]
        stacks = self._fitting(present, options.max_width)
        yield self._stacked(stacks, options.max_width)
        yield Text()
        yield from _notes(self.report.rows)
        if lost := [title for stack in present if stack not in stacks for title in stack]:
            yield rich_text(
                f"left out, because the terminal has {options.max_width} columns: {', '.join(lost)}; a wider one, or "
                "--format md of `u2export table`, shows them",
                "yellow",
            )
        yield from (rich_text(line, "dim") for line in about(self.table))

    def _fitting(self, stacks: Sequence[Sequence[str]], width: int) -> list[Sequence[str]]:
        """Return the most important stacks that fit, in their order."""
        ranked = sorted(stacks, key=lambda stack: KEPT_FIRST.index(stack[0]) if stack[0] in KEPT_FIRST else LAST)
        kept: list[Sequence[str]] = []
        for stack in ranked:
            if kept and sum(map(self._width, (*kept, stack))) > width + GAP:
                break
            kept.append(stack)
        return [stack for stack in stacks if stack in kept]

    def _width(self, stack: Sequence[str]) -> int:
        """Return the least width of a column with the gap behind it."""
        texts = [text for title in stack for text in (SHORT.get(title, title), *self.cells[title])]
        widest = max(map(cell_len, texts))
        return (min(widest, NAME_WIDTH) if stack[0] == "artifact" else widest) + GAP

    def _stacked(self, stacks: Sequence[Sequence[str]], width: int) -> RichTable:
        room = max(
            NAME_WIDTH, width + GAP - sum(self._width(stack) for stack in stacks if stack[0] != "artifact") - GAP
        )
        stacked = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
        for stack in stacks:
            _add_column(stacked, stack)
        for i, row in enumerate(self.report.rows):
            values = [_above_each_other([self.cells[title][i] for title in stack], room) for stack in stacks]
            stacked.add_row(*values, end_section=True, style="yellow" if row.reason else None)
        return stacked


def _add_column(table: RichTable, stack: Sequence[str]) -> None:
    """Add the column of a stack. Names stand left and may break; numbers stand right and may not."""
    title = "\n".join(SHORT.get(title, title) for title in stack)
    if stack[0] == "artifact":
        table.add_column(title, justify="left", overflow="fold", min_width=NAME_WIDTH)
    else:
        table.add_column(title, justify="right", overflow="fold", no_wrap=True)


def _above_each_other(values: Sequence[str], room: int) -> Text:
    """Return the values as one cell of a width; all except the first are dim."""
    text = Text("\n".join(_in_lines(one_line(values[0]), room)))
    for value in values[1:]:
        text.append("".join(f"\n{line}" for line in _in_lines(one_line(value), room)), style="dim")
    return text


def _in_lines(name: str, room: int) -> list[str]:
    """Break a name that is wider than its column behind a dash, a dot or a blank, where it has one."""
    lines = [""]
    for part in re.findall(r"[^-._ ]*[-._ ]?", name):
        if lines[-1] and cell_len(lines[-1] + part.rstrip()) > room:
            lines.append("")
        lines[-1] += part
    return [line.rstrip() for line in lines]


def _notes(rows: Sequence[Row]) -> Iterable[Text]:
    """Return the notes below the table, each with the title of its row."""
    titles = [row.title for row in rows]
    for row in rows:
        if text := note(row):
            name = row.title if titles.count(row.title) == 1 else f"{row.title}, {row.ran_as}"
            reason = f" [{REASONS[row.reason]}]" if row.reason in REASONS else ""
            yield Text.assemble((one_line(name), "bold"), one_line(f": {text}{reason}"))
