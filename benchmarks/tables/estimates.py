"""Estimates for the terminal, by rich. They have a form of their own, because they never enter a table of results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from u2export.benchmarks.roofline import BYTES, Bound, Estimate, LayerWork, Reached, Work
from u2export.text import rich_text

EXPLANATIONS = (
    "at least: the slower of two times: all operations at the peak; weights, input and output moved once",
    "layer by layer: nothing stays on the chip between layers",
    "derived: scaled from the peak of another precision",
    "figures: as makers advertise them, see benchmarks/devices.json; unconfirmed: found in no document",
)


def shown(estimate: Estimate, layers: int = 0) -> RenderableType:
    """Return an estimate for rich; `layers` is the number of layers to list, those with most work first."""
    parts: list[RenderableType] = [Text(_summary(estimate.work, estimate.precision)), _bounds(estimate.bounds), Text()]
    parts += [Text(line, style="dim") for line in EXPLANATIONS]
    parts += [rich_text(line) for line in _reached(estimate.reached)]
    if layers:
        parts.append(_layers(estimate.work.heaviest(layers), BYTES[estimate.precision]))
    return Group(*parts)


def _summary(work: Work, precision: str) -> str:
    size = BYTES[precision]
    intensity = 2 * work.macs / work.layer_bytes(size)
    return (
        f"{work.macs / 1e9:.2f} G multiply-accumulates, {work.weights / 1e6:.2f} M weights; in {precision}: "
        f"{work.least_bytes(size) / 1e6:.1f} MB have to move, {work.layer_bytes(size) / 1e6:.0f} MB layer by layer "
        f"({intensity:.0f} operations per byte)"
    )


def _bounds(bounds: Sequence[Bound]) -> Table:
    titles = ("device", "precision", "compute", "memory", "at least", "layer by layer", "figures")
    table = _table(titles, "llrrrrl", "Estimated lower bounds in ms, not results")
    for b in bounds:
        times = ("–" if math.isnan(ms) else f"{ms:.3g}" for ms in (b.compute, b.memory, b.least, b.layers))
        precision = f"{b.precision} (derived)" if b.derived else b.precision
        table.add_row(*map(rich_text, (b.chip.name, precision, *times, b.chip.figures)))
    return table


def _reached(reached: Sequence[Reached]) -> list[str]:
    lines = [
        f"{r.row.name} ({r.row.ran_as}): {r.rate / 1e9:.1f} GFLOP/s, {r.share:.0%} of the measured fp32 peak"
        for r in reached
    ]
    if any(r.share > 1 for r in reached):
        lines.append("more than 100 %: units for int8 or bf16, or a machine that is busier now than during the bench")
    return lines


def _layers(layers: Sequence[LayerWork], size: int) -> Table:
    table = _table(("layer", "kind", "M MAC", "kB", "operations/byte"), "llrrr")
    for layer in layers:
        numbers = (f"{layer.macs / 1e6:.1f}", f"{layer.values * size / 1e3:.0f}", f"{layer.intensity(size):.1f}")
        table.add_row(*map(rich_text, (layer.name, layer.kind, *numbers)))
    return table


def _table(titles: Sequence[str], align: str, title: str | None = None) -> Table:
    """Return an empty table; `align` holds one letter for each column, "l" for left or "r" for right."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name, letter in zip(titles, align, strict=True):
        table.add_column(name, justify="left" if letter == "l" else "right")
    return table
