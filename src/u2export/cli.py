"""The command line: it joins the sub-commands, and it prints errors in place of tracebacks."""

from __future__ import annotations

import errno
import signal
from types import FrameType
from typing import Annotated

import typer

from u2export.commands import (
    bench,
    calib,
    check,
    console,
    devices,
    export,
    fit,
    inspect,
    lint,
    predict,
    recipe,
    rembg,
    roofline,
    sensitivity,
    table,
    targets,
    trt,
    weights,
)
from u2export.commands.parsing import Command, Group, set_level
from u2export.errors import UserError, WrongValue
from u2export.version import __version__

app = typer.Typer(
    name="u2export",
    cls=Group,
    epilog="-q and -v may also stand behind a command.",
    help="Export U²-Net to edge runtimes, and measure what each export costs in mask fidelity and gains in latency.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"u2export {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, show_default=False, help="Print more; twice for debugging.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Export U²-Net to edge runtimes, and measure what each export costs in mask fidelity and gains in latency."""
    set_level(verbose, quiet)


EXPORT, MEASURE, GATE, INT8, HELP = "Export", "Run and measure", "Guard", "Lower precision", "Look"
app.command(cls=Command, rich_help_panel=EXPORT)(export.onnx)
app.command(cls=Command, rich_help_panel=EXPORT)(export.ort)
app.command(cls=Command, rich_help_panel=EXPORT)(export.openvino)
app.add_typer(trt.app, name="trt", rich_help_panel=EXPORT)
app.command(cls=Command, rich_help_panel=EXPORT)(export.coreml)
app.command(cls=Command, rich_help_panel=EXPORT)(export.litert)
app.command(cls=Command, rich_help_panel=EXPORT)(export.executorch)
app.command("pull", cls=Command, rich_help_panel=EXPORT)(weights.pull_ready)
app.add_typer(rembg.app, name="rembg", rich_help_panel=EXPORT)
app.command(cls=Command, rich_help_panel=MEASURE)(predict.predict)
app.command(cls=Command, rich_help_panel=MEASURE)(bench.bench)
app.command(cls=Command, rich_help_panel=MEASURE)(fit.fit)
app.command(cls=Command, rich_help_panel=MEASURE)(table.table)
app.command(cls=Command, rich_help_panel=MEASURE)(table.report)
app.command("import", cls=Command, rich_help_panel=MEASURE)(devices.import_)
app.command(cls=Command, rich_help_panel=MEASURE)(devices.kit)
app.command(cls=Command, rich_help_panel=MEASURE)(table.chart)
app.command(cls=Command, rich_help_panel=MEASURE)(roofline.roofline)
app.command(cls=Command, rich_help_panel=MEASURE)(roofline.profile)
app.command(cls=Command, rich_help_panel=GATE)(check.check)
app.add_typer(check.baseline, name="baseline", rich_help_panel=GATE)
app.command(cls=Command, rich_help_panel=GATE)(check.trend)
app.command(cls=Command, rich_help_panel=INT8)(lint.lint)
app.command(cls=Command, rich_help_panel=INT8)(sensitivity.sensitivity)
app.add_typer(calib.app, name="calib", rich_help_panel=INT8)
app.command(cls=Command, rich_help_panel=HELP)(targets.targets)
app.command(cls=Command, rich_help_panel=HELP)(inspect.inspect)
app.add_typer(recipe.app, name="recipe", rich_help_panel=HELP)
app.command(cls=Command, rich_help_panel=HELP)(inspect.golden)
app.add_typer(weights.app, name="weights", rich_help_panel=HELP)


# Signals that end a program, but not SIGINT, which Python turns into KeyboardInterrupt itself.
ENDING = ("SIGTERM", "SIGHUP")


def main() -> int:
    """Run the command line and return its exit code.

    1 stands for errors, 2 for wrong usage and wrong values, 128 and the number of the signal for an interrupted run.
    """
    console.print_any_name()
    ended = _end_like_ctrl_c()
    try:
        app()
    except SystemExit as leaving:
        if leaving.code != console.INTERRUPTED:
            raise
        console.say_interrupted()
        return 128 + ended[-1] if ended else console.INTERRUPTED
    except UserError as error:
        return console.fail(error, 2 if isinstance(error, WrongValue) else 1)
    except OSError as error:
        return 1 if error.errno == errno.EPIPE else console.fail(console.explained(error))
    except MemoryError as error:
        return console.fail(console.explained(error))
    return 0


def _end_like_ctrl_c() -> list[int]:
    """Let SIGTERM and SIGHUP clean up as Ctrl-C does; the list gets the signal that came."""
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for name in ENDING:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP: leave that
            signal.signal(number, end)
    return came
