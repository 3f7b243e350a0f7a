"""What counts as a regression: limits on the change against a baseline, from a TOML file over defaults."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from u2export.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
Limits = Mapping[str, Mapping[str, float]]
# Losses are now minus then where less is better, then minus now where more is. A tenth of what the same file differs
# by between kernels stays far below these; a change anybody could see lies above.
DEFAULTS: dict[str, dict[str, float]] = {
    # Mean over photos of the loss, of each photo against itself.
    "mean": {"mae": 0.0003, "iou": 0.002, "boundary_f": 0.005},
    # Loss of any one photo.
    "worst": {"mae": 0.003, "iou": 0.015, "boundary_f": 0.05},
    # Foreground pixels of any one photo, now over then or its inverse.
    "collapse": {"area": 2.0},
    # Against ground truth, over all photos.
    "truth": {"maxf": 0.005, "mae": 0.002, "s": 0.005},
    # Time now over the accepted artifact's of the same run; bytes now over then.
    "latency": {"ratio": 1.03},
    "size": {"ratio": 1.05},
}
RATIOS = ("collapse", "latency", "size")
OUTCOMES = ("pass", "fail", "inconclusive")
VERDICTS = {"new": "pass", "missing": "fail", "inconclusive": "inconclusive"}
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Policy:
    """Limits and what to make of what is not decided.

    Attributes:
        limits: by section and measure, as in DEFAULTS.
        overrides: the same, partly, for artifacts whose name fits a pattern; later ones win.
        verdicts: what "new", "missing" and "inconclusive" artifacts count as: one of OUTCOMES.
        confidence: of the intervals.
        latency_required: an artifact that was not timed beside its accepted one is inconclusive, not just not timed.
    """

    limits: Limits = field(default_factory=lambda: DEFAULTS)
    overrides: tuple[tuple[str, Limits], ...] = ()
    verdicts: Mapping[str, str] = field(default_factory=lambda: VERDICTS)
    confidence: float = CONFIDENCE
    latency_required: bool = False

    def of(self, artifact: str) -> Limits:
        """The limits for an artifact, by section and measure."""
        merged = copy.deepcopy({section: dict(values) for section, values in self.limits.items()})
        for pattern, changes in self.overrides:
            if fnmatchcase(artifact, pattern):
                for section, values in changes.items():
                    merged[section].update(values)
        return merged

    @classmethod
    def load(cls, path: Path) -> Policy:
        """The policy in a TOML file; what it leaves out stays at its default.

        Raises:
            UserError: unreadable, not TOML, an unknown name, or a number out of range.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no such file: {path}", "give --policy a TOML file, or leave it out") from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", "check the path") from None
        except ValueError as error:  # both tomllib's and UTF-8's
            raise UserError(f"{path} is not TOML ({error})", "see docs/check.md for its form") from None
        return cls.from_toml(data, str(path))

    @classmethod
    def from_toml(cls, data: Mapping[str, Any], where: str = "policy") -> Policy:
        """The policy in a parsed TOML document; raises as `load`."""
        known = {"schema", "confidence", "latency_required", "verdicts", "artifact", *DEFAULTS}
        _known(data, known, where)
        if data.get("schema", SCHEMA) != SCHEMA:
            raise UserError(f"{where} has schema {data['schema']}, this u2export reads {SCHEMA}", "write it anew")
        confidence = _number(data.get("confidence", CONFIDENCE), f"{where}: confidence")
        if not 0.5 <= confidence < 1:
            raise UserError(f"{where}: confidence {confidence:g} is out of range", "give 0.5 to below 1, such as 0.95")
        required = data.get("latency_required", False)
        if not isinstance(required, bool):
            raise UserError(f"{where}: latency_required is {required!r}", "give true or false")
        changes = _sections({k: v for k, v in data.items() if k in DEFAULTS}, where)
        limits = {section: {**values, **changes.get(section, {})} for section, values in DEFAULTS.items()}
        overrides = tuple(
            (pattern, _sections(_table(sections, f"{where}: artifact {pattern!r}"), f"{where}: artifact {pattern!r}"))
            for pattern, sections in _table(data.get("artifact", {}), f"{where}: artifact").items()
        )
        return cls(limits, overrides, _verdicts(data.get("verdicts", {}), where), confidence, required)


def _sections(data: Mapping[str, Any], where: str) -> Limits:
    _known(data, set(DEFAULTS), where)
    found: dict[str, dict[str, float]] = {}
    for section, values in data.items():
        place = f"{where}: [{section}]"
        _known(_table(values, place), set(DEFAULTS[section]), place)
        found[section] = {name: _number(v, f"{place} {name}") for name, v in values.items()}
        least = 1.0 if section in RATIOS else 0.0
        if low := [name for name, v in found[section].items() if v < least]:
            raise UserError(f"{place} {low[0]} is below {least:g}", "limits are losses, or ratios of at least 1")
    return found


def _verdicts(data: Any, where: str) -> dict[str, str]:
    place = f"{where}: [verdicts]"
    _known(_table(data, place), set(VERDICTS), place)
    for name, outcome in data.items():
        if outcome not in OUTCOMES:
            raise UserError(f"{place} {name} is {outcome!r}", f"choose one of {', '.join(OUTCOMES)}")
    return {**VERDICTS, **data}


def _table(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place} is no table", "see docs/check.md for its form")
    return value


def _known(data: Mapping[str, Any], names: set[str], place: str) -> None:
    if unknown := sorted(set(data) - names):
        raise UserError(f"{place}: no setting named {unknown[0]!r}", f"choose among {', '.join(sorted(names))}")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{place} is {value!r}, not a number", "give a number")
    return float(value)
