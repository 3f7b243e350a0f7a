"""The history of artifacts over several runs, each judged against an accepted state or against the first run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.gate.baseline import Baseline, bare, updated
from u2export.benchmarks.gate.judging import judge
from u2export.benchmarks.gate.policy import Policy
from u2export.benchmarks.gate.verdicts import Finding
from u2export.benchmarks.report import Report
from u2export.benchmarks.tables.markdown import table
from u2export.errors import UserError
from u2export.text import json_text, rich_text

FORMATS = ("term", "json", "markdown")
BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"steady": "green", "recovered": "green", "new": "red", "sustained": "red", "flaky": "yellow", "gone": "red"}


@dataclass(frozen=True)
class Line:
    """One artifact over the runs, the oldest run first.

    Attributes:
        artifact: the bare name.
        label: see the function `label`.
        verdicts: the verdict in each run; "absent" if the run did not have the artifact.
        mae: the mean MAE over the photos in each run; None if there is none.
        ratio: the time over the time of the accepted artifact in the same run; None if the run has no such pair.
    """

    artifact: str
    label: str
    verdicts: tuple[str, ...]
    mae: tuple[float | None, ...]
    ratio: tuple[float | None, ...]


def label(bad: Sequence[bool]) -> str:
    """Return the label of a series of outcomes, the latest last; True is bad.

    - "steady": never bad.
    - "new": bad in the last run, never before.
    - "sustained": bad in the last two runs, or in more.
    - "recovered": bad before, good in the last run.
    - "flaky": it changed more than twice, or it is bad again after it had recovered.
    """
    turns = sum(a != b for a, b in pairwise(bad))
    if turns > 2 or (turns == 2 and bad[-1]):
        return "flaky"
    if not bad[-1]:
        return "recovered" if any(bad) else "steady"
    return "sustained" if len(bad) > 1 and bad[-2] else "new"


def trend(reports: Sequence[Report], baseline: Baseline | None = None, policy: Policy | None = None) -> list[Line]:
    """Return a line for every artifact; the runs are in the order of their time.

    Args:
        reports: results with the same photos. They may be of several devices if the accepted state allows any device.
        baseline: the accepted state that each run is judged against; the first run if None.
        policy: the limits; the default policy if None.

    Raises:
        UserError: there are no reports, or a run cannot be compared with the accepted state.
    """
    if not reports:
        raise UserError("there are no results", "give JSON files that `u2export bench --json` wrote")
    runs = sorted(reports, key=lambda r: r.created)
    against = baseline or updated(runs[0], None, not any(row.latency.ns for row in runs[0].rows), "")
    judged = [{j.artifact: j for j in judge(run, against, policy).judgements} for run in runs]
    lines = []
    for name in dict.fromkeys(name for found in judged for name in found):
        verdicts = tuple(found[name].verdict if name in found else "absent" for found in judged)
        bad = [v in ("fail", "missing") for v in verdicts]
        ratios = tuple(_value(found[name].findings if name in found else (), "latency") for found in judged)
        lines.append(Line(name, label(bad), verdicts, tuple(_mae(run, name) for run in runs), ratios))
    return lines


def _mae(run: Report, name: str) -> float | None:
    row = next((r for r in run.rows if bare(r.name) == name and r.images), None)
    return row.fidelity.mae if row and row.fidelity else None


def _value(findings: Sequence[Finding], measure: str) -> float | None:
    return next((f.value for f in findings if f.measure == measure), None)


def drawn(values: Sequence[float | None]) -> str:
    """Return one bar for each value, from the lowest bar for the smallest value; a missing value is a dot."""
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
    """Return a table for rich."""
    grid = Table(*TITLES, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for line in lines:
        first, mark, *rest = _cells(line)
        grid.add_row(rich_text(first), Text(mark, style=COLOURS[mark]), *map(rich_text, rest))
    return Group(grid)


def render(lines: Sequence[Line], form: str) -> str:
    """Return the lines as JSON or Markdown."""
    if form == "json":
        return json_text([asdict(line) for line in lines], indent=1) + "\n"
    return table(TITLES, map(_cells, lines), "l" * len(TITLES)) + "\n"
