"""Which layers cost how much mask in 8 bit, which save how much work, and the cheapest set to keep in float.

Works on the Q/DQ graph alone, so the answer serves every runtime that reads one. Quantisation errors of layers add
up neither linearly nor independently; hence the search measures sets, and uses single layers only to order them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.files import read_json, staged, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Unit:
    """Convolutions that are kept in float together; one, unless a block was not worth looking into.

    Attributes:
        layers: names of their nodes, in execution order.
        work: multiply-accumulates, or nanoseconds saved by 8 bit where those were measured.
        cost: share of the budget that they use up when they alone are in 8 bit. Errors of one block in an exact
            network show more clearly than what leaving it out of many others' errors changes, which is mostly chance.
    """

    layers: tuple[str, ...]
    work: float
    cost: float


@dataclass(frozen=True)
class Point:
    """A mixed-precision graph that was measured.

    Attributes:
        keep_float: names of the nodes kept in float.
        float_share: their share of the network's work.
        mae, mae_worst, iou, iou_worst: fidelity of its masks, see `u2export.reference.fidelity`.
    """

    keep_float: tuple[str, ...]
    float_share: float
    mae: float
    mae_worst: float
    iou: float
    iou_worst: float


@dataclass(frozen=True)
class Sensitivity:
    """The result of a search.

    Attributes:
        weights: what was searched, as a name for people.
        budget: the limits it was searched for.
        met: whether the choice keeps them on the photos of the search.
        keep_float: the choice.
        units: what was looked at one at a time, the most costly for its work first.
        points: every measured set on the way, by the share left in float.
        photos, evaluations: how many photos, and how many graphs were run on them.
        held_back: fidelity of the choice on photos that took part in nothing else; empty if there were none.
    """

    weights: str
    budget: Mapping[str, float]
    met: bool
    keep_float: tuple[str, ...]
    units: tuple[Unit, ...]
    points: tuple[Point, ...]
    photos: int
    evaluations: int
    held_back: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def pareto(self) -> list[Point]:
        """The points that no other beats in both work and MAE, least float work first."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda p: (p.float_share, p.mae)):
            if not best or point.mae < best[-1].mae:
                best.append(point)
        return best

    @property
    def chosen(self) -> Point:
        """The measured point of the choice."""
        return next(p for p in self.points if p.keep_float == self.keep_float)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `read_keep_float` reads the choice back."""
        return {**asdict(self), "budget": dict(self.budget)}

    def write(self, folder: Path) -> Path:
        """Write `keep-float.json` and `pareto.png` (where matplotlib is installed); returns the former."""
        from importlib.util import find_spec

        target = folder / "keep-float.json"
        write_json(self.to_json(), target)
        if find_spec("matplotlib"):
            with staged(folder / "pareto.png") as temporary:
                plot(self, temporary)
        return target


def read_keep_float(path: Path) -> tuple[str, ...]:
    """Names to keep in float from a result of the search, a JSON list, or an object with `keep_float`.

    Raises:
        UserError: unreadable, or of another form.
    """
    data = read_json(path, "a keep-float.json of u2export sensitivity")
    names = data.get("keep_float") if isinstance(data, dict) else data
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{path} lists no layers to keep in float", "give a keep-float.json of u2export sensitivity")
    return tuple(names)


def plot(found: Sensitivity, path: Path) -> None:
    """Mask error over the share of work left in float, as PNG: every set measured, the Pareto front, the choice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter([100 * p.float_share for p in found.points], [p.mae for p in found.points], s=12, color="0.7")
    front = found.pareto
    axes.plot([100 * p.float_share for p in front], [p.mae for p in front], "o-", label="Pareto front")
    axes.plot(100 * found.chosen.float_share, found.chosen.mae, "*", markersize=14, color="tab:red", label="chosen")
    if "mae" in found.budget:
        axes.axhline(found.budget["mae"], color="tab:red", linestyle=":", label=f"budget {found.budget['mae']:g}")
    axes.set(xlabel="work left in float (%)", ylabel="mask MAE to fp32", ylim=(0, None))
    axes.set_title(f"{found.weights}: {found.photos} photos, {found.evaluations} graphs", fontsize="medium")
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
