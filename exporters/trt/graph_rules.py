"""The rules that a typed graph must keep. TensorRT refuses, misreads or undoes a graph that breaks one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from u2export.errors import UserError
from u2export.exporters.trt.typed_graph import QUANTISERS, SMALLEST_HALF
from u2export.reference.onnx_graph import GraphView, opset_of

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class BrokenRule:
    """A rule that a graph breaks.

    Attributes:
        rule: name of the rule, a key of `RULES` or "opset".
        node: the node that breaks the rule.
        text: what is wrong there, in words.
    """

    rule: str
    node: str
    text: str


def broken_rules(model: onnx.ModelProto, opset: int) -> list[BrokenRule]:
    """Return every rule that a graph breaks.

    Args:
        model: the typed graph.
        opset: the newest opset that the parser of the TensorRT version knows.
    """
    view = GraphView(model)
    broken = [BrokenRule(rule, node, text) for rule, breaches in RULES.items() for node, text in breaches(view)]
    if (have := opset_of(model)) > opset:
        broken.append(BrokenRule("opset", "graph", f"opset {have}, this TensorRT's parser knows {opset} at most"))
    return broken


def refuse(broken: Iterable[BrokenRule]) -> None:
    """Refuse a graph that breaks a rule.

    Raises:
        UserError: for the first broken rule, with the number of the others.
    """
    rules = list(broken)
    if rules:
        first = rules[0]
        more = f", and {len(rules) - 1} more" if len(rules) > 1 else ""
        raise UserError(f"not built: {first.node}: {first.text} ({first.rule}{more})", ADVICE[first.rule])


# One function a rule. Each gives the nodes that break the rule, with what is wrong there.
Breaches = Iterator[tuple[str, str]]


def _quantisers(view: GraphView) -> Iterator[onnx.NodeProto]:
    return (n for n in view.nodes if n.op_type in QUANTISERS)


def _zero_point(view: GraphView) -> Breaches:
    for node in _quantisers(view):
        zero = view.array(node.input[2]) if len(node.input) > 2 else None
        if len(node.input) < 3 or not node.input[2]:
            yield node.name, "no zero point, which means uint8; TensorRT would read it as int8 and halve the range"
        elif zero is None:
            yield node.name, "the zero point is computed, not constant"
        elif zero.dtype == np.uint8:
            yield node.name, "uint8; TensorRT would read it as int8 and halve the range"
        elif zero.any():
            yield node.name, "the zero point is not 0"


def _int32_bias(view: GraphView) -> Breaches:
    for node in view.nodes:
        value = view.array(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if value is not None and value.dtype == np.int32:
            yield node.name, "dequantises int32 (a quantised bias); TensorRT's parser refuses it"


def _scale(view: GraphView) -> Breaches:
    for node in _quantisers(view):
        scale = view.array(node.input[1])
        if scale is None:
            yield node.name, "the scale is computed, not constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node.name, "a scale is not finite and positive"
        elif scale.dtype == np.float16 and (scale < SMALLEST_HALF).any():
            yield node.name, f"a scale is below the smallest normal fp16, {SMALLEST_HALF:.2g}"


def _qdq_pair(view: GraphView) -> Breaches:
    for node in view.nodes:
        if node.op_type == "QuantizeLinear":
            readers = view.after(node)
            if not readers or any(r.op_type != "DequantizeLinear" for r in readers):
                yield node.name, "is not followed by DequantizeLinear alone"
            elif any(not _same_value(view, node.input[1], r.input[1]) for r in readers):
                yield node.name, "its DequantizeLinear has another scale"


def _same_value(view: GraphView, a: str, b: str) -> bool:
    left, right = view.array(a), view.array(b)
    return a == b or (left is not None and right is not None and np.array_equal(left, right))


def _axis(view: GraphView) -> Breaches:
    for node in _quantisers(view):
        scale = view.array(node.input[1])
        if scale is None or scale.ndim == 0 or scale.size == 1:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        made = view.maker.get(node.input[0])
        if node.input[0] not in view.constants and not (made and made.input[0] in view.constants):
            yield node.name, "scales per channel on an activation; TensorRT takes them on weights only"
        elif axis != 0:
            yield node.name, f"scales along axis {axis} of a weight; TensorRT takes axis 0"


def _shared_scale(view: GraphView) -> Breaches:
    for node in view.nodes:
        if node.op_type not in ("MaxPool", "Concat"):
            continue
        grids = [view.maker[n].input[1] for n in node.input if view.made_by(n, "DequantizeLinear")]
        if not grids or len(grids) < len(node.input):
            continue
        grids += [r.input[1] for r in view.after(node) if r.op_type == "QuantizeLinear"]
        if any(not _same_value(view, grids[0], other) for other in grids[1:]):
            yield node.name, f"{node.op_type} joins different scales, which costs another rounding pass"


def _split_fusion(view: GraphView) -> Breaches:
    for node in view.nodes:
        if node.op_type != "Conv":
            continue
        for reader in view.after(node):
            dequantised = [d for d in view.after(reader) if reader.op_type == "QuantizeLinear"]
            if any(r.op_type == "Relu" for d in dequantised for r in view.after(d)):
                yield node.name, "is quantised before its ReLU, so TensorRT cannot fuse the convolution and the ReLU"


def _resize(view: GraphView) -> Breaches:
    for node in view.nodes:
        if node.op_type != "Resize":
            continue
        attributes = {a.name: a.s.decode() for a in node.attribute}
        given = [len(node.input) > i and bool(node.input[i]) for i in (1, 2, 3)]
        if given[0] or given[1] == given[2]:
            yield node.name, "needs exactly one of scales and sizes, without the other inputs"
        if attributes.get("mode") != "linear":
            yield node.name, f"interpolates {attributes.get('mode', 'nearest')}, not linear"
        how = attributes.get("coordinate_transformation_mode", "half_pixel")
        if how not in ("half_pixel", "pytorch_half_pixel"):
            yield node.name, f"places pixels by {how}, not by half_pixel"


def _lone_island(view: GraphView) -> Breaches:
    for node in view.nodes:
        if node.op_type == "Conv" and view.made_by(node.input[0], "Cast"):
            readers = view.after(node)
            if readers and all(r.op_type == "Cast" for r in readers):
                yield node.name, "is a convolution alone between two casts; TensorRT folds it back into fp16"


def _overflow(view: GraphView) -> Breaches:
    for name in view.constants:
        value = view.constant(name)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            yield name, "a constant is not finite; it may have been too large for fp16"


def _size(view: GraphView) -> Breaches:
    scaled = [n for n in view.nodes if n.op_type == "Resize" and len(n.input) > 2 and n.input[2]]
    for name, sides in view.sides.items():
        if scaled and any(side % 32 for side in sides):
            size = "x".join(map(str, sides))
            yield scaled[0].name, f"resizes by factors, but {name} of {size} does not halve evenly five times"


RULES: dict[str, Callable[[GraphView], Breaches]] = {
    "zero point": _zero_point, "int32 bias": _int32_bias, "scale": _scale, "Q/DQ pair": _qdq_pair, "axis": _axis,
    "shared scale": _shared_scale, "split fusion": _split_fusion, "Resize": _resize, "lone island": _lone_island,
    "overflow": _overflow, "size": _size,
}  # fmt: skip
_QUANTISE = "quantise it with u2export trt --int8, which writes what TensorRT takes"
ADVICE = {
    **dict.fromkeys(RULES, _QUANTISE),
    "Resize": "export it again with u2export trt",
    "lone island": "keep the ReLU or the sum behind it in fp32 as well",
    "overflow": "export it again with conditioning, or in fp32",
    "size": "give sides that are multiples of 32, or a graph that resizes to sizes",
    "opset": "export with the rest in fp32 (opset 17), or build with a newer TensorRT",
}
