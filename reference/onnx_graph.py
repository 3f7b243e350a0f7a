"""An ONNX graph in memory: what is where in it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from u2export.errors import UserError

if TYPE_CHECKING:
    import onnx

# Operators that only move or interpolate values. Their outputs lie on the input's grid, or close to it.
MOVING = ("Concat", "MaxPool", "Resize")
ACTIVATING = ("Relu", "Clip")
QUANTISED = ("Conv", "Add", *MOVING, *ACTIVATING)


class GraphView:
    """Lookups in an ONNX graph: constants by name, who makes a tensor, who reads it, nodes by name.

    The view does not follow later changes of the graph. Subgraphs are not looked into; U²-Net has none.

    Attributes:
        nodes: all nodes, in execution order.
        constants: the initialisers, by name.
        inputs: names of the graph's inputs that are not initialisers.
        outputs: names of the graph's outputs.
        maker: the node that makes a tensor, by the tensor's name.
        readers: the nodes that read a tensor, by the tensor's name; a tensor that nobody reads has none.
        data: names of the tensors that depend on an input.
        sides: height and width of each input, by name; 0 stands for a side that is not fixed.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {t.name: t for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.constants]
        self.outputs = {o.name for o in graph.output}
        self.sides = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim][2:] for i in graph.input}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.data = set(self.inputs)
        for node in self.nodes:
            if self.data.intersection(node.input):
                self.data.update(node.output)

    def constant(self, name: str) -> NDArray[Any]:
        """Value of an initialiser.

        Raises:
            KeyError: no initialiser has this name.
        """
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def array(self, name: str) -> NDArray[Any] | None:
        """Value of an initialiser; None for any other tensor."""
        return self.constant(name) if name in self.constants else None

    def after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that read a node's outputs."""
        return [reader for name in node.output for reader in self.readers.get(name, ())]

    def sources(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that made a node's inputs."""
        return [self.maker[n] for n in node.input if n in self.maker]

    def made_by(self, name: str, op: str) -> bool:
        """Whether an operator of this kind makes the tensor."""
        return name in self.maker and self.maker[name].op_type == op

    def rounded(self, name: str) -> bool:
        """Whether a tensor comes out of DequantizeLinear, directly or through pooling and concatenation."""
        if name not in self.maker:
            return False
        node = self.maker[name]
        moving = node.op_type in ("MaxPool", "Concat")
        return node.op_type == "DequantizeLinear" or (moving and all(map(self.rounded, node.input)))

    def fused(self, name: str) -> bool:
        """Whether a tensor is a Conv's sum that only an activation reads; fused kernels never store such a tensor."""
        readers = self.readers.get(name, ())
        return (
            self.made_by(name, "Conv")
            and len(readers) == 1
            and readers[0].op_type in ACTIVATING
            and name not in self.outputs
        )

    @cached_property
    def spread(self) -> set[str]:
        """Outputs of convolutions that DepthToSpace or MatMul reads: side maps of a head in blocks."""
        named = ("DepthToSpace", "MatMul")
        return {n for n in self.data if self.made_by(n, "Conv") and any(r.op_type in named for r in self.readers[n])}

    def inputs_of(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that are quantised with a node: the first of a Conv, Resize or Clip, all inputs of other nodes."""
        names = list(node.input[:1] if node.op_type in ("Conv", "Resize", "Clip") else node.input)
        return [n for n in names if n in self.data or node.op_type in ("Concat", "Add")]

    def matching(self, wanted: str) -> list[onnx.NodeProto]:
        """The node with this name, or else all nodes whose whole name the regular expression matches.

        Raises:
            UserError: no node is named or matched so, or `wanted` is no regular expression.
        """
        if named := [n for n in self.nodes if n.name == wanted]:
            return named
        try:
            found = [n for n in self.nodes if re.fullmatch(wanted, n.name)]
        except re.error as error:
            raise UserError(
                f"{wanted!r} is neither a node nor a regular expression: {error}",
                "give a node's name, or a regular expression that matches whole names",
            ) from None
        if not found:
            raise UserError(
                f"no node is named or matched by {wanted!r}",
                f"names look like {self.nodes[0].name}; give one, or a regular expression",
            )
        return found


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators; 0 where the graph names none."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def activations(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors any placement may quantise, in execution order."""
    view = GraphView(model)
    read = chain.from_iterable(view.inputs_of(n) for n in view.nodes if n.op_type in QUANTISED)
    names = (*read, *(n for node in view.nodes for n in node.output if n in view.spread))
    return [name for name in dict.fromkeys(names) if not view.fused(name)]


def conv_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions with constant weights, in execution order."""
    view = GraphView(model)
    return [n for n in view.nodes if n.op_type == "Conv" and n.input[1] in view.constants]


def head_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes behind the last activation or sum: side outputs, their fusion, the sigmoid."""
    view = GraphView(model)
    found: set[str] = set()
    queue = [view.maker[name] for name in view.outputs]
    while queue:
        node = queue.pop()
        if node.name in found or node.op_type in (*ACTIVATING, "Add", "Max"):
            continue
        found.add(node.name)
        queue += view.sources(node)
    return found


def with_outputs(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], names: Iterable[str]) -> onnx.ModelProto:
    """A copy with further nodes and the named float tensors as its only outputs."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.node.extend(nodes)
    del copy.graph.output[:]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in dict.fromkeys(names)
    )
    return copy
