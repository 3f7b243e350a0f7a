"""Graphs with their precisions written into them, as TensorRT wants them: fp16 with fp32 islands.

TensorRT 10 in strong typing, 11 and RTX compute in the types the graph says; 8.5 to 10 in weak typing choose among
the types allowed. One graph serves all of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection
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
