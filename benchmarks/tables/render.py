"""Reports as text in any format of a table."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from u2export.benchmarks.pages.report_page import page
from u2export.benchmarks.report import Report
from u2export.benchmarks.tables import markdown_page
from u2export.benchmarks.tables.csv_table import comma_separated
from u2export.benchmarks.tables.gather import ordered
from u2export.benchmarks.tables.terminal import WIDTH, terminal

FORMATS = ("term", "md", "csv", "html")


def render(reports: Sequence[Report], form: str) -> str:
    """Return reports as text.

    Args:
        reports: one for each device.
        form: one of FORMATS; "term" is the table of a terminal, WIDTH columns wide and without colours.
    """
    formats = {"md": markdown_page.page, "csv": comma_separated, "html": page, "term": _plain}
    return formats[form](reports)


def _plain(reports: Sequence[Report]) -> str:
    out = io.StringIO()
    plain = Console(file=out, width=WIDTH)
    for report in ordered(reports):
        plain.print(terminal(report))
    return out.getvalue()
