"""What a tool's file says about one timed model, and how the readers of such files convert times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from u2export.benchmarks.device import Device

# What readers raise on a file of another kind. Any other exception is a bug.
WRONG = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
UNTOLD = "not told by the file"


@dataclass(frozen=True)
class TimedModel:
    """One timed model in a file. A field that the file does not state stays empty.

    Attributes:
        tool: what measured it.
        name: the model, as the file calls it.
        device: the machine, as the file calls it.
        rounds: samples in ns, by round.
        stated: statistics in ms, for files without samples (see `Row.stated`).
        opening_ns, load_ns, first_ns, memory, runtime: as in `Row`.
        version: the version of the tool or of the runtime.
        timed: what lay between start and stop.
        precision: the precision, as the file calls it.
        artifact: sha256 over the files of the artifact.
        masks: for each picture the file that holds its mask, relative to the file of results.
        maps: for each picture d0 as little-endian float32, of tools that keep the maps inside their results.
        environment: names and versions of packages, for the report.
        problem: why there are no times.
        notes: further remarks for the reader of a table.
    """

    tool: str
    name: str = ""
    device: Device | None = None
    rounds: tuple[tuple[int, ...], ...] = ()
    stated: Mapping[str, float] = field(default_factory=dict)
    opening_ns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    load_ns: tuple[int, ...] = ()
    first_ns: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    runtime: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    timed: str = UNTOLD
    precision: str = ""
    artifact: str = ""
    masks: Mapping[str, str] = field(default_factory=dict)
    maps: Mapping[str, bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    notes: tuple[str, ...] = ()


def milliseconds(value: Any) -> float:
    """Return a time in ms as a float.

    Raises:
        ValueError: the value is not a time.
    """
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a time")
    number = float(value)
    if not 0 < number < 1e9:
        raise ValueError(f"{value!r:.40} is not a time in ms")
    return number


def nanoseconds(ms: Any) -> int:
    """Return a time that is given in ms as whole ns, at least 1.

    Raises:
        ValueError: the value is not a time.
    """
    return max(1, round(milliseconds(ms) * 1e6))


def bytes_of(value: Any) -> int:
    """Return a size of memory as whole bytes.

    Raises:
        ValueError: the value is not a size.
    """
    number = int(value)
    if isinstance(value, bool) or not 0 <= number < 2**53:
        raise ValueError(f"{value!r:.40} is not a number of bytes")
    return number


def reason(error: Exception) -> str:
    """Return in one line why a reader failed: its own message, or what Python's exception means for the file."""
    if isinstance(error, ValueError):
        return next(iter(str(error).splitlines()), type(error).__name__)[:200]
    if isinstance(error, RecursionError):
        return "its content is nested too deep"
    return f"{error.args[0]!r:.60} is missing" if isinstance(error, KeyError) else "its content has another form"
