"""Bias correction: the mean error that quantisation adds to each output channel, for biases that subtract it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges
from u2export.calibration.quant_plan import Plan, QuantSpec, Scales, float_nodes, weight_scale
from u2export.calibration.weight_rounding import Rounded, steps_of
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import GraphView, conv_nodes, opset_of, with_outputs
from u2export.reference.onnx_session import run

if TYPE_CHECKING:
    import onnx


def bias_errors(
    model: onnx.ModelProto, ranges: Ranges, spec: QuantSpec, inputs: Iterable[Floats], rounded: Rounded | None = None
) -> dict[str, NDArray[np.float64]]:
    """Measure the mean error that quantisation adds to each output channel of each convolution.

    Every convolution runs twice on the activations of the float network: as it is, and as a twin with rounded weights
    and rounded input. The difference is averaged over photos and pixels. Only one photo is in memory at a time.
    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
    4.2; here the means are measured.

    Args:
        model: the fp32 graph.
        ranges: of its activations, from `observe`.
        spec: how the graph will be quantised.
        inputs: network inputs (1, C, H, W).
        rounded: weights that are not rounded to their nearest steps, from `rounded_weights`.

    Returns:
        Errors (output channels,) by the name of the convolution's node.

    Raises:
        UserError: there are no photos, or a tensor has no usable range.
    """
    view = GraphView(model)
    plan = Plan(view, spec, float_nodes(model, spec))
    convs = [n for n in conv_nodes(model) if plan.quantised(n) and len(n.input) > 2 and n.input[2] in view.constants]
    twins = _Twins(view, Scales(view, plan, ranges, spec), spec, opset_of(model), rounded or {})
    names = [twins.add(i, conv) for i, conv in enumerate(convs)]
    total, photos = [np.zeros(1) for _ in convs], 0
    for errors in run(twins.beside(model, names), inputs, names):
        total = [t + e.ravel() for t, e in zip(total, errors, strict=True)]
        photos += 1
    return {conv.name: t / photos for conv, t in zip(convs, total, strict=True)}


class _Twins:
    """Nodes and constants of the rounded twins of convolutions, each followed by the mean of its difference."""

    def __init__(self, view: GraphView, scales: Scales, spec: QuantSpec, opset: int, steps: Rounded) -> None:
        self.view, self.scales, self.spec, self.opset, self.steps = view, scales, spec, opset, steps
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {"probe_axes": np.array([0, 2, 3], np.int64)}
        self.rounded: dict[str, str] = {}  # by the name of a tensor: the name of the same tensor after its Q/DQ pair

    def beside(self, model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
        """The float graph with the twins, and the named tensors as its outputs."""
        from onnx import numpy_helper

        probe = with_outputs(model, self.nodes, names)
        probe.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in self.constants.items())
        return probe

    def add(self, index: int, conv: onnx.NodeProto) -> str:
        """Add the twin of a convolution; returns the name of its mean error, a tensor (1, output channels, 1, 1)."""
        import onnx
        from onnx import helper

        name = f"probe_{index}"
        twin = onnx.NodeProto()
        twin.CopyFrom(conv)
        twin.name = name
        twin.input[0] = self._entry(conv.input[0])
        twin.input[1] = self._weight(index, conv)
        twin.output[0] = name
        self.nodes += [twin, helper.make_node("Sub", [name, conv.output[0]], [f"{name}_difference"])]
        self.nodes.append(self._mean(f"{name}_difference", f"{name}_error"))
        return f"{name}_error"

    def _entry(self, tensor: str) -> str:
        """The input of a twin: the tensor after its Q/DQ pair, or the tensor itself where the plan has no pair."""
        from onnx import helper

        grid = self.scales.of(tensor)
        if grid and tensor not in self.rounded:
            made = f"probe_{len(self.rounded)}_input"
            self.constants[f"{made}_scale"] = np.array(grid[0], np.float32)
            self.constants[f"{made}_zero"] = np.array(grid[1], np.int8 if self.spec.signed else np.uint8)
            by = [f"{made}_scale", f"{made}_zero"]
            self.nodes.append(helper.make_node("QuantizeLinear", [tensor, *by], [f"{made}_q"]))
            self.nodes.append(helper.make_node("DequantizeLinear", [f"{made}_q", *by], [made]))
            self.rounded[tensor] = made
        return self.rounded.get(tensor, tensor)

    def _weight(self, index: int, conv: onnx.NodeProto) -> str:
        """The weight of a twin: rounded to its grid, stored in float."""
        weight = self.view.constant(conv.input[1])
        scale = weight_scale(weight, pair_safe=self.spec.pair_safe)
        steps = steps_of(self.steps, conv.name, weight, scale, self.spec.pair_safe)
        self.constants[f"probe_weight_{index}"] = steps * scale.reshape(-1, 1, 1, 1)
        return f"probe_weight_{index}"

    def _mean(self, tensor: str, name: str) -> onnx.NodeProto:
        """Mean over photos and pixels; from opset 18 on, the axes are an input."""
        from onnx import helper

        if self.opset >= 18:
            return helper.make_node("ReduceMean", [tensor, "probe_axes"], [name])
        return helper.make_node("ReduceMean", [tensor], [name], axes=self.constants["probe_axes"].tolist())
