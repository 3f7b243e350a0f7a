"""The result of a search for float layers: what each layer costs in 8 bit, what was measured, what was chosen."""

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
    """Convolutions that stay in float together: a single one, or a block that was not worth splitting.

    Attributes:
        layers: names of their nodes, in execution order.
        work: multiply-accumulates, or the nanoseconds that 8 bit saves where time was measured.
        cost: share of the budget that is used up when these layers alone are in 8 bit. The errors of one block in an
            exact network are clear; the difference that one block makes among the errors of many is mostly chance.
    """

    layers: tuple[str, ...]
    work: float
    cost: float


@dataclass(frozen=True)
class Point:
    """One mixed-precision graph that was measured.

    Attributes:
        keep_float: names of the nodes in float.
        float_share: share of the network's work that these nodes do.
        mae, mae_worst, iou, iou_worst: fidelity of the masks, see `u2export.reference.fidelity`.
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
        weights: the label of the weights.
        budget: the limits of the search.
        met: whether the choice keeps the limits on the photos of the search and on held-back photos.
        keep_float: the choice: names of the nodes to keep in float.
        units: the blocks that were measured alone, the highest cost for its work first.
        points: every measured set, by its share of float work.
        photos, evaluations: the number of photos, and the number of graphs that ran on them.
        held_back: fidelity of the choice on photos that took no other part; empty without such photos.
        spec: how all other layers are quantised.
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
        """The points that no other point beats in both float work and MAE, least float work first."""
        best: list[Point] = []
        for point in sorted(self.points, key=lambda p: (p.float_share, p.mae)):
            if not best or point.mae < best[-1].mae:
                best.append(point)
        return best

    @property
    def chosen(self) -> Point:
        """The point that was chosen."""
        return next(p for p in self.points if p.keep_float == self.keep_float)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON; `read_keep_float` reads the choice back."""
        return {**asdict(self), "budget": dict(self.budget)}

    def write(self, folder: Path) -> Path:
        """Write `keep-float.json` and, where matplotlib is installed, `pareto.png`; returns the JSON file's path."""
        from importlib.util import find_spec

        target = folder / "keep-float.json"
        write_json(self.to_json(), target)
        if find_spec("matplotlib"):
            with staged(folder / "pareto.png") as temporary:
                plot(self, temporary)
        return target


def read_keep_float(path: Path) -> tuple[str, ...]:
    """Read the names of float layers from a result of the search, a JSON list, or an object with `keep_float`.

    Raises:
        UserError: the file cannot be read, or it has another form.
    """
    data = read_json(path, "a keep-float.json of u2export sensitivity")
    names = data.get("keep_float") if isinstance(data, dict) else data
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise UserError(f"{path} lists no layers to keep in float", "give a keep-float.json of u2export sensitivity")
    return tuple(names)


def plot(found: Sensitivity, path: Path) -> None:
    """Draw mask error over float work, as PNG: every measured set, the Pareto front, the choice."""
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
