"""`u2export table`: results of earlier benches, imports, and published figures as tables."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from u2export.errors import UserError
from u2export.files import write_text


class Format(str, Enum):
    """How a table is written."""

    term = "term"
    md = "md"
    csv = "csv"
    html = "html"


def table(
    results: Annotated[
        list[Path],
        typer.Argument(help="JSON files of `u2export bench --json` or `import`, published figures, folders of them."),
    ],
    form: Annotated[
        Format, typer.Option("--format", help="For the terminal, Markdown, CSV, or an HTML page.")
    ] = Format.term,
    overview: Annotated[
        bool, typer.Option("--overview", help="Markdown with one line for each device and artifact, in one table.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Put the overview between the table marks of this Markdown file.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Beside --into: change nothing, fail where the file is stale.")
    ] = False,
) -> None:
    """Render results as tables, each device's by itself; what others published stays apart and marked."""
    from u2export.benchmarks.tables.gather import gather, ordered
    from u2export.benchmarks.tables.markdown_page import inserted
    from u2export.benchmarks.tables.markdown_page import overview as overview_of
    from u2export.benchmarks.tables.render import render
    from u2export.benchmarks.tables.terminal import console, terminal

    if check and not into:
        raise UserError("--check needs the file to check", "add --into FILE.md")
    reports = gather(results)
    if into:
        text = into.read_text(encoding="utf-8")
        fresh = inserted(text, overview_of(reports), str(into))
        if check and fresh != text:
            raise UserError(f"the table in {into} is stale", "run the same command without --check")
        if not check:
            write_text(fresh, into)
        typer.echo(into)
    elif overview or out or form is not Format.term:
        text = overview_of(reports) if overview else render(reports, form.value)
        if out:
            write_text(text, out)
        typer.echo(out or text, nl=bool(out))
    else:
        for report in ordered(reports):
            console().print(terminal(report))
