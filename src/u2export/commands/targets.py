"""`u2export targets`: what this machine can export and run, and what to install where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from u2export.api import inspecting
from u2export.commands.console import stdout
from u2export.commands.options import AsJson
from u2export.errors import Unavailable
from u2export.text import json_text, rich_text

if TYPE_CHECKING:
    from rich.text import Text


def targets(as_json: AsJson = False) -> None:
    """Show what this machine can export and run; where it cannot, why, and what to install."""
    found = inspecting.targets()
    if as_json:
        rows = [
            {"target": t.name, "title": t.title, "precisions": t.precisions, "export": _state(t.export),
             "run": _state(t.run)}
            for t in found
        ]  # fmt: skip
        print(json_text(rows))
        return
    from rich.table import Table

    table = Table("target", "precisions", "export", "run", box=None, header_style="bold", pad_edge=False)
    for t in found:
        table.add_row(t.name, " ".join(t.precisions), _cell(t.export), _cell(t.run))
    stdout().print(table)


def _state(problem: Unavailable | None) -> dict[str, str | bool]:
    return {"possible": True} if problem is None else {"possible": False, "why": problem.problem, "fix": problem.hint}


def _cell(problem: Unavailable | None) -> Text:
    from rich.text import Text

    if problem is None:
        return Text("yes", style="green")
    told = (": ", rich_text(problem.problem), "\n    ", rich_text(problem.hint))
    return Text.assemble(("no", "red"), *told)
