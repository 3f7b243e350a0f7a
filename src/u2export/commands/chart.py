"""`u2export chart`: pictures of results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api import tables
from u2export.commands.options import AsJson, choice, written


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
