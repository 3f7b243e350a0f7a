"""Backend-neutral 8-bit graphs: an fp32 ONNX graph and activation ranges give one with Q/DQ pairs.

ONNX Runtime's `quantize_static` keeps every tensor of every photo and knows neither regions nor shared scales; NNCF
writes unsigned zero-point-free pairs that TensorRT misreads. Inserting pairs is little code, so it is done here.
Scheme: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018; per-channel weights: Wu et al., "Integer Quantization for Deep Learning Inference", 2020.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import Range, Ranges, observe
from u2export.errors import UserError
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import ACTIVATING, MOVING, QUANTISED, View, conv_nodes, head_nodes, run, with_outputs

if TYPE_CHECKING:
    import onnx

PLACEMENTS = ("everywhere", "producer", "conv-input")
SCHEMA_OPSET = 13
# Of a calibration set. More only bring outliers, which widen the ranges: on small objects 100 measured worse.
PHOTOS = 32


@dataclass(frozen=True)
class QuantSpec:
    """How a graph is quantised. Weights are always int8, symmetric, one scale for each output channel.

    Attributes:
        signed: int8 activations with zero point 0 (all TensorRT accepts) or uint8 with a zero point (what ONNX
            Runtime's and OpenVINO's CPU kernels are fast in; s8 runs 3.5 times slower than u8 in the former).
        placement: "everywhere": at every tensor, so that concatenation, pooling and resizing stay in 8 bit;
            "producer": at the outputs of computing layers, pooling and concatenation on shared scales without pairs
            of their own (least memory traffic in TensorRT); "conv-input": at the convolutions' inputs only.
        heads: quantise the side outputs, their fusion and what follows as well.
        keep_float: names of nodes, or regular expressions that match whole names, to compute in float.
        raw_entry: layers kept in float read what quantised neighbours computed before it is rounded, through
            concatenation, pooling and resizing. Without it a neighbour's rounding still reaches them, and an
            unconditioned network gets worse, not better.
        bias: store biases as int32 in the scale of the accumulator (ONNX Runtime's form; TensorRT refuses it).
        weight_bits: 8, or 7 for x86 processors without VNNI, whose 16-bit sums of products saturate.
    """

    signed: bool = True
    placement: str = "producer"
    heads: bool = False
    keep_float: tuple[str, ...] = ()
    raw_entry: bool = True
    bias: bool = False
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise UserError(f"no Q/DQ placement named {self.placement!r}", f"choose one of {', '.join(PLACEMENTS)}")
        if self.weight_bits not in (7, 8):
            raise UserError(f"{self.weight_bits}-bit weights are not supported", "choose 7 or 8")


# Recipes by measurement on real photos; the accuracy table is in the benchmarks.
TENSORRT = QuantSpec(signed=True, placement="producer")
ONNX_RUNTIME = QuantSpec(signed=False, placement="everywhere", heads=True, bias=True)


def quantize(
    model: onnx.ModelProto,
    ranges: Ranges,
    spec: QuantSpec = TENSORRT,
    errors: Mapping[str, NDArray[np.float64]] | None = None,
) -> onnx.ModelProto:
    """The graph with Q/DQ pairs; the float graph is left as it is.

    Args:
        model: fp32, opset 13 or later.
        ranges: of the activations, from `observe`.
        spec: the scheme.
        errors: from `bias_errors`; the biases of quantised convolutions then make up for them.

    Raises:
        UserError: opset below 13, already quantised, a name in `keep_float` that matches no node, no range for a
            tensor that needs one, or a range that is empty or not finite.
    """
    _check_model(model)
    view = View(model)
    kept = float_nodes(model, spec)
    plan = _Plan(view, spec, kept)
    scales = _Scales(view, plan, ranges, spec)
    made = _Rewriter(model, view, plan, scales, spec, errors or {}).model()
    check(made)
    return made


def _check_model(model: onnx.ModelProto) -> None:
    opset = {o.domain: o.version for o in model.opset_import}.get("", 0)
    if opset < SCHEMA_OPSET:
        raise UserError(
            f"per-channel Q/DQ needs opset {SCHEMA_OPSET}, the graph has {opset}", "export it with --opset 17"
        )
    if any(n.op_type in ("QuantizeLinear", "QLinearConv", "ConvInteger") for n in model.graph.node):
        raise UserError("the graph is quantised already", "start from the fp32 graph")
    names = [n.name for n in model.graph.node]
    if "" in names or len(set(names)) != len(names):
        raise UserError("nodes of the graph lack names of their own", "export it with u2export")


def float_nodes(model: onnx.ModelProto, spec: QuantSpec) -> set[str]:
    """Names of the nodes that stay in float: those asked for, the heads unless quantised, and what lies between.

    Raises:
        UserError: a name in `keep_float` matches no node.
    """
    view = View(model)
    names = [n.name for n in view.nodes]
    kept = set() if spec.heads else head_nodes(model)
    for wanted in spec.keep_float:
        kept |= set(_matching(wanted, names))
    return kept | _between(view, kept, spec.raw_entry)


def _matching(wanted: str, names: Sequence[str]) -> list[str]:
    if wanted in names:
        return [wanted]
    try:
        found = [n for n in names if re.fullmatch(wanted, n)]
    except re.error as error:
        raise UserError(
            f"{wanted!r} is neither a node nor a regular expression: {error}", "check --keep-float"
        ) from None
    if not found:
        raise UserError(
            f"no node is named or matched by {wanted!r}",
            f"names look like {names[0]}; give one, or a regular expression",
        )
    return found


def _between(view: View, kept: set[str], raw_entry: bool) -> set[str]:
    """Moving nodes that feed a float layer: all with raw entry, else those that also carry a float layer's output."""
    down: set[str] = set()
    for node in reversed(view.nodes):
        if node.op_type in MOVING and any(r.name in kept | down for o in node.output for r in view.readers[o]):
            down.add(node.name)
    if raw_entry:
        return down
    up = set(kept)
    for node in view.nodes:
        if node.op_type in (*MOVING, *ACTIVATING) and any(s.name in up for s in view.sources(node)):
            up.add(node.name)
    return down & up


class _Plan:
    """Which tensors get a Q/DQ pair, and which reads go through it."""

    def __init__(self, view: View, spec: QuantSpec, kept: set[str]) -> None:
        self.view, self.spec, self.kept = view, spec, kept
        self.reads: set[tuple[str, str]] = set()
        for node in view.nodes:
            for tensor in self._candidates(node):
                if not view.fused(tensor) and self._rounded(node, tensor):
                    self.reads.add((node.name, tensor))
        self.tensors = list(dict.fromkeys(t for n in view.nodes for t in n.input if (n.name, t) in self.reads))

    def quantised(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes on 8-bit values."""
        if self.spec.placement == "conv-input" and node.op_type != "Conv":
            return False
        if node.op_type == "Conv" and node.input[1] not in self.view.constants:
            return False
        return node.op_type in QUANTISED and node.name not in self.kept

    def _candidates(self, node: onnx.NodeProto) -> list[str]:
        names = self.view.inputs_of(node)
        return names if node.op_type in QUANTISED else [n for n in names if n in self.view.data]

    def _rounded(self, node: onnx.NodeProto, tensor: str) -> bool:
        source = self.view.maker.get(tensor)
        if not self.quantised(node):
            # A float layer may still have to read what an integer kernel left in 8 bit.
            inside = source is None or not (self.quantised(source) or self._fused_in(source))
            return not self.spec.raw_entry and node.name in self.kept and not inside
        if self.spec.placement == "producer" and source is not None:
            # Already on the shared grid: rounding again would change nothing.
            return not (source.op_type in ("MaxPool", "Concat") and self.quantised(source))
        return True

    def _fused_in(self, node: onnx.NodeProto) -> bool:
        """Whether an activation closes a quantised Conv."""
        return node.op_type in ACTIVATING and any(self.quantised(s) for s in self.view.sources(node))


class _Scales:
    """Scale and zero point of every planned tensor; tensors on one grid share them."""

    def __init__(self, view: View, plan: _Plan, ranges: Ranges, spec: QuantSpec) -> None:
        self.spec = spec
        self.shared = _groups(view, plan, spec)
        pooled: dict[str, Range] = {}
        for tensor in plan.tensors:
            found = _range_of(tensor, ranges)
            root = self.shared.get(tensor, tensor)
            so_far = pooled.get(root, found)
            pooled[root] = Range(min(so_far.low, found.low), max(so_far.high, found.high))
        self.grids = {root: self._scale(root, found) for root, found in pooled.items()}

    def of(self, tensor: str) -> tuple[np.float32, int] | None:
        """Scale and zero point of a tensor's values; None where it is not rounded."""
        return self.grids.get(self.shared.get(tensor, tensor))

    def _scale(self, tensor: str, found: Range) -> tuple[np.float32, int]:
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        if not (np.isfinite(low) and np.isfinite(high)) or high - low < np.finfo(np.float32).tiny:
            raise UserError(
                f"the activation {tensor} has the range {found.low:g} to {found.high:g} on the calibration photos",
                "its scale would be 0; give more and more varied photos, or check the weights",
            )
        if self.spec.signed:
            return np.float32(found.peak / 127), 0
        scale = np.float32((high - low) / 255)
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _range_of(tensor: str, ranges: Ranges) -> Range:
    if tensor not in ranges:
        raise UserError(
            f"no range was observed for the activation {tensor}", "observe the same graph that is quantised"
        )
    return ranges[tensor]


def _groups(view: View, plan: _Plan, spec: QuantSpec) -> dict[str, str]:
    """Tensors that must share a scale, by their group's representative.

    Pooling and resizing give values between their input's, so they keep its scale. In "producer" placement the
    inputs of a concatenation share one too, or it would have to round again.
    """
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.get(name, name) != name:
            name = root[name]
        return name

    keeps = {"everywhere": ("MaxPool", "Resize"), "producer": ("MaxPool", "Concat"), "conv-input": ()}[spec.placement]
    for node in view.nodes:
        if node.op_type in keeps and plan.quantised(node):
            first, *others = (*view.inputs_of(node), node.output[0])
            for other in others:
                root[find(other)] = find(first)
    return {name: find(name) for name in root}


class _Rewriter:
    """Writes the quantised graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        view: View,
        plan: _Plan,
        scales: _Scales,
        spec: QuantSpec,
        errors: Mapping[str, NDArray[np.float64]],
    ) -> None:
        self.source, self.view, self.plan, self.scales, self.spec = model, view, plan, scales, spec
        self.errors = errors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.rounded: dict[str, str] = {}

    def model(self) -> onnx.ModelProto:
        """The result."""
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
        """The tensor after its pair, which is written on first use."""
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
        weight, bias = self.view.array(name).astype(np.float32), self._bias(node)
        grid = self.scales.of(node.input[0]) if self.spec.bias else None
        entry = grid[0] if grid else None
        scale = weight_scale(weight, bias, entry, self.spec.weight_bits)
        self.constants[f"{name}_quantized"] = round_weight(weight, scale, self.spec.weight_bits)
        copy.input[1] = self._dequantized(name, scale, np.int8)
        if bias is not None and entry is not None:
            sums = (entry * scale).astype(np.float32)
            self.constants[f"{node.input[2]}_quantized"] = np.rint(bias / sums).astype(np.int32)
            copy.input[2] = self._dequantized(node.input[2], sums, np.int32)
        elif bias is not None and node.name in self.errors:
            self.constants[f"{node.input[2]}_corrected"] = bias.astype(np.float32)
            copy.input[2] = f"{node.input[2]}_corrected"

    def _bias(self, node: onnx.NodeProto) -> NDArray[np.float64] | None:
        """The bias that is to be stored, corrected if an error is known."""
        if len(node.input) < 3 or node.input[2] not in self.view.constants:
            return None
        return np.asarray(self.view.array(node.input[2]) - self.errors.get(node.name, 0.0), np.float64)

    def _dequantized(self, name: str, scale: NDArray[np.float32], dtype: type) -> str:
        from onnx import helper

        self.constants[f"{name}_scale"] = scale
        self.constants[f"{name}_zero_point"] = np.zeros(len(scale), dtype)
        inputs = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
        self.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}_dequantized"], f"{name}/DequantizeLinear", axis=0)
        )
        return f"{name}_dequantized"


def weight_scale(
    weight: Floats, bias: NDArray[np.float64] | None = None, entry: np.float32 | None = None, bits: int = 8
) -> NDArray[np.float32]:
    """Per-channel scales of a weight (O, I, kH, kW).

    With `entry`, the scale of the convolution's input, they are also large enough for the bias to fit into int32.
    """
    peak = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64) / (2 ** (bits - 1) - 1)
    if bias is not None and entry is not None:
        peak = np.maximum(peak, np.abs(bias) / (float(entry) * 2.0**30))
    peak[peak < np.finfo(np.float32).tiny] = 1.0  # a channel of zeros is exact in any scale
    return np.asarray(peak, np.float32)


def round_weight(weight: Floats, scale: NDArray[np.float32], bits: int = 8) -> NDArray[np.int8]:
    """A weight (O, I, kH, kW) on its grid, as int8."""
    limit = 2 ** (bits - 1) - 1
    return np.asarray(np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -limit, limit), np.int8)


def check(model: onnx.ModelProto) -> None:
    """What every runtime needs of a Q/DQ graph.

    Raises:
        UserError: onnx.checker refuses it, a scale is not finite and positive, or a per-channel scale has another
            length than its tensor.
    """
    import onnx

    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise UserError(f"the quantised graph is not valid ONNX: {str(error).splitlines()[0]}", "report it") from None
    view = View(model)
    for node in view.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale, channels = view.array(node.input[1]), view.constants.get(node.input[0])
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise UserError(f"{node.name}: a scale is not finite and positive", "give more and more varied photos")
        if scale.ndim and (channels is None or len(scale) != channels.dims[0]):
            raise UserError(f"{node.name}: {len(scale)} scales do not fit its tensor", "report it")


def calibrated(model: onnx.ModelProto, photos: Iterable[Floats], spec: QuantSpec, method: str = "") -> onnx.ModelProto:
    """The 8-bit graph by the best recipe measured: ranges, and biases corrected for the mean error.

    Args:
        model: fp32, conditioned.
        photos: network inputs, iterated over twice; some 16 to 32 varied ones.
        spec: where and how to quantise.
        method: of `observe`; by default min-max, or the least squared error where activations are signed: behind a
            ReLU only 7 bits are left then, and clipping outliers pays.
    """
    method = method or ("mse" if spec.signed else "minmax")
    ranges = observe(model, photos, method=method, signed=spec.signed)
    return quantize(model, ranges, spec, bias_errors(model, ranges, spec, photos))


# --- bias correction --------------------------------------------------------------------------------------------


def bias_errors(
    model: onnx.ModelProto, ranges: Ranges, spec: QuantSpec, inputs: Iterable[Floats]
) -> dict[str, NDArray[np.float64]]:
    """Mean error that quantisation brings to each output channel of each convolution, by the convolution's name.

    Every convolution runs twice on the float network's activations, once as it is and once with weights and input
    rounded; the difference is averaged over photos and pixels (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", ICCV 2019, section 4.2, with measured means). One photo is held at a time.
    """
    view = View(model)
    plan = _Plan(view, spec, float_nodes(model, spec))
    scales = _Scales(view, plan, ranges, spec)
    convs = [n for n in conv_nodes(model) if plan.quantised(n) and len(n.input) > 2 and n.input[2] in view.constants]
    probe, names = _probe(model, view, convs, scales, spec)
    total, photos = [np.zeros(1) for _ in convs], 0
    for errors in run(probe, inputs, names):
        total = [t + e.ravel() for t, e in zip(total, errors, strict=True)]
        photos += 1
    return {conv.name: t / photos for conv, t in zip(convs, total, strict=True)}


def _probe(
    model: onnx.ModelProto, view: View, convs: Sequence[onnx.NodeProto], scales: _Scales, spec: QuantSpec
) -> tuple[onnx.ModelProto, list[str]]:
    """The float graph with, for every convolution, the mean difference of its rounded twin for each channel."""
    import onnx
    from onnx import helper, numpy_helper

    axes = np.array([0, 2, 3], np.int64)
    opset = next(o.version for o in model.opset_import if not o.domain)
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
        weight = view.array(conv.input[1])
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
