"""A profile for people: a table for the terminal, and a chart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from u2export.benchmarks.profiling.layer_times import LayerTime, Profile
from u2export.errors import Unavailable, WrongValue
from u2export.files import make_folder, staged
from u2export.install import how_to_install
from u2export.text import one_line, rich_text, xml_text

CHART_SUFFIXES = (".png", ".svg")
COLOURS = {"compute": "#0072b2", "bound": "#d55e00"}


def layer_table(profile: Profile, most: int) -> Table:
    """Return the slowest layers of a profile as a table of rich; the names of layers come last, whole."""
    bounds = any(layer.limit for layer in profile.layers)
    table = Table(box=None, pad_edge=False)
    for title in ("ms", "share", *(("bound", "x bound") if bounds else ())):
        table.add_column(title, justify="right")
    for title in ("in", "kind", "layer"):
        table.add_column(title, no_wrap=True)
    for layer in profile.slowest(most):
        cells = [f"{layer.ms:.3g}", f"{profile.share(layer):.1%}"]
        cells += _bound_cells(layer) if bounds else []
        table.add_row(*map(rich_text, (*cells, layer.precision, layer.kind, layer.name)))
    return table


def _bound_cells(layer: LayerTime) -> list[str]:
    if math.isnan(layer.bound_ms):
        return ["–", "–"]
    return [f"{layer.bound_ms:.3g}", f"{layer.ms / layer.bound_ms:.1f}" if layer.bound_ms else "–"]


def summary(profile: Profile) -> Iterator[str]:
    """Yield lines that tell what was measured, how the layers compare with the whole, and which kinds take the time."""
    ran = ", ".join(str(v) for k, v in profile.runtime.items() if k not in ("threads",) and v)
    threads = _threads(profile.runtime.get("threads", ""))
    yield f"{profile.name}: {ran}{threads}; {profile.runs} runs with the profiler on"
    if not math.isnan(profile.coverage):
        yield (
            f"whole run {profile.total_ms:.3g} ms (median); its layers take {profile.coverage:.1%} of it, "
            "the rest is the runtime's own work"
        )
    else:
        yield f"all {len(profile.layers)} layers: {profile.layers_ms:.3g} ms"
    kinds = [f"{kind or 'unknown'} {ms / profile.layers_ms:.0%} ({n})" for kind, n, ms in profile.kinds()[:5] if ms]
    yield f"by kind (number of layers): {', '.join(kinds)}"
    if profile.chip:
        yield (
            f"bound: the roofline's least time in ms on {profile.chip}: operations at the peak, or bytes at the "
            "bandwidth if nothing stays in a cache; an estimate"
        )
    yield from (f"note: {note}" for note in profile.notes)


def _threads(count: object) -> str:
    return f", {count} thread{'' if str(count) == '1' else 's'}" if count else ""


def check_chart(path: Path) -> None:
    """Refuse what cannot be drawn, before any time is spent on measuring.

    Raises:
        WrongValue: the file has another ending than CHART_SUFFIXES.
        Unavailable: matplotlib is not installed.
    """
    if path.suffix.lower() not in CHART_SUFFIXES:
        raise WrongValue(f"no chart of the form {path.suffix!r}", f"end the name in {' or '.join(CHART_SUFFIXES)}")
    try:
        import matplotlib
    except ImportError:
        raise Unavailable("charts need matplotlib", how_to_install("charts")) from None
    matplotlib.use("Agg")


def chart(profile: Profile, path: Path, most: int = 20) -> Path:
    """Draw the slowest layers as bars, with a mark for the bound where there is one.

    Args:
        profile: what to draw.
        path: the .png or .svg file.
        most: how many layers to draw.

    Raises:
        WrongValue: the file has another ending.
        Unavailable: matplotlib is not installed.
    """
    check_chart(path)
    import matplotlib.pyplot as plt

    make_folder(path.parent)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "u"}):
        figure = _figure(plt, profile, profile.slowest(most))
        with staged(path) as made:
            form = path.suffix.lower().removeprefix(".")
            figure.savefig(made, dpi=110, format=form, metadata={"Date": None} if form == "svg" else None)
        plt.close(figure)
    return path


def _figure(plt: Any, profile: Profile, layers: list[LayerTime]) -> Any:
    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.27 * len(layers)), layout="constrained")
    names = [_escaped(f"{layer.name} ({layer.precision or layer.kind})") for layer in layers]
    places = list(range(len(layers)))
    axes.barh(places, [layer.ms for layer in layers], color=COLOURS["compute"], label="measured, median")
    marked = [(i, layer.bound_ms) for i, layer in enumerate(layers) if not math.isnan(layer.bound_ms)]
    if marked:
        label = _escaped(f"roofline's bound on {profile.chip}")
        axes.plot([ms for _, ms in marked], [i for i, _ in marked], "|", ms=11, mew=2.5, color=COLOURS["bound"],
                  label=label)  # fmt: skip
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms for one run, profiler on")
    told = ", ".join(profile.runtime[k] for k in ("runtime", "arithmetic") if k in profile.runtime)
    axes.set_title(_escaped(f"{profile.name}: the {len(layers)} slowest layers ({told})"), fontsize=9, loc="left")
    axes.legend(loc="lower right", frameon=False)
    return figure


def _escaped(text: str) -> str:
    """Return text that matplotlib shows as it is: a dollar would begin a formula."""
    return xml_text(one_line(text)).replace("$", r"\$")
