"""An ONNX graph in memory: what is where in it, and running it for the tensors inside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import onnx

# Ops that only move or interpolate values: their output is on the input's grid, or close to it.
MOVING = ("Concat", "MaxPool", "Resize")
ACTIVATING = ("Relu", "Clip")
QUANTISED = ("Conv", "Add", *MOVING, *ACTIVATING)


class View:
    """Lookups in a graph: initialisers by name, the node that makes a tensor, the nodes that read it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.constants = {t.name: t for t in graph.initializer}
        self.inputs = [i.name for i in graph.input if i.name not in self.constants]
        self.outputs = {o.name for o in graph.output}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.data = set(self.inputs)  # everything that depends on the photo
        for node in self.nodes:
            if self.data.intersection(node.input):
                self.data.update(node.output)

    def inputs_of(self, node: onnx.NodeProto) -> list[str]:
        """The tensors of a node that are quantised with it: of a Conv or Resize the first, of others all."""
        names = list(node.input[:1] if node.op_type in ("Conv", "Resize", "Clip") else node.input)
        return [n for n in names if n in self.data or node.op_type in ("Concat", "Add")]

    def sources(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that made a node's inputs."""
        return [self.maker[n] for n in node.input if n in self.maker]

    def array(self, name: str) -> NDArray[Any]:
        """Value of an initialiser."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name])

    def fused(self, name: str) -> bool:
        """Whether a tensor is only a Conv's sum on its way into an activation, never stored by a fused kernel."""
        readers = self.readers[name]
        made_by = self.maker.get(name)
        return (
            made_by is not None
            and made_by.op_type == "Conv"
            and len(readers) == 1
            and readers[0].op_type in ACTIVATING
            and name not in self.outputs
        )


def activations(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors any placement may quantise, in execution order."""
    view = View(model)
    names = chain.from_iterable(view.inputs_of(n) for n in view.nodes if n.op_type in QUANTISED)
    return [name for name in dict.fromkeys(names) if not view.fused(name)]


def conv_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Convolutions with constant weights, in execution order."""
    view = View(model)
    return [n for n in view.nodes if n.op_type == "Conv" and n.input[1] in view.constants]


def head_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes behind the last activation or sum: side outputs, their fusion, the sigmoid."""
    view = View(model)
    found: set[str] = set()
    queue = [view.maker[name] for name in view.outputs]
    while queue:
        node = queue.pop()
        if node.name in found or node.op_type in (*ACTIVATING, "Add", "Max"):
            continue
        found.add(node.name)
        queue += view.sources(node)
    return found


def session(model: onnx.ModelProto, optimise: bool = True) -> Any:
    """An ONNX Runtime session on the CPU over a graph in memory."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads only starve others
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, inputs: Iterable[Floats], names: Sequence[str]) -> Iterator[list[NDArray[Any]]]:
    """The named tensors for each photo in turn."""
    opened = session(model)
    feed = opened.get_inputs()[0].name
    empty = True
    for x in inputs:
        empty = False
        yield opened.run(list(names), {feed: x})
    if empty:
        raise UserError("no photos to calibrate on", "give a folder of photos, for example --calib calibration/")


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
