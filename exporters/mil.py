"""Core ML packages where Core ML is not: the saved .mlpackage itself is read and executed with PyTorch.

Nothing is taken from the converter's memory: the program comes from `model.mlmodel` (Apple's protobuf classes), the
weights from `weight.bin`, so that what is measured is what a phone gets. Semantics of each operation: coremltools'
MIL operation reference, <https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html>;
layout of weight.bin: `mlmodel/src/MILBlob/Blob/StorageFormat.hpp` of the same project.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from u2export.errors import UserError

Arguments = Mapping[str, Any]
# fp32: types are ignored, the weights stay rounded as stored. fp16: computed in fp32, every tensor declared fp16
# rounded. fp16-accumulate: each partial sum inside a convolution rounded too, the most pessimistic order there is of
# what hardware with fp16 accumulators may do.
ARITHMETICS = ("fp32", "fp16", "fp16-accumulate")
SENTINEL = 0xDEADBEEF
AGAIN = "export it again"

# MIL data types by name: numpy type as stored, bits for packed types.
STORED: dict[str, str] = {
    "FLOAT16": "<f2", "FLOAT32": "<f4", "FLOAT64": "<f8", "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4",
    "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
PACKED = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}


@dataclass(frozen=True)
class Type:
    """Declared type of a value: MIL's name of the scalar, and the shape, None for a dimension left open."""

    scalar: str
    shape: tuple[int | None, ...]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor's shape agrees."""
        return len(shape) == len(self.shape) and all(
            d is None or d == n for d, n in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Operation:
    """One operation that is not a constant: its arguments are names, constants already read, or lists of both."""

    kind: str
    name: str
    type: Type
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Name:
    """An argument that another operation or the caller gives."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A constant as stored: numpy array or string, its declared type, and its name (empty when immediate)."""

    name: str
    type: Type
    value: Any


@dataclass(frozen=True)
class Layer:
    """A convolution as stored.

    Attributes:
        name: of the weight, which is the PyTorch module's.
        shape: of the weight: outputs, inputs, height, width.
        weight: how it is stored, such as "float16", "int8 per channel", "palette of 8 bits".
        compressed: whether that is anything but floating point.
        activation: what it computes in: "float16", "float32" or "int8", the latter between quantize and dequantize.
        bytes: of the stored weight with its scales or palettes, the bias left out.
    """

    name: str
    shape: tuple[int, ...]
    weight: str
    compressed: bool
    activation: str
    bytes: int


class Package:
    """A saved .mlpackage of one ML Program.

    Raises:
        UserError: missing, damaged, or no ML Program with a function `main`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = _specification(path)
        functions = self.spec.mlProgram.functions
        if "main" not in functions:  # indexing a protobuf map would create it
            raise UserError(f"{path}: no ML Program with a function main", "give an .mlpackage that u2export wrote")
        function = functions["main"]
        self.opset: str = function.opset
        self.block = function.block_specializations[self.opset]
        self.inputs = {i.name: _type(i.type) for i in function.inputs}
        self.outputs: tuple[str, ...] = tuple(self.block.outputs)

    @cached_property
    def weights(self) -> bytes:
        """Content of weight.bin; empty where the program has no file of weights."""
        path = self.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        return path.read_bytes() if path.is_file() else b""

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All operations but constants, in the order of execution."""
        constants: dict[str, Constant] = {}
        found = []
        for op in self.block.operations:
            declared = _type(op.outputs[0].type)
            name = op.outputs[0].name
            if op.type == "const":
                constants[name] = Constant(name, declared, self._value(op.attributes["val"], name))
                continue
            arguments = {k: self._argument(v, constants) for k, v in op.inputs.items()}
            # The constexpr operations of iOS 16 keep their tensors as attributes.
            arguments |= {
                k: Constant(name, _type(v.type), self._value(v, name)) for k, v in op.attributes.items() if k != "name"
            }
            found.append(Operation(op.type, name, declared, arguments))
        return tuple(found)

    def _argument(self, argument: Any, constants: Mapping[str, Constant]) -> Any:
        listed = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                listed.append(constants.get(binding.name, Name(binding.name)))
            else:
                listed.append(Constant("", _type(binding.value.type), self._value(binding.value, "")))
        return listed[0] if len(listed) == 1 else listed

    def _value(self, value: Any, name: str) -> Any:
        declared = _type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            return self._blob(value.blobFileValue.offset, declared, name)
        tensor = value.immediateValue.tensor
        field = tensor.WhichOneof("value")
        if field == "bytes":
            return _decode(tensor.bytes.values, declared)
        values: Any = getattr(tensor, field).values if field else ()
        if declared.scalar == "STRING":
            return str(values[0])
        return np.array(values, STORED[declared.scalar]).reshape([d or 0 for d in declared.shape])

    def _blob(self, offset: int, declared: Type, name: str) -> NDArray[Any]:
        try:
            sentinel, _, size, start = struct.unpack_from("<IIQQ", self.weights, offset)
        except struct.error:
            sentinel, size, start = 0, 0, 0
        data = self.weights[start : start + size]
        if sentinel != SENTINEL or len(data) != size:
            raise UserError(f"{self.path}: weight.bin ends before {name}, or is damaged", AGAIN)
        return _decode(data, declared)

    def layers(self) -> tuple[Layer, ...]:
        """The convolutions, in order of execution."""
        made = {op.name: op for op in self.operations}
        return tuple(_layer(op, made) for op in self.operations if op.kind == "conv")

    def counts(self) -> Counter[str]:
        """How many operations there are of each kind, constants left out."""
        return Counter(op.kind for op in self.operations)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, warnings or log lines of coremltools, which writes dozens; exceptions pass."""
    logger = logging.getLogger("coremltools")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(before)


def _specification(path: Path) -> Any:
    """The parsed model.mlmodel that the manifest calls the root."""
    from google.protobuf.message import DecodeError

    with quiet():
        from coremltools.proto import Model_pb2
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        spec = Model_pb2.Model()
        spec.ParseFromString((path / "Data" / root).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, DecodeError) as error:
        raise UserError(f"{path}: not a Core ML package ({type(error).__name__}: {error})", AGAIN) from None
    return spec


def _layer(op: Operation, made: Mapping[str, Operation]) -> Layer:
    weight, x = op.arguments["weight"], op.arguments["x"]
    integer = isinstance(x, Name) and x.name in made and made[x.name].kind == "dequantize"
    activation = "int8" if integer else op.type.scalar.lower()
    if isinstance(weight, Name):
        source = made[weight.name]
        name, declared, stored = weight.name, source.type, _storage(source)
        size = sum(c.value.nbytes for c in source.arguments.values() if isinstance(c, Constant) and c.type.shape)
    else:
        name, declared, stored = weight.name, weight.type, weight.type.scalar.lower()
        size = weight.value.nbytes
    shape = tuple(d or 0 for d in declared.shape)
    for suffix in ("_quantized", "_palettized", "_to_fp16", "_weight"):
        name = name.removesuffix(suffix)
    return Layer(name.removeprefix("network_"), shape, stored, isinstance(weight, Name), activation, size)


def _storage(op: Operation) -> str:
    """How a compressed weight is stored, in words."""
    a = op.arguments
    if op.kind == "constexpr_lut_to_dense":
        tables, entries = int(np.prod(a["lut"].value.shape[:-2])), a["lut"].value.shape[-2:]
        if "shape" in a:
            tables, entries = 1, a["lut"].value.shape
        bits = int(np.log2(entries[0]))
        return f"palette of {bits} bits" + (f", {tables} tables" if tables > 1 else "")
    data = a.get("quantized_data", a.get("data"))
    return f"{data.type.scalar.lower()} per channel"


def _type(value_type: Any) -> Type:
    from coremltools.proto import MIL_pb2

    tensor = value_type.tensorType
    dimensions = tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions
    )
    return Type(MIL_pb2.DataType.Name(tensor.dataType), dimensions)


def _decode(data: bytes, declared: Type) -> NDArray[Any]:
    shape = [d or 0 for d in declared.shape]
    try:
        if declared.scalar in PACKED:
            return _unpack(data, PACKED[declared.scalar], shape, signed=declared.scalar.startswith("INT"))
        return np.frombuffer(data, STORED[declared.scalar]).reshape(shape)
    except (KeyError, ValueError) as error:
        raise UserError(f"a weight of {declared.scalar} {shape} cannot be read ({error})", AGAIN) from None


def _unpack(data: bytes, bits: int, shape: Sequence[int], signed: bool = False) -> NDArray[Any]:
    """Integers of fewer than 8 bits, packed lowest bit first."""
    count = int(np.prod(shape))
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    values = flat.reshape(count, bits) @ (1 << np.arange(bits))
    if signed:
        values = np.where(values >= 1 << bits - 1, values - (1 << bits), values)
    return values.astype(np.int8 if signed else np.uint8).reshape(shape)


# Compressed weights, in numpy and float32; the result is rounded to the declared type afterwards.


def _along(values: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    """A vector of one value per index of `axis`, or a scalar, in a shape that broadcasts."""
    values = np.asarray(values, np.float32)
    if values.ndim == 0:
        return values
    return values.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def _affine_dequantize(a: Arguments) -> NDArray[Any]:
    data = a["quantized_data"]
    axis = int(a["axis"])
    zero = _along(a["zero_point"], axis, data.ndim)
    return np.asarray((data.astype(np.float32) - zero) * _along(a["scale"], axis, data.ndim))


def _blocks(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """One value per block, repeated to the shape of what is scaled."""
    for axis, size in enumerate(shape):
        values = values.repeat(size // values.shape[axis], axis)
    return values.astype(np.float32)


def _shift_scale(a: Arguments) -> NDArray[Any]:
    data = a["data"]
    offset = _blocks(a["offset"], data.shape) if "offset" in a else np.float32(0)
    return np.asarray((data.astype(np.float32) - offset) * _blocks(a["scale"], data.shape))


def _lut_to_dense(a: Arguments) -> NDArray[Any]:
    indices, lut = a["indices"], a["lut"]
    if "shape" in a:  # iOS 16: one table, indices packed into bytes
        shape = [int(n) for n in a["shape"]]
        return np.asarray(lut[_unpack(indices.tobytes(), int(np.log2(lut.size)), shape)])
    # iOS 18: lut is (groups of each axis ..., entries, vector length)
    *groups, _, vector = lut.shape
    if vector != 1:
        raise UserError("vector palettes (cluster_dim > 1) are not executed here", "use scalar palettes")
    where = [np.arange(size) // (size // n) for size, n in zip(indices.shape, groups, strict=True)]
    return np.asarray(lut[(*np.ix_(*where), indices, 0)])


COMPRESSED: dict[str, Callable[[Arguments], NDArray[Any]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
}


# Everything else, on float32 tensors; 8-bit codes are float32 tensors of whole numbers.


def _padding(a: Arguments) -> tuple[int, int, int, int]:
    """Top, bottom, left, right."""
    kind = a.get("pad_type", "valid")
    if kind == "valid":
        return 0, 0, 0, 0
    if kind != "custom":
        raise UserError(f"pad_type {kind!r} is not executed here", AGAIN)
    top, bottom, left, right = a["pad"]
    return top, bottom, left, right


def _conv(a: Arguments) -> Tensor:
    x, (top, bottom, left, right) = a["x"], _padding(a)
    if (top, left) != (bottom, right):
        x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
    return F.conv2d(
        x, a["weight"], _vector(a.get("bias")), a.get("strides", (1, 1)), (top, left), a.get("dilations", (1, 1)),
        a.get("groups", 1),
    )  # fmt: skip


def _vector(bias: Tensor | float | None) -> Tensor | None:
    return torch.tensor([bias]) if isinstance(bias, float) else bias


def _conv_accumulating(a: Arguments) -> Tensor:
    """A convolution as one chain of fp16 fused multiply-adds per output: tap by tap, input channel by channel."""
    weight, (top, bottom, left, right) = a["weight"].half(), _padding(a)
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    if a.get("groups", 1) != 1 or tuple(strides) != (1, 1):
        raise UserError("fp16-accumulate executes dense convolutions of stride 1 only", "choose another mode")
    x = F.pad(a["x"], (left, right, top, bottom)).half()
    height = x.shape[2] - dilations[0] * (weight.shape[2] - 1)
    width = x.shape[3] - dilations[1] * (weight.shape[3] - 1)
    total = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            tap = x[:, :, row * dilations[0] :, column * dilations[1] :][:, :, :height, :width].contiguous()
            for c in range(weight.shape[1]):
                # PyTorch computes this in float32 and rounds once: what a hardware FMA does.
                total.addcmul_(tap[:, c : c + 1], weight[:, c, row, column].view(1, -1, 1, 1))
    bias = _vector(a.get("bias"))
    return total.float() if bias is None else total.float() + bias.view(1, -1, 1, 1)


def _max_pool(a: Arguments) -> Tensor:
    top, bottom, left, right = _padding(a)
    if (top, left) != (bottom, right):
        raise UserError("max_pool with unequal padding is not executed here", AGAIN)
    return F.max_pool2d(a["x"], a["kernel_sizes"], a["strides"], (top, left), ceil_mode=bool(a.get("ceil_mode", False)))


def _upsample_bilinear(a: Arguments) -> Tensor:
    """By its definition the factor only gives the output size; sampling then goes by input over output size."""
    x = a["x"]
    size = [int(x.shape[d] * float(a[f"scale_factor_{k}"])) for d, k in ((2, "height"), (3, "width"))]
    corners = bool(a.get("align_corners", True))
    if not corners and not a.get("half_pixel_centers", True):
        raise UserError("upsample_bilinear without half-pixel centres is not executed here", AGAIN)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=corners)


def _code_range(a: Arguments, declared: Type) -> tuple[int, int]:
    signed = a.get("output_dtype", declared.scalar.lower()) == "int8"
    return (-128, 127) if signed else (0, 255)


def _scale(a: Arguments, key: str) -> Any:
    """A scalar, or a vector along `axis`."""
    value = a.get(key, 0)
    if not isinstance(value, Tensor):
        return value
    axis = a["axis"] % a["input"].ndim
    return value.reshape([-1 if d == axis else 1 for d in range(a["input"].ndim)])


def _quantize(a: Arguments, declared: Type) -> Tensor:
    low, high = _code_range(a, declared)
    codes: Tensor = (a["input"] / _scale(a, "scale")).round() + _scale(a, "zero_point")
    return codes.clamp(low, high)


def _dequantize(a: Arguments) -> Tensor:
    values: Tensor = (a["input"] - _scale(a, "zero_point")) * _scale(a, "scale")
    return values


OPERATIONS: dict[str, Callable[[Arguments], Tensor]] = {
    "conv": _conv,
    "max_pool": _max_pool,
    "upsample_bilinear": _upsample_bilinear,
    "relu": lambda a: F.relu(a["x"]),
    "sigmoid": lambda a: torch.sigmoid(a["x"]),
    "add": lambda a: a["x"] + a["y"],
    "sub": lambda a: a["x"] - a["y"],
    "mul": lambda a: a["x"] * a["y"],
    "real_div": lambda a: a["x"] / a["y"],
    "clip": lambda a: a["x"].clamp(a["alpha"], a["beta"]),
    "concat": lambda a: torch.cat(a["values"], a["axis"]),
    "reduce_max": lambda a: a["x"].amax(a["axes"], keepdim=a["keep_dims"]),
    "reduce_min": lambda a: a["x"].amin(a["axes"], keepdim=a["keep_dims"]),
    # Only between floating-point types; the rounding that follows every operation is the whole cast.
    "cast": lambda a: a["x"],
    "dequantize": _dequantize,
}


def half(x: Tensor) -> Tensor:
    """Rounded to the nearest fp16 value (infinite beyond 65504), held in float32."""
    return x.half().float()


class Program:
    """An ML Program, its weights decompressed, ready to run.

    Args:
        package: what to run.
        arithmetic: one of `ARITHMETICS`.

    Raises:
        UserError: the program holds operations that are not known here (all are named), or is damaged.
    """

    def __init__(self, package: Package, arithmetic: str = "fp16") -> None:
        if arithmetic not in ARITHMETICS:
            raise UserError(f"no arithmetic named {arithmetic!r}", f"choose one of {', '.join(ARITHMETICS)}")
        known = OPERATIONS.keys() | COMPRESSED.keys() | {"quantize"}
        if unknown := sorted(package.counts().keys() - known):
            raise UserError(
                f"{package.path}: no evaluation for the operations {', '.join(unknown)}", "run the package on a Mac"
            )
        self.package, self.arithmetic = package, arithmetic
        self._constants: dict[str, NDArray[Any]] = {}
        self._steps: list[tuple[Operation, dict[str, Any]]] = []
        for op in package.operations:
            if op.kind in COMPRESSED:
                self._constants[op.name] = self._decompressed(op)
            else:
                self._steps.append((op, {k: self._prepared(v) for k, v in op.arguments.items()}))
        self._last = self._last_uses()

    def weight(self, name: str) -> NDArray[Any]:
        """A compressed weight, decompressed and rounded to its declared type; by the operation's output name."""
        return self._constants[name]

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the compressed weights."""
        return tuple(self._constants)

    def _decompressed(self, op: Operation) -> NDArray[Any]:
        arguments = {k: self._constants[v.name] if isinstance(v, Name) else v.value for k, v in op.arguments.items()}
        dense = COMPRESSED[op.kind](arguments)
        return np.asarray(dense.astype(STORED[op.type.scalar]))

    def _prepared(self, argument: Any) -> Any:
        """Constants as what the operations take: strings, numbers, tuples of integers, float32 tensors."""
        if isinstance(argument, list):
            return [self._prepared(a) for a in argument]
        if isinstance(argument, Name):
            if argument.name not in self._constants:
                return argument
            return torch.from_numpy(self._constants[argument.name].astype(np.float32))
        value = argument.value
        if isinstance(value, str):
            return value
        if value.ndim == 0:
            return value.item()
        if argument.type.scalar == "INT32" and value.ndim == 1:
            return tuple(int(v) for v in value)
        return torch.from_numpy(value.astype(np.float32))

    def _last_uses(self) -> dict[str, int]:
        last: dict[str, int] = {}
        for i, (_, arguments) in enumerate(self._steps):
            last |= {n.name: i for n in _names(arguments.values())}
        return last

    def run(
        self,
        inputs: Mapping[str, NDArray[np.float32]],
        keep: Sequence[str] = (),
        watch: Callable[[str, Tensor], None] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Execute once.

        Args:
            inputs: by name, in the declared shapes.
            keep: values inside the program to return beside its outputs.
            watch: called with every input and every operation's result.

        Returns:
            The program's outputs and `keep`, by name.

        Raises:
            UserError: an input is missing or has another shape, or a result has another shape than declared.
        """
        values = {name: torch.from_numpy(self._checked(name, inputs)) for name in self.package.inputs}
        wanted = {*self.package.outputs, *keep}
        with torch.inference_mode():
            for name in values:
                values[name] = self._rounded(values[name], self.package.inputs[name])
                if watch:
                    watch(name, values[name])
            for i, (op, arguments) in enumerate(self._steps):
                values[op.name] = result = self._result(op, _bound(arguments, values))
                if watch:
                    watch(op.name, result)
                for used in _names(arguments.values()):
                    if self._last[used.name] == i and used.name not in wanted:
                        values.pop(used.name, None)
        return {name: values[name].numpy() for name in wanted}

    def _checked(self, name: str, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        declared = self.package.inputs[name]
        if name not in inputs or not declared.fits(inputs[name].shape):
            got = inputs[name].shape if name in inputs else "nothing"
            raise UserError(f"the package takes {name} of shape {declared.shape}, got {got}", "resize the photo to it")
        return np.ascontiguousarray(inputs[name], np.float32)

    def _result(self, op: Operation, arguments: Arguments) -> Tensor:
        if op.kind == "quantize":
            result = _quantize(arguments, op.type)
        elif op.kind == "conv" and self.arithmetic == "fp16-accumulate" and op.type.scalar == "FLOAT16":
            result = _conv_accumulating(arguments)
        else:
            result = OPERATIONS[op.kind](arguments)
        if not op.type.fits(result.shape):
            raise UserError(
                f"{op.name} ({op.kind}) is declared {op.type.shape}, computed was {tuple(result.shape)}",
                "this is a fault of the converter or of this evaluation; report it",
            )
        return self._rounded(result, op.type)

    def _rounded(self, x: Tensor, declared: Type) -> Tensor:
        return half(x) if declared.scalar == "FLOAT16" and self.arithmetic != "fp32" else x


def _names(arguments: Any) -> list[Name]:
    found = []
    for argument in arguments:
        if isinstance(argument, Name):
            found.append(argument)
        elif isinstance(argument, list):
            found += _names(argument)
    return found


def _bound(arguments: Arguments, values: Mapping[str, Tensor]) -> dict[str, Any]:
    def bind(argument: Any) -> Any:
        if isinstance(argument, list):
            return [bind(a) for a in argument]
        return values[argument.name] if isinstance(argument, Name) else argument

    return {k: bind(v) for k, v in arguments.items()}


def ranges(program: Program, samples: Iterable[Mapping[str, NDArray[np.float32]]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of every input and intermediate result over all samples."""
    found: dict[str, tuple[float, float]] = {}

    def watch(name: str, x: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        before = found.get(name, (low, high))
        found[name] = (min(low, before[0]), max(high, before[1]))

    for sample in samples:
        program.run(sample, watch=watch)
    return found
