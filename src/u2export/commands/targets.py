"""`u2export targets`: what this machine can export, build, run and simulate, and what to do where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from u2export.api import inspecting
from u2export.commands.console import stdout
from u2export.commands.options import AsJson, print_json
from u2export.errors import Unavailable
from u2export.text import rich_text

if TYPE_CHECKING:
    from rich.text import Text

# int8 of the published u2netp for phones: mean error of the masks, worst IoU, megabytes, CPU time. A test compares them
# with benchmarks/results/phones/xeon.
PHONES = (
    ("litert", ".0017", ".983", "1.48", ".36"),
    ("executorch", ".0026", ".955", "1.36", ".40"),
    ("ort --mobile", ".0018", ".983", "2.73", ".39"),
)
STEPS = ("export", "build", "run", "simulate")


def targets(as_json: AsJson = "") -> None:
    """Show what this machine can export, build, run and simulate; where it cannot, why, and what to do.

    "run" means the target's own runtime on its own hardware. "simulate" means that another runtime computes the masks;
    the times of a simulation say nothing about the target.
    """
    found = inspecting.targets()
    if as_json:
        rows = [
            {"target": t.name, "title": t.title, "precisions": t.precisions, "when": t.when,
             **{s: _state(t, s) for s in STEPS}}
            for t in found
        ]  # fmt: skip
        if print_json(rows, as_json):
            return
    from rich.table import Table

    table = Table("target", *STEPS, "precisions", box=None, header_style="bold", pad_edge=False)
    for t in found:
        table.add_row(t.name, *(_cell(t, step) for step in STEPS), " ".join(t.precisions))
    stdout().print(table)
    stdout().print()
    stdout().print(rich_text("Take a target when", "bold"))
    for t in found:
        stdout().print(rich_text(f"  {t.name:<10}  {t.when}"))
    stdout().print()
    stdout().print(rich_text("Phones: int8 of u2netp; CPU time on x86, that of ONNX Runtime's fp32 is 1", "bold"))
    for name, mae, worst, size, time in PHONES:
        stdout().print(rich_text(f"  {name:<12}  MAE {mae}, worst IoU {worst}, {size} MB, time {time}"))
    stdout().print(rich_text("  docs/phones.md has the other precisions."))
    for t in found:
        for step in STEPS:
            if problem := getattr(t, step):
                stdout().print(_reason(t.name, step, problem), soft_wrap=True)


def _applies(target: inspecting.Target, step: str) -> bool:
    return {"build": target.builds, "simulate": bool(target.simulation)}.get(step, True)


def _state(target: inspecting.Target, step: str) -> dict[str, str | bool] | None:
    if not _applies(target, step):
        return None
    problem: Unavailable | None = getattr(target, step)
    if problem is None:
        return {"possible": True}
    return {"possible": False, "why": problem.problem, "fix": problem.hint}


def _cell(target: inspecting.Target, step: str) -> Text:
    from rich.text import Text

    if not _applies(target, step):
        return Text("–")
    return Text("no", style="red") if getattr(target, step) else Text("yes", style="green")


def _reason(name: str, step: str, problem: Unavailable) -> Text:
    from rich.text import Text

    told = (rich_text(problem.problem), "\n    ", rich_text(problem.hint))
    return Text.assemble("\n", rich_text(f"{name}, {step}: ", "bold"), *told)
