"""Graphs with their precisions written into them, as TensorRT wants them: fp16 with fp32 islands, and the lint.

TensorRT 10 in strong typing, 11 and RTX compute in the types the graph says; 8.5 to 10 in weak typing choose among
the types allowed. One graph serves all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError

if TYPE_CHECKING:
    import onnx

# Smallest normal fp16: a smaller scale loses digits, or becomes 0, which TensorRT refuses.
TINY_HALF = float(np.finfo(np.float16).tiny)
MOST_HALF = float(np.finfo(np.float16).max)
# Biases beyond this undo large constant channels: rounded to fp16 they leave an error that a mask shows.
LARGE_BIAS = 200.0
# Quantising to and from fp16 came with this opset.
HALF_QDQ_OPSET = 19
MOVING = ("Concat", "MaxPool", "Resize")
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


class Wires:
    """Who makes and who reads each tensor of a graph, and its constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = {t.name: t for t in model.graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.sides = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][2:] for i in model.graph.input}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> NDArray[Any] | None:
        """Value of an initialiser; None for any other tensor."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that read a node's outputs."""
        return [reader for name in node.output for reader in self.readers.get(name, ())]

    def rounded(self, name: str) -> bool:
        """Whether a tensor comes out of DequantizeLinear, by way of pooling or concatenation at most."""
        if name not in self.maker:
            return False
        node = self.maker[name]
        moving = node.op_type in ("MaxPool", "Concat")
        return node.op_type == "DequantizeLinear" or (moving and all(map(self.rounded, node.input)))

    def made_by(self, name: str, op: str) -> bool:
        """Whether an operator of this kind makes the tensor."""
        return name in self.maker and self.maker[name].op_type == op


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def precisions(model: onnx.ModelProto) -> dict[str, str]:
    """What each convolution computes in, by its node's name: "int8", "fp16" or "fp32"."""
    from onnx import TensorProto

    wires = Wires(model)
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}

    def of(node: onnx.NodeProto) -> str:
        if wires.rounded(node.input[0]) and wires.made_by(node.input[1], "DequantizeLinear"):
            return "int8"
        weight = node.input[1]
        if weight not in wires.constants and weight in wires.maker:
            weight = wires.maker[weight].input[-1]
        return "fp16" if weight in half else "fp32"

    return {node.name: of(node) for node in wires.nodes if node.op_type == "Conv"}


def scales(model: onnx.ModelProto) -> dict[str, float]:
    """Scale of every quantised activation, by the tensor's name; an int8 value q stands for q times it."""
    wires = Wires(model)
    found = {}
    for node in wires.nodes:
        scale = wires.array(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is not None and node.input[0] not in wires.constants:
            found[str(node.input[0])] = float(scale)
    return found


# --- fp16 -------------------------------------------------------------------------------------------------------


def islands(model: onnx.ModelProto) -> set[str]:
    """Nodes that have to stay in fp32 where all others become fp16, in a network that was not conditioned.

    Convolutions with a bias over 200 make or undo a large constant channel, which rounding to fp16 spoils. Each stays
    with what `island` adds, and with what only moves values from one of them to another.
    """
    wires = Wires(model)
    found: set[str] = set()
    for node in wires.nodes:
        bias = wires.array(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if bias is not None and np.abs(bias).max() > LARGE_BIAS:
            found |= island(wires, node)
    return found | _between(wires, found)


def _between(wires: Wires, found: set[str]) -> set[str]:
    """Nodes that only move values, on a way from one node of a set to another."""
    behind, ahead = set(found), set(found)
    for node in wires.nodes:
        if node.op_type in MOVING and any(n in wires.maker and wires.maker[n].name in behind for n in node.input):
            behind.add(node.name)
    for node in reversed(wires.nodes):
        if node.op_type in MOVING and any(reader.name in ahead for reader in wires.after(node)):
            ahead.add(node.name)
    return behind & ahead


def island(wires: Wires, conv: onnx.NodeProto) -> set[str]:
    """A convolution with its activation, and the sum that reads it, if any: the least that stays in fp32 when built."""
    found, queue = {conv.name}, wires.after(conv)
    while queue:
        node = queue.pop()
        if node.op_type in ("Relu", "Clip", "Add", "Sigmoid"):
            found.add(node.name)
            queue += wires.after(node) if node.op_type != "Add" else []
    return {str(name) for name in found}


def chosen_islands(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Islands around the nodes that are named, or matched by regular expressions for whole names.

    Raises:
        UserError: a name matches no node.
    """
    wires = Wires(model)
    found: set[str] = set()
    for name in names:
        matched = [n for n in wires.nodes if n.name == name or re.fullmatch(name, n.name)]
        if not matched:
            raise UserError(f"no node is named or matched by {name!r}", f"names look like {wires.nodes[0].name}")
        for node in matched:
            found |= island(wires, node)
    return found | _between(wires, found)


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Weights and activations in fp16; inputs, outputs and the nodes named in `keep` in fp32.

    Scales of quantisation become fp16 as well, those of weights no smaller than fp16 can hold, their weights rounded
    anew. The graph then needs opset 19, and is converted to it.

    Raises:
        UserError: a constant is too large for fp16.
    """
    import onnx

    if any(n.op_type in QUANTISERS for n in model.graph.node) and opset_of(model) < HALF_QDQ_OPSET:
        model = onnx.version_converter.convert_version(model, HALF_QDQ_OPSET)
    return _Halver(onnx.shape_inference.infer_shapes(model), keep).model()


class _Halver:
    """Writes the fp16 graph."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str]) -> None:
        from onnx import TensorProto

        self.source, self.keep, self.wires = model, keep, Wires(model)
        graph = model.graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        types |= {t.name: t.data_type for t in graph.initializer}
        self.floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.halves: set[str] = set()  # tensors that are fp16 by now
        self.casts: dict[tuple[str, bool], str] = {}

    def model(self) -> onnx.ModelProto:
        import onnx
        from onnx import numpy_helper

        outputs = {o.name for o in self.source.graph.output}
        for node in self.wires.nodes:
            self._node(node, outputs)
        made = onnx.ModelProto()
        made.CopyFrom(self.source)
        graph = made.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for n in self.nodes for name in n.input}
        kept = [t for t in graph.initializer if t.name in used - self.constants.keys()]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.constants.items() if name in used)
        return onnx.shape_inference.infer_shapes(made)

    def _node(self, node: onnx.NodeProto, outputs: set[str]) -> None:
        import onnx
        from onnx import TensorProto, helper

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        half = node.name not in self.keep
        for i, name in enumerate(node.input):
            if name in self.floats and not (node.op_type == "Resize" and i in (1, 2)):
                copy.input[i] = self._read(name, half)
        if half and node.op_type == "DequantizeLinear" and node.input[0] in self.wires.constants:
            copy.input[0] = self._weight(node)
        self.nodes.append(copy)
        for i, name in enumerate(node.output):
            if name not in self.floats or not half:
                continue
            self.halves.add(name)
            if name in outputs:
                copy.output[i] = f"{name}_half"
                self.nodes.append(
                    helper.make_node("Cast", [copy.output[i]], [name], f"{name}/Cast", to=TensorProto.FLOAT)
                )

    def _read(self, name: str, half: bool) -> str:
        """The tensor in fp16 or fp32, cast on first use."""
        from onnx import TensorProto, helper

        if name in self.wires.constants:
            return self._constant(name) if half else name
        if (name in self.halves) == half:
            return name
        if (name, half) not in self.casts:
            to, kind = ("half", TensorProto.FLOAT16) if half else ("float", TensorProto.FLOAT)
            self.casts[name, half] = f"{name}_{to}"
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_{to}"], f"{name}/Cast_{to}", to=kind))
        return self.casts[name, half]

    def _constant(self, name: str) -> str:
        if f"{name}_half" not in self.constants:
            value = self.wires.array(name)
            assert value is not None
            if value.size and np.abs(value).max() > MOST_HALF:
                raise UserError(
                    f"the constant {name} holds {np.abs(value).max():.3g}, more than fp16 can ({MOST_HALF:g})",
                    "leave out --no-condition, or keep its layer in fp32 with --keep-float",
                )
            scaling = any(n.op_type in QUANTISERS for n in self.wires.readers[name])
            self.constants[f"{name}_half"] = (np.maximum(value, TINY_HALF) if scaling else value).astype(np.float16)
        return f"{name}_half"

    def _weight(self, node: onnx.NodeProto) -> str:
        """An int8 weight on the grid of its fp16 scale."""
        name, scale = node.input[0], self.wires.array(node.input[1])
        stored = self.wires.array(name)
        assert stored is not None and scale is not None
        ratio = scale.astype(np.float64) / self.constants[f"{node.input[1]}_half"].astype(np.float64)
        shaped = ratio.reshape(-1, *[1] * (stored.ndim - 1)) if ratio.ndim else ratio
        self.constants[f"{name}_half"] = np.clip(np.rint(stored * shaped), -127, 127).astype(np.int8)
        return f"{name}_half"


# --- lint -------------------------------------------------------------------------------------------------------


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
