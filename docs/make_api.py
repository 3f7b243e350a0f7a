"""Write docs/api.md from the docstrings: `python docs/make_api.py`. A test compares the page with them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import u2export

PAGE = Path(__file__).with_name("api.md")
MODULES = (
    "exporting", "ready", "running", "video", "measuring", "profiling", "fitting", "gating", "tables", "pages",
    "lower_precision", "tensorrt", "inspecting", "rembg",
)  # fmt: skip
INTRODUCTION = """# Python API

This page is made from the docstrings by `python docs/make_api.py`; edit those.

    import u2export as u2

    artifact = u2.export("openvino", "int8", calib="calibration/")
    report = u2.bench([artifact], "photos/")
    verdicts = u2.check(report, "baseline.json")
    masks = u2.predict(artifact, "photos/")

The commands parse their options, call these functions, and print. So both give the same files. [example.py](example.py)
shows one round from weights to a verdict.

- `import u2export` loads no part of the library. Each name loads its own part at its first use.
- Paths may be texts. Pictures are uint8 arrays (H, W, channels); masks are uint8 arrays (H, W), 255 for the object.
- A mistake of the caller is a `UserError`. A missing package or device is an `Unavailable`. Both say in one line what
  is wrong, and in another what to do.
- Warnings go to the logger `u2export`.
- In the examples, `artifact` is an fp32 ONNX of random weights with 64 x 64 pixels, `photo` is a picture of 120 x 90
  pixels, `report` is a bench of both, and `folder` is an empty folder. A test runs every example.
"""
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example")


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, "## `import u2export as u2`\n\n" + ", ".join(f"`{n}`" for n in u2export.__all__) + "\n"]
    for name in MODULES:
        parts += _module(import_module(f"u2export.api.{name}"))
    return "\n".join(parts)


def _module(module: ModuleType) -> Iterator[str]:
    yield f"## `{module.__name__}`\n\n{_text(inspect.getdoc(module) or '')}\n"
    for name in module.__all__:
        thing = getattr(module, name)
        if getattr(thing, "__module__", "") == module.__name__:
            yield _described(name, thing)


def _described(name: str, thing: Any) -> str:
    top = getattr(u2export, name, None) is thing
    lines = [f"### `{'u2.' if top else ''}{name}`", ""]
    if inspect.isfunction(thing):
        lines += ["```python", _signature(name, thing), "```", ""]
    lines += _sections(inspect.getdoc(thing) or "")
    if inspect.isclass(thing):
        for method, function in vars(thing).items():
            called = function.fget if isinstance(function, property) else function
            if inspect.isfunction(called) and (method == "__call__" or not method.startswith("_")):
                shown = method if isinstance(function, property) else _signature(method, called)
                lines += [f"#### `{shown.splitlines()[0]}`" if "\n" not in shown else f"#### `{method}`", ""]
                lines += _sections(inspect.getdoc(called) or "")
    return "\n".join(lines).rstrip() + "\n"


def _signature(name: str, function: Any) -> str:
    signature = inspect.signature(function)
    parts, kinds = [], {}
    for p in signature.parameters.values():
        kinds.setdefault(p.kind, p.name)
        if p.kind is p.KEYWORD_ONLY and kinds[p.kind] == p.name and p.VAR_POSITIONAL not in kinds:
            parts.append("*")
        parts.append(_parameter(p))
    if p_only := [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_ONLY]:
        parts.insert(len(p_only), "/")
    end = f" -> {signature.return_annotation}" if signature.return_annotation is not signature.empty else ""
    whole = f"{name}({', '.join(parts)}){end}"
    return whole if len(whole) <= 100 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){end}"])


def _parameter(p: inspect.Parameter) -> str:
    """Give one parameter as Python; a default that is a function has no short form and becomes `...`."""
    stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
    kind = "" if p.annotation is p.empty else f": {p.annotation}"
    if p.default is p.empty:
        return f"{stars}{p.name}{kind}"
    default = "..." if callable(p.default) else f'"{p.default}"' if isinstance(p.default, str) else str(p.default)
    return f"{stars}{p.name}{kind} = {default}" if kind else f"{p.name}={default}"


def _sections(doc: str) -> Iterator[str]:
    """Give a docstring as Markdown: paragraphs, then lists of arguments, what is returned, errors, and an example."""
    head, *rest = re.split(rf"^({'|'.join(SECTIONS)}):\n", doc, flags=re.MULTILINE)
    yield _text(head)
    yield ""
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        lines = inspect.cleandoc(body)
        if title == "Example":
            yield f"```python\n{lines.strip()}\n```"
        elif title in ("Args", "Attributes", "Raises"):
            yield f"{title}:\n"
            yield from _items(lines)
        else:
            yield f"{title}: {_text(lines)}"
        yield ""


def _items(lines: str) -> Iterator[str]:
    entries: list[str] = []
    for line in lines.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line.strip())
    for entry in entries:
        names, colon, text = entry.partition(": ")
        yield f"- `{names}`: {text}" if colon else f"- {entry}"


def _text(text: str) -> str:
    """Return paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
