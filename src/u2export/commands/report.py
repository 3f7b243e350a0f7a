"""`u2export report`: results as one page for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from u2export.api.pages import write_report
from u2export.commands.console import waiting
from u2export.commands.options import AsJson, written


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
