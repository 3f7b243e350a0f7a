"""The skeleton that all studies share: options, pages that can be continued, and the line that repeats a study.

A study is a module of this room with a `STUDY`. `nox -s study -- NAME …` runs it in an environment of its own.
"""

from __future__ import annotations

import shlex
import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from u2export.benchmarks.device import this_device
from u2export.errors import UserError
from u2export.files import read_json, write_json, write_text

COMMAND = "nox -s study --"
RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Pages:
    """The two pages of a study: a JSON file with all data and a Markdown file for readers.

    Attributes:
        folder: the folder of both files.
        stem: the name of both files without its ending.
        command: the line that repeats the study.
    """

    folder: Path
    stem: str
    command: str

    @property
    def data_file(self) -> Path:
        """The JSON file."""
        return self.folder / f"{self.stem}.json"

    def resumed(self, head: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the data of an earlier run with the same head; None if there is no earlier run.

        Raises:
            UserError: the file is damaged, or it has another head: its run had other inputs.
        """
        if not self.data_file.exists():
            return None
        data: dict[str, Any] = read_json(self.data_file, "the results of this study")
        if other := [key for key in head if data.get(key) != head[key]]:
            raise UserError(
                f"{self.data_file} is of other inputs ({', '.join(other)})", "give another --out, or remove this file"
            )
        return data

    def save(self, data: Mapping[str, Any]) -> None:
        """Write the JSON file."""
        write_json(data, self.data_file)

    def publish(self, data: Mapping[str, Any], page: str) -> None:
        """Write both files."""
        self.save(data)
        write_text(page, self.folder / f"{self.stem}.md")


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        name: the name of its module, which `nox -s study --` takes.
        about: one sentence about its question.
        stem: the name of its two pages without the ending.
        options: adds the options of the study to a parser.
        run: does the study, and returns its exit code: 0, or 1 if the study found what it must not find.
        out: the default folder of its pages; None if the study has no default.
    """

    name: str
    about: str
    stem: str
    options: Callable[[ArgumentParser], object]
    run: Callable[[Namespace, Pages], int]
    out: Path | None = None

    def parser(self) -> ArgumentParser:
        """Return the parser of all options of the study."""
        parser = ArgumentParser(f"{COMMAND} {self.name}", description=self.about)
        self.options(parser)
        files = f"{self.stem}.json and {self.stem}.md"
        parser.add_argument(
            "--out", type=Path, default=self.out, required=self.out is None, help=f"folder for {files}; %(default)s"
        )
        return parser

    def main(self, words: Sequence[str]) -> int:
        """Run the study with the words of a command line and return its exit code.

        Raises:
            UserError: an input is missing or wrong.
            SystemExit: the options are wrong, or `--help` is among them.
        """
        parser = self.parser()
        given = parser.parse_args(words)
        return self.run(given, Pages(given.out, self.stem, repeats(self.name, parser, given)))


def repeats(name: str, parser: ArgumentParser, given: Namespace) -> str:
    """Return the line that repeats a study.

    The line leaves out defaults. It names an absolute file without its folder, and an absolute folder as FOLDER,
    because these paths mean nothing on another machine.
    """
    options: list[str] = []
    words: list[str] = []
    for action in parser._actions:  # argparse has no public list of its options
        if action.dest == "help":
            continue
        value = getattr(given, action.dest)
        if not action.option_strings:
            words += map(_public, value if isinstance(value, list) else [value])
        elif value != action.default or action.required:
            options += _option(action, value)
    return " ".join([COMMAND, name, *words, *options])


def _option(action: Action, value: Any) -> Iterator[str]:
    yield action.option_strings[-1]
    if value is not True:
        yield from map(_public, value if isinstance(value, list) else [value])


def _public(value: Any) -> str:
    if isinstance(value, Path) and value.is_absolute():
        return value.name if value.suffix else "FOLDER"
    name, equals, _ = str(value).partition("=")
    return f"{name}=FOLDER" if equals else shlex.quote(str(value))


def progress(text: object) -> None:
    """Print a line for the person who waits, on standard error."""
    print(text, file=sys.stderr, flush=True)


def now() -> str:
    """Return the UTC time in ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """Return the label and the processor features of this device as plain data."""
    device = this_device()
    return {"label": device.label, "features": list(device.features)}


def listed(tools: Mapping[str, str]) -> str:
    """Return the tools with their versions as text."""
    return ", ".join(f"{name} {version}" for name, version in tools.items())
