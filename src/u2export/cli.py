"""The command line: it joins the sub-commands, and it prints errors in place of tracebacks."""

from __future__ import annotations

import errno
import logging
from typing import Annotated

import typer

from u2export.commands import (
    bench,
    calib,
    chart,
    check,
    console,
    devices,
    export,
    golden,
    inspect,
    lint,
    predict,
    roofline,
    sensitivity,
    table,
    targets,
    trt,
    weights,
)
from u2export.errors import UserError
from u2export.version import __version__

app = typer.Typer(
    name="u2export",
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
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, handlers=[console.LogHandler()], force=True)
    if quiet:
        console.silence()


EXPORT, MEASURE, GATE, INT8, HELP = "Export", "Run and measure", "Guard", "Lower precision", "Look"
app.command(rich_help_panel=EXPORT)(export.onnx)
app.command(rich_help_panel=EXPORT)(export.ort)
app.command(rich_help_panel=EXPORT)(export.openvino)
app.add_typer(trt.app, name="trt", rich_help_panel=EXPORT)
app.command(rich_help_panel=EXPORT)(export.coreml)
app.command(rich_help_panel=MEASURE)(predict.predict)
app.command(rich_help_panel=MEASURE)(bench.bench)
app.command(rich_help_panel=MEASURE)(table.table)
app.command("import", rich_help_panel=MEASURE)(devices.import_)
app.command(rich_help_panel=MEASURE)(devices.kit)
app.command(rich_help_panel=MEASURE)(chart.chart)
app.command(rich_help_panel=MEASURE)(roofline.roofline)
app.command(rich_help_panel=GATE)(check.check)
app.add_typer(check.baseline, name="baseline", rich_help_panel=GATE)
app.command(rich_help_panel=GATE)(check.trend)
app.command(rich_help_panel=INT8)(lint.lint)
app.command(rich_help_panel=INT8)(sensitivity.sensitivity)
app.add_typer(calib.app, name="calib", rich_help_panel=INT8)
app.command(rich_help_panel=HELP)(targets.targets)
app.command(rich_help_panel=HELP)(inspect.inspect)
app.command(rich_help_panel=HELP)(golden.golden)
app.add_typer(weights.app, name="weights", rich_help_panel=HELP)


def main() -> int:
    """Run the command line and return its exit code: 1 for errors; Typer itself exits with 2 for usage errors."""
    console.print_any_name()
    try:
        app()
    except UserError as error:
        return console.fail(error)
    except MemoryError:
        return console.fail(
            UserError("out of memory", "use a smaller input size (--size), fewer photos, or a machine with more memory")
        )
    except OSError as error:
        if error.errno == errno.EPIPE:
            return 1
        where = f" {error.filename}" if error.filename else ""
        return console.fail(
            UserError(f"cannot read or write{where}: {error.strerror or error}", _ADVICE.get(error.errno or 0, _ANY))
        )
    return 0


_ANY = "check the path, its permissions, and the free space on the disk"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder; earlier files have not been changed",
    errno.EDQUOT: "free some space, or choose another folder; earlier files have not been changed",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
}
