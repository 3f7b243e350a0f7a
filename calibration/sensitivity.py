"""Which layers cost how much mask in 8 bit, which save how much work, and the cheapest set to keep in float.

Works on the Q/DQ graph alone, so the answer serves every runtime that reads one. Quantisation errors of layers add
up neither linearly nor independently; hence the search measures sets, and uses single layers only to order them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges
from u2export.calibration.quantize import QuantSpec, quantize
from u2export.errors import UserError
from u2export.files import read_json, staged, write_json
from u2export.reference.fidelity import UPPER, Fidelity, compare
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import conv_nodes, session

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
# A block is looked into if it alone in 8 bit uses up this share of the budget, and if it does so much of the work.
WORTH_SPLITTING, WORK_WORTH_SPLITTING = 0.1, 0.08
Sample = tuple[Floats, Floats]  # network input and the reference's d0, each (1, ., H, W)


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


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of every convolution with constant weights, by node name.

    Raises:
        UserError: the size of the input is not fixed.
    """
    import onnx

    shaped = onnx.shape_inference.infer_shapes(model)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*shaped.graph.value_info, *shaped.graph.output)
    }
    weights = {t.name: t.dims for t in model.graph.initializer}
    macs = {n.name: int(np.prod(weights[n.input[1]])) * _area(shapes.get(n.output[0], [])) for n in conv_nodes(model)}
    if not macs or not all(macs.values()):
        raise UserError("work for each layer is known for a graph of fixed size only", "export it without --dynamic")
    return macs


def _area(shape: Sequence[int]) -> int:
    return int(np.prod(shape[2:])) * (shape[0] or 1) if len(shape) == 4 else 0


def stage_of(layer: str) -> str:
    """The block a layer is named after: `/stage1d/rebnconv2d/conv_s1/Conv` is of stage1d, the heads are one block."""
    head = layer.strip("/").split("/")[0]
    return "heads" if re.match(r"side\d|outconv", head) else head


def surest(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The `count` samples of which the reference is surest, in their order: d0 closest to 0 or 1 on average.

    Where it is not sure 8 bit costs up to thirty times as much, and a search would find what suits these few photos.
    """
    unsure = [float(np.minimum(d0, 1 - d0).mean()) for _, d0 in samples]
    return [samples[i] for i in sorted(np.argsort(unsure, kind="stable")[:count])]


def load_of(fidelity: Fidelity, budget: Mapping[str, float]) -> float:
    """How far the budget is used up by the limit closest to being broken; 1 is exactly all of it."""
    if not fidelity.finite:
        return float("inf")
    used = []
    for name, limit in budget.items():
        value = float(getattr(fidelity, name))
        part, whole = (value, limit) if name in UPPER else (1 - value, 1 - limit)
        used.append(part / max(whole, 1e-9))
    return max(used)


class Search:
    """A greedy search with bisected blocks; every set is measured once.

    Args:
        model: the conditioned fp32 graph.
        ranges, errors: of `observe` and `bias_errors` over calibration photos.
        spec: how everything else is quantised.
        samples: photos to measure on, not those of the calibration, with the reference's d0.
        budget: limits as of `u2export.reference.fidelity.parse_budget`.
        held_back: further photos, looked at only when a choice is made: it must suit them too.
        work: cost of each layer in float; multiply-accumulates by default.
        progress: told about each measurement: how many so far, and of what.

    Raises:
        UserError: no photos or an empty budget.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Ranges,
        errors: Mapping[str, NDArray[np.float64]],
        spec: QuantSpec,
        samples: Sequence[Sample],
        budget: Mapping[str, float],
        held_back: Sequence[Sample] = (),
        work: Mapping[str, float] | None = None,
        progress: Callable[[int, str], None] = lambda count, what: None,
    ) -> None:
        if not samples:
            raise UserError("no photos to measure masks on", "give a folder with --images")
        if not budget:
            raise UserError("the search has no budget", "give one, such as --budget mae=0.0015")
        self.model, self.ranges, self.errors, self.spec = model, ranges, errors, spec
        self.samples, self.held_back, self.budget, self.progress = samples, held_back, budget, progress
        self.work: Mapping[str, float] = work or layer_macs(model)
        self.measured: dict[frozenset[str], Fidelity] = {}
        self.checks: dict[frozenset[str], Fidelity] = {}  # the same on held-back photos

    @cached_property
    def layers(self) -> list[str]:
        """The convolutions in execution order."""
        return [n.name for n in conv_nodes(self.model)]

    def fidelity(self, kept: frozenset[str]) -> Fidelity:
        """Masks with these layers in float and the rest in 8 bit."""
        if kept not in self.measured:
            self.progress(len(self.measured), self._label(kept))
            self.measured[kept] = self._fidelity(kept, self.samples)
        return self.measured[kept]

    def _fidelity(self, kept: frozenset[str], samples: Sequence[Sample]) -> Fidelity:
        spec = replace(self.spec, keep_float=(*self.spec.keep_float, *sorted(kept)))
        opened = session(quantize(self.model, self.ranges, spec, self.errors))
        feed = opened.get_inputs()[0].name
        outputs = (opened.run(None, {feed: x})[0] for x, _ in samples)
        pairs = zip(outputs, samples, strict=True)
        return Fidelity(tuple(compare(got[0, 0], want[0, 0]) for got, (_, want) in pairs))

    def load(self, kept: frozenset[str]) -> float:
        """Share of the budget that masks with these layers in float use up."""
        return load_of(self.fidelity(kept), self.budget)

    def _label(self, kept: frozenset[str]) -> str:
        if not kept:
            return "all in 8 bit"
        stages = sorted({stage_of(name) for name in kept})
        return f"{len(kept)} in float ({', '.join(stages[:3])}{' …' if len(stages) > 3 else ''})"

    def run(self, name: str = "") -> Sensitivity:
        """Search; `name` is kept in the result."""
        units: list[Unit] = []
        taken: list[Unit] = []
        if max(self.load(frozenset()), self._checked(taken)) > 1:
            units = sorted(self.units(), key=lambda u: u.cost / u.work, reverse=True)
            taken = self._pruned(self._gathered(units))
            taken = self._widened(taken, [u for u in units if u.cost > 0 and u not in taken])
        chosen = _joined(taken)
        met = max(self.load(chosen), self._checked(taken)) <= 1
        return Sensitivity(
            name, self.budget, met, self._names(chosen), tuple(units), self._points(), len(self.samples),
            len(self.measured), self._check(taken).to_json() if self.held_back else {}, asdict(self.spec),
        )  # fmt: skip

    def units(self) -> Iterator[Unit]:
        """Blocks and layers with what each alone in 8 bit costs: stages first, halved where it is worth it."""
        everything, whole = frozenset(self.layers), sum(self.work.values())
        queue = [tuple(block) for _, block in groupby(self.layers, stage_of)]
        while queue:
            block = queue.pop(0)
            cost, work = self.load(everything.difference(block)), sum(self.work[n] for n in block)
            if len(block) > 1 and work > WORK_WORTH_SPLITTING * whole and cost > WORTH_SPLITTING:
                half = len(block) // 2
                queue += [block[:half], block[half:]]
            else:
                yield Unit(block, work, cost)

    def _gathered(self, units: Sequence[Unit]) -> list[Unit]:
        """A shortest run of the costliest units that meets the budget, found by doubling and halving; else all."""
        useful = [u for u in units if u.cost > 0]
        low, high = 0, 1  # of the run's length: too short, and to be tried
        while high < len(useful) and self.load(_joined(useful[:high])) > 1:
            low, high = high, 2 * high
        high = min(high, len(useful))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.load(_joined(useful[:middle])) <= 1 else (middle, high)
        return useful[:high]

    def _pruned(self, taken: list[Unit]) -> list[Unit]:
        """The same without the units that turn out not to be needed, the most work first."""
        for unit in sorted(taken, key=lambda u: u.work, reverse=True):
            rest = [u for u in taken if u is not unit]
            if self.load(_joined(rest)) <= max(1.0, self.load(_joined(taken))):
                taken = rest
        return taken

    def _widened(self, taken: list[Unit], others: Sequence[Unit]) -> list[Unit]:
        """The choice and the next best units, as many as it takes until it suits the held-back photos too."""
        for unit in others:
            if self._checked(taken) <= 1:
                break
            taken = [*taken, unit]
        return taken

    def _checked(self, taken: Sequence[Unit]) -> float:
        """`load` of the held-back photos; 0 where there are none.

        Harder photos than those of the search need not keep the budget, but must gain as much.
        """
        if not self.held_back:
            return 0.0
        harder = load_of(self._check(()), self.budget) / max(self.load(frozenset()), 1e-9)
        return load_of(self._check(taken), self.budget) / max(1.0, harder)

    def _check(self, taken: Sequence[Unit]) -> Fidelity:
        kept = _joined(taken)
        if kept not in self.checks:
            self.progress(len(self.measured), f"held-back photos, {self._label(kept)}")
            self.checks[kept] = self._fidelity(kept, self.held_back)
        return self.checks[kept]

    def _names(self, kept: frozenset[str]) -> tuple[str, ...]:
        return tuple(name for name in self.layers if name in kept)

    def _points(self) -> tuple[Point, ...]:
        whole = sum(self.work.values())
        points = [
            Point(self._names(k), sum(self.work[n] for n in k) / whole, f.mae, f.mae_worst, f.iou, f.iou_worst)
            for k, f in self.measured.items()
        ]
        return tuple(sorted(points, key=lambda p: (p.float_share, p.mae)))


def _joined(units: Sequence[Unit]) -> frozenset[str]:
    return frozenset(name for unit in units for name in unit.layers)


def saved_time(model: onnx.ModelProto, quantised: onnx.ModelProto, x: Floats, rounds: int = 5) -> dict[str, float]:
    """Nanoseconds that 8 bit saves in each convolution on this machine, from ONNX Runtime's own profile of both.

    Medians over rounds; at least 1 each, so that a layer that gains nothing costs next to nothing.

    Raises:
        UserError: the profile does not tell the layers apart.
    """
    before, after = (_profile(m, x, rounds) for m in (model, quantised))
    names = [n.name for n in conv_nodes(model)]
    if lost := [n for n in names if n not in before or n not in after]:
        raise UserError(f"ONNX Runtime's profile does not show {lost[0]}", "search by multiply-accumulates")
    return {name: max(1.0, before[name] - after[name]) for name in names}


def _profile(model: onnx.ModelProto, x: Floats, rounds: int) -> dict[str, float]:
    """Median nanoseconds of every convolution's kernel."""
    import json
    from tempfile import TemporaryDirectory

    import onnxruntime

    with TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(scratch) / "profile")
        opened = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(rounds + 1):
            opened.run(None, {opened.get_inputs()[0].name: x})
        events = json.loads(Path(opened.end_profiling()).read_text(encoding="utf-8"))
    layers = _kernel_names(model)
    times: dict[str, list[float]] = {}
    for event in events:
        kernel = re.sub(r"(_nchwc|_token_\d+)*_kernel_time$", "", str(event.get("name")))
        if event.get("cat") == "Node" and kernel in layers:
            times.setdefault(layers[kernel], []).append(1000.0 * event["dur"])
    return {name: float(np.median(t[1:])) for name, t in times.items()}  # the first round is a warm-up


def _kernel_names(model: onnx.ModelProto) -> dict[str, str]:
    """Convolutions by what their kernels are called: the node, or the tensor that it or its fused activation makes."""
    readers = {name: node for node in model.graph.node for name in node.input}
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            after = readers.get(node.output[0])
            names |= dict.fromkeys((node.name, node.output[0], *(after.output if after else ())), node.name)
    return names


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
