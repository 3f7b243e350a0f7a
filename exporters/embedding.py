"""The image contract inside a model file: pixels go in, the stretched mask comes out.

The file takes a picture (1, H, W, C) uint8 of any size where the contract resizes bilinearly, because ONNX Runtime and
OpenVINO have the same filter. A contract with another filter keeps the resize outside, and the file takes pictures of
the network's size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.reference.image import FLAT, Contract
from u2export.reference.onnx_export import INPUT, OUTPUT

if TYPE_CHECKING:
    import onnx

    from u2export.reference.source import Source

# What u2export adds to a graph is named after this.
PREFIX = "/contract/"
MARK = "-uint8"


def of_pixels(source: Source) -> Source:
    """Return the source whose reference reads pictures of 8 bit, as it judges files that take uint8.

    A source that does so already is returned as it is, with the maps that it has computed.
    """
    if source.contract.rounded:
        return source
    return replace(source, contract=replace(source.contract, rounded=True))


def resizes(contract: Contract) -> bool:
    """Whether a file of this contract resizes by itself."""
    return contract.resize == "bilinear"


def note(contract: Contract) -> str:
    """Return the note for the record that says which picture the file takes."""
    if resizes(contract):
        return f"takes pictures of any size, resizes them to {contract.height}x{contract.width}"
    return f"takes pictures of {contract.height}x{contract.width}: the {contract.resize} resize stays outside"


def embedded_in_onnx(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """Return the graph with the contract before and after it.

    Args:
        model: takes (1, C, H, W) float32, gives one map (1, 1, H, W) or one for each class, which are not stretched.
        contract: pre- and postprocessing.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    entry, output = f"{PREFIX}input", f"{PREFIX}d0"
    maps = graph.output[0].type.tensor_type.shape.dim[1].dim_value
    _rename(graph, {INPUT: entry, **({OUTPUT: output} if maps == 1 else {})})
    builder = _Builder(graph)
    before = builder.preprocessing(contract, entry)
    after = builder.postprocessing(output) if maps == 1 else []
    network = list(graph.node)
    del graph.node[:]
    graph.node.extend([*before, *network, *after])
    sides = ("height", "width") if resizes(contract) else (contract.height, contract.width)
    kind = onnx.TensorProto.UINT8
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(INPUT, kind, (1, *sides, contract.channels)))
    onnx.checker.check_model(made)
    return made


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename tensors wherever a node reads or writes them; the ports of the graph keep their names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


class _Builder:
    """Writes nodes, and puts their constants into a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph

    def constant(self, name: str, value: Any) -> str:
        """Store a constant and return its name."""
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), PREFIX + name))
        return PREFIX + name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        """Return a node that is named after its output."""
        import onnx

        return onnx.helper.make_node(kind, inputs, [output], f"{PREFIX}{kind}_{output.strip('/')}", **attributes)

    def preprocessing(self, contract: Contract, result: str) -> list[onnx.NodeProto]:
        """Pixels to the network's input: resize, division by the maximum, mean and deviation."""
        import onnx

        p = PREFIX
        nodes = [
            self.node("Transpose", [INPUT], f"{p}planes", perm=[0, 3, 1, 2]),
            self.node("Cast", [f"{p}planes"], f"{p}floats", to=onnx.TensorProto.FLOAT),
        ]
        picture = f"{p}floats"
        if resizes(contract):
            sizes = self.constant("sizes", np.array(contract.shape, np.int64))
            mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            nodes.append(self.node("Resize", [picture, "", "", sizes], f"{p}resized", **mode))
            picture = f"{p}resized"
        shape = (1, contract.channels, 1, 1)
        flat = self.constant("flat", np.array(FLAT, np.float32))
        mean = self.constant("mean", np.reshape(np.array(contract.mean, np.float32), shape))
        std = self.constant("std", np.reshape(np.array(contract.std, np.float32), shape))
        return [
            *nodes,
            self.node("ReduceMax", [picture], f"{p}peak", axes=[1, 2, 3], keepdims=1),
            self.node("Max", [f"{p}peak", flat], f"{p}divisor"),
            self.node("Div", [picture, f"{p}divisor"], f"{p}scaled"),
            self.node("Sub", [f"{p}scaled", mean], f"{p}centred"),
            self.node("Div", [f"{p}centred", std], result),
        ]

    def postprocessing(self, d0: str) -> list[onnx.NodeProto]:
        """The map to the mask: its minimum becomes 0, its maximum 1."""
        p = PREFIX
        least = self.constant("least_range", np.array(FLAT, np.float32))
        axes = {"axes": [1, 2, 3], "keepdims": 1}
        return [
            self.node("ReduceMin", [d0], f"{p}low", **axes),
            self.node("ReduceMax", [d0], f"{p}high", **axes),
            self.node("Sub", [f"{p}high", f"{p}low"], f"{p}range"),
            self.node("Max", [f"{p}range", least], f"{p}safe_range"),
            self.node("Sub", [d0, f"{p}low"], f"{p}above"),
            self.node("Div", [f"{p}above", f"{p}safe_range"], OUTPUT),
        ]


def embedded_in_openvino(model: Any, contract: Contract) -> Any:
    """Return OpenVINO's model with the contract before and after it, written by its PrePostProcessor.

    Args:
        model: takes (1, C, H, W) float32, gives one map (1, 1, H, W) or one for each class, which are not stretched.
        contract: pre- and postprocessing.
    """
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    one = model.output(0).get_partial_shape()[1].get_length() == 1
    processor = PrePostProcessor(model)
    entry = processor.input()
    entry.model().set_layout(Layout("NCHW"))
    tensor = entry.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC"))
    steps = entry.preprocess().convert_element_type(Type.f32)
    if resizes(contract):
        tensor.set_spatial_dynamic_shape()
        steps = steps.resize(ResizeAlgorithm.RESIZE_LINEAR)
    steps.custom(_by_maximum).mean(list(contract.mean)).scale(list(contract.std))
    if one:
        processor.output().postprocess().custom(_stretched)
    return processor.build()


def _by_maximum(pixels: Any) -> Any:
    from openvino import opset13 as ops

    peak = ops.reduce_max(pixels, np.array([1, 2, 3]), keep_dims=True)
    return ops.divide(pixels, ops.maximum(peak, np.float32(FLAT))).output(0)


def _stretched(d0: Any) -> Any:
    from openvino import opset13 as ops

    axes = np.array([1, 2, 3])
    low, high = ops.reduce_min(d0, axes, keep_dims=True), ops.reduce_max(d0, axes, keep_dims=True)
    span = ops.maximum(ops.subtract(high, low), np.float32(FLAT))
    return ops.divide(ops.subtract(d0, low), span).output(0)
