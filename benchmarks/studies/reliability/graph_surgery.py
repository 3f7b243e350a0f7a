"""Changes of ONNX graphs: each function makes one change, or returns a function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from u2export.reference.image import Contract

Model = Any
Change = Callable[[Model], Any]
# An operator to insert: its kind, its further inputs by name, and its attributes.
Operator = tuple[str, dict[str, NDArray[Any]], dict[str, Any]]


def node(model: Model, name: str) -> NodeProto:
    """Return the node of this name."""
    found: NodeProto = next(n for n in model.graph.node if n.name == name)
    return found


def nodes(model: Model, kind: str) -> list[NodeProto]:
    """Return all nodes of an operator, in the order of the graph."""
    return [n for n in model.graph.node if n.op_type == kind]


def get(model: Model, name: str) -> NDArray[Any]:
    """Return a copy of the values of an initializer."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def put(model: Model, name: str, values: NDArray[Any]) -> None:
    """Replace an initializer, or add one."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), name))
            return
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def number(value: float) -> NDArray[Any]:
    """Return a scalar for a graph."""
    return np.array(value, np.float32)


def edit(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Change one initializer."""
    return lambda model: put(model, name, change(get(model, name)))


def each_weight(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Change the weights (O, I, kH, kW) of every convolution."""

    def mutate(model: Model) -> None:
        for conv in nodes(model, "Conv"):
            put(model, conv.input[1], change(get(model, conv.input[1])))

    return mutate


def channel(index: int, factor: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Scale one output channel."""

    def change(values: NDArray[Any]) -> NDArray[Any]:
        values[index] *= factor
        return values

    return change


def rounded(bits: int, axis: tuple[int, ...] | None = None) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Round values to a symmetric grid of this many bits.

    The grid has one step for all values, or one step for each index of the first axis if `axis` names the others.
    """

    def change(values: NDArray[Any]) -> NDArray[Any]:
        step = np.abs(values).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.asarray(np.rint(values / np.maximum(step, 1e-12)) * step, np.float32)

    return change


def set_attribute(target: NodeProto, name: str, value: Any) -> None:
    """Set an attribute of a node, and remove its old value."""
    kept = [a for a in target.attribute if a.name != name]
    del target.attribute[:]
    target.attribute.extend([*kept, helper.make_attribute(name, value)])


def resizes(attribute: str, value: str, which: Callable[[str], bool] = lambda name: True) -> Change:
    """Set an attribute of the Resize nodes whose names `which` accepts."""

    def mutate(model: Model) -> None:
        for resize in nodes(model, "Resize"):
            if which(resize.name):
                set_attribute(resize, attribute, value)

    return mutate


def bypass(name: str) -> Change:
    """Remove a node. Its first input replaces its output."""

    def mutate(model: Model) -> None:
        gone = node(model, name)
        for other in model.graph.node:
            for i, entry in enumerate(other.input):
                if entry == gone.output[0]:
                    other.input[i] = gone.input[0]
        model.graph.node.remove(gone)

    return mutate


def at_input(*ops: Operator) -> Change:
    """Insert operators between the input of the graph and the nodes that read it."""

    def mutate(model: Model) -> None:
        last = "image"
        made = []
        for i, (kind, more, attributes) in enumerate(ops):
            for name, values in more.items():
                put(model, f"fault_{i}_{name}", values)
            inputs = [last, *(f"fault_{i}_{name}" for name in more)]
            made.append(helper.make_node(kind, inputs, [last := f"fault_{i}"], **attributes))
        for other in model.graph.node:
            other.input[:] = [last if entry == "image" else entry for entry in other.input]
        for new in reversed(made):
            model.graph.node.insert(0, new)

    return mutate


def at_output(*ops: Operator) -> Change:
    """Insert operators between the node that makes the mask and the output of the graph."""

    def mutate(model: Model) -> None:
        maker = next(n for n in model.graph.node if "mask" in n.output)
        maker.output[:] = [last := "fault_start"]
        for i, (kind, more, attributes) in enumerate(ops):
            for name, values in more.items():
                put(model, f"fault_{i}_{name}", values)
            inputs = [last, *(f"fault_{i}_{name}" for name in more)]
            last = "mask" if i == len(ops) - 1 else f"fault_{i}"
            model.graph.node.append(helper.make_node(kind, inputs, [last], **attributes))

    return mutate


def renormalised(mean: Sequence[float], std: Sequence[float]) -> Change:
    """Change the network input to what another mean and another deviation would give."""
    right = Contract()
    old_mean, old_std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (right.mean, right.std))
    new_mean, new_std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (mean, std))
    return at_input(
        ("Mul", {"scale": old_std / new_std}, {}), ("Add", {"shift": (old_mean - new_mean) / new_std}, {})
    )  # fmt: skip


def gathered(order: Sequence[int], axis: int) -> Operator:
    """Return a Gather operator along an axis."""
    return "Gather", {"order": np.array(order, np.int64)}, {"axis": axis}


def source_of_mask(name: str) -> Change:
    """Feed another tensor into the last Sigmoid."""

    def mutate(model: Model) -> None:
        node(model, "/Sigmoid").input[0] = name

    return mutate


def reorder(name: str, order: Sequence[int]) -> Change:
    """Put the inputs of a node in another order."""

    def mutate(model: Model) -> None:
        found = node(model, name)
        found.input[:] = [found.input[i] for i in order]

    return mutate


def through_fp16(name: str, factor: float) -> Change:
    """Multiply the output of a node by a factor, round it to fp16, and divide by the factor again."""

    def mutate(model: Model) -> None:
        found, out = node(model, name), node(model, name).output[0]
        found.output[0] = "fault_in"
        put(model, "fault_factor", number(factor))
        chain = (
            helper.make_node("Mul", ["fault_in", "fault_factor"], ["fault_big"]),
            helper.make_node("Cast", ["fault_big"], ["fault_half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["fault_half"], ["fault_back"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["fault_back", "fault_factor"], [out]),
        )
        index = list(model.graph.node).index(found)
        for i, new in enumerate(chain, start=1):
            model.graph.node.insert(index + i, new)

    return mutate


def replaced(name: str, kind: str, inputs: Sequence[int] = (0,), **attributes: Any) -> Change:
    """Replace a node by another operator on some of its inputs."""

    def mutate(model: Model) -> None:
        found = node(model, name)
        new = helper.make_node(kind, [found.input[i] for i in inputs], list(found.output), name, **attributes)
        found.CopyFrom(new)

    return mutate


def attribute(name: str, key: str, value: Any) -> Change:
    """Set one attribute of one node."""
    return lambda model: set_attribute(node(model, name), key, value)


def noisy(share: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Add Gaussian noise to every value, with this share of the deviation of the tensor."""
    random = np.random.default_rng(0)
    return lambda values: np.asarray(values + share * values.std() * random.standard_normal(values.shape), np.float32)


def activation_scales(model: Model) -> list[str]:
    """Return the names of the scales of activations in a Q/DQ graph."""
    return [n.input[1] for n in nodes(model, "QuantizeLinear")]


def scaled(factor: float, which: Callable[[int], bool] = lambda i: True) -> Change:
    """Multiply the activation scales whose number `which` accepts by a factor."""

    def mutate(model: Model) -> None:
        for i, name in enumerate(dict.fromkeys(activation_scales(model))):
            if which(i):
                put(model, name, get(model, name) * np.float32(factor))

    return mutate
