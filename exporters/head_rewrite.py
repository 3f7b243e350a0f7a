"""The head of a U²-Net in a faster form that computes the same: fewer wide maps, and no convolution with one output.

The published head has three expensive habits on CPUs. A 3x3 convolution with one output channel at full size uses
matrix kernels badly. Five up-samplings write full-size maps. A 1x1 convolution reads all six of them. Here the 1x1
fusion is folded into the side convolutions, which is exact because up-sampling is linear. A side convolution at full or
half size computes blocks of outputs as channels, and DepthToSpace spreads them. Two matrix products up-sample all other
side maps and add them at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.reference.image import Floats
from u2export.reference.onnx_graph import GraphView
from u2export.reference.onnx_session import open_graph

if TYPE_CHECKING:
    import onnx

BLOCK = 4  # outputs of a block, in height and in width
LARGE = 0.5  # sides of at least this share of the output's height are computed in blocks
EXACT = 1e-4  # largest difference of d0 that rounding of fp32 explains, also where logits are large


@dataclass(frozen=True)
class _Side:
    """A side output: its convolution, the tensor that the fusion reads, and its height and width."""

    conv: onnx.NodeProto
    resize: onnx.NodeProto | None
    size: tuple[int, int]


def with_fast_head(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of an fp32 graph with the faster head, or the graph itself where its head has another form.

    The graph must have a fixed size and the fused map d0 as its only output. The result is compared with the graph on
    one random input; where rounding does not explain the difference, the graph itself is returned.
    """
    found = _Head.of(model)
    if found is None:
        return model
    made = found.rewritten()
    x = np.random.default_rng(0).normal(size=found.input_shape).astype(np.float32)
    before, after = (open_graph(m).run(None, {m.graph.input[0].name: x})[0] for m in (model, made))
    return made if np.abs(before - after).max() < EXACT else model


class _Head:
    """The head of one graph: side convolutions, up-sampling, Concat, a 1x1 convolution and a sigmoid."""

    def __init__(
        self, model: onnx.ModelProto, view: GraphView, sides: list[_Side], fusion: onnx.NodeProto, last: onnx.NodeProto
    ) -> None:
        self.model, self.view, self.sides, self.fusion, self.last = model, view, sides, fusion, last
        self.input_shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
        self.constants: dict[str, NDArray[Any]] = {}

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Head | None:
        """Find the head; None where the graph ends in another way or has a free size."""
        view = GraphView(model)
        if len(view.outputs) != 1 or len(view.inputs) != 1:
            return None
        if not all(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim):
            return None
        last = view.maker[next(iter(view.outputs))]
        fusion = view.maker.get(last.input[0]) if last.op_type == "Sigmoid" else None
        if fusion is None or fusion.op_type != "Conv" or len(fusion.input) != 3:
            return None
        stack = view.maker.get(fusion.input[0])
        if stack is None or stack.op_type != "Concat" or view.constant(fusion.input[1]).shape[2:] != (1, 1):
            return None
        sides = _sides(model, view, stack)
        return cls(model, view, sides, fusion, last) if sides else None

    def rewritten(self) -> onnx.ModelProto:
        """A copy of the graph with the faster head."""
        import onnx
        from onnx import helper, numpy_helper

        stack = self.view.maker[self.fusion.input[0]]
        gone = {n.name for n in (stack, self.fusion, self.last, *(s.conv for s in self.sides))}
        gone |= {s.resize.name for s in self.sides if s.resize is not None}
        nodes = [n for n in self.view.nodes if n.name not in gone]
        weight = self.view.constant(self.fusion.input[1])[:, :, 0, 0].astype(np.float64)
        maps = len(weight)
        full: list[str] = []
        small: list[tuple[str, tuple[int, int]]] = []
        for i, side in enumerate(self.sides):
            name = self._conv(nodes, side, weight[:, i * maps : (i + 1) * maps], add_bias=i == 0)
            if side.resize is None:
                full.append(name)
            else:
                small.append((name, side.size))
        if small:
            full.append(self._upsampled(nodes, small))
        nodes.append(helper.make_node("Sum", full, ["head_logit"], "/head/sum"))
        nodes.append(helper.make_node("Sigmoid", ["head_logit"], list(self.last.output), self.last.name))
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        graph = made.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        used = {name for n in nodes for name in n.input}
        kept = [t for t in graph.initializer if t.name in used - self.constants.keys()]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.constants.items())
        return onnx.shape_inference.infer_shapes(made)

    @property
    def _size(self) -> tuple[int, int]:
        return next(s.size for s in self.sides if s.resize is None)

    def _conv(self, nodes: list[onnx.NodeProto], side: _Side, fold: NDArray[np.float64], add_bias: bool) -> str:
        """Write a side's convolution with the fusion folded in; returns the name of its map."""
        from onnx import helper

        node = side.conv
        weight = np.einsum("ko,ochw->kchw", fold, self.view.constant(node.input[1]).astype(np.float64))
        bias = fold @ self.view.constant(node.input[2]).astype(np.float64)
        if add_bias:
            bias = bias + self.view.constant(self.fusion.input[2])
        maps, channels = weight.shape[:2]
        blocks = side.size[0] >= LARGE * self._size[0] and not (side.size[0] % BLOCK or side.size[1] % BLOCK)
        attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1]}
        made = node.output[0]
        if blocks:
            wide = np.zeros((BLOCK, BLOCK, maps, channels, BLOCK + 2, BLOCK + 2))
            for i in range(BLOCK):
                for j in range(BLOCK):
                    wide[i, j, :, :, i : i + 3, j : j + 3] = weight
            weight = wide.reshape(-1, *wide.shape[3:])  # the order of channels that DepthToSpace calls DCR
            bias = np.tile(bias, BLOCK * BLOCK)
            attributes |= {"kernel_shape": [BLOCK + 2] * 2, "strides": [BLOCK] * 2}
            made = f"{node.output[0]}_blocks"
        self.constants[f"{node.input[1]}_head"] = weight.astype(np.float32)
        self.constants[f"{node.input[2]}_head"] = bias.astype(np.float32)
        inputs = [node.input[0], f"{node.input[1]}_head", f"{node.input[2]}_head"]
        nodes.append(helper.make_node("Conv", inputs, [made], node.name, dilations=[1, 1], group=1, **attributes))
        if blocks:
            name = f"{node.name}/DepthToSpace"
            nodes.append(helper.make_node("DepthToSpace", [made], [node.output[0]], name, blocksize=BLOCK, mode="DCR"))
        return str(node.output[0])

    def _upsampled(self, nodes: list[onnx.NodeProto], small: list[tuple[str, tuple[int, int]]]) -> str:
        """Write the sum of all smaller maps at full size as two matrix products; returns its name."""
        from onnx import helper

        height, width = self._size
        wide = []
        for i, (name, (_, w)) in enumerate(small):
            self.constants[f"head_columns_{i}"] = np.ascontiguousarray(upsampling(w, width).T)
            wide.append(f"head_wide_{i}")
            nodes.append(helper.make_node("MatMul", [name, f"head_columns_{i}"], [wide[-1]], f"/head/wide{i}"))
        self.constants["head_rows"] = np.concatenate([upsampling(h, height) for _, (h, _) in small], 1)
        nodes.append(helper.make_node("Concat", wide, ["head_wide"], "/head/stack", axis=2))
        nodes.append(helper.make_node("MatMul", ["head_rows", "head_wide"], ["head_tall"], "/head/tall"))
        return "head_tall"


def _sides(model: onnx.ModelProto, view: GraphView, stack: onnx.NodeProto) -> list[_Side]:
    """The side outputs in the order of the fusion; empty where one of them has another form."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    sides = []
    for name in stack.input:
        node = view.maker.get(name)
        resize = node if node is not None and node.op_type == "Resize" else None
        conv = view.maker.get(resize.input[0]) if resize is not None else node
        shape = shapes.get(conv.output[0], []) if conv is not None else []
        if conv is None or not _plain(conv, view) or len(shape) != 4 or (resize is not None and not _linear(resize)):
            return []
        sides.append(_Side(conv, resize, (shape[2], shape[3])))
    return sides if any(s.resize is None for s in sides) else []


def _plain(conv: onnx.NodeProto, view: GraphView) -> bool:
    """Whether a node is a 3x3 convolution with bias and padding 1 that only one node reads."""
    from onnx import helper

    if conv.op_type != "Conv" or len(conv.input) != 3 or len(view.readers[conv.output[0]]) != 1:
        return False
    given = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    ones = all(set(given.get(name, [1])) == {1} for name in ("strides", "dilations"))
    weight = view.array(conv.input[1])
    padded = list(given.get("pads", [])) == [1] * 4 and given.get("group", 1) == 1
    return ones and padded and weight is not None and weight.shape[2:] == (3, 3)


def _linear(resize: onnx.NodeProto) -> bool:
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    modes = (b"half_pixel", b"pytorch_half_pixel")
    return given.get("mode") == b"linear" and given.get("coordinate_transformation_mode", b"half_pixel") in modes


def upsampling(small: int, large: int) -> Floats:
    """Return the matrix (large, small) of bilinear up-sampling along one axis, with half-pixel centres."""
    at = ((np.arange(large) + 0.5) * small / large - 0.5).clip(0, small - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, small - 1)
    made = np.zeros((large, small))
    made[np.arange(large), low] += 1 - (at - low)
    made[np.arange(large), high] += at - low
    return made.astype(np.float32)
