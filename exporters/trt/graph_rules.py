"""The rules a typed graph has to keep: what TensorRT would refuse, misread or undo, found before building."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from u2export.errors import UserError
from u2export.exporters.trt.typed_graph import QUANTISERS, TINY_HALF, Wires, opset_of

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Problem:
    """What TensorRT would refuse, misread or undo.

    Attributes:
        rule: its name, one of `RULES`.
        node: the node it was found at.
        text: what is wrong, in words.
    """

    rule: str
    node: str
    text: str


def lint(model: onnx.ModelProto, opset: int) -> list[Problem]:
    """Every problem found in a graph before it is built, for a version that knows operators up to `opset`."""
    wires = Wires(model)
    problems = [Problem(rule, node, text) for rule, check in RULES.items() for node, text in check(wires)]
    if (have := opset_of(model)) > opset:
        problems.append(Problem("opset", "graph", f"opset {have}, this TensorRT's parser knows {opset} at most"))
    return problems


def refuse(problems: Iterable[Problem]) -> None:
    """Raise UserError with the first problem and the number of others, if there is any."""
    found = list(problems)
    if found:
        first = found[0]
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(f"not built: {first.node}: {first.text} ({first.rule}{more})", ADVICE[first.rule])


Found = Iterator[tuple[str, str]]


def _quantisers(wires: Wires) -> Iterator[onnx.NodeProto]:
    return (n for n in wires.nodes if n.op_type in QUANTISERS)


def _zero_points(wires: Wires) -> Found:
    for node in _quantisers(wires):
        zero = wires.array(node.input[2]) if len(node.input) > 2 else None
        if len(node.input) < 3 or not node.input[2]:
            yield node.name, "no zero point, which means uint8; TensorRT would read it as int8 and halve the range"
        elif zero is None:
            yield node.name, "the zero point is computed, not constant"
        elif zero.dtype == np.uint8:
            yield node.name, "uint8; TensorRT would read it as int8 and halve the range"
        elif zero.any():
            yield node.name, "the zero point is not 0"


def _int32(wires: Wires) -> Found:
    for node in wires.nodes:
        value = wires.array(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if value is not None and value.dtype == np.int32:
            yield node.name, "dequantises int32 (a quantised bias); TensorRT's parser refuses it"


def _scale_values(wires: Wires) -> Found:
    for node in _quantisers(wires):
        scale = wires.array(node.input[1])
        if scale is None:
            yield node.name, "the scale is computed, not constant"
        elif not (np.isfinite(scale).all() and (scale > 0).all()):
            yield node.name, "a scale is not finite and positive"
        elif scale.dtype == np.float16 and (scale < TINY_HALF).any():
            yield node.name, f"a scale is below the smallest normal fp16, {TINY_HALF:.2g}"


def _pairs(wires: Wires) -> Found:
    for node in wires.nodes:
        if node.op_type == "QuantizeLinear":
            readers = wires.after(node)
            if not readers or any(r.op_type != "DequantizeLinear" for r in readers):
                yield node.name, "not followed by DequantizeLinear alone"
            elif any(not _same(wires, node.input[1], r.input[1]) for r in readers):
                yield node.name, "its DequantizeLinear has another scale"


def _same(wires: Wires, a: str, b: str) -> bool:
    left, right = wires.array(a), wires.array(b)
    return a == b or (left is not None and right is not None and np.array_equal(left, right))


def _axes(wires: Wires) -> Found:
    for node in _quantisers(wires):
        scale = wires.array(node.input[1])
        if scale is None or scale.ndim == 0 or scale.size == 1:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        made = wires.maker.get(node.input[0])
        if node.input[0] not in wires.constants and not (made and made.input[0] in wires.constants):
            yield node.name, "scales per channel on an activation; TensorRT takes them on weights only"
        elif axis != 0:
            yield node.name, f"scales along axis {axis} of a weight; TensorRT takes axis 0"


def _groups(wires: Wires) -> Found:
    for node in wires.nodes:
        if node.op_type not in ("MaxPool", "Concat"):
            continue
        grids = [wires.maker[n].input[1] for n in node.input if wires.made_by(n, "DequantizeLinear")]
        if not grids or len(grids) < len(node.input):
            continue
        grids += [r.input[1] for r in wires.after(node) if r.op_type == "QuantizeLinear"]
        if any(not _same(wires, grids[0], other) for other in grids[1:]):
            yield node.name, f"{node.op_type} joins different scales, which costs another rounding pass"


def _split(wires: Wires) -> Found:
    for node in wires.nodes:
        if node.op_type != "Conv":
            continue
        for reader in wires.after(node):
            dequantised = [d for d in wires.after(reader) if reader.op_type == "QuantizeLinear"]
            if any(r.op_type == "Relu" for d in dequantised for r in wires.after(d)):
                yield node.name, "quantised between the convolution and its ReLU, which keeps them from being fused"


def _resizes(wires: Wires) -> Found:
    for node in wires.nodes:
        if node.op_type != "Resize":
            continue
        attributes = {a.name: a.s.decode() for a in node.attribute}
        given = [len(node.input) > i and bool(node.input[i]) for i in (1, 2, 3)]
        if given[0] or given[1] == given[2]:
            yield node.name, "needs exactly one of scales and sizes, the other inputs absent"
        if attributes.get("mode") != "linear":
            yield node.name, f"interpolates {attributes.get('mode', 'nearest')}, not linear"
        how = attributes.get("coordinate_transformation_mode", "half_pixel")
        if how not in ("half_pixel", "pytorch_half_pixel"):
            yield node.name, f"places pixels by {how}, not by half_pixel"


def _lone_islands(wires: Wires) -> Found:
    for node in wires.nodes:
        if node.op_type == "Conv" and wires.made_by(node.input[0], "Cast"):
            readers = wires.after(node)
            if readers and all(r.op_type == "Cast" for r in readers):
                yield node.name, "a convolution alone between two casts; TensorRT folds it back into fp16"


def _overflow(wires: Wires) -> Found:
    for name in wires.constants:
        value = wires.array(name)
        if value is not None and value.dtype.kind == "f" and not np.isfinite(value).all():
            yield name, "a constant is not finite; it may have been too large for fp16"


def _sizes(wires: Wires) -> Found:
    scaled = [n for n in wires.nodes if n.op_type == "Resize" and len(n.input) > 2 and n.input[2]]
    for name, sides in wires.sides.items():
        if scaled and any(side % 32 for side in sides):
            size = "x".join(map(str, sides))
            yield scaled[0].name, f"resizes by factors, which input {name} of {size} does not halve evenly down to"


RULES: dict[str, Callable[[Wires], Found]] = {
    "zero point": _zero_points, "int32 bias": _int32, "scale": _scale_values, "Q/DQ pair": _pairs, "axis": _axes,
    "shared scale": _groups, "split fusion": _split, "Resize": _resizes, "lone island": _lone_islands,
    "overflow": _overflow, "size": _sizes,
}  # fmt: skip
_QUANTISE = "quantise it with u2export trt --int8, which writes what TensorRT takes"
ADVICE = {
    **dict.fromkeys(RULES, _QUANTISE),
    "Resize": "export it again with u2export trt",
    "lone island": "keep the ReLU or the sum behind it in fp32 as well",
    "overflow": "export it again without --no-condition, or in fp32",
    "size": "give sides that are multiples of 32, or a graph that resizes to sizes",
    "opset": "export with --rest fp32 (opset 17), or build with a newer TensorRT",
}
