"""`u2export bench`: mask fidelity and latency of artifacts."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from u2export.api import measuring, tables
from u2export.api.measuring import Report
from u2export.commands import options as o
from u2export.commands.console import INTERRUPTED, Bars, echo, interruption, remark, wide
from u2export.commands.parsing import STDOUT


@dataclass(frozen=True)
class Outputs:
    """What a bench writes."""

    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write results, raw samples included, to this file; - prints them and nothing else."
        ),
    ] = None
    contact_sheet: Annotated[Path | None, typer.Option(help="Write a PNG of photos, masks and their differences.")] = (
        None
    )
    sheet_photos: Annotated[int, typer.Option(min=1, help="Photos on the contact sheet, the worst ones first.")] = 6
    save_reference: Annotated[
        Path | None, typer.Option(help="Write the reference's maps to this .npz, for a device without PyTorch.")
    ] = None
    save_masks: Annotated[
        Path | None,
        typer.Option(
            "--save-masks", "--keep-masks", help="Write all rows' masks to this .npz, for `u2export check --masks`."
        ),
    ] = None

    @property
    def file(self) -> Path | None:
        """The file of results; None where they are printed, or not asked for."""
        return None if str(self.json) == STDOUT else self.json

    def files(self) -> list[Path]:
        """Return the files in the order in which they are printed."""
        given = (self.file, self.contact_sheet, self.save_reference, self.save_masks)
        return [path for path in given if path is not None]


@dataclass(frozen=True)
class Timing:
    """How long rows are timed, and how they are loaded."""

    tier: Annotated[
        str,
        o.choice(
            tuple(measuring.TIERS),
            "Least samples, seconds and rounds of each row: "
            + "; ".join(f"{name} {', '.join(f'{n:g}' for n in own)}" for name, own in measuring.TIERS.items())
            + ".",
        ),
    ] = "quick"
    samples: Annotated[int | None, typer.Option(min=1, help="Least number of samples per row.")] = None
    seconds: Annotated[float | None, typer.Option(min=0, help="Least time per row.")] = None
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Interleaved rounds; an interval of the speed-up needs several.")
    ] = None
    scenario: Annotated[
        str,
        o.choice(
            measuring.SCENARIOS,
            "latency: one picture at a time; throughput: as many as possible, see --batch and --streams.",
        ),
    ] = "latency"
    batch: Annotated[int, typer.Option(min=1, help="Pictures in one inference, for throughput.")] = 1
    streams: Annotated[int, typer.Option(min=1, help="Inferences at the same time, for throughput.")] = 1
    sustained: Annotated[
        float,
        typer.Option(min=0, help="Seconds to run each row alone afterwards; they show how it slows down when warm."),
    ] = 0
    cooldown: Annotated[float, typer.Option(min=0, help="Seconds of rest before each sustained run.")] = 60
    threads: Annotated[int, typer.Option(min=0, help="Threads for each runtime; 0 for all processors.")] = 0
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time the rows.")] = True


@dataclass(frozen=True)
class Machine:
    """Where rows are measured."""

    device: Annotated[
        str,
        typer.Option(
            metavar="local|ssh://USER@HOST[:PORT]|web[:PORT]|cluster",
            help="Machine to measure on; web: a browser that opens the page; cluster: one machine of each kind among "
            "the workers of --cluster with the resource u2export-bench=1.",
        ),
    ] = "local"
    cluster: Annotated[
        str,
        typer.Option(
            metavar="local:N|tcp://HOST:PORT|tls://HOST:PORT|FILE.json",
            help="Judge the masks on the workers of a Dask scheduler, or on N workers started here; with --no-latency.",
            show_default=False,
        ),
    ] = ""
    shared_files: o.SharedFiles = False
    store: o.Store = ""
    usb: Annotated[
        bool, typer.Option("--usb", help="With --device web: bring the page to a phone on a cable, by adb reverse.")
    ] = False
    device_python: Annotated[
        str, typer.Option(help="Python on that machine that has numpy, Pillow and the runtime.")
    ] = "python3"
    ssh_config: Annotated[
        Path | None, typer.Option(help="Configuration of ssh in place of ~/.ssh/config.", show_default=False)
    ] = None
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for one answer of a runtime.")] = 300


@dataclass(frozen=True)
class Comparing:
    """What rows are compared with, and on which photos."""

    masks: Annotated[
        Path | None, typer.Option(help="Folder of ground-truth masks named like the photos; adds maxF, MAE and S.")
    ] = None
    arithmetics: Annotated[
        str,
        o.choice(
            measuring.ARITHMETICS,
            "A row for each arithmetic that the machine runs an artifact in, or for the default one only.",
            "--arithmetics",
            "--modes",
        ),
    ] = "all"
    baseline_row: Annotated[
        str, typer.Option(help="Row that speed-ups are relative to; the reference, or the first, by default.")
    ] = ""
    reference: Annotated[
        str,
        typer.Option(
            help="What masks are compared with: auto (PyTorch if it and the weights are there, else an fp32 ONNX), "
            "pytorch, a weights file, an artifact, or an .npz of --save-reference."
        ),
    ] = "auto"
    output_name: o.OutputName = ""
    limit: Annotated[int, typer.Option(min=0, help="Largest number of photos, spread evenly; 0 for all.")] = 0
    strict: Annotated[bool, typer.Option("--strict", help="A photo that cannot be read is an error.")] = False
    trust: o.Trust = False
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in the --json file.")] = False


@o.grouped
def bench(
    artifacts: Annotated[list[Path], typer.Argument(help="Exported models, or their .json records.")],
    images: Annotated[Path, typer.Option(help="Folder of photos, or one photo; not those used for calibration.")],
    comparing: Comparing,
    outputs: Outputs,
    timing: Timing,
    machine: Machine,
) -> None:
    """Measure how close artifacts' masks are to the reference's, and how long they take."""
    latest: list[Report] = []
    many = machine.device == measuring.CLUSTER
    options = {**asdict(comparing), **asdict(outputs), **asdict(timing), **asdict(machine)}
    options["json"] = outputs.file
    try:
        with Bars() as bars:
            report = measuring.bench(
                artifacts, images, **options, progress=bars.show, announce=_announce,
                saved=lambda r: latest.__setitem__(slice(len(latest) if many else 0, None), [r]),
            )  # fmt: skip
    except KeyboardInterrupt:
        if latest:
            wide().print(tables.report_table(latest[0]))
        interruption(*_kept(outputs.file, bool(latest)))
        raise typer.Exit(INTERRUPTED) from None
    if many:
        _show_machines(latest, outputs)
        return
    if str(outputs.json) == STDOUT:
        o.print_json(report.to_json(), STDOUT)
        return
    wide().print(tables.report_table(report))
    for problem in report.broken.values():
        remark(f"u2export: skipped {problem}")
    for path in outputs.files():
        echo(path)


def _show_machines(reports: list[Report], outputs: Outputs) -> None:
    """Print the reports of several machines and the names of their files; with --json - a JSON list."""
    if str(outputs.json) == STDOUT:
        o.print_json([report.to_json() for report in reports], STDOUT)
        return
    for report in reports:
        wide().print(tables.report_table(report))
        if outputs.file:
            echo(measuring.report_file(outputs.file, report))


def _announce(line: str) -> None:
    """Print a line that the user needs to go on, also under --quiet."""
    print(line, file=sys.stderr, flush=True)


def _kept(json: Path | None, measured: bool) -> tuple[str, str]:
    """Return what an interrupted bench kept in its file of results, and how to go on."""
    if not measured:
        return "interrupted before anything was measured", "run the command again"
    if json:
        return f"interrupted; what was measured is in {json}", "the same command with --resume goes on"
    return "interrupted; nothing was kept", "with --json FILE the next run can be continued by --resume"
