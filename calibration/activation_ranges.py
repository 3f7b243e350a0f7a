"""The range of an activation that 8 bits cover: its full range over photos, or a range that clips outliers.

Every method needs one pass over the photos and holds the tensors of one photo at most. Source of the methods: Wu et
al., "Integer Quantization for Deep Learning Inference", 2020, section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError, WrongValue
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import GraphView, activations, with_outputs
from u2export.reference.onnx_session import run

if TYPE_CHECKING:
    import onnx

METHODS = ("minmax", "percentile", "entropy", "mse")
PERCENTILE = 99.99
BINS = 4096
AT_ONCE = 1 << 16  # values that are counted together: they stay in the cache of the processor


@dataclass(frozen=True)
class ActivationRange:
    """The values that 8 bits of an activation tensor cover; values outside are clipped."""

    low: float
    high: float

    @property
    def peak(self) -> float:
        """The larger magnitude of the two ends."""
        return max(abs(self.low), abs(self.high))


Ranges = Mapping[str, ActivationRange]


def observe(
    model: onnx.ModelProto,
    inputs: Iterable[Floats],
    tensors: Sequence[str] | None = None,
    method: str = "minmax",
    signed: bool = False,
) -> dict[str, ActivationRange]:
    """Observe the ranges of activations over photos, in one pass that holds the tensors of one photo at most.

    Args:
        model: the fp32 graph.
        inputs: network inputs (1, C, H, W).
        tensors: names of the tensors; by default all of `u2export.reference.onnx_graph.activations`.
        method: "minmax"; "percentile" (99.99 of the magnitudes); "entropy" (least Kullback-Leibler divergence, as
            TensorRT's calibrator does); "mse" (least mean squared rounding and clipping error).
        signed: the scheme for which "entropy" and "mse" optimise, see `QuantSpec.signed`.

    Raises:
        UserError: the method or a tensor is unknown, there are no photos, or an activation is not finite.
    """
    if method not in METHODS:
        raise WrongValue(f"no calibration method named {method!r}", f"choose one of {', '.join(METHODS)}")
    names = list(activations(model) if tensors is None else tensors)
    known = set(GraphView(model).maker) | {t.name for t in (*model.graph.input, *model.graph.initializer)}
    if lost := [n for n in names if n not in known]:
        raise UserError(f"the graph has no tensor {lost[0]!r}", "name tensors of this graph")
    if method == "minmax":
        return _minmax(model, inputs, names)
    levels = 127 if signed else 255
    seen = _histograms(model, inputs, names)
    return {name: _clipped(seen[name], method, levels, signed) for name in names}


def _minmax(model: onnx.ModelProto, inputs: Iterable[Floats], names: Sequence[str]) -> dict[str, ActivationRange]:
    from onnx import helper

    nodes, made = [], []
    for i, name in enumerate(names):
        for op in ("ReduceMin", "ReduceMax"):
            made.append(f"observed_{op}_{i}")
            nodes.append(helper.make_node(op, [name], made[-1:], name=made[-1], keepdims=0))
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for values in run(with_outputs(model, nodes, made), inputs, made):
        flat = np.array(values, np.float64).reshape(-1, 2)
        _check_finite(names, flat)
        low, high = np.minimum(low, flat[:, 0]), np.maximum(high, flat[:, 1])
    return {name: ActivationRange(float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _check_finite(names: Sequence[str], values: NDArray[Any]) -> None:
    bad = ~np.isfinite(values).all(1)
    if bad.any():
        raise UserError(
            f"the activation {names[int(bad.argmax())]} is NaN or infinite on a calibration photo",
            "check the weights; u2export lint names layers that overflow",
        )


@dataclass
class _Histogram:
    """Counts of magnitudes in equal bins from 0 to `top`, and both ends; `top` doubles when a larger value comes."""

    top: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def __post_init__(self) -> None:
        self.counts = np.zeros(BINS)

    def add(self, x: Floats, low: float, high: float) -> None:
        """Count the values of a tensor, whose smallest and largest value are known."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        peak = max(-self.low, self.high)
        if self.top == 0 and peak > 0:
            self.top = peak
        while peak > self.top:
            self.counts = np.concatenate((self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)))
            self.top *= 2
        scale, flat = np.float32(BINS / self.top if self.top else 0.0), x.ravel()
        for start in range(0, len(flat), AT_ONCE):
            where = (np.abs(flat[start : start + AT_ONCE]) * scale).astype(np.intp)
            self.counts += np.bincount(np.minimum(where, BINS - 1, out=where), minlength=BINS)


def _histograms(model: onnx.ModelProto, inputs: Iterable[Floats], names: Sequence[str]) -> dict[str, _Histogram]:
    constants = {t.name for t in model.graph.initializer}
    watched = [n for n in names if n not in constants]
    fed = [i.name for i in model.graph.input]
    made = [n for n in watched if n not in fed]
    seen = {name: _Histogram() for name in names}

    def take(name: str, value: Floats) -> None:
        ends = np.array([value.min(), value.max()], np.float64)
        _check_finite([name], ends[None])
        seen[name].add(value, *ends.tolist())

    for name in set(names) & constants:
        take(name, GraphView(model).constant(name))

    def tap(x: Floats) -> Floats:
        for name in set(fed) & set(watched):
            take(name, x)
        return x

    outputs = made or [o.name for o in model.graph.output]
    for values in run(with_outputs(model, (), outputs), map(tap, inputs), outputs):
        for name, value in zip(made, values, strict=False):
            take(name, value)
    return seen


def _clipped(seen: _Histogram, method: str, levels: int, signed: bool) -> ActivationRange:
    """The range with both ends clipped at the magnitude that the method finds best."""
    if seen.top == 0:
        return ActivationRange(seen.low, seen.high)
    pick: dict[str, Callable[[], float]] = {
        "percentile": lambda: _percentile(seen),
        "entropy": lambda: _least_entropy(seen, levels + 1),
        "mse": lambda: _least_mse(seen, levels, signed),
    }
    limit = pick[method]()
    return ActivationRange(max(seen.low, -limit), min(seen.high, limit))


def _percentile(seen: _Histogram) -> float:
    share = np.cumsum(seen.counts) / seen.counts.sum()
    return float((np.searchsorted(share, PERCENTILE / 100) + 1) * seen.top / BINS)


def _least_mse(seen: _Histogram, levels: int, signed: bool) -> float:
    """The clipping magnitude with the least mean squared error of rounding and clipping together."""
    centres = (np.arange(BINS) + 0.5) * seen.top / BINS
    centres[0] = 0.0  # most of the lowest bin are zeros of a ReLU, which are exact
    limits = np.linspace(0.2, 1.0, 81) * max(-seen.low, seen.high)

    def error(limit: float) -> float:
        width = limit if signed else min(seen.high, limit) - max(min(seen.low, 0.0), -limit)
        step = width / levels
        rounded = np.minimum(np.rint(centres / step) * step, limit)
        return float((seen.counts * (centres - rounded) ** 2).sum())

    return float(limits[int(np.argmin([error(t) for t in limits]))])


def _least_entropy(seen: _Histogram, levels: int) -> float:
    """The clipping magnitude with the least divergence of the rounded distribution from the true one.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017.
    """
    stops = range(levels, BINS + 1, max(1, levels // 8))
    counts = seen.counts.copy()
    counts[0] = counts[1]  # zeros of a ReLU are exact in any scale and would outweigh all else

    def divergence(stop: int) -> float:
        inside = counts[:stop]
        true = inside.copy()
        true[-1] += counts[stop:].sum()
        group = np.arange(stop) * levels // stop
        used = inside > 0
        totals, members = np.bincount(group, inside, levels), np.bincount(group, used, levels)
        rounded = np.where(used, (totals / np.maximum(members, 1))[group], 0.0)
        p, q = true / true.sum(), rounded / max(rounded.sum(), 1.0)
        both = (p > 0) & (q > 0)
        missed = float(p[(p > 0) & (q == 0)].sum())  # mass where the rounded distribution has none
        return float((p[both] * np.log(p[both] / q[both])).sum()) + missed

    best = min(stops, key=divergence)
    return best * seen.top / BINS
