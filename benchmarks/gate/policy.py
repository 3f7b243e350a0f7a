"""The policy of the gate: limits on the change against the accepted state, from a TOML file over defaults."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from u2export.benchmarks.statistics import CONFIDENCE
from u2export.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
Limits = Mapping[str, Mapping[str, float]]
# A loss is positive if the artifact got worse: now minus then for MAE, then minus now for the other measures.
# The differences of one file between two kernels lie far below these limits. Every visible change lies above them.
DEFAULTS: dict[str, dict[str, float]] = {
    # The mean over the photos of the loss of each photo.
    "mean": {"mae": 0.0003, "iou": 0.002, "boundary_f": 0.005},
    # The loss of any one photo.
    "worst": {"mae": 0.003, "iou": 0.015, "boundary_f": 0.05},
    # The ratio of the foreground of any one photo to the accepted foreground, or the inverse ratio.
    "collapse": {"area": 2.0},
    # Of networks with several maps: the loss of IoU of any one class over all photos, and of the share of pixels that
    # have the class of the reference. These limits are chosen, not measured.
    "class": {"iou": 0.02, "agreement": 0.005},
    # The loss against ground truth, over all photos.
    "truth": {"maxf": 0.005, "mae": 0.002, "s": 0.005},
    # The ratio of the time to the time of the accepted artifact in the same run, and of the bytes to its bytes.
    "latency": {"ratio": 1.03},
    "size": {"ratio": 1.05},
}
RATIOS = ("collapse", "latency", "size")
OUTCOMES = ("pass", "fail", "inconclusive")
VERDICTS = {"new": "pass", "missing": "fail", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class Policy:
    """The limits of the gate, and what undecided artifacts count as.

    Attributes:
        limits: the largest allowed losses and ratios, by section and measure, as in DEFAULTS.
        overrides: pairs of a pattern and other limits for the artifacts whose name fits it; later pairs win.
        verdicts: what "new", "missing" and "inconclusive" artifacts count as: one of OUTCOMES.
        confidence: the confidence of the intervals, from 0.5 to below 1.
        latency_required: True if an artifact without a time beside the accepted one is inconclusive.
    """

    limits: Limits = field(default_factory=lambda: DEFAULTS)
    overrides: tuple[tuple[str, Limits], ...] = ()
    verdicts: Mapping[str, str] = field(default_factory=lambda: VERDICTS)
    confidence: float = CONFIDENCE
    latency_required: bool = False

    def of(self, artifact: str) -> Limits:
        """Return the limits for an artifact, by section and measure."""
        merged = copy.deepcopy({section: dict(values) for section, values in self.limits.items()})
        for pattern, changes in self.overrides:
            if fnmatchcase(artifact, pattern):
                for section, values in changes.items():
                    merged[section].update(values)
        return merged

    @classmethod
    def load(cls, path: Path) -> Policy:
        """Read a TOML file. A value that the file leaves out keeps its default.

        Raises:
            UserError: the file cannot be read, is not TOML, has an unknown name, or has a number out of range.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"no such file: {path}", "give a policy in TOML, or leave the policy out for the defaults"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", "check the path") from None
        except (ValueError, RecursionError) as error:  # of tomllib or of the UTF-8 decoder; brackets in brackets
            raise UserError(f"{path} is not TOML ({error})", "see docs/check.md for the form of a policy") from None
        return cls.from_toml(data, str(path))

    @classmethod
    def from_toml(cls, data: Mapping[str, Any], where: str = "policy") -> Policy:
        """Read a parsed TOML document; `where` names it in errors. Raises the same errors as `load`."""
        known = {"schema", "confidence", "latency_required", "verdicts", "artifact", *DEFAULTS}
        _known(data, known, where)
        if data.get("schema", SCHEMA) != SCHEMA:
            raise UserError(
                f"{where} has schema {data['schema']}, this u2export reads {SCHEMA}", "write it for this schema"
            )
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
        raise UserError(f"{place} is not a table", "see docs/check.md for the form of a policy")
    return value


def _known(data: Mapping[str, Any], names: set[str], place: str) -> None:
    if unknown := sorted(set(data) - names):
        raise UserError(f"{place}: no setting named {unknown[0]!r}", f"choose among {', '.join(sorted(names))}")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{place} is {value!r}, not a number", "give a number")
    return float(value)
