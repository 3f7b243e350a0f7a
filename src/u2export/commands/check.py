"""`u2export check|baseline|trend`: whether artifacts got worse, for a CI."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from u2export.commands import options as o
from u2export.commands.console import stderr
from u2export.errors import UserError
from u2export.files import write_text

CUT = 0.5  # where masks are cut in the results' own numbers
USAGE = 2  # 1 says that something got worse; an error of any kind must not look like that
Results = Annotated[Path, typer.Argument(help="JSON file that `u2export bench --json` wrote.")]
File = Annotated[Path, typer.Option("--baseline", help="Baseline, such as benchmarks/baselines/cpu.json.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="TOML file of limits, over the default ones.")]
Masks = Annotated[
    Path | None,
    typer.Option(help="Masks that `u2export bench --keep-masks` wrote: judge them anew, not the results' numbers."),
]


class Format(str, Enum):
    """How verdicts are written."""

    term = "term"
    junit = "junit"
    json = "json"
    markdown = "markdown"
    github = "github"


class TrendFormat(str, Enum):
    """How trends are written."""

    term = "term"
    json = "json"
    markdown = "markdown"


@contextmanager
def _usage() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        error.code = USAGE
        raise


def check(
    results: Results,
    baseline: File,
    policy: PolicyFile = None,
    masks: Masks = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="With --masks: where masks are cut, for both sides.")
    ] = CUT,
    form: Annotated[
        list[Format] | None,
        typer.Option("--format", help="term, junit, json, markdown or github (annotations, and the step's summary)."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file; the terminal then gets the table.")] = None,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Exit with 0, not 3, where samples are too few to say.")
    ] = False,
) -> None:
    """Say whether artifacts got worse than the baseline. Exit code: 0 no, 1 yes, 2 error, 3 inconclusive."""

    from u2export.benchmarks.gate import formats
    from u2export.benchmarks.gate.judging import judge
    from u2export.benchmarks.tables.terminal import console

    with _usage():
        found = judge(results, baseline, policy, masks=masks, threshold=threshold)
        for one in form or [Format.term]:
            if one is Format.term:
                console().print(formats.terminal(found))
            elif out:
                write_text(formats.render(found, one.value), out)
                typer.echo(out)
            else:
                typer.echo(formats.render(found, one.value), nl=False)
            if one is Format.github and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(formats.markdown(found))
    code = found.exit_code
    raise typer.Exit(0 if code == 3 and allow_inconclusive else code)


baseline = typer.Typer(help="The accepted state that `u2export check` compares with.", no_args_is_help=True)


@baseline.command()
def update(
    results: Results,
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="Begin anew, whatever the file holds.")] = False,
    any_device: Annotated[
        bool | None,
        typer.Option(
            "--any-device/--this-device",
            help="Masks are the same on any machine, or are this device's own; the former where nothing was timed.",
        ),
    ] = None,
    keep_masks: Annotated[
        Path | None,
        typer.Option(help="Masks that `u2export bench --keep-masks` wrote: kept beside the baseline, .masks.npz."),
    ] = None,
    why: Annotated[str, typer.Option(help="Why these are accepted; kept in the file.")] = "",
) -> None:
    """Accept results: write them into the baseline, other artifacts in it stay."""

    from u2export.benchmarks.gate.acceptance import accept
    from u2export.benchmarks.gate.baseline import differences

    with _usage():
        made = accept(results, file, masks=keep_masks, replace=replace, any_device=any_device, why=why)
    for change in differences(made.old, made.new) if made.old else ():
        stderr().print("  ".join(change), markup=False)
    typer.echo(file)


@baseline.command()
def show(file: Annotated[Path, typer.Argument(help="Baseline.")], as_json: o.AsJson = False) -> None:
    """Say what a baseline holds."""

    from rich.table import Table

    from u2export.benchmarks.gate.baseline import Baseline, told
    from u2export.benchmarks.tables.terminal import console

    with _usage():
        loaded = Baseline.load(file)
    artifacts = told(loaded)
    if as_json:
        device = loaded.device.label if loaded.device else ""
        about = {"device": device, "photos": list(loaded.photos), "created": loaded.created, "why": loaded.why}
        typer.echo(o.shown({**about, "artifacts": artifacts}))
        return
    names = ("arithmetic", "bytes", "mae", "mae_worst", "iou", "iou_worst", "boundary_f_worst")
    table = Table("artifact", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, values in artifacts.items():
        table.add_row(name, *(values.get(key, "–") for key in names))
    console().print(table)
    device = loaded.device.label if loaded.device else "any, in this arithmetic"
    typer.echo(f"device: {device}\nphotos: {len(loaded.photos)}\naccepted: {loaded.created} {loaded.why}".rstrip())


@baseline.command()
def diff(
    old: Annotated[Path, typer.Argument(help="Baseline as it was.")],
    new: Annotated[Path, typer.Argument(help="Baseline as it is.")],
) -> None:
    """Say what changed from one baseline to another, a line each."""

    from u2export.benchmarks.gate.baseline import Baseline, differences

    with _usage():
        for artifact, what, then, now in differences(Baseline.load(old), Baseline.load(new)):
            typer.echo(f"{artifact}  {what}  {then or '–'} -> {now or '–'}")


def trend(
    results: Annotated[list[Path], typer.Argument(help="JSON files that `u2export bench --json` wrote, in any order.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Baseline that each run is judged against; the first run by default.")
    ] = None,
    policy: PolicyFile = None,
    form: Annotated[TrendFormat, typer.Option("--format", help="term, json or markdown.")] = TrendFormat.term,
) -> None:
    """Say how artifacts fared from run to run: steady, new, sustained, recovered or flaky."""

    from u2export.benchmarks.gate import trend as trends
    from u2export.benchmarks.gate.baseline import Baseline
    from u2export.benchmarks.gate.policy import Policy
    from u2export.benchmarks.report import Report
    from u2export.benchmarks.tables.terminal import console

    with _usage():
        against = Baseline.load(baseline) if baseline else None
        lines = trends.trend([Report.load(p) for p in results], against, Policy.load(policy) if policy else None)
    if form is TrendFormat.term:
        console().print(trends.terminal(lines))
    else:
        typer.echo(trends.render(lines, form.value), nl=False)
