"""The layers of the house: imports point downwards only, modules form no circles, rooms and modules stay small."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

# The lowest first. A module imports from its own layer and from layers below it.
LAYERS = ("ground", "reference", "calibration", "exporters", "benchmarks", "api", "commands")
GROUND = {"errors", "files", "install", "text", "version"}
FACADE = {"u2export", "u2export.__main__", "u2export.cli"}  # they join the layers and are imported by none
LONGEST, FULLEST = 450, 20


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for room in ("reference", "calibration", "exporters", "benchmarks"):
        found |= {f"u2export.{_dotted(p.relative_to(ROOT))}": p for p in (ROOT / room).rglob("*.py")}
    return found | {_dotted(p.relative_to(ROOT / "src")): p for p in (ROOT / "src").rglob("*.py")}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def layer(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return LAYERS.index("ground" if room in GROUND else room) if room in (*GROUND, *LAYERS) else len(LAYERS)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of u2export that a module imports anywhere: at the top, in functions, for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else node.module for name in inner}
    return frozenset(name for name in found if name in modules())


@pytest.mark.parametrize("module", sorted(modules().keys() - FACADE))
def test_imports_point_downwards(module: str) -> None:
    upward = sorted(name for name in imports(module) if layer(name) > layer(module))
    assert not upward, f"{module} imports {', '.join(upward)} from a layer above it"


@pytest.mark.parametrize("module", sorted(m for m in modules() if m.startswith("u2export.commands.")))
def test_commands_call_the_api_and_nothing_else(module: str) -> None:
    allowed = {f"u2export.{name}" for name in GROUND}
    rooms = ("u2export.api", "u2export.commands")
    other = sorted(name for name in imports(module) if name not in allowed and not name.startswith(rooms))
    assert not other, f"{module} imports {', '.join(other)}; commands parse and print, the API does the work"


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path[path.index(module) :], module))}"
        if module not in done:
            for name in sorted(imports(module)):
                visit(name, (*path, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def test_modules_and_rooms_are_small() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: n for name, n in lines.items() if n > LONGEST}
    rooms = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    assert not {room.name: n for room, n in rooms.items() if n > FULLEST}
