"""Which convolutions read the channels that a convolution's ReLU writes, for a PyTorch module and for ONNX.

Both kinds of graph are reduced to the same few kinds of operators (`Op`); the routes are found on these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError

if TYPE_CHECKING:
    import onnx
    from torch import fx, nn

Doubles = NDArray[np.float64]

# How the names of the operators begin that stand for outputs of an ONNX graph.
OUTPUT = ":output "


@dataclass
class Conv:
    """One convolution in float64.

    Attributes:
        name: dotted module name, or the ONNX node's name.
        weight: (outputs, inputs, height, width).
        bias: (outputs,).
        border: "same" (zero padding that keeps the size), "none" (no padding), or "other".
    """

    name: str
    weight: Doubles
    bias: Doubles
    border: str


@dataclass(frozen=True)
class Op:
    """One operator: what it does to channels, and which operators it reads.

    Attributes:
        kind: "conv", "relu", "linear" (a resize or an identity: it maps a constant plane to itself and sums to sums),
            "max pool", "add", "concat" (along channels), "input", or "other".
    """

    kind: str
    name: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """A convolution that reads the channels of a producer; its input channel `offset` is the producer's first."""

    conv: str
    offset: int


@dataclass(frozen=True)
class Route:
    """The way from a convolution with its ReLU to every convolution that reads it.

    Attributes:
        producer: name of the convolution.
        readers: in the order in which they were found.
        blocked: another reader that a shift cannot pass ("max pool", "add", "output" …); empty if there is none.
    """

    producer: str
    readers: tuple[Reader, ...] = ()
    blocked: str = ""


@dataclass
class Network:
    """Operators by name and convolutions by name, both in execution order; `users` are the readers of an operator."""

    ops: dict[str, Op]
    convs: dict[str, Conv]
    users: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.users = {name: [] for name in self.ops}
        for op in self.ops.values():
            for source in dict.fromkeys(op.inputs):
                self.users[source].append(op.name)

    def channels(self, name: str) -> int:
        """The number of channels that an operator writes; 0 where it is unknown."""
        op = self.ops[name]
        if op.kind == "conv":
            return len(self.convs[name].bias)
        if op.kind in ("input", "other"):
            return 0
        widths = [self.channels(source) for source in op.inputs]
        if op.kind == "concat":
            return sum(widths) if all(widths) else 0
        return max(widths, default=0)

    def routes(self) -> list[Route]:
        """One route for every convolution that only a ReLU reads."""
        found = []
        for name in self.convs:
            tail = name
            while len(self.users[tail]) == 1 and self.ops[self.users[tail][0]].kind == "linear":
                tail = self.users[tail][0]
            if [self.ops[user].kind for user in self.users[tail]] == ["relu"]:
                readers, blocked = self._readers(self.users[tail][0], 0)
                found.append(Route(name, tuple(readers), blocked if blocked or readers else "output"))
        return found

    def _readers(self, name: str, offset: int) -> tuple[list[Reader], str]:
        readers: list[Reader] = []
        blocked = ""
        for user in self.users[name]:
            op = self.ops[user]
            if op.kind == "conv":
                if self.convs[user].border == "other":
                    blocked = blocked or "unusual convolution"
                readers.append(Reader(user, offset))
            elif op.kind in ("linear", "concat"):
                for start in self._starts(op, name):
                    more, stop = self._readers(user, offset + start) if start >= 0 else ([], "concat of unknown width")
                    readers += more
                    blocked = blocked or stop
            else:
                shown = "output" if op.name.startswith(OUTPUT) else op.name
                blocked = blocked or (shown if op.kind == "other" else op.kind)
        return readers, blocked if self.users[name] else "output"

    def _starts(self, op: Op, source: str) -> Iterable[int]:
        """Where the channels of the source begin among those of an operator, for each read; -1 where it is unknown."""
        if op.kind == "linear":
            yield 0
            return
        widths = [self.channels(name) for name in op.inputs]
        for position, name in enumerate(op.inputs):
            if name == source:
                yield sum(widths[:position]) if all(widths[:position]) else -1


def border(kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], pads: Sequence[int]) -> str:
    """How a convolution treats the image border, as `Conv.border` says; `pads` holds top, left, bottom, right."""
    if not any(pads):
        return "none"
    keep = [d * (k - 1) / 2 for k, d in zip(kernel, dilation, strict=True)]
    same = list(pads) == keep * 2 and all(k % 2 for k in kernel) and all(s == 1 for s in stride)
    return "same" if same else "other"


def from_module(model: nn.Module) -> Network:
    """The network of a PyTorch module whose batch norms are folded (see `fold_batch_norm`)."""
    from torch import fx, nn

    graph = fx.symbolic_trace(model).graph
    modules = dict(model.named_modules())
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    convs = {
        name: module_conv(name, module)
        for name in called
        if isinstance(module := modules[name], nn.Conv2d) and module.groups == 1 and called.count(name) == 1
    }
    ops: dict[str, Op] = {}
    label: dict[fx.Node, str] = {}
    shapes: set[fx.Node] = set()
    for node in graph.nodes:
        kind = _module_kind(node, modules, convs)
        if kind == "shape" or (kind == "part" and node.args[0] in shapes):
            shapes.add(node)
            continue
        label[node] = str(node.target) if kind == "conv" else f":{node.name}"
        data = node.all_input_nodes
        if kind == "linear":
            data = data[:1]  # a target size that another tensor gives carries no channels
        if kind == "concat":
            data = list(node.args[0])  # all_input_nodes names a repeated tensor only once
        kind = "other" if kind == "part" else kind
        ops[label[node]] = Op(kind, label[node], tuple(label[n] for n in data if n in label))
    return Network(ops, convs)


def module_conv(name: str, module: nn.Conv2d) -> Conv:
    """Weights, bias and border of a PyTorch convolution without groups."""
    weight = module.weight.detach().double().numpy()
    bias = np.zeros(len(weight)) if module.bias is None else module.bias.detach().double().numpy()
    pads = module.padding if isinstance(module.padding, tuple) else (-1, -1)
    kind = border(module.kernel_size, module.stride, module.dilation, (*pads, *pads))
    return Conv(name, weight, bias, kind if module.padding_mode == "zeros" else "other")


def _module_kind(node: fx.Node, modules: Mapping[str, nn.Module], convs: Mapping[str, Conv]) -> str:
    import operator

    import torch
    from torch import nn
    from torch.nn import functional as F

    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        module = modules[str(node.target)]
        known: dict[type[nn.Module], str] = {
            nn.ReLU: "relu", nn.Identity: "linear", nn.Upsample: "linear", nn.MaxPool2d: "max pool",
        }  # fmt: skip
        return "conv" if str(node.target) in convs else known.get(type(module), "other")
    if node.op == "call_function":
        if node.target is getattr:
            return "shape" if node.args[1] == "shape" else "other"
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        functions: dict[Any, str] = {
            F.relu: "relu", F.interpolate: "linear", F.max_pool2d: "max pool", operator.add: "add",
            operator.getitem: "part", torch.cat: "concat" if dim == 1 else "other",
        }  # fmt: skip
        return functions.get(node.target, "other")
    return "shape" if node.op == "call_method" and node.target == "size" else "other"


def from_onnx(model: onnx.ModelProto) -> Network:
    """The network of an ONNX graph with float32 convolutions.

    Raises:
        UserError: the weights of a convolution are not float32 constants, as in a quantised or fp16 model.
    """
    constants = _constants(model)
    convs: dict[str, Conv] = {}
    ops = {f":{i.name}": Op("input", f":{i.name}") for i in model.graph.input}
    made = {i.name: f":{i.name}" for i in model.graph.input}
    for node in model.graph.node:
        kind = _onnx_kind(node)
        if kind == "shape":
            continue
        name = conv_name(node) if kind == "conv" else f":{node.output[0]}"
        if kind == "conv":
            convs[name] = _onnx_conv(name, node, constants)
        data = node.input[:1] if kind in ("conv", "linear", "relu", "max pool") else node.input
        ops[name] = Op(kind, name, tuple(made[i] for i in data if i in made))
        made.update(dict.fromkeys(node.output, name))
    for output in model.graph.output:
        key = f"{OUTPUT}{output.name}"
        ops[key] = Op("other", key, tuple(made[i] for i in (output.name,) if i in made))
    return Network(ops, convs)


def conv_name(node: onnx.NodeProto) -> str:
    """Name of a convolution in an ONNX graph: that of its node, or that of its output where the node has none."""
    return str(node.name or node.output[0])


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constant tensors of a graph by name: initialisers and Constant nodes."""
    found = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _onnx_kind(node: onnx.NodeProto) -> str:
    attributes = _attributes(node)
    if node.op_type == "Conv":
        return "conv" if attributes.get("group", 1) == 1 else "other"
    if node.op_type == "Concat":
        return "concat" if attributes["axis"] in (1, -3) else "other"
    if node.op_type == "Resize":
        # A crop fills what lies outside the picture with another constant.
        crop = attributes.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
        return "other" if crop else "linear"
    known = {"Relu": "relu", "MaxPool": "max pool", "Add": "add", "Upsample": "linear", "Identity": "linear"}
    return known.get(node.op_type, "shape" if node.op_type in ("Shape", "Constant") else "other")


def _onnx_conv(name: str, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Conv:
    import onnx
    from onnx import numpy_helper

    tensors = [constants.get(i) for i in node.input[1:]]
    if any(t is None or t.data_type != onnx.TensorProto.FLOAT for t in tensors):
        raise UserError(
            f"the weights of convolution {name} are not float32 constants", "give the fp32 model, before quantisation"
        )
    arrays = [numpy_helper.to_array(t).astype(np.float64) for t in tensors if t is not None]
    if not arrays or arrays[0].ndim < 3:
        raise UserError(f"the weights of convolution {name} have no kernel", "give a U²-Net in ONNX")
    weight = arrays[0]
    attributes = _attributes(node)
    kernel, ones = weight.shape[2:], [1] * (weight.ndim - 2)
    stride, dilation = attributes.get("strides", ones), attributes.get("dilations", ones)
    pads = attributes.get("pads", [0, 0] * len(kernel))
    if attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)] * 2
    bias = arrays[1] if len(arrays) > 1 else np.zeros(len(weight))
    return Conv(name, weight, bias, border(kernel, stride, dilation, pads))
