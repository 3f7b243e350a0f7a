"""How artifacts fared from run to run: each run is judged against the baseline, or against the first run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.judging import check
from u2export.benchmarks.gate.policy import Policy
from u2export.benchmarks.report import Report
from u2export.errors import UserError

FORMATS = ("term", "json", "markdown")
BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"steady": "green", "recovered": "green", "new": "red", "sustained": "red", "flaky": "yellow", "gone": "red"}


@dataclass(frozen=True)
class Line:
    """One artifact over the runs.

    Attributes:
        artifact: its bare name. label: see `label`.
        verdicts: of each run: that of the check, or "absent". mae: mean of each run, None where there was none.
        ratio: time over the accepted artifact's of the same run, None where it was not timed beside it.
    """

    artifact: str
    label: str
    verdicts: tuple[str, ...]
    mae: tuple[float | None, ...]
    ratio: tuple[float | None, ...]


def label(bad: Sequence[bool]) -> str:
    """What a run of outcomes, the latest last, amounts to.

    "steady": never bad. "new": bad now, and never before. "sustained": bad now and the run before. "recovered": bad
    before, good now. "flaky": it turned more than twice, or is bad anew after it had recovered.
    """
    turns = sum(a != b for a, b in pairwise(bad))
    if turns > 2 or (turns == 2 and bad[-1]):
        return "flaky"
    if not bad[-1]:
        return "recovered" if any(bad) else "steady"
    return "sustained" if len(bad) > 1 and bad[-2] else "new"


def trend(reports: Sequence[Report], baseline: Baseline | None = None, policy: Policy | None = None) -> list[Line]:
    """The artifacts' lines, the reports in order of their time.

    Args:
        reports: results of the same photos; those of other devices only where the baseline allows them.
        baseline: what each run is judged against; the first run by default.
        policy: limits.

    Raises:
        UserError: none given, or a run that cannot be compared.
    """
    if not reports:
        raise UserError("no results", "give JSON files that `u2export bench --json` wrote")
    runs = sorted(reports, key=lambda r: r.created)
    against = baseline or updated(runs[0], None, not any(row.latency.ns for row in runs[0].rows), "")
    checks = [check(run, against, policy) for run in runs]
    judged = [{j.artifact: j for j in c.judgements} for c in checks]
    lines = []
    for name in dict.fromkeys(name for found in judged for name in found):
        verdicts = tuple(found[name].verdict if name in found else "absent" for found in judged)
        bad = [v in ("fail", "missing") for v in verdicts]
        ratios = tuple(_value(found[name].findings if name in found else (), "latency") for found in judged)
        lines.append(Line(name, label(bad), verdicts, tuple(_mae(run, name) for run in runs), ratios))
    return lines


def _mae(run: Report, name: str) -> float | None:
    row = next((r for r in run.rows if r.name.rpartition("/")[2] == name and r.images), None)
    return row.fidelity.mae if row and row.fidelity else None


def _value(findings: Sequence[object], measure: str) -> float | None:
    return next((getattr(f, "value", None) for f in findings if getattr(f, "measure", "") == measure), None)


def drawn(values: Sequence[float | None]) -> str:
    """A line of bars from the smallest value to the largest; a dot where there is none."""
    there = [v for v in values if v is not None]
    if not there:
        return "·" * len(values)
    low, span = min(there), max(there) - min(there)
    steps = [None if v is None else round((v - low) / span * (len(BARS) - 1)) if span else 0 for v in values]
    return "".join("·" if step is None else BARS[step] for step in steps)


def _cells(line: Line) -> list[str]:
    known = [v for v in line.mae if v is not None]
    ratios = [v for v in line.ratio if v is not None]
    return [
        line.artifact, line.label, drawn(line.mae), f"{known[0]:.5f}" if known else "–",
        f"{known[-1]:.5f}" if known else "–", drawn(line.ratio) if ratios else "–",
        f"{ratios[-1]:.3f}" if ratios else "–", " ".join(line.verdicts),
    ]  # fmt: skip


TITLES = ("artifact", "label", "MAE", "first", "last", "time", "last", "verdicts")


def terminal(lines: Sequence[Line]) -> RenderableType:
    """A table for rich."""
    table = Table(*TITLES, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for line in lines:
        first, mark, *rest = _cells(line)
        table.add_row(first, Text(mark, style=COLOURS[mark]), *rest)
    return Group(table)


def render(lines: Sequence[Line], form: str) -> str:
    """The lines as JSON or Markdown."""
    if form == "json":
        return json.dumps([asdict(line) for line in lines], indent=1, ensure_ascii=False) + "\n"
    rows = [TITLES, tuple(":--" for _ in TITLES), *(tuple(_cells(line)) for line in lines)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)
