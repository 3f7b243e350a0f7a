"""Measured times of the layers of one artifact, and the least time that a device needs for each."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from u2export.benchmarks.roofline import BYTES, Chip, LayerWork
from u2export.reference.dtypes import arithmetic_name
from u2export.text import csv_cell

SCHEMA = 1
# A bound of bf16 is that of fp16: values of the same size, and units of the same speed.
BOUND_AS = {"bf16": "fp16", "uint8": "int8"}
BEATEN = (
    "layers faster than their bound: {}; the figures of this device do not hold for the machine that measured. A peak "
    "that was measured beside other programs, or with fewer threads, is too low"
)
MEASURED_HERE = "the peak of this machine is measured in fp32 only: layers of other precisions have no bound"


@dataclass(frozen=True)
class LayerTime:
    """One layer as the runtime runs it; a runtime may compute several operations of the network in one layer.

    Attributes:
        name: the node of the network, where the runtime tells it, else the runtime's own name.
        kind: the operation, as the runtime calls it.
        precision: what it computes in: "fp32", "int8" …; empty where the runtime does not tell.
        ns: times of single runs in nanoseconds; one value where the tool gives an average only.
        work: what it computes; None where the file does not tell.
        bound_ms: the least time on a device; nan without a device, or where the work is not known.
        limit: what the bound comes from: "compute" or "memory".
    """

    name: str
    kind: str
    precision: str
    ns: tuple[int, ...]
    work: LayerWork | None = None
    bound_ms: float = math.nan
    limit: str = ""

    @property
    def ms(self) -> float:
        """The median time of the layer in milliseconds, or its mean where the tool gives a mean only."""
        return median(self.ns) / 1e6


@dataclass(frozen=True)
class Profile:
    """Where the time of an artifact goes.

    Attributes:
        name: the artifact, or the file of a tool.
        runtime: what ran: "runtime", "arithmetic", "threads", "device".
        layers: in the order of execution.
        total_ns: times of the same runs as a whole, with the profiler on; empty where the tool does not tell.
        runs: how many runs the times come from.
        chip: the device of the bounds; empty without one.
        notes: what a reader must know.
    """

    name: str
    runtime: Mapping[str, str]
    layers: tuple[LayerTime, ...]
    total_ns: tuple[int, ...] = ()
    runs: int = 0
    chip: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def layers_ms(self) -> float:
        """The sum of the layers' median times in milliseconds."""
        return sum(layer.ms for layer in self.layers)

    @property
    def total_ms(self) -> float:
        """The median time of a whole run with the profiler on, in milliseconds; nan where it is not known."""
        return median(self.total_ns) / 1e6 if self.total_ns else math.nan

    @property
    def coverage(self) -> float:
        """The sum of the layers' times over the time of the same runs; nan if not known.

        It is the median over runs, or the ratio of the means where the tool gives means only. The rest is the runtime's
        own work between layers. Layers that run at the same time can exceed 1.
        """
        runs = len(self.total_ns)
        if not runs:
            return math.nan
        if all(len(layer.ns) == 1 for layer in self.layers):
            return sum(layer.ns[0] for layer in self.layers) * runs / sum(self.total_ns)
        sums = [sum(layer.ns[i] for layer in self.layers if len(layer.ns) == runs) for i in range(runs)]
        return median([ns / whole for ns, whole in zip(sums, self.total_ns, strict=True)])

    def share(self, layer: LayerTime) -> float:
        """Return the part of the layers' time that one layer takes."""
        return layer.ms / self.layers_ms if self.layers_ms else 0.0

    def slowest(self, most: int) -> list[LayerTime]:
        """Return up to `most` layers, the slowest first."""
        return sorted(self.layers, key=lambda layer: -layer.ms)[:most]

    def kinds(self) -> list[tuple[str, int, float]]:
        """Return the kinds of layers with their number and their time in milliseconds, the slowest kind first."""
        found: dict[str, list[float]] = {}
        for layer in self.layers:
            found.setdefault(layer.kind, []).append(layer.ms)
        return sorted(((kind, len(ms), sum(ms)) for kind, ms in found.items()), key=lambda one: -one[2])

    def to_json(self) -> dict[str, Any]:
        """Return plain data; null stands for what is not known."""
        return {
            "schema": SCHEMA, "name": self.name, "runtime": dict(self.runtime), "runs": self.runs,
            "total_ms": _known(self.total_ms), "layers_ms": self.layers_ms, "coverage": _known(self.coverage),
            "device": self.chip, "notes": list(self.notes), "total_ns": list(self.total_ns),
            "layers": [{**self._values(layer), "ns": list(layer.ns)} for layer in self.layers],
        }  # fmt: skip

    def to_csv(self) -> str:
        """Return one line for each layer, in the order of execution; every value without rounding."""
        out = io.StringIO(newline="")
        rows = [{k: csv_cell("" if v is None else v) for k, v in self._values(one).items()} for one in self.layers]
        writer = csv.DictWriter(out, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def _values(self, layer: LayerTime) -> dict[str, Any]:
        work = layer.work
        return {
            "name": layer.name, "kind": layer.kind, "precision": layer.precision, "ms": layer.ms,
            "share": self.share(layer), "macs": work.macs if work else None,
            "activations": work.activations if work else None, "weights": work.weights if work else None,
            "bound_ms": _known(layer.bound_ms), "limit": layer.limit,
        }  # fmt: skip


def bounded(profile: Profile, chip: Chip) -> Profile:
    """Return a profile with the roofline's bound of each layer whose work is known.

    The bound is the slower of two times: the layer's operations at the peak, and its inputs, outputs and weights at the
    full bandwidth. The second one is no bound for values that stay in a cache between two layers.
    """
    here = chip.figures == "measured"
    layers = tuple(replace(layer, **_bound(layer, chip, here)) for layer in profile.layers)
    left_out = here and any(layer.work and layer.precision != "fp32" for layer in layers)
    beaten = sum(layer.ms < layer.bound_ms for layer in layers)
    notes = (MEASURED_HERE,) * left_out + ((BEATEN.format(beaten),) if beaten else ())
    return replace(profile, layers=layers, chip=chip.name, notes=(*profile.notes, *notes))


def _bound(layer: LayerTime, chip: Chip, here: bool) -> dict[str, Any]:
    known = arithmetic_name(layer.precision)
    precision = BOUND_AS.get(known, known)
    if layer.work is None or precision not in BYTES or (here and precision != "fp32"):
        return {}
    compute = 2e3 * layer.work.macs / chip.peak(precision)[0]
    memory = 1e3 * layer.work.values * BYTES[precision] / chip.bandwidth if chip.bandwidth else 0.0
    if not max(compute, memory):  # no operations to count, and the device does not tell its bandwidth
        return {}
    return {"bound_ms": max(compute, memory), "limit": "compute" if compute >= memory else "memory"}


def median(values: Sequence[float]) -> float:
    """Return the median of some values."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
