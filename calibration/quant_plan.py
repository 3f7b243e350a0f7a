"""How a graph is quantised: which tensors are rounded, which reads see rounded values, and on which grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.activation_ranges import ActivationRange, Ranges
from u2export.errors import UserError, WrongValue
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import ACTIVATING, MOVING, QUANTISED, GraphView, head_nodes

if TYPE_CHECKING:
    import onnx


PLACEMENTS = ("everywhere", "producer", "conv-input")


LARGEST = 127  # of int8 weights, which are symmetric
# Two weights whose sum is at most PAIR steps round to a sum of at most 128, and 255 x 128 fits into 16 bits with sign.
PAIR = 127.5


@dataclass(frozen=True)
class QuantSpec:
    """How a graph is quantised. Weights are always int8, symmetric, with one scale for each output channel.

    Attributes:
        signed: True for int8 activations with zero point 0, the only form that TensorRT accepts. False for uint8 with a
            zero point, in which the CPU kernels of ONNX Runtime and OpenVINO are fast: ONNX Runtime runs int8
            3.5 times slower than uint8.
        placement: where the pairs stand. "everywhere": at every tensor, so that concatenation, pooling and resizing
            stay in 8 bit. "producer": at the outputs of computing layers; pooling and concatenation use shared scales
            and have no pairs of their own, which gives the least memory traffic in TensorRT. "conv-input": at the
            inputs of convolutions only.
        heads: quantise the side outputs, their fusion and what follows too.
        keep_float: float layers: names of nodes, or regular expressions that match whole names.
        raw_entry: float layers read the values of quantised neighbours before these are rounded, through
            concatenation, pooling and resizing. Without it, the rounding of a neighbour still reaches float layers, and
            an unconditioned network gets worse.
        bias: store biases as int32 in the scale of the accumulator (ONNX Runtime's form; TensorRT refuses it).
        pair_safe: choose the scales of weights so that no two neighbours can saturate the 16-bit sums of x86 processors
            without VNNI, see `pair_peak`.
        fit_weights: round weights for the least change of a layer's output, see
            `u2export.calibration.weight_rounding.rounded_weights`; otherwise each to its nearest step.
    """

    signed: bool = True
    placement: str = "producer"
    heads: bool = False
    keep_float: tuple[str, ...] = ()
    raw_entry: bool = True
    bias: bool = False
    pair_safe: bool = False
    fit_weights: bool = False

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise WrongValue(f"no Q/DQ placement named {self.placement!r}", f"choose one of {', '.join(PLACEMENTS)}")


# The schemes that measured best on real photos; the accuracy table lies in benchmarks/.
TENSORRT = QuantSpec(signed=True, placement="producer", fit_weights=True)
ONNX_RUNTIME = QuantSpec(signed=False, placement="everywhere", heads=True, bias=True, pair_safe=True, fit_weights=True)


def float_nodes(model: onnx.ModelProto, spec: QuantSpec) -> set[str]:
    """Names of the nodes that stay in float: those of `keep_float`, the heads unless quantised, and nodes in between.

    Raises:
        UserError: a name in `keep_float` matches no node.
    """
    view = GraphView(model)
    kept = set() if spec.heads else head_nodes(model)
    for wanted in spec.keep_float:
        kept |= {node.name for node in view.matching(wanted)}
    return kept | _between(view, kept, spec.raw_entry)


def _between(view: GraphView, kept: set[str], raw_entry: bool) -> set[str]:
    """Moving nodes that feed a float layer.

    With raw entry these are all such nodes; without it, only those that also carry the output of a float layer.
    """
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


class Plan:
    """Which tensors get a Q/DQ pair, and which reads go through it.

    Attributes:
        kept: names of the nodes in float.
        reads: (node, tensor) by name, for each input that a node reads through the tensor's pair.
        tensors: names of the tensors with a pair, in the order in which they are read.
    """

    def __init__(self, view: GraphView, spec: QuantSpec, kept: set[str]) -> None:
        self.view, self.spec, self.kept = view, spec, kept
        self.reads: set[tuple[str, str]] = set()
        for node in view.nodes:
            for tensor in self._candidates(node):
                if not view.fused(tensor) and self._reads_rounded(node, tensor):
                    self.reads.add((node.name, tensor))
        self.tensors = list(dict.fromkeys(t for n in view.nodes for t in n.input if (n.name, t) in self.reads))

    def quantised(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes on 8-bit values."""
        if self.spec.placement == "conv-input" and node.op_type != "Conv":
            return False
        if node.op_type == "Conv" and node.input[1] not in self.view.constants:
            return False
        if node.op_type == "Concat" and any(s.op_type == "MatMul" for s in self.view.sources(node)):
            return False  # matrix products run in float, and what joins them too
        return node.op_type in QUANTISED and node.name not in self.kept

    def _candidates(self, node: onnx.NodeProto) -> list[str]:
        names = self.view.inputs_of(node)
        return names if node.op_type in QUANTISED else [n for n in names if n in self.view.data]

    def _reads_rounded(self, node: onnx.NodeProto, tensor: str) -> bool:
        """Whether a node reads a tensor through its Q/DQ pair."""
        if self.quantised(node):
            return not self._on_shared_grid(tensor)
        if tensor in self.view.spread:  # without a pair here, the kernel that makes the tensor would run in float
            return self.quantised(self.view.maker[tensor])
        if self.spec.raw_entry or node.name not in self.kept:
            return False
        return self._left_in_8_bit(tensor)

    def _on_shared_grid(self, tensor: str) -> bool:
        """Whether pooling or concatenation of rounded values made a tensor: a further pair would change nothing."""
        source = self.view.maker.get(tensor)
        if self.spec.placement != "producer" or source is None:
            return False
        return source.op_type in ("MaxPool", "Concat") and self.quantised(source)

    def _left_in_8_bit(self, tensor: str) -> bool:
        """Whether an integer kernel stores a tensor: that of a quantised node, or of the activation fused into one."""
        source = self.view.maker.get(tensor)
        if source is None:
            return False
        fused = source.op_type in ACTIVATING and any(self.quantised(s) for s in self.view.sources(source))
        return fused or self.quantised(source)


class Scales:
    """Scale and zero point of every planned tensor; tensors on one grid share both."""

    def __init__(self, view: GraphView, plan: Plan, ranges: Ranges, spec: QuantSpec) -> None:
        self.spec = spec
        self.shared = _groups(view, plan, spec)
        pooled: dict[str, ActivationRange] = {}
        for tensor in plan.tensors:
            found = _range_of(tensor, ranges)
            root = self.shared.get(tensor, tensor)
            so_far = pooled.get(root, found)
            pooled[root] = ActivationRange(min(so_far.low, found.low), max(so_far.high, found.high))
        self.grids = {root: self._scale(root, found) for root, found in pooled.items()}

    def of(self, tensor: str) -> tuple[np.float32, int] | None:
        """Scale and zero point of a tensor's values; None for a tensor without a pair."""
        return self.grids.get(self.shared.get(tensor, tensor))

    def _scale(self, tensor: str, found: ActivationRange) -> tuple[np.float32, int]:
        low, high = min(found.low, 0.0), max(found.high, 0.0)
        if not (np.isfinite(low) and np.isfinite(high)) or high - low < np.finfo(np.float32).tiny:
            raise UserError(
                f"the activation {tensor} has the range {found.low:g} to {found.high:g} on the calibration photos",
                "such a range gives no usable scale; give more varied photos, or check the weights",
            )
        if self.spec.signed:
            return np.float32(found.peak / 127), 0
        scale = np.float32((high - low) / 255)
        return scale, int(np.clip(np.rint(-low / scale), 0, 255))


def _range_of(tensor: str, ranges: Ranges) -> ActivationRange:
    if tensor not in ranges:
        raise UserError(
            f"no range was observed for the activation {tensor}", "observe the same graph that is quantised"
        )
    return ranges[tensor]


def _groups(view: GraphView, plan: Plan, spec: QuantSpec) -> dict[str, str]:
    """Group tensors that must share a scale.

    Pooling and resizing give values between those of their input, so their output keeps its scale. In "producer"
    placement, the inputs of a concatenation share one scale too; otherwise the concatenation would round again.

    Returns:
        The representative of each tensor's group, by the tensor's name.
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


def weight_scale(
    weight: Floats,
    bias: NDArray[np.float64] | None = None,
    entry: np.float32 | None = None,
    pair_safe: bool = False,
) -> NDArray[np.float32]:
    """Return the scale of each output channel of a weight (O, I, kH, kW).

    Args:
        weight: of a convolution.
        bias: its bias (O,), or None.
        entry: scale of the convolution's input. With it, the scales are large enough for the bias to fit into int32.
        pair_safe: as of `QuantSpec`.
    """
    scale = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64) / LARGEST
    if pair_safe:
        scale = np.maximum(scale, pair_peak(weight) / PAIR)
    if bias is not None and entry is not None:
        scale = np.maximum(scale, np.abs(bias) / (float(entry) * 2.0**30))
    scale[scale < np.finfo(np.float32).tiny] = 1.0  # any scale holds a channel of zeros exactly
    return np.asarray(scale, np.float32)


def round_weight(weight: Floats, scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round a weight (O, I, kH, kW) to its grid, as int8; `scale` has the shape (O,)."""
    return np.asarray(np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -LARGEST, LARGEST), np.int8)


def pair_peak(weight: Floats) -> NDArray[np.float64]:
    """Return the largest sum of two neighbours of one sign in each output channel of a weight (O, I, kH, kW).

    The instruction vpmaddubsw adds u8 x s8 products of two neighbours in 16 bits, and it saturates. Neighbours are
    channels 2k and 2k + 1 of one tap, or entries 2k and 2k + 1 of the row (kH, kW, I), as kernels of ONNX Runtime and
    oneDNN lay them out. Weights of different signs cannot saturate, because activations are not negative.
    """
    taps = weight.astype(np.float64).transpose(0, 2, 3, 1)
    peaks = np.zeros(len(weight))
    for row in (taps, taps.reshape(len(weight), -1)):
        even = np.concatenate([row, np.zeros_like(row[..., : row.shape[-1] % 2])], -1)
        pairs = even.reshape(len(weight), -1, 2)
        for sign in (1, -1):
            peaks = np.maximum(peaks, np.maximum(sign * pairs, 0).sum(-1).max(1))
    return peaks
