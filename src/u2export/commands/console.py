"""Where progress and remarks go: to standard error, in colour on a terminal, and nowhere under --quiet."""

from __future__ import annotations

import logging
import sys
from functools import cache
from io import TextIOWrapper
from typing import TYPE_CHECKING

from u2export.errors import UserError

WIDTH = 120

if TYPE_CHECKING:
    from rich.console import Console


def print_any_name() -> None:
    """Let standard output and error print names of files that are not UTF-8: output as their bytes, error escaped."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


@cache
def stderr() -> Console:
    """Return the one console for progress bars, warnings and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


@cache
def stdout() -> Console:
    """Return the one console for tables."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def wide() -> Console:
    """Return the console for results: as wide as the terminal, or WIDTH columns where there is none."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


class LogHandler(logging.Handler):
    """Print the library's log to `stderr`: warnings of u2export as remarks, the rest with the logger's name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message below a progress bar that may be shown."""
        own = record.name.startswith("u2export") and record.levelno == logging.WARNING
        stderr().print(f"{'warning' if own else record.name}: {record.getMessage()}", markup=False, soft_wrap=True)


def silence() -> None:
    """Drop progress and remarks; results and errors stay."""
    stderr().quiet = True


def fail(error: UserError, code: int = 1) -> int:
    """Print an error in two lines and return the exit code; the hint names the option that it is about."""
    option = f"--{error.option.replace('_', '-')}" if error.option else ""
    hint = error.hint if option in error.hint else f"{error.hint} ({option})"
    print(f"u2export: {error.problem}", *([f"  {hint}"] if hint else []), sep="\n", file=sys.stderr)
    return code
