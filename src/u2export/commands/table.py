"""`u2export table` and `chart`: results of earlier benches, imports, and published figures as tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import tables
from u2export.api.pages import write_report
from u2export.commands.console import echo, waiting, wide
from u2export.commands.options import AsJson, choice, print_json, written
from u2export.errors import WrongValue
from u2export.files import write_text


def table(
    results: Annotated[
        list[Path],
        typer.Argument(help="JSON files of `u2export bench --json` or `import`, published figures, folders of them."),
    ],
    form: Annotated[
        str, choice(tables.FORMATS, "For the terminal, Markdown, CSV, or an HTML page.", "--format")
    ] = "term",
    overview: Annotated[
        bool, typer.Option("--overview", help="Markdown with one line for each device and artifact, in one table.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Put the overview between the table marks of this Markdown file.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="With --into: change nothing, and fail where the file is stale.")
    ] = False,
    as_json: AsJson = "",
) -> None:
    """Show results as tables, one for each device; what others published stays apart and marked."""
    if check and not into:
        raise WrongValue("--check needs the file to check", "add --into FILE.md")
    reports = tables.gather(results)
    if print_json([report.to_json() for report in reports], as_json):
        return
    if into:
        echo(tables.update_overview(reports, into, check=check))
    elif overview or out or form != "term":
        text = tables.overview(reports) if overview else tables.tables_text(reports, form)
        if out:
            write_text(text, out)
            echo(out)
        else:
            typer.echo(text, nl=False)
    else:
        for report in tables.ordered(reports):
            wide().print(tables.report_table(report))


def chart(
    results: Annotated[Path, typer.Argument(help="A JSON file of `u2export bench --json` or `import`.")],
    kind: Annotated[
        str,
        choice(
            ("all", *tables.CHARTS),
            "pareto: fidelity against latency; photos: fidelity of each photo; latency: distribution of times.",
        ),
    ] = "all",
    suffix: Annotated[str, choice(("both", *tables.CHART_FORMATS), "PNG, SVG or both.", "--format")] = "both",
    out: Annotated[Path, typer.Option(help="Folder for <results>-<kind>.png and .svg.")] = Path("artifacts"),
    as_json: AsJson = "",
) -> None:
    """Draw results: fidelity against latency, fidelity of each photo, distribution of latencies."""
    kinds = tables.CHARTS if kind == "all" else (kind,)
    formats = tables.CHART_FORMATS if suffix == "both" else (suffix,)
    written(tables.chart(results, kinds, formats=formats, out=out), as_json)


def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="JSON files of `u2export bench --json` or `import`, published figures, folders of them."),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
    images: Annotated[
        Path | None,
        typer.Option(help="The photos of the bench, for the page; needs --masks.", show_default=False),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Masks that `u2export bench --save-masks` wrote.", show_default=False)
    ] = None,
    photos: Annotated[int, typer.Option(min=1, help="Most photos on the page, the worst first.")] = 24,
    as_json: AsJson = "",
) -> None:
    """Write results as one page that loads nothing: table, charts, photos with masks, machine, raw results."""
    with waiting("writing the page"):
        made = write_report(results, out, images=images, masks=masks, photos=photos)
    written([made], as_json)
