"""`u2export targets`: what this machine can export and run, and what to install where it cannot."""

from __future__ import annotations

from typing import Any

from u2export.commands.options import AsJson, shown
from u2export.errors import Unavailable
from u2export.exporters import EXPORTERS


def targets(as_json: AsJson = False) -> None:
    """What this machine can export and run; where it cannot, why, and what to install."""
    rows: list[dict[str, Any]] = [
        {
            "target": e.name,
            "title": e.title,
            "precisions": list(e.precisions),
            "export": _state(e.missing()),
            "run": _state(e.missing_runtime()),
        }
        for e in EXPORTERS.values()
    ]
    if as_json:
        print(shown(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("target", "precisions", "export", "run", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(row["target"], " ".join(row["precisions"]), _cell(row["export"]), _cell(row["run"]))
    Console().print(table)


def _state(problem: Unavailable | None) -> dict[str, str | bool]:
    return {"possible": True} if problem is None else {"possible": False, "why": problem.problem, "fix": problem.hint}


def _cell(state: dict[str, str | bool]) -> str:
    from rich.markup import escape

    if state["possible"]:
        return "[green]yes[/]"
    return f"[red]no[/]: {escape(str(state['why']))}\n    {escape(str(state['fix']))}"
