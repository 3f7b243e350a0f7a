"""How long a network takes at least: operations over peak, bytes over bandwidth (Williams, Waterman, Patterson,
"Roofline: an insightful visual performance model for multicore architectures", CACM 52, 2009).

Estimates only: they never enter a table of results.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.benchmarks.report import Report, Row
from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install

if TYPE_CHECKING:
    import onnx

    from u2export.exporters.artifact import Artifact

# Bytes of a value, and how much faster than int8 the same unit computes: fp16 half as fast, fp32 a quarter.
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
RATE = {"fp32": 0.25, "fp16": 0.5, "int8": 1.0, "fp4": 2.0}
# Runtimes compute these with the operation before them; they neither read nor write memory of their own.
FUSED = frozenset({"Relu", "Clip", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
WEIGHTED = frozenset({"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Layer:
    """One operation: multiply-accumulates, values read and written of activations, values of weights."""

    name: str
    kind: str
    macs: int
    activations: int
    weights: int

    def intensity(self, size: int) -> float:
        """Operations per byte, two per multiply-accumulate, at `size` bytes per value."""
        values = (self.activations + self.weights) * size
        return 2 * self.macs / values if values else 0.0


@dataclass(frozen=True)
class Work:
    """What a network does.

    Attributes:
        layers: in order, without those that are computed together with the one before.
        ends: values of the network's input and output.
    """

    layers: tuple[Layer, ...]
    ends: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one inference."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Values of all weights."""
        return sum(layer.weights for layer in self.layers)

    def least_bytes(self, size: int) -> int:
        """Weights, input and output once: what has to move however well layers are fused."""
        return (self.weights + self.ends) * size

    def layer_bytes(self, size: int) -> int:
        """Every layer's activations and weights: what moves when nothing is kept on the chip between layers."""
        return sum(layer.activations + layer.weights for layer in self.layers) * size


def count(path: Path) -> Work:
    """The work of an ONNX file of static shapes.

    Raises:
        Unavailable: onnx is not installed. UserError: no ONNX, or its shapes are not fixed.
    """
    try:
        import onnx
    except ImportError:
        raise Unavailable("counting operations needs onnx", how_to_install("onnx")) from None
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}", "give an .onnx file") from None
    except Exception as error:  # protobuf's decode errors have no common base
        raise UserError(f"{path} is not an ONNX file: {str(error).splitlines()[0]}", "give an .onnx file") from None
    sizes, constants = _sizes(model), {t.name: _size(t.dims) for t in model.graph.initializer}
    constants |= _dequantized(model, constants)
    layers = [
        _layer(node, sizes, constants, path)
        for node in model.graph.node
        if node.op_type not in FUSED and node.op_type != "Constant" and not _is_constant(node, constants)
    ]
    given = [v.name for v in (*model.graph.input, *model.graph.output) if v.name not in constants]
    return Work(tuple(layers), sum(_known(name, sizes, path) for name in given))


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes by tensor name; others are left out."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return {name: tuple(shape) for name, shape in shapes.items() if all(shape)}


def _dequantized(model: onnx.ModelProto, constants: Mapping[str, int]) -> dict[str, int]:
    """Weights behind a DequantizeLinear, by the name the layer reads."""
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    return {n.output[0]: constants[n.input[0]] for n in nodes}


def _is_constant(node: onnx.NodeProto, constants: Mapping[str, int]) -> bool:
    return bool(node.input) and all(name in constants for name in node.input if name)


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _known(name: str, sizes: Mapping[str, Sequence[int]], path: Path) -> int:
    if name not in sizes:
        raise UserError(f"{path}: the shape of {name!r} is not fixed", "give a model of fixed size, without --dynamic")
    return _size(sizes[name])


def _layer(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]], constants: Mapping[str, int], path: Path) -> Layer:
    inputs = [name for name in node.input if name and name not in constants and name in sizes]
    written = sum(_known(name, sizes, path) for name in node.output if name)
    read = sum(_size(sizes[name]) for name in inputs)
    weighted = node.op_type in WEIGHTED
    weights = sum(constants[name] for name in node.input if name in constants) if weighted else 0
    return Layer(
        node.name or node.output[0], node.op_type, _macs(node, sizes, constants, path), read + written, weights
    )


def _macs(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]], constants: Mapping[str, int], path: Path) -> int:
    """Every output value of a convolution takes its kernel times its input channels."""
    if node.op_type not in WEIGHTED:
        return 0
    kernel = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    _known(node.output[0], sizes, path)
    out = sizes[node.output[0]]
    if kernel not in constants:  # of two activations: the inner dimension
        return _size(out) * _known(node.input[0], sizes, path) // max(1, _size(sizes[node.input[0]][:-1]))
    channels = out[1] if node.op_type in ("Conv", "ConvInteger", "QLinearConv") else out[-1]
    if node.op_type == "ConvTranspose":
        return _known(node.input[0], sizes, path) * constants[kernel] // sizes[node.input[0]][1]
    return _size(out) * constants[kernel] // channels


@dataclass(frozen=True)
class Chip:
    """What a device can do at most.

    Attributes:
        name: for people. peaks: operations per second by arithmetic. bandwidth: bytes per second, 0 for unknown.
        note, source, read: see devices.json.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float = 0.0
    note: str = ""
    source: str = ""
    read: Mapping[str, str] = field(default_factory=dict)

    def peak(self, precision: str) -> tuple[float, bool]:
        """Operations per second, and whether that was derived from another arithmetic's peak."""
        if precision in self.peaks:
            return self.peaks[precision], False
        known, value = next(iter(self.peaks.items()))
        return value * min(1.0, RATE[precision] / RATE[known]), True

    @property
    def confirmed(self) -> bool:
        """Whether all its figures were read somewhere."""
        return bool(self.read) and "unconfirmed" not in self.read.values()


def chips() -> dict[str, Chip]:
    """The devices described in devices.json, by id."""
    text = (resources.files("u2export.benchmarks") / "devices.json").read_text(encoding="utf-8")
    fields = ("name", "peaks", "bandwidth", "note", "source", "read")
    return {d["id"]: Chip(**{k: d[k] for k in fields if k in d}) for d in json.loads(text)["devices"]}


@dataclass(frozen=True)
class Bound:
    """Milliseconds one inference takes at least.

    Attributes:
        compute: all operations at the peak. memory: what has to move, at the full bandwidth; nan where it is unknown.
        layers: the sum over layers of the larger of both, nothing kept on the chip between layers; nan likewise.
        derived: the peak is another arithmetic's, scaled.
    """

    compute: float
    memory: float
    layers: float
    derived: bool

    @property
    def least(self) -> float:
        """The lower bound: nothing is faster than the slower of both."""
        return self.compute if math.isnan(self.memory) else max(self.compute, self.memory)


def bound(work: Work, chip: Chip, precision: str) -> Bound:
    """The lower bound of a network's latency on a device.

    Args:
        precision: one of BYTES; says how large values are, and which peak counts.
    """
    peak, derived = chip.peak(precision)
    size = BYTES[precision]
    if not chip.bandwidth:
        return Bound(2e3 * work.macs / peak, math.nan, math.nan, derived)
    each = (
        max(2 * layer.macs / peak, (layer.activations + layer.weights) * size / chip.bandwidth) for layer in work.layers
    )
    return Bound(2e3 * work.macs / peak, 1e3 * work.least_bytes(size) / chip.bandwidth, 1e3 * sum(each), derived)


# This machine


def this_machine(seconds: float = 1.0, side: int = 1536, mebibytes: int = 192) -> Chip:
    """What numpy reaches here: float32 matrix product, and copying an array much larger than the caches.

    Args:
        seconds: for each of the two. side: of the matrices. mebibytes: of the array.
    """
    a, b = (np.random.default_rng(i).random((side, side), np.float32) for i in (0, 1))
    source = np.ones(mebibytes * 2**20 // 4, np.float32)
    target = np.empty_like(source)
    product = np.empty((side, side), np.float32)
    flops = 2 * side**3 / _fastest(lambda: np.matmul(a, b, out=product), seconds)
    moved = 2 * source.nbytes / _fastest(lambda: np.copyto(target, source), seconds)
    return Chip("this machine, measured", {"fp32": flops}, moved, "numpy: float32 matrix product, array copy")


def _fastest(work: Any, seconds: float) -> float:
    """Seconds of the fastest of as many calls as fit, at least three."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def of_network(report: Report, artifact: Artifact) -> list[Row]:
    """The timed rows of the artifact's weights and image contract, whatever their precision.

    Raises:
        UserError: the results hold none.
    """
    contract = artifact.contract.to_json()
    rows = [
        row
        for row in report.rows
        if row.latency.ns and row.scenario == "latency" and row.weights == artifact.weights and row.contract == contract
    ]
    if not rows:
        raise UserError(f"the results hold no times of {artifact.name}'s network", "give the model that was benched")
    return rows


def reached(work: Work, chip: Chip, rows: Sequence[Row]) -> list[tuple[Row, float, float]]:
    """Of each row: operations per second at its median, and their share of the measured float32 peak.

    8-bit and bfloat16 units are faster than float32 ones, so such rows may exceed 1.
    """
    rates = [(row, 2 * work.macs / (row.latency.p50 / 1e3)) for row in rows]
    return [(row, rate, rate / chip.peaks["fp32"]) for row, rate in rates]
