"""How a command line is read: `--json` with or without a file, `-q` and `-v` anywhere, and hints for wrong names.

Every command is a `Command`, and every group of commands a `Group`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from u2export.commands import console

JSON = "--json"
STDOUT = "-"
# Words that people try, and the command that does it.
MEANT = {
    "build": "trt build", "cache": "trt cache", "compare": "bench", "convert": "onnx", "device": "targets",
    "devices": "targets", "diff": "baseline diff", "doctor": "targets", "download": "weights pull",
    "evaluate": "bench", "export": "onnx", "html": "report", "info": "inspect", "infer": "predict", "list": "targets",
    "measure": "bench", "mlpackage": "coreml", "onnxruntime": "ort", "plot": "chart", "pte": "executorch",
    "pull": "weights pull", "quantise": "ort", "quantize": "ort", "run": "predict", "show": "table",
    "synth": "calib synth", "tensorrt": "trt", "test": "check", "tflite": "litert", "trust": "trt trust",
    "update": "baseline update",
}  # fmt: skip


def set_level(verbose: int, quiet: bool) -> None:
    """Print more or less than usual from now on: the log of the library, progress and remarks."""
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, handlers=[console.LogHandler()], force=True)
    if quiet:
        console.silence()


def without_levels(words: Sequence[str]) -> list[str]:
    """Return the words of a command without -q, -v, --quiet and --verbose, which take effect at once."""
    rest: list[str] = []
    verbose, quiet = 0, False
    for i, word in enumerate(words):
        if word == "--":
            rest += words[i:]
            break
        if word in ("-q", "--quiet"):
            quiet = True
        elif word in ("-v", "-vv", "--verbose"):
            verbose += word.count("v") if word != "--verbose" else 1
        else:
            rest.append(word)
    if verbose or quiet:
        set_level(verbose, quiet)
    return rest


class _Reading:
    """How both classes read the words behind a command's name."""

    params: Any

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words; a bare `--json` stands for `--json -`."""
        words = without_levels(args) if ctx.parent is not None else list(args)
        kind = next((p.name for p in self.params if JSON in p.opts), None)
        if kind is None or JSON not in words:
            return self._parse(ctx, words)
        at = words.index(JSON)
        after = words[at + 1] if at + 1 < len(words) else ""
        bare = [*words[:at], f"{JSON}={STDOUT}", *words[at + 1 :]]
        named = after == STDOUT or (after and not after.startswith("-"))
        if not named:
            return self._parse(ctx, bare)
        if kind == "json" or after == STDOUT:
            return self._parse(ctx, words)
        if not after.endswith(".json"):  # a photo or a model: `inspect --json model.onnx`
            return self._parse(ctx, bare)
        try:
            return self._parse(ctx, list(words))
        except typer.BadParameter as error:
            if type(error).__name__ != "MissingParameter":
                raise
        ctx.params.clear()  # the word is the command's argument: `inspect --json record.json`
        return self._parse(ctx, bare)

    def _parse(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args)  # type: ignore[misc,no-any-return]


class Command(_Reading, TyperCommand):
    """One command."""


class Group(_Reading, TyperGroup):
    """Commands under one name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command of the first word; a wrong word ends with the command that it resembles."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command '{args[0]}'.{self._meant(ctx, args[0])}")
        return super().resolve_command(ctx, args)

    def _meant(self, ctx: Any, word: str) -> str:
        names = self.list_commands(ctx)
        close = difflib.get_close_matches(word.lower(), names, n=2, cutoff=0.6)
        if ctx.parent is None and word.lower() in MEANT:
            close = [MEANT[word.lower()]]
        return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
