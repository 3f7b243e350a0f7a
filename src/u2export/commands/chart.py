"""`u2export chart`: pictures of results."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Kind(str, Enum):
    """What a picture shows."""

    all = "all"
    pareto = "pareto"
    photos = "photos"
    latency = "latency"


class Suffix(str, Enum):
    """How it is written."""

    both = "both"
    png = "png"
    svg = "svg"


def chart(
    results: Annotated[Path, typer.Argument(help="A JSON file of `u2export bench --json` or `import`.")],
    kind: Annotated[
        Kind, typer.Option(help="Latency against fidelity, fidelity by photo, distribution of latencies, or all.")
    ] = Kind.all,
    suffix: Annotated[Suffix, typer.Option("--format", help="PNG, SVG or both.")] = Suffix.both,
    out: Annotated[Path, typer.Option(help="Folder for <results>-<kind>.png and .svg.")] = Path("artifacts"),
) -> None:
    """Draw results: fidelity against latency, fidelity of each photo, distribution of latencies."""
    from u2export.benchmarks.report import Report
    from u2export.benchmarks.tables.charts import KINDS, draw

    kinds = KINDS if kind is Kind.all else (kind.value,)
    suffixes = ("png", "svg") if suffix is Suffix.both else (suffix.value,)
    for path in draw(Report.load(results), kinds, suffixes, out, results.stem):
        typer.echo(path)
