"""What a worker of a cluster is: two workers give the same masks only where runtimes and arithmetic are the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from u2export.benchmarks.device import PACKAGES, environment, this_device
from u2export.version import __version__

Standing = dict[str, Any]


@cache
def standing() -> Standing:
    """Return what this process is: {u2export, environment, device}, as in reports."""
    return {"u2export": __version__, "environment": environment(), "device": asdict(this_device())}


def difference(one: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words why the masks of a worker may differ from those of the wanted kind; empty if they do not.

    The versions of u2export and of the packages that make masks count, and the instruction sets of the processor.
    Memory, cores, kernel and Python do not.
    """
    pairs = {name: (a, b) for name, a, b in _deciding(one, wanted) if a != b}
    return "; ".join(f"{name} {a or 'missing'} in place of {b or 'none'}" for name, (a, b) in pairs.items())


def _deciding(one: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = [("u2export", one["u2export"], wanted["u2export"])]
    here, there = one["environment"], wanted["environment"]
    found += [(name, here.get(name, ""), there.get(name, "")) for name in PACKAGES]
    found += [("processor", one["device"]["arch"], wanted["device"]["arch"])]
    features, others = (" ".join(s["device"]["features"]) for s in (one, wanted))
    return [*found, ("instruction sets", features, others)]


def most_common(standings: Mapping[str, Standing]) -> Standing:
    """Return the kind that most workers are of; of equally many, the first in the order of their texts.

    Args:
        standings: what each worker is, by its address; at least one.
    """
    kinds: list[Standing] = []
    counts: Counter[int] = Counter()
    for one in sorted(standings.values(), key=_as_text):
        number = next((i for i, kind in enumerate(kinds) if not difference(one, kind)), len(kinds))
        if number == len(kinds):
            kinds.append(one)
        counts[number] += 1
    return kinds[counts.most_common(1)[0][0]]


class Census:
    """The workers that took part: every kind of environment and device, with the number of its worker processes."""

    def __init__(self) -> None:
        self._kinds: dict[str, Standing] = {}
        self._workers: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    def add(self, worker: str, one: Standing) -> None:
        """Count a worker process once."""
        kind = _as_text(one)
        self._kinds.setdefault(kind, one)
        self._workers[worker] = kind

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a report's environment; names and addresses of machines are left out."""
        counts = Counter(self._workers.values())
        workers = [{**one, "processes": counts[kind]} for kind, one in sorted(self._kinds.items())]
        refused = Counter(self.refused.values())
        return {"workers": workers, **({"refused": dict(sorted(refused.items()))} if refused else {})}


def _as_text(one: Standing) -> str:
    return json.dumps(one, sort_keys=True)
