"""`u2export table`: results of earlier benches as a table."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from u2export.files import write_text


class Format(str, Enum):
    """How a table is written."""

    term = "term"
    md = "md"
    csv = "csv"


def table(
    results: Annotated[list[Path], typer.Argument(help="JSON files that `u2export bench --json` wrote.")],
    form: Annotated[Format, typer.Option("--format", help="For the terminal, Markdown or CSV.")] = Format.term,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
) -> None:
    """Render results of earlier benches, each device's by itself."""

    from u2export.benchmarks.report import Report
    from u2export.benchmarks.table import console, render, terminal

    reports = [Report.load(path) for path in results]
    if out:
        write_text(render(reports, form.value), out)
        typer.echo(out)
    elif form is Format.term:
        for report in reports:
            console().print(terminal(report))
    else:
        typer.echo(render(reports, form.value), nl=False)
