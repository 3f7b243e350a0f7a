"""ONNX graphs with their precisions written into them: reading these precisions, and writing fp16 with fp32 islands.

TensorRT 10 in strong typing, 11 and RTX compute in the types that the graph gives. TensorRT 8.5 to 10 in weak typing
choose among the types that flags allow. One graph serves all of them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.reference.onnx_graph import MOVING, GraphView, opset_of

if TYPE_CHECKING:
    import onnx

# Smallest normal fp16 number. A smaller scale loses digits, or becomes 0, which TensorRT refuses.
SMALLEST_HALF = float(np.finfo(np.float16).tiny)
LARGEST_HALF = float(np.finfo(np.float16).max)
# Larger biases undo large constant channels. Rounding such a channel to fp16 leaves an error that a mask shows.
LARGE_BIAS = 200.0
# The first opset that quantises to and from fp16.
HALF_QDQ_OPSET = 19
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


def precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Return what each convolution computes in, "int8", "fp16" or "fp32", by the name of its node."""
    from onnx import TensorProto

    view = GraphView(model)
    half = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}

    def of(node: onnx.NodeProto) -> str:
        if view.rounded(node.input[0]) and view.made_by(node.input[1], "DequantizeLinear"):
            return "int8"
        weight = node.input[1]
        if weight not in view.constants and weight in view.maker:
            weight = view.maker[weight].input[-1]
        return "fp16" if weight in half else "fp32"

    return {node.name: of(node) for node in view.nodes if node.op_type == "Conv"}


def scales(model: onnx.ModelProto) -> dict[str, float]:
    """Return the scale of every quantised activation, by the tensor's name. An int8 value q stands for q x scale."""
    view = GraphView(model)
    found = {}
    for node in view.nodes:
        scale = view.array(node.input[1]) if node.op_type == "QuantizeLinear" else None
        if scale is not None and node.input[0] not in view.constants:
            found[str(node.input[0])] = float(scale)
    return found


# --- fp16 -------------------------------------------------------------------------------------------------------


def islands(model: onnx.ModelProto) -> set[str]:
    """Return the nodes that must stay in fp32 where all others become fp16, in a network that was not conditioned.

    A convolution with a bias over `LARGE_BIAS` makes or undoes a large constant channel, and rounding to fp16 spoils
    the channel. The convolution stays in fp32 with the nodes that `island` adds, and with the nodes that only move
    values from one such convolution to another.
    """
    view = GraphView(model)
    found: set[str] = set()
    for node in view.nodes:
        bias = view.array(node.input[2]) if node.op_type == "Conv" and len(node.input) > 2 else None
        if bias is not None and np.abs(bias).max() > LARGE_BIAS:
            found |= island(view, node)
    return found | _between(view, found)


def _between(view: GraphView, found: set[str]) -> set[str]:
    """Return the nodes that only move values, on a way from one node of a set to another."""
    behind, ahead = set(found), set(found)
    for node in view.nodes:
        if node.op_type in MOVING and any(maker.name in behind for maker in view.sources(node)):
            behind.add(node.name)
    for node in reversed(view.nodes):
        if node.op_type in MOVING and any(reader.name in ahead for reader in view.after(node)):
            ahead.add(node.name)
    return behind & ahead


def island(view: GraphView, conv: onnx.NodeProto) -> set[str]:
    """Return a convolution with its activation and the sum that reads it.

    TensorRT leaves no smaller group of nodes in fp32 when it builds.
    """
    found, queue = {conv.name}, view.after(conv)
    while queue:
        node = queue.pop()
        if node.op_type in ("Relu", "Clip", "Add", "Sigmoid"):
            found.add(node.name)
            queue += view.after(node) if node.op_type != "Add" else []
    return {str(name) for name in found}


def chosen_islands(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Return the islands around the nodes with these names.

    Args:
        model: the graph. names: names of nodes, or regular expressions that match whole names.

    Raises:
        UserError: a name matches no node.
    """
    view = GraphView(model)
    found: set[str] = set()
    for name in names:
        for node in view.matching(name):
            found |= island(view, node)
    return found | _between(view, found)


def to_half(model: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph with weights and activations in fp16. Its inputs and outputs stay in fp32.

    Scales of quantisation become fp16 as well. A scale of weights that fp16 cannot hold becomes the smallest normal
    fp16 number, and its weights are rounded anew. A graph with Q/DQ pairs is converted to opset 19, which they need.

    Args:
        model: the fp32 graph, with or without Q/DQ pairs. keep: names of the nodes that stay in fp32.

    Raises:
        UserError: a constant is too large for fp16.
    """
    import onnx

    if any(n.op_type in QUANTISERS for n in model.graph.node) and opset_of(model) < HALF_QDQ_OPSET:
        model = onnx.version_converter.convert_version(model, HALF_QDQ_OPSET)
    return _HalfWriter(onnx.shape_inference.infer_shapes(model), keep).model()


class _HalfWriter:
    """Writes the fp16 graph of one fp32 graph."""

    def __init__(self, model: onnx.ModelProto, keep: Collection[str]) -> None:
        from onnx import TensorProto

        self.source, self.keep, self.view = model, keep, GraphView(model)
        graph = model.graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        types |= {t.name: t.data_type for t in graph.initializer}
        self.floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.halves: set[str] = set()  # tensors that the nodes written so far make in fp16
        self.casts: dict[tuple[str, bool], str] = {}

    def model(self) -> onnx.ModelProto:
        import onnx
        from onnx import numpy_helper

        for node in self.view.nodes:
            self._write(node)
        made = onnx.ModelProto()
        made.CopyFrom(self.source)
        graph = made.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for n in self.nodes for name in n.input}
        unchanged = [t for t in graph.initializer if t.name in used - self.constants.keys()]
        del graph.initializer[:]
        graph.initializer.extend(unchanged)
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.constants.items() if name in used)
        return onnx.shape_inference.infer_shapes(made)

    def _write(self, node: onnx.NodeProto) -> None:
        """Append a copy of a node that reads and makes tensors of the right type."""
        import onnx
        from onnx import TensorProto, helper

        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        half = node.name not in self.keep
        for i, name in enumerate(node.input):
            if name in self.floats and not (node.op_type == "Resize" and i in (1, 2)):
                copy.input[i] = self._read(name, half)
        if half and node.op_type == "DequantizeLinear" and node.input[0] in self.view.constants:
            copy.input[0] = self._weight(node)
        self.nodes.append(copy)
        for i, name in enumerate(node.output):
            if name not in self.floats or not half:
                continue
            self.halves.add(name)
            if name in self.view.outputs:
                copy.output[i] = f"{name}_half"
                self.nodes.append(
                    helper.make_node("Cast", [copy.output[i]], [name], f"{name}/Cast", to=TensorProto.FLOAT)
                )

    def _read(self, name: str, half: bool) -> str:
        """Return the name of a tensor in fp16 or fp32; the first use adds the cast."""
        from onnx import TensorProto, helper

        if name in self.view.constants:
            return self._constant(name) if half else name
        if (name in self.halves) == half:
            return name
        if (name, half) not in self.casts:
            to, kind = ("half", TensorProto.FLOAT16) if half else ("float", TensorProto.FLOAT)
            self.casts[name, half] = f"{name}_{to}"
            self.nodes.append(helper.make_node("Cast", [name], [f"{name}_{to}"], f"{name}/Cast_{to}", to=kind))
        return self.casts[name, half]

    def _constant(self, name: str) -> str:
        """Return the name of a constant's fp16 copy."""
        if f"{name}_half" not in self.constants:
            value = self.view.constant(name)
            if value.size and np.abs(value).max() > LARGEST_HALF:
                raise UserError(
                    f"the constant {name} holds {np.abs(value).max():.3g}, fp16 holds {LARGEST_HALF:g} at most",
                    "export with conditioning, or keep its layer in fp32",
                    "keep_float",
                )
            is_scale = any(n.op_type in QUANTISERS for n in self.view.readers[name])
            self.constants[f"{name}_half"] = (np.maximum(value, SMALLEST_HALF) if is_scale else value).astype(
                np.float16
            )
        return f"{name}_half"

    def _weight(self, node: onnx.NodeProto) -> str:
        """Return the name of an int8 weight, rounded to the grid of its fp16 scale."""
        name = node.input[0]
        stored, scale = self.view.constant(name), self.view.constant(node.input[1])
        ratio = scale.astype(np.float64) / self.constants[f"{node.input[1]}_half"].astype(np.float64)
        shaped = ratio.reshape(-1, *[1] * (stored.ndim - 1)) if ratio.ndim else ratio
        self.constants[f"{name}_half"] = np.clip(np.rint(stored * shaped), -127, 127).astype(np.int8)
        return f"{name}_half"
