"""Verdicts of a check for people and for machines: terminal, JUnit, JSON, Markdown, GitHub's annotations."""

from __future__ import annotations

import json
from collections import Counter
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.gate.judging import Check, Finding, Judgement

FORMATS = ("term", "junit", "json", "markdown", "github")
COLOURS = {"pass": "green", "fail": "red", "missing": "red", "inconclusive": "yellow", "new": "cyan"}
SHOWN = ("mean mae", "worst mae", "mean iou", "worst iou", "worst boundary_f", "collapse", "latency", "size")
SHORT = {"mean mae": "MAE", "worst mae": "worst", "mean iou": "IoU", "worst iou": "worst",
         "worst boundary_f": "b. F worst", "collapse": "area", "latency": "time", "size": "size"}  # fmt: skip


def headline(check: Check) -> str:
    """The outcome in one line."""
    counts = Counter(j.verdict for j in check.judgements)
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    return f"{check.outcome}: {told} ({check.photos} photos)"


def terminal(check: Check) -> RenderableType:
    """A table for rich: losses against the baseline, ratios for area, time and size; then why not."""
    used = [m for m in SHOWN if any(f.measure == m for j in check.judgements for f in j.findings)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("artifact", overflow="fold")
    table.add_column("verdict")
    for measure in used:
        table.add_column(SHORT[measure], justify="right")
    for judgement in check.judgements:
        found = {f.measure: f for f in judgement.findings}
        colour = COLOURS[judgement.verdict]
        table.add_row(judgement.artifact, Text(judgement.verdict, style=colour), *(_cell(found.get(m)) for m in used))
    notes = [
        Text.assemble((f"{j.artifact}: ", "bold"), f"{f.title}: {f.text}")
        for j in check.judgements
        if j.verdict != "pass"
        for f in j.reasons
    ]
    return Group(table, Text(), *notes, Text(headline(check), style="bold"))


def _cell(finding: Finding | None) -> Text:
    if finding is None or finding.value is None:
        return Text("–", style="dim")
    return Text(_number(finding), style=COLOURS[finding.verdict] if finding.verdict != "pass" else "")


def _number(finding: Finding) -> str:
    ratio = finding.measure in ("collapse", "latency", "size")
    return f"{finding.value:.3f}" if ratio else f"{finding.value:+.5f}"


def junit(check: Check) -> str:
    """JUnit XML: a test case for each measure of each artifact; what is open or new, and does not fail, is skipped."""
    suite = ElementTree.Element("testsuite", name="u2export check")
    counts: Counter[str] = Counter()
    for judgement in check.judgements:
        for finding in judgement.findings:
            case = ElementTree.SubElement(suite, "testcase", classname=judgement.artifact, name=finding.title, time="0")
            outcome = check.policy.verdicts.get(finding.verdict, finding.verdict)
            if outcome == "fail":
                ElementTree.SubElement(case, "failure", message=finding.text, type=finding.verdict)
            elif finding.verdict != "pass":
                outcome = "skipped"
                ElementTree.SubElement(case, "skipped", message=f"{finding.verdict}: {finding.text}")
            counts[outcome] += 1
    told = {"tests": counts.total(), "failures": counts["fail"], "errors": 0, "skipped": counts["skipped"]}
    suite.attrib.update({name: str(number) for name, number in told.items()})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def as_json(check: Check) -> str:
    """All findings."""
    return json.dumps(check.to_json(), indent=1, ensure_ascii=False) + "\n"


def markdown(check: Check) -> str:
    """GitHub Markdown: a table, and each finding that did not pass."""
    lines = [f"**{headline(check)}**", "", "| artifact | verdict | " + " | ".join(SHORT[m] for m in SHOWN) + " |"]
    lines.append("| :-- | :-- |" + " --: |" * len(SHOWN))
    for judgement in check.judgements:
        found = {f.measure: f for f in judgement.findings}
        numbers = (found.get(m) for m in SHOWN)
        cells = [judgement.artifact, judgement.verdict, *(_cell(f).plain for f in numbers)]
        lines.append("| " + " | ".join(map(_markdown, cells)) + " |")
    told = [(j.artifact, f) for j in check.judgements for f in j.reasons if j.verdict != "pass"]
    lines += ["", *(f"- {_markdown(artifact)}: {f.title}: {_markdown(f.text)}" for artifact, f in told)] if told else []
    return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def github(check: Check) -> str:
    """Workflow commands, an annotation for each artifact that did not pass."""
    lines = []
    for judgement in check.judgements:
        outcome = check.counts_as(judgement)
        level = {"fail": "error", "inconclusive": "warning", "pass": "notice"}[outcome]
        if judgement.verdict != "pass":
            lines += [_annotation(level, judgement, finding) for finding in judgement.reasons]
    return "\n".join([*lines, headline(check)]) + "\n"


def _annotation(level: str, judgement: Judgement, finding: Finding) -> str:
    title = _escaped(f"{judgement.artifact}: {finding.title}").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={title}::{_escaped(finding.text)}"


def _escaped(text: str) -> str:
    """As GitHub's own toolkit writes data of workflow commands."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def render(check: Check, form: str) -> str:
    """The check as text in one of FORMATS but "term"."""
    return {"junit": junit, "json": as_json, "markdown": markdown, "github": github}[form](check)
