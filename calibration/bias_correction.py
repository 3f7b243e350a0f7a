"""The mean error that quantisation brings to every output channel, for biases that make up for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges
from u2export.calibration.quant_plan import Plan, QuantSpec, Scales, float_nodes, round_weight, weight_scale
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import GraphView, conv_nodes, opset_of, with_outputs
from u2export.reference.onnx_session import run

if TYPE_CHECKING:
    import onnx


def bias_errors(
    model: onnx.ModelProto, ranges: Ranges, spec: QuantSpec, inputs: Iterable[Floats]
) -> dict[str, NDArray[np.float64]]:
    """Mean error that quantisation brings to each output channel of each convolution, by the convolution's name.

    Every convolution runs twice on the float network's activations, once as it is and once with weights and input
    rounded; the difference is averaged over photos and pixels (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", ICCV 2019, section 4.2, with measured means). One photo is held at a time.
    """
    view = GraphView(model)
    plan = Plan(view, spec, float_nodes(model, spec))
    scales = Scales(view, plan, ranges, spec)
    convs = [n for n in conv_nodes(model) if plan.quantised(n) and len(n.input) > 2 and n.input[2] in view.constants]
    probe, names = _probe(model, view, convs, scales, spec)
    total, photos = [np.zeros(1) for _ in convs], 0
    for errors in run(probe, inputs, names):
        total = [t + e.ravel() for t, e in zip(total, errors, strict=True)]
        photos += 1
    return {conv.name: t / photos for conv, t in zip(convs, total, strict=True)}


def _probe(
    model: onnx.ModelProto, view: GraphView, convs: Sequence[onnx.NodeProto], scales: Scales, spec: QuantSpec
) -> tuple[onnx.ModelProto, list[str]]:
    """The float graph with, for every convolution, the mean difference of its rounded twin for each channel."""
    import onnx
    from onnx import helper, numpy_helper

    axes = np.array([0, 2, 3], np.int64)
    opset = opset_of(model)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {"probe_axes": axes}
    rounded: dict[str, str] = {}
    names = []
    for i, conv in enumerate(convs):
        entry, grid = conv.input[0], scales.of(conv.input[0])
        if grid and entry not in rounded:
            rounded[entry] = f"probe_{len(rounded)}_input"
            constants[f"{rounded[entry]}_scale"] = np.array(grid[0], np.float32)
            constants[f"{rounded[entry]}_zero"] = np.array(grid[1], np.int8 if spec.signed else np.uint8)
            by = [f"{rounded[entry]}_scale", f"{rounded[entry]}_zero"]
            nodes.append(helper.make_node("QuantizeLinear", [entry, *by], [f"{rounded[entry]}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{rounded[entry]}_q", *by], [rounded[entry]]))
        weight = view.constant(conv.input[1])
        scale = weight_scale(weight, bits=spec.weight_bits)
        constants[f"probe_weight_{i}"] = round_weight(weight, scale, spec.weight_bits) * scale.reshape(-1, 1, 1, 1)
        twin = onnx.NodeProto()
        twin.CopyFrom(conv)
        twin.name = f"probe_{i}"
        twin.input[0], twin.input[1], twin.output[0] = rounded.get(entry, entry), f"probe_weight_{i}", f"probe_{i}"
        names.append(f"probe_{i}_error")
        nodes += [twin, helper.make_node("Sub", [f"probe_{i}", conv.output[0]], [f"probe_{i}_difference"])]
        if opset >= 18:
            nodes.append(helper.make_node("ReduceMean", [f"probe_{i}_difference", "probe_axes"], names[-1:]))
        else:
            nodes.append(helper.make_node("ReduceMean", [f"probe_{i}_difference"], names[-1:], axes=axes.tolist()))
    probe = with_outputs(model, nodes, names)
    probe.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return probe, names
