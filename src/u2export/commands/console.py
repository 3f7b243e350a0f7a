"""Where progress and remarks go: to standard error, in colour on a terminal, and nowhere under --quiet."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from u2export.errors import UserError
from u2export.text import one_line, rich_text

WIDTH = 120
ANY_WIDTH = 10_000
INTERRUPTED = 130  # what shells report for Ctrl-C

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_any_name() -> None:
    """Let standard output and error print names of files that are not UTF-8: output as their bytes, error escaped."""
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors=errors)


@cache
def stderr() -> Console:
    """Return the one console for progress bars, warnings and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@cache
def stdout() -> Console:
    """Return the one console for tables."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


@cache
def wide() -> Console:
    """Return the console for results: as wide as the terminal, or WIDTH columns where there is none."""
    from rich.console import Console

    plain = Console(markup=False, emoji=False)
    return plain if plain.is_terminal else Console(width=WIDTH, markup=False, emoji=False)


def print_whole(table: Table) -> None:
    """Print a table of names that are copied: no cell is cut or broken; a narrow terminal breaks whole lines.

    Lines end at their last word, so that blanks fill no lines of a narrow terminal.
    """
    from rich.console import Console
    from rich.segment import Segment, Segments

    for column in table.columns:
        column.no_wrap = True
    width = stdout().measure(table, options=stdout().options.update(width=ANY_WIDTH)).maximum
    console = Console(highlight=False, markup=False, emoji=False, width=max(width, stdout().width))
    shown = []
    for line in console.render_lines(table, pad=False):
        while line and not line[-1].text.strip():
            line.pop()
        ended = [*line[:-1], Segment(line[-1].text.rstrip(), line[-1].style)] if line else []
        shown += [*ended, Segment.line()]
    console.print(Segments(shown), end="")


def echo(*lines: object) -> None:
    """Print results, such as paths, one a line."""
    for line in lines:
        print(one_line(line))


def remark(*lines: object) -> None:
    """Print remarks on standard error, one a line, below a progress bar that may be shown."""
    for line in lines:
        stderr().print(one_line(line), soft_wrap=True)


@contextmanager
def waiting(text: object = "") -> Iterator[Callable[[object], None]]:
    """Show what a command is doing while it does it; gives a function that shows something else."""
    with stderr().status(rich_text(text)) as status:
        yield lambda now: status.update(rich_text(now))


class Bars:
    """One progress bar on standard error, for the present stage; silent where standard error is no terminal."""

    def __enter__(self) -> Bars:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = stderr()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        hidden = not console.is_terminal or console.quiet
        # Two redraws a second: more would take time from what is being measured.
        self.progress = Progress(*columns, console=console, disable=hidden, transient=True, refresh_per_second=2)
        self.stage, self.task = "", self.progress.add_task("", visible=False)
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """Move the bar; a new stage gets a new bar."""
        if stage != self.stage:
            self.progress.remove_task(self.task)
            self.stage, self.task = stage, self.progress.add_task(one_line(stage), total=total)
        self.progress.update(self.task, completed=done, total=total)


class LogHandler(logging.Handler):
    """Print the library's log to `stderr`: warnings of u2export as remarks, the rest with the logger's name."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message below a progress bar that may be shown."""
        own = record.name.startswith("u2export") and record.levelno == logging.WARNING
        remark(f"{'warning' if own else record.name}: {record.getMessage()}")


def silence() -> None:
    """Drop progress and remarks; results and errors stay."""
    stderr().quiet = True


def fail(error: UserError, code: int = 1) -> int:
    """Print an error in two lines and return the exit code; the hint names the option that it is about."""
    option = f"--{error.option.replace('_', '-')}" if error.option else ""
    hint = error.hint if option in error.hint else f"{error.hint} ({option})"
    say(error.problem, hint)
    return code


def say(problem: str, hint: str = "") -> None:
    """Print a problem, and what to do about it, on standard error."""
    print(f"u2export: {one_line(problem)}", *([f"  {one_line(hint)}"] if hint else []), sep="\n", file=sys.stderr)


# What an interrupted command kept, and how to go on; a command that knows more adds its own words.
_interruptions = [UserError("interrupted", "files that were finished stay; run the command again for the rest")]


def interruption(problem: str, hint: str) -> None:
    """Set what `say_interrupted` says."""
    _interruptions.append(UserError(problem, hint))


def say_interrupted() -> None:
    """Print what an interrupted command kept, and how to go on."""
    fail(_interruptions[-1])


_ANY = "check the path, its permissions, and the free space on the disk"
_ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder; earlier files have not been changed",
    errno.EDQUOT: "free some space, or choose another folder; earlier files have not been changed",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EROFS: "the file system is read-only; choose another path",
}


def explained(error: OSError | MemoryError) -> UserError:
    """Return an error of the system as one of two lines."""
    if isinstance(error, MemoryError):
        hint = "use a smaller input size (--size), fewer photos, or a machine with more memory"
        return UserError("out of memory", hint)
    where = f" {error.filename}" if error.filename else ""
    hint = _ADVICE.get(error.errno or 0, _ANY)
    return UserError(f"cannot read or write{where}: {error.strerror or error}", hint)


def drop_output() -> None:
    """Let the interpreter end quietly although standard output takes nothing more, such as on a full disk."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
