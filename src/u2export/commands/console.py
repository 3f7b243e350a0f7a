"""Where progress and remarks go: standard error, in colour on a terminal, nowhere under --quiet."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@cache
def stderr() -> Console:
    """The one console for progress bars, warnings and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def silence() -> None:
    """Drop progress and remarks; results and errors stay."""
    stderr().quiet = True
