"""How much work each convolution of a graph does: multiply-accumulates, or the time that 8 bit saves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from u2export.errors import UserError
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import conv_nodes, with_outputs
from u2export.reference.onnx_session import profiled, run

if TYPE_CHECKING:
    import onnx


def layer_macs(model: onnx.ModelProto, x: Floats | None = None) -> dict[str, int]:
    """Return the multiply-accumulates of every convolution with constant weights, by the name of its node.

    Args:
        model: the graph.
        x: a network input (1, C, H, W), whose size counts; the graph's own fixed size by default.

    Raises:
        UserError: the size of the graph's input is not fixed, and no input is given.
    """
    shapes = _stated_shapes(model) if x is None else _seen_shapes(model, x)
    weights = {t.name: t.dims for t in model.graph.initializer}
    macs = {n.name: int(np.prod(weights[n.input[1]])) * _area(shapes.get(n.output[0], [])) for n in conv_nodes(model)}
    if not macs or not all(macs.values()):
        raise UserError("the work of each layer is known only for a graph of fixed size", "export it with a fixed size")
    return macs


def _stated_shapes(model: onnx.ModelProto) -> dict[str, Sequence[int]]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}


def _seen_shapes(model: onnx.ModelProto, x: Floats) -> dict[str, Sequence[int]]:
    names = [n.output[0] for n in conv_nodes(model)]
    (maps,) = run(with_outputs(model, (), names), [x], names)
    return {name: made.shape for name, made in zip(names, maps, strict=True)}


def _area(shape: Sequence[int]) -> int:
    return int(np.prod(shape[2:])) * (shape[0] or 1) if len(shape) == 4 else 0


def saved_time(model: onnx.ModelProto, quantised: onnx.ModelProto, x: Floats, rounds: int = 5) -> dict[str, float]:
    """Measure the nanoseconds that 8 bit saves in each convolution on this machine.

    The times come from ONNX Runtime's profiles of both graphs, as medians over rounds. Each time is at least 1, so that
    a layer that gains nothing has almost no cost.

    Args:
        model, quantised: the fp32 graph and its 8-bit form.
        x: one network input (1, C, H, W).
        rounds: runs of each graph after one warm-up.

    Raises:
        UserError: the profile does not show a layer.
    """
    before, after = (_kernel_times(m, x, rounds) for m in (model, quantised))
    names = [n.name for n in conv_nodes(model)]
    if lost := [n for n in names if n not in before or n not in after]:
        raise UserError(
            f"ONNX Runtime's profile does not show {lost[0]}", "let the search weigh layers by multiply-accumulates"
        )
    return {name: max(1.0, before[name] - after[name]) for name in names}


def _kernel_times(model: onnx.ModelProto, x: Floats, rounds: int) -> dict[str, float]:
    """Median nanoseconds of every convolution's kernel, by the name of its node."""
    layers = _kernel_names(model)
    times: dict[str, list[float]] = {}
    for event in profiled(model, x, rounds + 1):
        kernel = re.sub(r"(_nchwc|_token_\d+)*_kernel_time$", "", str(event.get("name")))
        if event.get("cat") == "Node" and kernel in layers:
            times.setdefault(layers[kernel], []).append(1000.0 * event["dur"])
    return {name: float(np.median(t[1:])) for name, t in times.items()}  # the first round is a warm-up


def _kernel_names(model: onnx.ModelProto) -> dict[str, str]:
    """Convolutions by the names of their kernels.

    A kernel is named after the node, or after the tensor that the node or its fused activation makes.
    """
    readers = {name: node for node in model.graph.node for name in node.input}
    names: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            after = readers.get(node.output[0])
            names |= dict.fromkeys((node.name, node.output[0], *(after.output if after else ())), node.name)
    return names
