"""The search for the cheapest set of float layers with which 8-bit masks stay within a budget.

The search works on the Q/DQ graph alone, so the answer holds for every runtime that reads such graphs. The quantisation
errors of layers add up neither linearly nor independently. The search therefore measures sets, and uses single layers
only to order them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges, observe
from u2export.calibration.bias_correction import bias_errors
from u2export.calibration.dataset import Calibration
from u2export.calibration.layer_work import layer_macs, saved_time
from u2export.calibration.prepare import known_weights, prepared
from u2export.calibration.quant_plan import ONNX_RUNTIME, TENSORRT, QuantSpec
from u2export.calibration.quantize import quantize
from u2export.calibration.sensitivity import Point, Sensitivity, Unit
from u2export.calibration.weight_rounding import Rounded
from u2export.errors import UserError, WrongValue
from u2export.reference.fidelity import UPPER, Fidelity, compare
from u2export.reference.image import Contract, Floats
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.reference.onnx_graph import conv_nodes
from u2export.reference.onnx_session import open_graph
from u2export.reference.source import Source

if TYPE_CHECKING:
    import onnx


# A block is split if it alone in 8 bit uses up this share of the budget, and if it does this share of the work.
SCHEMES = {"ort": ONNX_RUNTIME, "trt": TENSORRT}
CALIBRATE_ON = 16  # photos; each graph of the search is quantised with their ranges
WORTH_SPLITTING, WORK_WORTH_SPLITTING = 0.1, 0.08


Sample = tuple[Floats, Floats]  # network input and the reference's d0, each (1, ., H, W)
# Judges graphs, which are made one by one, on samples; yields their fidelity in the same order.
Judge = Callable[[Sequence[Callable[[], "onnx.ModelProto"]], Sequence[Sample]], Iterator[Fidelity]]


def judged_here(makers: Sequence[Callable[[], onnx.ModelProto]], samples: Sequence[Sample]) -> Iterator[Fidelity]:
    """Judge graphs in this process; see `Judge`."""
    for make in makers:
        session = open_graph(make())
        feed = session.get_inputs()[0].name
        outputs = (session.run(None, {feed: x})[0] for x, _ in samples)
        pairs = zip(outputs, samples, strict=True)
        yield Fidelity(tuple(compare(got[0], want[0]) for got, (_, want) in pairs))


def stage_of(layer: str) -> str:
    """The block of a layer by its name: `/stage1d/rebnconv2d/conv_s1/Conv` is in stage1d; the heads are one block."""
    head = layer.strip("/").split("/")[0]
    return "heads" if re.match(r"side\d|outconv", head) else head


def surest(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Return the `count` samples on which the reference is surest, in their order: d0 is closest to 0 or 1 on average.

    On a photo where the reference is uncertain, 8 bit costs up to thirty times as much. With such photos, the search
    would find what suits these few alone.
    """
    unsure = [float(np.minimum(d0, 1 - d0).mean()) for _, d0 in samples]
    return [samples[i] for i in sorted(np.argsort(unsure, kind="stable")[:count])]


def load_of(fidelity: Fidelity, budget: Mapping[str, float]) -> float:
    """Return the used share of the budget, by the limit that is closest to being broken; 1 is the whole budget."""
    if not fidelity.finite:
        return float("inf")
    used = []
    for name, limit in budget.items():
        value = float(getattr(fidelity, name))
        part, whole = (value, limit) if name in UPPER else (1 - value, 1 - limit)
        used.append(part / max(whole, 1e-9))
    return max(used)


class Search:
    """A greedy search over blocks that it bisects; every set is measured once.

    Args:
        model: the conditioned fp32 graph.
        ranges, errors: of `observe` and `bias_errors` over calibration photos.
        spec: how all other layers are quantised.
        samples: photos to measure on, none of them used for calibration, with the reference's d0.
        budget: limits as of `u2export.reference.fidelity.parse_budget`.
        held_back: further photos that only judge a choice: the choice must suit them too.
        work: cost of each layer in float, by name; multiply-accumulates by default.
        progress: is told about each measurement: the number of earlier ones, and what is measured.
        rounded: of `rounded_weights`; other weights are rounded to their nearest steps.
        judge: judges the graphs; in this process by default.

    Raises:
        UserError: there are no photos, or the budget is empty.
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
        rounded: Rounded | None = None,
        judge: Judge = judged_here,
    ) -> None:
        if not samples:
            raise UserError("there are no photos to measure masks on", "give a folder of photos")
        if not budget:
            raise UserError("the search has no budget", "give one, for example mae=0.0015")
        self.model, self.ranges, self.errors, self.spec = model, ranges, errors, spec
        self.samples, self.held_back, self.budget, self.progress = samples, held_back, budget, progress
        self.rounded, self._judge = rounded, judge
        self.work: Mapping[str, float] = work or layer_macs(model)
        self.measured: dict[frozenset[str], Fidelity] = {}
        self.checks: dict[frozenset[str], Fidelity] = {}  # of held-back photos

    @cached_property
    def layers(self) -> list[str]:
        """The convolutions in execution order."""
        return [n.name for n in conv_nodes(self.model)]

    def fidelity(self, kept: frozenset[str]) -> Fidelity:
        """Fidelity of the masks with these layers in float and all others in 8 bit."""
        if kept not in self.measured:
            self._measure([kept])
        return self.measured[kept]

    def _measure(self, sets: Iterable[frozenset[str]]) -> None:
        """Judge all sets that are not measured yet, so that a cluster has work for all its workers."""
        new = [kept for kept in dict.fromkeys(sets) if kept not in self.measured]
        first = len(self.measured)
        makers = [partial(self._graph, kept, first + i, self._label(kept)) for i, kept in enumerate(new)]
        self.measured.update(zip(new, self._judge(makers, self.samples), strict=True))

    def _graph(self, kept: frozenset[str], number: int, label: str) -> onnx.ModelProto:
        self.progress(number, label)
        spec = replace(self.spec, keep_float=(*self.spec.keep_float, *sorted(kept)))
        return quantize(self.model, self.ranges, spec, self.errors, self.rounded)

    def load(self, kept: frozenset[str]) -> float:
        """Share of the budget that is used up with these layers in float."""
        return load_of(self.fidelity(kept), self.budget)

    def _label(self, kept: frozenset[str]) -> str:
        if not kept:
            return "all in 8 bit"
        stages = sorted({stage_of(name) for name in kept})
        return f"{len(kept)} in float ({', '.join(stages[:3])}{' …' if len(stages) > 3 else ''})"

    def run(self, name: str = "") -> Sensitivity:
        """Search; `name` becomes the `weights` of the result."""
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
        """Yield blocks with the cost of each alone in 8 bit: whole stages first, halved where this is worth it."""
        everything, whole = frozenset(self.layers), sum(self.work.values())
        queue = [tuple(block) for _, block in groupby(self.layers, stage_of)]
        while queue:
            if everything.difference(queue[0]) not in self.measured:
                self._measure(everything.difference(block) for block in queue)
            block = queue.pop(0)
            cost, work = self.load(everything.difference(block)), sum(self.work[n] for n in block)
            if len(block) > 1 and work > WORK_WORTH_SPLITTING * whole and cost > WORTH_SPLITTING:
                half = len(block) // 2
                queue += [block[:half], block[half:]]
            else:
                yield Unit(block, work, cost)

    def _gathered(self, units: Sequence[Unit]) -> list[Unit]:
        """The shortest run of the costliest units that keeps the budget; all useful units if none does.

        The length of the run is found by doubling, then by bisection.
        """
        useful = [u for u in units if u.cost > 0]
        low, high = 0, 1  # lengths of the run: one that is too short, and the next to try
        while high < len(useful) and self.load(_joined(useful[:high])) > 1:
            low, high = high, 2 * high
        high = min(high, len(useful))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.load(_joined(useful[:middle])) <= 1 else (middle, high)
        return useful[:high]

    def _pruned(self, taken: list[Unit]) -> list[Unit]:
        """The run without the units that turn out to be unnecessary; those with the most work are tried first."""
        for unit in sorted(taken, key=lambda u: u.work, reverse=True):
            rest = [u for u in taken if u is not unit]
            if self.load(_joined(rest)) <= max(1.0, self.load(_joined(taken))):
                taken = rest
        return taken

    def _widened(self, taken: list[Unit], others: Sequence[Unit]) -> list[Unit]:
        """The choice with the next best units added, until it suits the held-back photos too."""
        for unit in others:
            if self._checked(taken) <= 1:
                break
            taken = [*taken, unit]
        return taken

    def _checked(self, taken: Sequence[Unit]) -> float:
        """Used share of the budget on held-back photos; 0 without such photos.

        Held-back photos may be harder than those of the search. Harder photos need not keep the budget, but float
        layers must improve them by the same ratio.
        """
        if not self.held_back:
            return 0.0
        harder = load_of(self._check(()), self.budget) / max(self.load(frozenset()), 1e-9)
        return load_of(self._check(taken), self.budget) / max(1.0, harder)

    def _check(self, taken: Sequence[Unit]) -> Fidelity:
        kept = _joined(taken)
        if kept not in self.checks:
            make = partial(self._graph, kept, len(self.measured), f"held-back photos, {self._label(kept)}")
            (self.checks[kept],) = self._judge([make], self.held_back)
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


def search_float_layers(
    weights: str,
    calib: Path,
    images: Path,
    budget: Mapping[str, float],
    *,
    contract: Contract | None = None,
    scheme: str = "ort",
    photos: int = 24,
    measured: bool = False,
    condition: bool = True,
    progress: Callable[[str], None] = lambda what: None,
    judge: Judge = judged_here,
) -> Sensitivity:
    """Search the layers to keep in float so that the masks of the 8-bit network stay within a budget.

    The search runs some dozens of graphs on every photo. It reads half as many photos again as it uses, and takes
    those of which the reference is surest; every third of these is held back to check the choice.

    Args:
        weights: named weights, random-<variant>, or a file, as for `Source.open`.
        calib: calibration photos, as for `Calibration.open`.
        images: photos to measure masks on, none of them among `calib`.
        budget: limits as of `u2export.reference.fidelity.parse_budget`.
        contract: pre- and postprocessing, and with it the input size; 320x320 by default.
        scheme: how the other layers are quantised: "ort" (ONNX Runtime) or "trt" (TensorRT). The heads stay in float.
        photos: how many of `images` to measure on.
        measured: weigh layers by the time that 8 bit saves on this machine, not by multiply-accumulates.
        condition: shift near-constant channels before quantising, as every 8-bit export does.
        progress: is told what happens now, in a few words.
        judge: judges the graphs of the search; in this process by default.

    Returns:
        The choice, every set measured on the way, and whether the choice keeps the budget (`met`).

    Raises:
        UserError: an unknown scheme, unusable weights or photos, a photo in both sets, or an empty budget.
        Unavailable: PyTorch is not installed, or the weights could not be fetched.
    """
    if scheme not in SCHEMES:
        raise WrongValue(f"no scheme named {scheme!r}", f"choose one of {', '.join(SCHEMES)}")
    spec = replace(SCHEMES[scheme], heads=False)  # heads: as `ort --keep-float` does
    progress(f"reading {weights}")
    source = Source.open(weights, contract)
    calibration = Calibration.open(calib, source.contract, avoid=[images]).subset(CALIBRATE_ON)
    found = Calibration.open(images, source.contract).subset(photos * 3 // 2)
    samples = surest([(x, source.predict(x)) for x in found], photos)
    progress("conditioning and calibrating")
    module, _ = prepared(source, "int8", calibration, condition)
    model = to_onnx(module, source.contract, Graph(), {})
    ranges = observe(model, calibration)
    rounded = known_weights(model, calibration, spec, progress)
    errors = bias_errors(model, ranges, spec, calibration, rounded)
    work = saved_time(model, quantize(model, ranges, spec), samples[0][0]) if measured else None
    judged = [sample for i, sample in enumerate(samples) if i % 3 != 2]
    search = Search(
        model, ranges, errors, spec, judged, budget, samples[2::3], work,
        progress=lambda count, what: progress(f"graph {count + 1}: {what}"), rounded=rounded,
        judge=judge,
    )  # fmt: skip
    return search.run(source.weights.label)
