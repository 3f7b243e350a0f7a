"""Verdicts as text: for the terminal, and as JUnit, JSON, Markdown and GitHub annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.gate.verdicts import Finding, Judgement, Verdicts
from u2export.benchmarks.tables.markdown import escaped, table
from u2export.text import json_text, one_line, rich_text, xml_text

ANY_WIDTH = 10_000
FORMATS = ("term", "junit", "json", "markdown", "github")
COLOURS = {"pass": "green", "fail": "red", "missing": "red", "inconclusive": "yellow", "new": "cyan"}
SHOWN = (
    "mean mae",
    "worst mae",
    "mean iou",
    "worst iou",
    "worst boundary_f",
    "collapse",
    "class iou",
    "latency",
    "size",
)
SHORT = {"mean mae": "MAE", "worst mae": "worst", "mean iou": "IoU", "worst iou": "worst",
         "worst boundary_f": "b. F worst", "collapse": "area", "class iou": "class",
         "latency": "time", "size": "size"}  # fmt: skip


def headline(verdicts: Verdicts) -> str:
    """Return the outcome in one line."""
    counts = Counter(j.verdict for j in verdicts.judgements)
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return f"{verdicts.outcome}: {told} ({verdicts.photos} photos)"


def terminal(verdicts: Verdicts) -> RenderableType:
    """Return a table for rich, and below it the reasons of every artifact that did not pass.

    The table shows losses against the accepted state, and ratios for area, time and size.
    """
    notes = [
        Text.assemble((one_line(f"{j.artifact}: "), "bold"), one_line(f"{f.title}: {f.text}"))
        for j in verdicts.judgements
        if j.verdict != "pass"
        for f in j.reasons
    ]
    return Group(_Grid(verdicts), Text(), *notes, Text(headline(verdicts), style="bold"))


class _Grid:
    """The table of verdicts. Names are copied, so a terminal that is too narrow for them has them below the table."""

    def __init__(self, verdicts: Verdicts) -> None:
        self.verdicts = verdicts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [rich_text(judgement.artifact) for judgement in self.verdicts.judgements]
        whole = self._table("artifact", names)
        if Measurement.get(console, options.update(width=ANY_WIDTH), whole).maximum <= options.max_width:
            yield whole
            return
        numbers = [Text(str(i)) for i in range(1, len(names) + 1)]
        yield self._table("", numbers)
        for number, name in zip(numbers, names, strict=True):
            yield Text.assemble(number, ": ", name)

    def _table(self, title: str, names: Sequence[Text]) -> Table:
        used = _used(self.verdicts)
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        grid.add_column(title, no_wrap=True)
        grid.add_column("verdict", no_wrap=True)
        for measure in used:
            grid.add_column(SHORT[measure], justify="right", no_wrap=title == "artifact")
        for name, judgement in zip(names, self.verdicts.judgements, strict=True):
            found = {f.measure: f for f in judgement.findings}
            verdict = Text(judgement.verdict, style=COLOURS[judgement.verdict])
            grid.add_row(name, verdict, *(_cell(found.get(m)) for m in used))
        return grid


def _used(verdicts: Verdicts) -> list[str]:
    return [m for m in SHOWN if any(f.measure == m for j in verdicts.judgements for f in j.findings)]


def _cell(finding: Finding | None) -> Text:
    if finding is None or finding.value is None:
        return Text("–", style="dim")
    return Text(
        _number(finding.measure, finding.value), style=COLOURS[finding.verdict] if finding.verdict != "pass" else ""
    )


def _number(measure: str, value: float) -> str:
    """Return a ratio, or a loss with its sign; a loss that rounds to zero is +0."""
    ratio = measure in ("collapse", "latency", "size")
    return f"{value:.3f}" if ratio else f"{round(value, 5) + 0.0:+.5f}"


def junit(verdicts: Verdicts) -> str:
    """Return JUnit XML, with a test case for each measure of each artifact.

    An inconclusive or new finding is a skipped test case, unless the policy counts it as a failure.
    """
    suite = ElementTree.Element("testsuite", name="u2export check")
    counts: Counter[str] = Counter()
    for judgement in verdicts.judgements:
        for finding in judgement.findings:
            case = ElementTree.SubElement(
                suite, "testcase", classname=xml_text(judgement.artifact), name=finding.title, time="0"
            )
            outcome = verdicts.policy.verdicts.get(finding.verdict, finding.verdict)
            if outcome == "fail":
                ElementTree.SubElement(case, "failure", message=xml_text(finding.text), type=finding.verdict)
            elif finding.verdict != "pass":
                outcome = "skipped"
                ElementTree.SubElement(case, "skipped", message=f"{finding.verdict}: {xml_text(finding.text)}")
            counts[outcome] += 1
    told = {"tests": counts.total(), "failures": counts["fail"], "errors": 0, "skipped": counts["skipped"]}
    suite.attrib.update({name: str(number) for name, number in told.items()})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_json(verdicts: Verdicts) -> str:
    """Return all findings as JSON."""
    return json_text(verdicts.to_json(), indent=1) + "\n"


def markdown(verdicts: Verdicts) -> str:
    """Return GitHub Markdown: a table, and the reasons of every artifact that did not pass."""
    rows, used = [], [m for m in SHOWN if m != "class iou" or m in _used(verdicts)]
    for judgement in verdicts.judgements:
        found = {f.measure: f for f in judgement.findings}
        rows.append([judgement.artifact, judgement.verdict, *(_cell(found.get(m)).plain for m in used)])
    titles = ("artifact", "verdict", *(SHORT[m] for m in used))
    lines = [f"**{headline(verdicts)}**", "", table(titles, rows, "ll" + "r" * len(used))]
    told = [(j.artifact, f) for j in verdicts.judgements for f in j.reasons if j.verdict != "pass"]
    lines += ["", *(f"- {escaped(artifact)}: {f.title}: {escaped(f.text)}" for artifact, f in told)] if told else []
    return "\n".join(lines) + "\n"


def github(verdicts: Verdicts) -> str:
    """Return GitHub workflow commands: an annotation for each reason of each artifact that did not pass."""
    lines = []
    for judgement in verdicts.judgements:
        outcome = verdicts.counts_as(judgement)
        level = {"fail": "error", "inconclusive": "warning", "pass": "notice"}[outcome]
        if judgement.verdict != "pass":
            lines += [_annotation(level, judgement, finding) for finding in judgement.reasons]
    return "\n".join([*lines, headline(verdicts)]) + "\n"


def _annotation(level: str, judgement: Judgement, finding: Finding) -> str:
    title = _escaped(one_line(f"{judgement.artifact}: {finding.title}")).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(one_line(finding.text))}"


def _escaped(text: str) -> str:
    """Escape data of a workflow command as GitHub's toolkit (actions/toolkit, core/src/command.ts) does."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def render(verdicts: Verdicts, form: str) -> str:
    """Return the verdicts as text in one of FORMATS except "term"."""
    return {"junit": junit, "json": as_json, "markdown": markdown, "github": github}[form](verdicts)
