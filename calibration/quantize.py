"""8-bit graphs for any runtime: an fp32 ONNX graph and the ranges of its activations give a graph with Q/DQ pairs.

Two tools could do this, and neither fits. ONNX Runtime's `quantize_static` holds every tensor of every photo and knows
neither float layers nor shared scales. NNCF writes unsigned pairs without zero points, which TensorRT misreads.
Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; per-channel weights: Wu et al., "Integer Quantization for Deep Learning Inference", 2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Ranges, observe
from u2export.calibration.bias_correction import bias_errors
from u2export.calibration.quant_plan import TENSORRT, Plan, QuantSpec, Scales, float_nodes, weight_scale
from u2export.calibration.weight_rounding import Rounded, rounded_weights, steps_of
from u2export.errors import UserError
from u2export.reference.image import Floats
from u2export.reference.onnx_file import check_onnx
from u2export.reference.onnx_graph import GraphView, opset_of

if TYPE_CHECKING:
    import onnx

SCHEMA_OPSET = 13
# Photos used for calibration. More photos add outliers that widen the ranges: 100 photos were worse on small objects.
PHOTOS = 32


def quantize(
    model: onnx.ModelProto,
    ranges: Ranges,
    spec: QuantSpec = TENSORRT,
    errors: Mapping[str, NDArray[np.float64]] | None = None,
    rounded: Rounded | None = None,
) -> onnx.ModelProto:
    """Return a copy of a graph with Q/DQ pairs.

    Args:
        model: fp32, opset 13 or later; it is not changed.
        ranges: of the activations, from `observe`.
        spec: the scheme.
        errors: from `bias_errors`; the biases of quantised convolutions subtract them.
        rounded: from `rounded_weights`; other weights are rounded to their nearest steps.

    Raises:
        UserError: the opset is below 13, the graph is quantised already, a name in `keep_float` matches no node, a
            tensor has no range, or its range is empty or not finite.
    """
    _check_model(model)
    view = GraphView(model)
    kept = float_nodes(model, spec)
    plan = Plan(view, spec, kept)
    scales = Scales(view, plan, ranges, spec)
    made = _Rewriter(model, view, plan, scales, spec, errors or {}, rounded or {}).model()
    check_qdq(made)
    return made


def _check_model(model: onnx.ModelProto) -> None:
    opset = opset_of(model)
    if opset < SCHEMA_OPSET:
        raise UserError(
            f"per-channel Q/DQ needs opset {SCHEMA_OPSET}, the graph has {opset}", "export it with opset 17"
        )
    if any(n.op_type in ("QuantizeLinear", "QLinearConv", "ConvInteger") for n in model.graph.node):
        raise UserError("the graph is quantised already", "start from the fp32 graph")
    names = [n.name for n in model.graph.node]
    if "" in names or len(set(names)) != len(names):
        raise UserError("nodes of the graph lack names of their own", "export it with u2export")


class _Rewriter:
    """Writes the quantised graph: nodes in their order, each pair before the first node that reads it."""

    def __init__(
        self,
        model: onnx.ModelProto,
        view: GraphView,
        plan: Plan,
        scales: Scales,
        spec: QuantSpec,
        errors: Mapping[str, NDArray[np.float64]],
        steps: Rounded,
    ) -> None:
        self.source, self.view, self.plan, self.scales, self.spec = model, view, plan, scales, spec
        self.errors, self.steps = errors, steps
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.rounded: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        """The quantised graph with inferred shapes."""
        import onnx
        from onnx import numpy_helper

        for node in self.view.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for i, name in enumerate(node.input):
                if (node.name, name) in self.plan.reads:
                    copy.input[i] = self._activation(name)
            if node.op_type == "Conv" and self.plan.quantised(node):
                self._weights(copy, node)
            self.nodes.append(copy)
        made = onnx.ModelProto()
        made.CopyFrom(self.source)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self.nodes)
        used = {name for n in self.nodes for name in n.input}
        kept = [t for t in made.graph.initializer if t.name in used]
        del made.graph.initializer[:]
        made.graph.initializer.extend(kept)
        made.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in self.constants.items())
        return onnx.shape_inference.infer_shapes(made)

    def _activation(self, name: str) -> str:
        """Name of a tensor after its pair; the pair is written on first use."""
        from onnx import helper

        if name not in self.rounded:
            grid = self.scales.of(name)
            assert grid, name
            scale, zero = grid
            self.constants[f"{name}_scale"] = np.array(scale, np.float32)
            self.constants[f"{name}_zero_point"] = np.array(zero, np.int8 if self.spec.signed else np.uint8)
            with_grid = [f"{name}_scale", f"{name}_zero_point"]
            q, dq = f"{name}_quantized", f"{name}_dequantized"
            self.nodes += [
                helper.make_node("QuantizeLinear", [name, *with_grid], [q], f"{name}/QuantizeLinear"),
                helper.make_node("DequantizeLinear", [q, *with_grid], [dq], f"{name}/DequantizeLinear"),
            ]
            self.rounded[name] = dq
        return self.rounded[name]

    def _weights(self, copy: onnx.NodeProto, node: onnx.NodeProto) -> None:
        name = node.input[1]
        weight, bias = self.view.constant(name).astype(np.float32), self._bias(node)
        grid = self.scales.of(node.input[0]) if self.spec.bias else None
        entry = grid[0] if grid else None
        scale = weight_scale(weight, bias, entry, self.spec.pair_safe)
        self.constants[f"{name}_quantized"] = steps_of(self.steps, node.name, weight, scale, self.spec.pair_safe)
        copy.input[1] = self._dequantized(name, scale, np.int8)
        if bias is not None and entry is not None:
            sums = (entry * scale).astype(np.float32)
            self.constants[f"{node.input[2]}_quantized"] = np.rint(bias / sums).astype(np.int32)
            copy.input[2] = self._dequantized(node.input[2], sums, np.int32)
        elif bias is not None and node.name in self.errors:
            self.constants[f"{node.input[2]}_corrected"] = bias.astype(np.float32)
            copy.input[2] = f"{node.input[2]}_corrected"

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """The bias to store, corrected where an error is known; None where the node has no constant bias."""
        if len(node.input) < 3 or node.input[2] not in self.view.constants:
            return None
        return np.asarray(self.view.constant(node.input[2]) - self.errors.get(node.name, 0.0), np.float64)

    def _dequantized(self, name: str, scale: NDArray[np.float32], dtype: type) -> str:
        from onnx import helper

        self.constants[f"{name}_scale"] = scale
        self.constants[f"{name}_zero_point"] = np.zeros(len(scale), dtype)
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}/DequantizeLinear", axis=0)
        )
        return f"{name}_dequantized"


def check_qdq(model: onnx.ModelProto) -> None:
    """Check what every runtime needs of a Q/DQ graph.

    Raises:
        UserError: onnx.checker refuses the graph, a scale is not finite and positive, or the scales of channels and the
            channels differ in number.
    """
    check_onnx(model, "the quantised graph", "report it")
    view = GraphView(model)
    for node in view.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, channels = view.constant(node.input[1]), view.constants.get(node.input[0])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UserError(f"{node.name}: a scale is not finite and positive", "give more varied photos")
        if scale.ndim and (channels is None or len(scale) != channels.dims[0]):
            raise UserError(f"{node.name}: {len(scale)} scales do not fit its tensor", "report it")


def calibration_method(spec: QuantSpec) -> str:
    """The method of `observe` that measured best for a scheme: "minmax", and "mse" where activations are signed.

    Behind a ReLU, signed activations have only 7 bits, so clipping outliers helps.
    """
    return "mse" if spec.signed else "minmax"


def calibrated(model: onnx.ModelProto, photos: Iterable[Floats], spec: QuantSpec, method: str = "") -> onnx.ModelProto:
    """Return the 8-bit graph by the recipe that measured best: ranges, rounded weights, biases without mean error.

    Args:
        model: fp32, conditioned.
        photos: network inputs (1, C, H, W), read several times; 16 to 32 varied photos are enough.
        spec: where and how to quantise.
        method: of `observe`; `calibration_method` by default.
    """
    ranges = observe(model, photos, method=method or calibration_method(spec), signed=spec.signed)
    steps = rounded_weights(model, photos, spec)
    return quantize(model, ranges, spec, bias_errors(model, ranges, spec, photos, steps), steps)
