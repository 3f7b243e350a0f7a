"""The modules of u2export that a worker imports, so that a machine behind ssh receives these modules and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "u2export"
WORKER_MODULE = f"{PACKAGE}.benchmarks.measuring.worker"


def worker_files() -> dict[str, Path]:
    """Return the Python files that a worker needs, by their place in the package, such as "reference/image.py".

    These are the files of the modules that the worker imports, of the modules that those import, and so on. Imports
    inside functions count too, because a worker may call these functions. Imports for type checkers do not count.
    """
    files = _needed(WORKER_MODULE)
    return {_place(name, path): path for name, path in sorted(files.items())}


def _needed(start: str) -> dict[str, Path]:
    """Return the files of a module and of all modules of u2export that it needs, by dotted name."""
    found: dict[str, Path] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or not (path := _file(name)):
            continue
        found[name] = path
        waiting += [name.rpartition(".")[0], *_imports(name, path)]
    return found


def _file(module: str) -> Path | None:
    """Return the file of a module of u2export; None where the name is not a module of u2export."""
    package, _, _ = module.rpartition(".")
    if module.partition(".")[0] != PACKAGE or (package and not _is_package(package)):
        return None
    found = find_spec(module)
    return Path(found.origin) if found and found.origin else None


def _is_package(module: str) -> bool:
    path = _file(module)
    return path is not None and path.name == "__init__.py"


def _imports(name: str, path: Path) -> Iterator[str]:
    """Yield every dotted name that a module imports; `from a import b` yields both "a" and "a.b".

    Of the package itself only the imports at the top count: the names that it loads on demand are for users.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node in tree.body if name == PACKAGE else _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below one, without the bodies of `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _executed(child)


def _place(module: str, path: Path) -> str:
    folders = module.split(".")[1:]
    return "/".join([*folders, path.name] if path.name == "__init__.py" else [*folders[:-1], path.name])
