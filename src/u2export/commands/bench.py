"""`u2export bench`: mask fidelity and latency of artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from u2export.commands import options
from u2export.commands.console import stderr
from u2export.commands.options import Trust
from u2export.errors import UserError

if TYPE_CHECKING:
    from u2export.benchmarks.measuring.bench import Judged
    from u2export.benchmarks.measuring.machine import Host
    from u2export.benchmarks.report import Report

INTERRUPTED = 130  # what shells report for Ctrl-C


class Tier(str, Enum):
    """How long each row is timed."""

    quick = "quick"
    normal = "normal"
    official = "official"


class Scenario(str, Enum):
    """What is timed."""

    latency = "latency"
    throughput = "throughput"


class Modes(str, Enum):
    """Which arithmetics of an artifact become rows."""

    all = "all"
    default = "default"


def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported models, or their .json records.")],
    images: Annotated[Path, typer.Option(help="Folder of photos, or one photo; not those used for calibration.")],
    masks: Annotated[
        Path | None, typer.Option(help="Folder of ground-truth masks named like the photos; adds maxF, MAE and S.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write results, raw samples included, to this file.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of photos, masks and their differences.")
    ] = None,
    sheet_photos: Annotated[int, typer.Option(min=1, help="Photos on the contact sheet, the worst ones first.")] = 6,
    tier: Annotated[
        Tier,
        typer.Option(
            help="Samples, seconds, rounds of each row: quick 64, 6, 10; normal 128, 10, 64; official 1024, 60, 64."
        ),
    ] = Tier.quick,
    samples: Annotated[int | None, typer.Option(min=1, help="Least number of samples per row.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0, help="Least time per row.")] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Interleaved rounds; an interval of the speed-up wants five.")
    ] = None,
    modes: Annotated[
        Modes,
        typer.Option(
            "--arithmetics",
            "--modes",
            help="A row for all arithmetics the machine runs an artifact in, or the default one only.",
        ),
    ] = Modes.all,
    scenario: Annotated[
        Scenario,
        typer.Option(help="latency: one picture at a time; throughput: as many as go, see --batch, --streams."),
    ] = Scenario.latency,
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one inference, for throughput.")] = 1,
    streams: Annotated[int, typer.Option(min=1, help="Inferences at the same time, for throughput.")] = 1,
    sustained: Annotated[
        float, typer.Option(min=0, help="Seconds to run each row alone afterwards, to see it slow down as it warms up.")
    ] = 0,
    cooldown: Annotated[float, typer.Option(min=0, help="Seconds of rest before each sustained run.")] = 60,
    threads: Annotated[int, typer.Option(min=0, help="Threads for each runtime; 0 for all processors.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="local|ssh://USER@HOST[:PORT]", help="Machine to measure on.")
    ] = "local",
    device_python: Annotated[
        str, typer.Option(help="Python over there that has numpy, Pillow and the runtime.")
    ] = "python3",
    ssh_config: Annotated[
        Path | None, typer.Option(help="Configuration of ssh in place of ~/.ssh/config.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer of a runtime.")] = 300,
    baseline_row: Annotated[
        str, typer.Option(help="Row that speed-ups are relative to; the reference, or the first, by default.")
    ] = "",
    reference: Annotated[
        str,
        typer.Option(
            help="What masks are compared with: auto (PyTorch if it and the weights are there, else an fp32 ONNX), "
            "pytorch, a weights file, an artifact, or an .npz of --save-reference."
        ),
    ] = "auto",
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the reference's maps to this .npz, for a device without PyTorch.")
    ] = None,
    keep_masks: Annotated[
        Path | None, typer.Option(help="Write all rows' masks to this .npz, for `u2export check --masks`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Use so many photos, spread evenly; 0 for all.")] = 0,
    strict: Annotated[bool, typer.Option("--strict", help="A photo that cannot be read is an error.")] = False,
    trust: Trust = False,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time the rows.")] = True,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in the --json file.")] = False,
) -> None:
    """Measure how close artifacts' masks are to the reference's, and how long they take."""

    from u2export.benchmarks.measuring.bench import Plan, measure, photos_in, settings
    from u2export.benchmarks.measuring.ground_truth import find_masks
    from u2export.benchmarks.report import Report
    from u2export.benchmarks.tables.columns import console, terminal
    from u2export.exporters.open import read_artifact

    if resume and not json:
        raise UserError("--resume needs the results to continue", "add --json FILE")
    if trust:
        options.trust(artifacts)
    photos = photos_in(images, limit)
    plan = Plan(
        artifacts=[read_artifact(path) for path in artifacts],
        photos=photos,
        masks=find_masks(masks, list(photos.values())) if masks else {},
        settings=settings(
            tier.value,
            samples,
            seconds,
            rounds,
            threads,
            scenario=scenario.value,
            batch=batch,
            streams=streams,
            sustained=sustained,
            cooldown=cooldown if sustained else 0,
        ),
        host=_host(device, device_python, ssh_config),
        arithmetics=modes.value,
        reference=reference,
        baseline=baseline_row,
        timeout=timeout,
        latency=latency,
        strict=strict,
        save_reference=save_reference,
        all_maps=bool(contact_sheet or keep_masks),
    )
    earlier = Report.load(json) if resume and json and json.exists() else None
    latest: list[Report] = []

    def saved(report: Report) -> None:
        latest[:] = [report]
        if json:
            report.save(json)

    def look(report: Report, photos: Mapping[str, Path], judged: Sequence[Judged]) -> None:
        from u2export.benchmarks.gate.saved_masks import SavedMasks
        from u2export.benchmarks.tables.contact_sheet import draw

        if keep_masks:
            SavedMasks.of(report, judged).save(keep_masks)
        if contact_sheet:
            draw(report, photos, judged, contact_sheet, sheet_photos)

    try:
        with _Bars() as bars:
            measure(plan, saved, bars.show, earlier, look)
    except KeyboardInterrupt:
        if latest:
            console().print(terminal(latest[0]))
        raise typer.Exit(INTERRUPTED) from None
    report = latest[0]
    console().print(terminal(report))
    for problem in report.broken.values():
        stderr().print(f"u2export: skipped {problem}")
    for path in filter(None, (json, contact_sheet, save_reference, keep_masks)):
        typer.echo(path)


def _host(device: str, python: str, config: Path | None) -> Host | None:
    """The machine that `--device` names; None for this one."""
    if device == "local":
        return None
    from u2export.benchmarks.measuring.ssh import Remote, address

    return Remote(address(device), python, config)


class _Bars:
    """One progress bar on standard error, for the stage at hand; silent where that is no terminal."""

    def __enter__(self) -> _Bars:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = stderr()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # Two redraws a second: more would take time from what is being measured.
        hidden = not console.is_terminal or console.quiet
        self.progress = Progress(
            *columns,
            console=console,
            disable=hidden,
            transient=True,
            refresh_per_second=2,
        )
        self.stage, self.task = "", self.progress.add_task("", visible=False)
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar, a new one for a new stage."""
        if stage != self.stage:
            self.progress.remove_task(self.task)
            self.stage, self.task = stage, self.progress.add_task(stage, total=total)
        self.progress.update(self.task, completed=done, total=total)
