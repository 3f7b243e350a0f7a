"""The outline of an ONNX graph: its nodes and the names they join, read without the onnx package and without weights.

The outline says where the maps of U²-Net leave a graph that somebody else exported: the fused map d0 is a convolution
over the concatenation of the side maps, whatever the outputs are called and wherever they stand.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from u2export.reference.onnx_files import Malformed, fields, numbers

FLOAT, FLOAT16 = 1, 10  # TensorProto.DataType
CONVOLUTIONS = ("Conv", "QLinearConv")
CONCATENATIONS = ("Concat", "QLinearConcat")
SIGMOIDS = ("Sigmoid", "QLinearSigmoid", "HardSigmoid", "Softmax", "QLinearSoftmax")
# Operators between a map's convolution and the output, beside the sigmoids. They have one input that depends on the
# picture. Sub and Div have two where the graph stretches the map by its own minimum and maximum.
PASSING = (
    "Identity", "Cast", "Transpose", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Resize", "Upsample", "Clip",
    "QuantizeLinear", "DequantizeLinear", "Add", "Mul", "Slice", "Gather",
)  # fmt: skip
STRETCHING = ("Sub", "Div")
QUANTISING = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger")


@dataclass(frozen=True)
class Node:
    """A node: its operator and the names of its tensors."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Way:
    """The way back from a tensor: the operators that it passes, and the node where the way ends."""

    passed: tuple[str, ...]
    end: Node | None


@dataclass(frozen=True)
class Outline:
    """A graph without its weights.

    Attributes:
        nodes: all nodes, in the order of the file.
        inputs, outputs: names of the graph's inputs without the initialisers, and of its outputs.
        types: how many initialisers have each type of `TensorProto.DataType`.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: dict[int, int] = field(default_factory=dict)

    @cached_property
    def _maker(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def _data(self) -> set[str]:
        """Names of the tensors that depend on an input's values, not on its shape alone."""
        found = set(self.inputs)
        for node in self.nodes:
            if node.op not in ("Shape", "Size") and found.intersection(node.inputs):
                found.update(node.outputs)
        return found

    @property
    def precision(self) -> str:
        """What is stored: "int8" where the graph quantises, "fp16" where most weights are fp16, else "fp32"."""
        if any(node.op in QUANTISING for node in self.nodes):
            return "int8"
        return "fp16" if self.types.get(FLOAT16, 0) > self.types.get(FLOAT, 0) else "fp32"

    def back(self, name: str) -> Way:
        """Follow a tensor back to the convolution, the concatenation or the unknown operator that made it."""
        passed: list[str] = []
        while (node := self._maker.get(name)) and len(passed) <= len(self.nodes):  # a damaged graph may be a circle
            data = [i for i in node.inputs if i in self._data]
            passes = (len(data) == 1 and node.op in (*PASSING, *SIGMOIDS)) or node.op in STRETCHING
            if not passes or not data:
                return Way(tuple(passed), node)
            passed.append(node.op)
            name = data[0]
        return Way(tuple(passed), None)

    def is_fused(self, name: str) -> bool:
        """Whether a tensor is a map that one convolution makes of a concatenation of maps, as d0 is."""
        conv = self.back(name).end
        if conv is None or conv.op not in CONVOLUTIONS:
            return False
        joint = self.back(conv.inputs[0]).end
        if joint is None or joint.op not in CONCATENATIONS:
            return False
        ends = [self.back(side).end for side in joint.inputs if side in self._data]
        return len(ends) > 1 and all(end is not None and end.op in CONVOLUTIONS for end in ends)

    def holds_logits(self, name: str) -> bool | None:
        """Whether a map leaves its convolution without a sigmoid; None where the graph does not tell."""
        way = self.back(name)
        if any(op in SIGMOIDS for op in way.passed):
            return False
        return True if way.end and way.end.op in CONVOLUTIONS and not set(way.passed) & {*STRETCHING, "Clip"} else None


def read_outline(path: Path) -> Outline | None:
    """Return the outline of an `.onnx`; None where the file is something else, such as an `.ort`."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            graph = next((value for number, value in fields(data) if number == 7), None)
            return None if graph is None else _outline(graph)
    except (Malformed, UnicodeDecodeError, OSError, ValueError):
        return None


def _outline(graph: memoryview) -> Outline:
    nodes, inputs, outputs = [], [], []
    constants, types = set(), dict[int, int]()
    for number, value in fields(graph):
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            constants.add(_text(value, 8))
            kind = next((kind for n, kind in numbers(value) if n == 2), 0)
            types[kind] = types.get(kind, 0) + 1
        elif number == 11:
            inputs.append(_text(value, 1))
        elif number == 12:
            outputs.append(_text(value, 1))
    return Outline(tuple(nodes), tuple(i for i in inputs if i not in constants), tuple(outputs), types)


def _node(data: memoryview) -> Node:
    pairs = [(number, bytes(value).decode()) for number, value in fields(data) if number in (1, 2, 4)]
    inputs, outputs = (tuple(text for n, text in pairs if n == number) for number in (1, 2))
    return Node(next((text for n, text in pairs if n == 4), ""), inputs, outputs)


def _text(data: memoryview, wanted: int) -> str:
    return next((bytes(value).decode() for number, value in fields(data) if number == wanted), "")
