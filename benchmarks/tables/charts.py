"""Charts of a report: latency against fidelity, fidelity of each photo, distribution of latencies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from u2export.benchmarks.report import IN_BROWSER, Report, Row
from u2export.benchmarks.tables.columns import statistic
from u2export.benchmarks.tables.fonts import FAMILIES, drawable_text
from u2export.benchmarks.tables.legend import label
from u2export.errors import Unavailable, UserError
from u2export.files import publish, staging
from u2export.install import how_to_install
from u2export.reference.dtypes import arithmetic_name
from u2export.text import xml_text

# The colours of Okabe and Ito, which colour-blind readers can tell apart. Shapes and names repeat what colours say.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
SHAPES = "osD^vPX*"
# A logarithmic axis has no zero. Masks that equal those of the reference are drawn at this value.
FLOOR = 1e-7
KINDS = ("pareto", "photos", "latency")
# With this salt the ids in an SVG are the same each time.
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "u2export"}
Axes = Any


def draw(report: Report, kinds: Sequence[str], suffixes: Sequence[str], folder: Path, stem: str) -> list[Path]:
    """Write `<stem>-<kind>.<suffix>` for each kind and suffix into a folder, and return these files.

    Args:
        report: what to draw.
        kinds: some of KINDS.
        suffixes: formats that matplotlib writes, such as "png" and "svg".
        folder: where the files go.
        stem: how the names of the files begin.

    Raises:
        Unavailable: matplotlib is not installed.
        UserError: the report holds nothing to draw for a kind.
    """
    try:
        import matplotlib
    except ImportError:
        raise Unavailable("charts need matplotlib", how_to_install("charts")) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    fonts = {"font.family": [family for family, _ in _fonts()]}
    with plt.rc_context({**STYLE, **fonts}), staging(folder) as scratch:
        for kind, suffix in product(kinds, suffixes):
            # Each file gets a figure of its own, because rounding moves a figure that is laid out twice.
            figure = PAINTERS[kind](report)
            made = scratch / f"{stem}-{kind}.{suffix}"
            figure.savefig(made, dpi=110, metadata={"Date": None} if suffix == "svg" else None)
            plt.close(figure)
            publish(made, folder / made.name)
            written.append(folder / made.name)
    return written


def style(report: Report, row: Row) -> dict[str, Any]:
    """Return colour and shape of a row. They are the same in every chart of the report."""
    i = [r.name for r in report.rows].index(row.name)
    return {"color": COLOURS[i % len(COLOURS)], "marker": SHAPES[i % len(SHAPES)]}


def short(row: Row) -> str:
    """Return a short name of a row: exporter, precision, the arithmetic if it differs, and the origin if imported."""
    mark = {IN_BROWSER: " (browser)", "imported": " (imported)", "published": " (published)"}.get(row.provenance, "")
    arithmetic = arithmetic_name(row.runtime.get("arithmetic", row.arithmetic))
    same = "" if arithmetic == row.precision else f" run in {arithmetic}"
    return f"{row.exporter} {row.precision}{same}{mark}"


def name(report: Report, row: Row) -> str:
    """Return the short name of a row, or its title if another row has the same short name."""
    alike = [r for r in report.rows if short(r) == short(row)]
    return _plain(short(row) if len(alike) == 1 else row.title)


def _plain(text: str) -> str:
    """Return text that matplotlib draws as it is: it takes what stands between dollars for mathematics."""
    return drawable_text(xml_text(text), _has_glyph).replace("$", r"\$")


@cache
def _fonts() -> tuple[tuple[str, Any], ...]:
    """Return matplotlib's own font and the installed ones of `FAMILIES`, with the table of their characters."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    known = set(font_manager.get_font_names())
    families = ["DejaVu Sans", *(family for family in FAMILIES if family in known)]
    return tuple((family, FT2Font(font_manager.findfont(family)).get_charmap()) for family in families)


def _has_glyph(character: str) -> bool:
    return any(ord(character) in table for _, table in _fonts())


def drawable(report: Report) -> list[tuple[Row, float, float]]:
    """Return (row, ms, mean absolute difference) for each row that has both a median latency and a fidelity."""
    found = []
    for row in report.rows:
        ms = statistic(row, "p50") or row.stated.get("single")
        is_reference = row.name in {r.reference for r in report.rows}
        mae = 0.0 if is_reference else row.fidelity.mae if row.fidelity else math.nan
        if ms and not math.isnan(mae):
            found.append((row, ms, max(mae, FLOOR)))
    return found


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats in both values, ordered by the first value.

    Smaller values are better.
    """
    order = sorted(range(len(points)), key=lambda i: points[i])
    best: list[int] = []
    for i in order:
        if not best or points[i][1] < points[best[-1]][1]:
            best.append(i)
    return best


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def _title(axes: Axes, what: str, report: Report) -> None:
    """Say what a chart shows and on which device."""
    axes.set_title(f"{what}, {_plain(label(report.device))}", loc="left", fontsize=9, wrap=True)


def pareto(report: Report) -> Any:
    """Draw the median latency, with its 10th to 90th percentile, against the mean absolute difference of the masks.

    Raises:
        UserError: no row has both.
    """
    points = drawable(report)
    if not points:
        hint = "bench on photos and with times, import with a kit, or draw one of the kinds photos and latency"
        raise UserError("no row has both a latency and a fidelity", hint, "kind")
    figure, axes = _figure(7.2, 4.6)
    best = front([(ms, mae) for _, ms, mae in points])
    axes.step([points[i][1] for i in best], [points[i][2] for i in best], where="post", color="#9aa0a8", lw=1, zorder=1)
    for row, ms, mae in points:
        if row.latency.ns:
            low, high = row.latency.percentile(10), row.latency.p90
            axes.hlines(mae, low, high, color=style(report, row)["color"], lw=1.5, zorder=2)
        equal = " (the reference)" if mae <= FLOOR else ""
        axes.scatter([ms], [mae], s=46, zorder=3, label=name(report, row) + equal, **style(report, row))
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.set_xlabel("latency of one inference in ms: median, and 10th to 90th percentile")
    axes.set_ylabel("mean absolute difference of masks (log)")
    _title(axes, "Fidelity against latency", report)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def photos(report: Report) -> Any:
    """Draw the mean absolute difference of each photo, one strip for each row, and name the worst photo of each row.

    Raises:
        UserError: no row has masks that were compared.
    """
    rows = [row for row in report.rows if row.images]
    if not rows:
        raise UserError("no row has masks that were compared", "bench it on photos, or import it with its kit")
    figure, axes = _figure(7.2, 1.1 + 0.5 * len(rows))
    for y, row in enumerate(rows):
        values = np.array([max(image.mae, FLOOR) for image in row.images.values()])
        jitter = (np.arange(len(values)) % 5 - 2) * 0.07
        axes.scatter(values, y + jitter, s=22, alpha=0.75, linewidths=0, **style(report, row))
        axes.vlines(values.mean(), y - 0.3, y + 0.3, color="black", lw=1.5)
        worst = list(row.images)[int(values.argmax())]
        axes.annotate(
            _plain(Path(worst).stem), (values.max(), y), xytext=(5, 7), textcoords="offset points", fontsize=7
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [name(report, row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(
        "mean absolute difference of one photo's mask (log)\nbar: mean over all photos; name: the worst photo"
    )
    _title(axes, "Fidelity of each photo", report)
    axes.grid(axis="x", alpha=0.25)
    axes.margins(x=0.12)
    return figure


def latency(report: Report) -> Any:
    """Draw the distribution of all samples of each row, with its median and its 90th percentile.

    Raises:
        UserError: no row has samples.
    """
    rows = [row for row in report.rows if row.latency.ns]
    if not rows:
        raise UserError("no row has samples of its latency", "bench it with latency")
    figure, axes = _figure(7.2, 1.1 + 0.55 * len(rows))
    for y, row in enumerate(rows):
        ms = np.asarray(row.latency.ns) / 1e6
        parts = axes.violinplot([ms], [y], orientation="horizontal", widths=0.8, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=style(report, row)["color"], alpha=0.35)
        axes.scatter(ms, np.full(len(ms), y + 0.3), s=3, alpha=0.25, linewidths=0, color=style(report, row)["color"])
        axes.vlines(row.latency.p50, y - 0.3, y + 0.3, color="black", lw=1.5)
        axes.vlines(row.latency.p90, y - 0.3, y + 0.3, color="black", lw=1, linestyles="dotted")
    axes.set_yticks(range(len(rows)), [f"{name(report, row)}\nn = {len(row.latency.ns)}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    # The slowest samples would squeeze all others together. They lie outside; the label states their number.
    right = 1.15 * max(float(np.percentile(row.latency.ns, 99)) / 1e6 for row in rows)
    beyond = sum(int((np.asarray(row.latency.ns) / 1e6 > right).sum()) for row in rows)
    axes.set_xlim(0, right)
    outside = f"; {beyond} slower samples lie outside" if beyond else ""
    axes.set_xlabel(f"latency of one inference in ms\nbar: median; dotted: 90th percentile{outside}")
    _title(axes, "Distribution of latencies", report)
    axes.grid(axis="x", alpha=0.25)
    return figure


PAINTERS: dict[str, Callable[[Report], Any]] = {"pareto": pareto, "photos": photos, "latency": latency}
