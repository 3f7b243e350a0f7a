"""A lower bound of the time that a network takes on a device: operations at its peak, bytes at its bandwidth.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
CACM 52, 2009. These are estimates. They never enter a table of results.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.benchmarks.report import Report, Row
from u2export.errors import UserError, WrongValue
from u2export.exporters.open import read_artifact
from u2export.reference.onnx_file import read_onnx

if TYPE_CHECKING:
    import onnx

    from u2export.exporters.artifact import Artifact

SCHEMA = 1
# Bytes of a value in each precision.
BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
# Speed of a unit in each precision, relative to int8.
RATE = {"fp32": 0.25, "fp16": 0.5, "int8": 1.0, "fp4": 2.0}
# Runtimes compute these operations together with the one before them, so they cause no traffic of their own.
FUSED = frozenset({"Relu", "Clip", "BatchNormalization", "QuantizeLinear", "DequantizeLinear", "Cast", "Identity"})
WEIGHTED = frozenset({"Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "Gemm", "MatMul"})


# What a network does


@dataclass(frozen=True)
class LayerWork:
    """The work of one operation.

    Attributes:
        name: the name of its node.
        kind: its ONNX operator.
        macs: multiply-accumulates.
        activations: values that the operation reads and writes, without weights.
        weights: values of its weights.
    """

    name: str
    kind: str
    macs: int
    activations: int
    weights: int

    @property
    def values(self) -> int:
        """All values that the operation reads and writes."""
        return self.activations + self.weights

    def intensity(self, size: int) -> float:
        """Return operations per byte: two for each multiply-accumulate, and `size` bytes for each value."""
        return 2 * self.macs / (self.values * size) if self.values else 0.0


@dataclass(frozen=True)
class Work:
    """The work of one inference of a network.

    Attributes:
        layers: the operations in execution order, without those that run together with the operation before.
        ends: the number of values of the network's input and output.
    """

    layers: tuple[LayerWork, ...]
    ends: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Values of all weights."""
        return sum(layer.weights for layer in self.layers)

    def least_bytes(self, size: int) -> int:
        """Return the bytes of weights, input and output: this much has to move, however layers are fused."""
        return (self.weights + self.ends) * size

    def layer_bytes(self, size: int) -> int:
        """Return the bytes of all layers: this much moves if nothing stays on the chip between layers."""
        return sum(layer.values for layer in self.layers) * size

    def heaviest(self, most: int) -> list[LayerWork]:
        """Return up to `most` layers, those with most multiply-accumulates first."""
        return sorted(self.layers, key=lambda layer: -layer.macs)[:most]


def count(path: Path) -> Work:
    """Return the work of the network in an ONNX file.

    Raises:
        UserError: the file is not an ONNX file, or a shape in it is not fixed.
        Unavailable: onnx is not installed.
    """
    model = read_onnx(path, "give an .onnx file", shapes=True)
    sizes, constants = _sizes(model), {t.name: math.prod(t.dims) for t in model.graph.initializer}
    constants |= _dequantized(model, constants)
    layers = [
        _layer(node, sizes, constants, path)
        for node in model.graph.node
        if node.op_type not in FUSED and node.op_type != "Constant" and not _is_constant(node, constants)
    ]
    if not any(layer.macs for layer in layers):
        raise UserError(f"{path}: no convolution or matrix product depends on its input", "give a network")
    ends = [v.name for v in (*model.graph.input, *model.graph.output) if v.name not in constants]
    return Work(tuple(layers), sum(_known(name, sizes, path) for name in ends))


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the fixed shapes by the name of the tensor, without the shapes that are not fixed."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    return {name: tuple(shape) for name, shape in shapes.items() if all(shape)}


def _dequantized(model: onnx.ModelProto, constants: Mapping[str, int]) -> dict[str, int]:
    """Return the number of quantised weights by the name that the layer reads: the output of a DequantizeLinear."""
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    return {n.output[0]: constants[n.input[0]] for n in nodes}


def _is_constant(node: onnx.NodeProto, constants: Mapping[str, int]) -> bool:
    return bool(node.input) and all(name in constants for name in node.input if name)


def _known(name: str, sizes: Mapping[str, Sequence[int]], path: Path) -> int:
    """Return the number of values of a tensor."""
    if name not in sizes:
        raise UserError(f"{path}: the shape of {name!r} is not fixed", "give a model of fixed size")
    return math.prod(sizes[name])


def _layer(
    node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]], constants: Mapping[str, int], path: Path
) -> LayerWork:
    inputs = [name for name in node.input if name and name not in constants and name in sizes]
    written = sum(_known(name, sizes, path) for name in node.output if name)
    read = sum(math.prod(sizes[name]) for name in inputs)
    weighted = node.op_type in WEIGHTED
    weights = sum(constants[name] for name in node.input if name in constants) if weighted else 0
    macs = _macs(node, sizes, constants, path) if weighted else 0
    return LayerWork(node.name or node.output[0], node.op_type, macs, read + written, weights)


def _macs(node: onnx.NodeProto, sizes: Mapping[str, Sequence[int]], constants: Mapping[str, int], path: Path) -> int:
    """Return the multiply-accumulates of a convolution or a matrix product."""
    kernel = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    outputs, out = _known(node.output[0], sizes, path), sizes[node.output[0]]
    if kernel not in constants and node.input[0] in constants:
        # A constant matrix (rows, inner) times an activation: each output value takes the inner dimension.
        return outputs * constants[node.input[0]] // out[-2]
    if kernel not in constants:
        # A product of two activations: each output value takes the inner dimension, which is the last of the input.
        inputs, shape = _known(node.input[0], sizes, path), sizes[node.input[0]]
        return outputs * inputs // max(1, math.prod(shape[:-1]))
    if node.op_type == "ConvTranspose":
        # Each input value is multiplied by the part of the kernel that belongs to its channel.
        return _known(node.input[0], sizes, path) * constants[kernel] // sizes[node.input[0]][1]
    # Each output value takes the part of the kernel that belongs to its channel.
    channels = out[1] if node.op_type in ("Conv", "ConvInteger", "QLinearConv") else out[-1]
    return outputs * constants[kernel] // channels


# What a device can do


@dataclass(frozen=True)
class Chip:
    """What a device can do at most.

    Attributes:
        name: the name for people.
        peaks: operations per second, by precision.
        bandwidth: bytes per second; 0 if it is not known.
        note, source, read: see devices.json.
    """

    name: str
    peaks: Mapping[str, float]
    bandwidth: float = 0.0
    note: str = ""
    source: str = ""
    read: Mapping[str, str] = field(default_factory=dict)

    def peak(self, precision: str) -> tuple[float, bool]:
        """Return operations per second, and whether they are derived from the peak of another precision."""
        if precision in self.peaks:
            return self.peaks[precision], False
        known, value = next(iter(self.peaks.items()))
        return value * min(1.0, RATE[precision] / RATE[known]), True

    @property
    def figures(self) -> str:
        """Where the figures come from: "measured" here, "read" in documents of the maker, or "unconfirmed"."""
        if not self.source:
            return "measured"
        return "read" if self.confirmed else "unconfirmed"

    @property
    def confirmed(self) -> bool:
        """Whether every figure was found in a document."""
        return bool(self.read) and "unconfirmed" not in self.read.values()


def chips() -> dict[str, Chip]:
    """Return the devices in devices.json, by id."""
    text = (resources.files("u2export.benchmarks") / "devices.json").read_text(encoding="utf-8")
    fields = ("name", "peaks", "bandwidth", "note", "source", "read")
    return {d["id"]: Chip(**{k: d[k] for k in fields if k in d}) for d in json.loads(text)["devices"]}


def this_machine(seconds: float = 1.0, side: int = 1536, mebibytes: int = 192) -> Chip:
    """Measure this machine with numpy: an fp32 matrix product, and a copy of an array larger than the caches.

    Args:
        seconds: the time for each of the two measurements.
        side: the number of rows and columns of the matrices.
        mebibytes: the size of the array.
    """
    a, b = (np.random.default_rng(i).random((side, side), np.float32) for i in (0, 1))
    source = np.ones(mebibytes * 2**20 // 4, np.float32)
    target = np.empty_like(source)
    product = np.empty((side, side), np.float32)
    flops = 2 * side**3 / _fastest(lambda: np.matmul(a, b, out=product), seconds)
    moved = 2 * source.nbytes / _fastest(lambda: np.copyto(target, source), seconds)
    return Chip("this machine, measured", {"fp32": flops}, moved, "numpy: float32 matrix product, array copy")


def _fastest(work: Callable[[], object], seconds: float) -> float:
    """Return the seconds of the fastest call of `work`. The calls go on until the time is over, at least three."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


# How long the network takes there at least


@dataclass(frozen=True)
class Bound:
    """How long one inference takes at least, in ms.

    Attributes:
        chip: the device.
        precision: the precision of the values and of the peak.
        compute: the time of all operations at the peak.
        memory: the time to move weights, input and output once at the full bandwidth; nan if it is not known.
        layers: the sum over all layers, each as slow as its operations or its bytes; nan likewise. Nothing stays on
            the chip between layers.
        derived: whether the peak is derived from the peak of another precision.
    """

    chip: Chip
    precision: str
    compute: float
    memory: float
    layers: float
    derived: bool

    @property
    def least(self) -> float:
        """The lower bound: the slower of `compute` and `memory`."""
        return self.compute if math.isnan(self.memory) else max(self.compute, self.memory)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; null stands for nan."""
        times = {"least": self.least, "compute": self.compute, "memory": self.memory, "layers": self.layers}
        return {
            "device": self.chip.name, "precision": self.precision, "source": self.chip.source,
            "confirmed": self.chip.confirmed, "derived": self.derived,
            **{f"{name}_ms": None if math.isnan(ms) else ms for name, ms in times.items()},
        }  # fmt: skip


def bound(work: Work, chip: Chip, precision: str) -> Bound:
    """Return the lower bound of a network's latency on a device.

    Args:
        work: what the network does.
        chip: the device.
        precision: one of BYTES; it decides the size of values and which peak counts.
    """
    peak, derived = chip.peak(precision)
    size = BYTES[precision]
    compute = 2e3 * work.macs / peak
    if not chip.bandwidth:
        return Bound(chip, precision, compute, math.nan, math.nan, derived)
    layers = sum(max(2 * layer.macs / peak, layer.values * size / chip.bandwidth) for layer in work.layers)
    return Bound(chip, precision, compute, 1e3 * work.least_bytes(size) / chip.bandwidth, 1e3 * layers, derived)


@dataclass(frozen=True)
class Reached:
    """What a measured row reaches.

    Attributes:
        row: the row.
        rate: operations per second at its median latency.
        share: `rate` over the measured fp32 peak of this machine. Units for int8 and bf16 are faster than those for
            fp32, so such rows may exceed 1.
    """

    row: Row
    rate: float
    share: float


def of_network(report: Report, artifact: Artifact) -> list[Row]:
    """Return the timed rows that have the weights and the image contract of an artifact, in any precision.

    Raises:
        UserError: the report has no such row.
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


def reached(work: Work, chip: Chip, rows: Sequence[Row]) -> list[Reached]:
    """Return what each row reaches; `chip` is this machine, as `this_machine` measured it."""
    rates = [(row, 2 * work.macs / (row.latency.p50 / 1e3)) for row in rows]
    return [Reached(row, rate, rate / chip.peaks["fp32"]) for row, rate in rates]


@dataclass(frozen=True)
class Estimate:
    """Lower bounds of a network on several devices.

    Attributes:
        work: what the network does.
        precision: the precision on the devices.
        bounds: one for each device; this machine is the last one.
        reached: what measured rows reach on this machine.
    """

    work: Work
    precision: str
    bounds: tuple[Bound, ...]
    reached: tuple[Reached, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "schema": SCHEMA,
            "estimate": "lower bounds from advertised peaks; not results",
            "macs": self.work.macs,
            "weights": self.work.weights,
            "precision": self.precision,
            "bounds": [b.to_json() for b in self.bounds],
            "layers": [asdict(layer) for layer in self.work.layers],
        }


def estimate(
    model: Path, device: str = "all", precision: str = "fp16", local: bool = True, results: Path | None = None
) -> Estimate:
    """Estimate the least latency of a network on devices.

    Args:
        model: an .onnx file of fixed size.
        device: the id of a device in devices.json, "all" or "none".
        precision: the precision on the devices, one of BYTES.
        local: measure this machine (about 2 s), and add its bound in fp32.
        results: the results of a bench of this network on this machine. This machine is then measured as well.

    Raises:
        UserError: there is no such device; the model is not an ONNX file of fixed size; or the results hold no times
            of this network.
        Unavailable: onnx is not installed.
    """
    known = chips()
    if device not in (*known, "all", "none"):
        raise WrongValue(f"no device {device!r}", f"choose among all, none, {', '.join(known)}")
    wanted = [chip for name, chip in known.items() if device in (name, "all")]
    work = count(model)
    timed = of_network(Report.load(results), read_artifact(model)) if results else []
    bounds = tuple(bound(work, chip, precision) for chip in wanted)
    if not (local or timed):
        return Estimate(work, precision, bounds)
    here = this_machine()
    return Estimate(work, precision, (*bounds, bound(work, here, "fp32")), tuple(reached(work, here, timed)))
