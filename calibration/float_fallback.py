"""8-bit graphs within a budget: where pure 8 bit misses it, layers become float until the masks keep it.

The heads become float first: they cost next to nothing. Then follow the blocks that cost the masks most for their work.
Photos of the calibration set order the blocks. Other photos judge the graph, so the order does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges, observe
from u2export.calibration.bias_correction import bias_errors
from u2export.calibration.dataset import Calibration
from u2export.calibration.float_search import Sample, Search, load_of, stage_of, surest
from u2export.calibration.layer_work import layer_macs
from u2export.calibration.prepare import known_weights
from u2export.calibration.quant_plan import QuantSpec, float_nodes
from u2export.calibration.quantize import PHOTOS, calibration_method, quantize
from u2export.calibration.sensitivity import Unit
from u2export.calibration.weight_rounding import PHOTOS as ROUNDED_ON
from u2export.calibration.weight_rounding import Rounded
from u2export.reference.fidelity import Fidelity
from u2export.reference.onnx_graph import conv_nodes
from u2export.reference.onnx_session import run
from u2export.reference.spread import evenly_spread

if TYPE_CHECKING:
    import onnx

MAX_FLOAT = 0.1  # share of the multiply-accumulates that may become float by default
SEARCH_PHOTOS = 8
# Float layers are added until the judging photos use up this share of the budget: photos that stop the search look
# better than others do.
TARGET = 0.9

Judge = Callable[["onnx.ModelProto"], Fidelity]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Attempt:
    """One set of float layers that was judged.

    Attributes:
        spec: how the graph was quantised.
        float_share: share of the multiply-accumulates in float.
        fidelity: of the graph's masks.
        load: used share of the budget; 1 is the whole budget.
    """

    spec: QuantSpec
    float_share: float
    fidelity: Fidelity
    load: float


@dataclass(frozen=True)
class Quantised:
    """An 8-bit graph, and what was put into float to keep the budget.

    Attributes:
        graph: the graph with Q/DQ pairs.
        spec: how it was quantised.
        added: facts for a record; empty where pure 8 bit keeps the budget or where no float layer was allowed.
        note: the same in one sentence.
    """

    graph: onnx.ModelProto
    spec: QuantSpec
    added: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def quantise_within(
    model: onnx.ModelProto,
    photos: Calibration,
    spec: QuantSpec,
    judge: Judge,
    budget: Mapping[str, float],
    max_float: float = MAX_FLOAT,
    progress: Progress = lambda what: None,
) -> Quantised:
    """Return the 8-bit graph, with as few float layers as keep the budget.

    Args:
        model: the conditioned fp32 graph.
        photos: calibration photos. 32 of them give the ranges. The others order the layers where they are enough.
        spec: how to quantise, with the float layers that the user chose.
        judge: gives the fidelity of a graph's masks as the target computes them, on photos outside `photos`.
        budget: limits as of `u2export.reference.fidelity.parse_budget`.
        max_float: largest share of the multiply-accumulates that may be added in float, 0 to 1.
        progress: is told what happens now, in a few words.

    Returns:
        The graph within the budget. Where no allowed set keeps the budget, the graph that came closest.

    Raises:
        UserError: a tensor has no usable range, or a name in `spec.keep_float` matches no node.
    """
    measured = _measured(model, photos, spec, progress)
    chosen = float_layers_within(
        model, photos, spec, lambda chosen: judge(measured.quantised(chosen)), budget, max_float, progress, measured
    )
    return replace(chosen, graph=measured.quantised(chosen.spec))


def float_layers_within(
    model: onnx.ModelProto,
    photos: Calibration,
    spec: QuantSpec,
    judge: Callable[[QuantSpec], Fidelity],
    budget: Mapping[str, float],
    max_float: float = MAX_FLOAT,
    progress: Progress = lambda what: None,
    measured: Measured | None = None,
) -> Quantised:
    """Choose the float layers with which an 8-bit network of any target keeps the budget.

    The arguments are those of `quantise_within`, with these exceptions. The layers are ordered by the masks of Q/DQ
    graphs in ONNX Runtime, whatever the target does.

    Args:
        judge: gives the fidelity of the target's masks with the float layers of a spec.
        measured: what calibration photos say about the graph, where this is known already.

    Returns:
        The choice; its graph is the float graph.
    """
    chosen = Quantised(model, spec)
    if not max_float:
        return chosen
    fidelity = judge(spec)
    if (load := load_of(fidelity, budget)) <= 1:
        return chosen
    known = measured or _measured(model, photos, spec, progress)
    samples = _samples(model, photos, known.used)
    search = Search(
        model, known.ranges, known.errors, replace(spec, heads=False), samples, budget,
        work=layer_macs(model, samples[0][0]), rounded=known.rounded,
        progress=lambda count, what: progress(f"the budget is missed; measuring layers, graph {count + 1}: {what}"),
    )  # fmt: skip
    first = Attempt(spec, _share(model, spec, search.work), fidelity, load)
    best, count = _Widening(search, first, judge, max_float, progress).run()
    return Quantised(model, best.spec, *_told(model, first, best, count))


@dataclass(frozen=True)
class Measured:
    """What calibration photos say about a float graph under one scheme.

    Attributes:
        model: the float graph.
        used: the photos that gave the ranges.
        ranges, errors, rounded: of `observe`, `bias_errors` and `rounded_weights`.
    """

    model: onnx.ModelProto
    used: Calibration
    ranges: Ranges
    errors: Mapping[str, NDArray[np.float64]]
    rounded: Rounded

    def quantised(self, spec: QuantSpec) -> onnx.ModelProto:
        """The graph with Q/DQ pairs, with the float layers of a spec of the same scheme."""
        return quantize(self.model, self.ranges, spec, self.errors, self.rounded)


def _measured(model: onnx.ModelProto, photos: Calibration, spec: QuantSpec, progress: Progress) -> Measured:
    used = photos.subset(PHOTOS)
    progress("measuring ranges")
    ranges = observe(model, used, method=calibration_method(spec), signed=spec.signed)
    rounded = known_weights(model, used.subset(ROUNDED_ON), spec, progress)
    return Measured(model, used, ranges, bias_errors(model, ranges, spec, used, rounded), rounded)


def _samples(model: onnx.ModelProto, photos: Calibration, used: Calibration) -> list[Sample]:
    """Photos that order the layers, with d0 of the float graph; photos without a part in the ranges where possible."""
    seen = set(used.photos)
    rest = [p for p in photos.photos if p not in seen]
    chosen = rest if len(rest) >= SEARCH_PHOTOS else list(photos.photos)
    few = replace(photos, photos=tuple(evenly_spread(chosen, SEARCH_PHOTOS * 3 // 2)))
    name = model.graph.output[0].name
    d0 = (maps[0] for maps in run(model, few, [name]))
    return surest(list(zip(few, d0, strict=True)), SEARCH_PHOTOS)


def _share(model: onnx.ModelProto, spec: QuantSpec, work: Mapping[str, float]) -> float:
    floats = float_nodes(model, spec)
    return sum(w for name, w in work.items() if name in floats) / sum(work.values())


class _Widening:
    """Judges growing sets of float layers: the heads, then the costliest blocks for their work.

    Args:
        search: measures blocks; its spec has the heads in float.
        first: pure 8 bit, which misses the budget.
        judge, max_float, progress: as of `float_layers_within`.
    """

    def __init__(
        self,
        search: Search,
        first: Attempt,
        judge: Callable[[QuantSpec], Fidelity],
        max_float: float,
        progress: Progress,
    ) -> None:
        self.search, self.judge, self.progress = search, judge, progress
        self.tries = [first]
        self.whole = sum(search.work.values())
        self.most = (first.float_share + max_float) * self.whole

    def run(self) -> tuple[Attempt, int]:
        """The attempt with the least float work within the budget, else the closest; and the number of attempts."""
        heads = {name for name in float_nodes(self.search.model, self.search.spec) if name in self.search.work}
        left = self.most - sum(self.search.work[name] for name in heads)
        if left >= 0 and not (self.tries[0].spec.heads and self._enough(self.search.spec, "the heads")):
            self._grow(self._fitting(heads, left))
        return self._best(), len(self.tries)

    def _enough(self, spec: QuantSpec, what: str) -> bool:
        self.progress(f"the budget is missed; trying {what} in float")
        search = self.search
        fidelity = self.judge(spec)
        load = load_of(fidelity, search.budget)
        self.tries.append(Attempt(spec, _share(search.model, spec, search.work), fidelity, load))
        return load <= TARGET

    def _fitting(self, heads: set[str], left: float) -> list[Unit]:
        """Blocks whose cost was seen, the highest cost for its work first, as far as they fit into the work left."""
        fitting = []
        for unit in sorted(self.search.units(), key=lambda u: u.cost / u.work, reverse=True):
            more = sum(self.search.work[name] for name in unit.layers if name not in heads)
            if unit.cost > 0 and 0 < more <= left:
                fitting.append(unit)
                left -= more
        return fitting

    def _grow(self, units: Sequence[Unit]) -> None:
        """Find the number of blocks by doubling, then by bisection."""

        def enough(count: int) -> bool:
            layers = [name for unit in units[:count] for name in unit.layers]
            spec = replace(self.search.spec, keep_float=(*self.search.spec.keep_float, *layers))
            return self._enough(spec, f"{len(layers)} convolutions")

        low, high = 0, min(1, len(units))  # too few blocks, and the next number to try
        while high and not enough(high):
            if high == len(units):
                return
            low, high = high, min(2 * high, len(units))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)

    def _best(self) -> Attempt:
        for limit in (TARGET, 1.0):
            if good := [t for t in self.tries if t.load <= limit]:
                return min(good, key=lambda t: t.float_share)
        return min(self.tries, key=lambda t: t.load)


def _told(model: onnx.ModelProto, first: Attempt, best: Attempt, count: int) -> tuple[dict[str, Any], str]:
    """What a record says about added float layers, and the same in a sentence."""
    convs, floats = [n.name for n in conv_nodes(model)], float_nodes(model, best.spec)
    kept = [name for name in convs if name in floats]
    stages = list(dict.fromkeys(stage_of(name) for name in kept))
    facts = {
        "float_layers": kept,
        "float_share": best.float_share,
        "float_share_before": first.float_share,
        "graphs_judged": count,
        "pure_int8": first.fidelity.summary(),
        "with_float": best.fidelity.summary(),
        "spec": asdict(best.spec),
    }
    note = (
        f"pure int8 missed the budget (MAE {first.fidelity.mae:.2g}, worst {first.fidelity.mae_worst:.2g}); "
        f"{len(kept)} of {len(convs)} convolutions, {100 * best.float_share:.1f} % of the multiply-accumulates, "
        f"are in float: {', '.join(stages)}"
    )
    return facts, note
