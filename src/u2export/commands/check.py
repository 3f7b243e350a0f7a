"""`u2export check|baseline|trend`: whether artifacts got worse, for a CI."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from u2export.api import gating
from u2export.commands import options as o
from u2export.commands.console import drop_output, echo, explained, fail, remark, wide
from u2export.commands.parsing import Command, Group
from u2export.errors import UserError, WrongValue
from u2export.files import write_text
from u2export.text import rich_text

USAGE, INCONCLUSIVE = 2, 3  # 1 says that something got worse; an error of any kind must not look like that
Results = Annotated[Path, typer.Argument(help="JSON file that `u2export bench --json` wrote.")]
File = Annotated[Path, typer.Option("--baseline", help="Baseline, such as benchmarks/baselines/cpu.json.")]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="TOML file of limits, over the default ones.")]


@contextmanager
def _errors_exit_with_2() -> Iterator[None]:
    """Turn every failure into exit code 2, so that 1 says "it got worse" and nothing else."""
    try:
        yield
        sys.stdout.flush()  # a full disk shows here, and not after the exit code is chosen
    except UserError as error:
        raise typer.Exit(fail(error, USAGE)) from None
    except (OSError, MemoryError) as error:
        drop_output()
        raise typer.Exit(fail(explained(error), USAGE)) from None
    except typer.Exit:
        raise
    except Exception:  # a bug; its traceback is what a report of it needs
        traceback.print_exc()
        raise typer.Exit(USAGE) from None


def check(
    results: Results,
    baseline: File,
    policy: PolicyFile = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Masks that `u2export bench --save-masks` wrote: judge them, not the results' numbers."),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="With --masks: where masks are cut, on both sides.")
    ] = gating.THRESHOLD,
    form: Annotated[
        list[str] | None,
        o.choice(gating.FORMATS, "How verdicts are written; github: annotations, and the step's summary.", "--format"),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Write to this file, one for each --format in their order; the terminal gets the table."),
    ] = None,
    allow_inconclusive: Annotated[
        bool, typer.Option("--allow-inconclusive", help="Exit with 0, not 3, where there are too few samples.")
    ] = False,
    as_json: o.AsJson = "",
) -> None:
    """Say whether artifacts got worse than the baseline. Exit code: 0 no, 1 yes, 2 error, 3 inconclusive."""
    with _errors_exit_with_2():
        files = _files(form or [], out or [])
        verdicts = gating.check(results, baseline, policy, masks=masks, threshold=threshold)
        printed = o.print_json(verdicts.to_json(), as_json)
        for one in form or ([] if printed else ["term"]):
            if one == "term":
                wide().print(gating.verdicts_table(verdicts))
            elif one in files:
                write_text(gating.verdicts_text(verdicts, one), files[one])
                echo(files[one])
            else:
                typer.echo(gating.verdicts_text(verdicts, one), nl=False)
            if one == "github" and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(gating.verdicts_text(verdicts, "markdown"))
    code = verdicts.exit_code
    raise typer.Exit(0 if code == INCONCLUSIVE and allow_inconclusive else code)


def _files(forms: Sequence[str], out: Sequence[Path]) -> dict[str, Path]:
    """Return the file of each format; a format that is neither the table nor alone needs a file of its own."""
    written = [form for form in forms if form != "term"]
    if len(set(written)) < len(written):
        raise WrongValue("a --format is given twice", "give each once")
    if len(out) == len(written) or (not out and len(written) == 1):
        return dict(zip(written, out, strict=False))
    named = ", ".join(written) or "the table alone"
    raise WrongValue(
        f"{len(out)} --out for {len(written)} formats ({named})", "give one --out for each --format but term, in order"
    )


baseline = typer.Typer(cls=Group, help="The accepted state that `u2export check` compares with.", no_args_is_help=True)


@baseline.command(cls=Command)
def update(
    results: Results,
    file: File,
    replace: Annotated[bool, typer.Option("--replace", help="Begin a new baseline, whatever the file holds.")] = False,
    any_device: Annotated[
        bool | None,
        typer.Option(
            "--any-device/--this-device",
            help="Masks are the same on any machine, or are this device's own; the former where nothing was timed.",
        ),
    ] = None,
    save_masks: Annotated[
        Path | None,
        typer.Option(
            "--save-masks",
            "--keep-masks",
            help="Masks that `u2export bench --save-masks` wrote: keep them beside the baseline, as .masks.npz.",
        ),
    ] = None,
    why: Annotated[str, typer.Option(help="Why these results are accepted; the file keeps it.")] = "",
    as_json: o.AsJson = "",
) -> None:
    """Accept results: write them into the baseline; other artifacts in it stay."""
    with _errors_exit_with_2():
        _, changes = gating.update_baseline(
            results, file, replace=replace, any_device=any_device, masks=save_masks, why=why
        )
        if o.print_json({"baseline": str(file), "changes": _told(changes)}, as_json):
            return
        for change in changes:
            remark("  ".join(change))
        echo(file)


@baseline.command(cls=Command)
def show(file: Annotated[Path, typer.Argument(help="Baseline.")], as_json: o.AsJson = "") -> None:
    """Show what a baseline holds."""
    with _errors_exit_with_2():
        _show(file, as_json)


def _show(file: Path, as_json: str) -> None:
    from rich.table import Table

    loaded, artifacts = gating.described_baseline(file)
    device = loaded.device.label if loaded.device else ""
    about = {"device": device, "photos": list(loaded.photos), "created": loaded.created, "why": loaded.why}
    if o.print_json({**about, "artifacts": artifacts}, as_json):
        return
    names = ("arithmetic", "bytes", "mae", "mae_worst", "iou", "iou_worst", "boundary_f_worst")
    table = Table("artifact", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, values in artifacts.items():
        table.add_row(rich_text(name), *(rich_text(values.get(key, "–")) for key in names))
    wide().print(table)
    where = device or "any, in this arithmetic"
    echo(f"device: {where}", f"photos: {len(loaded.photos)}", f"accepted: {loaded.created} {loaded.why}".rstrip())


@baseline.command(cls=Command)
def diff(
    old: Annotated[Path, typer.Argument(help="Baseline as it was.")],
    new: Annotated[Path, typer.Argument(help="Baseline as it is.")],
    as_json: o.AsJson = "",
) -> None:
    """Show what changed from one baseline to another, one line for each change."""
    with _errors_exit_with_2():
        changes = gating.baseline_changes(old, new)
        if o.print_json(_told(changes), as_json):
            return
        for artifact, what, then, now in changes:
            echo(f"{artifact}  {what}  {then or '–'} -> {now or '–'}")


def _told(changes: Sequence[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    return [dict(zip(("artifact", "what", "then", "now"), change, strict=True)) for change in changes]


def trend(
    results: Annotated[list[Path], typer.Argument(help="JSON files that `u2export bench --json` wrote, in any order.")],
    baseline: Annotated[
        Path | None, typer.Option(help="Baseline that each run is judged against; the first run by default.")
    ] = None,
    policy: PolicyFile = None,
    form: Annotated[str, o.choice(gating.TREND_FORMATS, "How trends are written.", "--format")] = "term",
    as_json: o.AsJson = "",
) -> None:
    """Show how artifacts did from run to run: steady, new, sustained, recovered or flaky."""
    with _errors_exit_with_2():
        lines = gating.trend(results, baseline, policy)
        if as_json and o.print_json(json.loads(gating.trend_text(lines, "json")), as_json):
            return
        if form == "term":
            wide().print(gating.trend_table(lines))
        else:
            typer.echo(gating.trend_text(lines, form), nl=False)
