"""A saved Core ML package: its program and its weights, read without Core ML.

The program lies in `model.mlmodel` (Apple's protobuf classes), the weights lie in `weight.bin`. coremltools describes
the layout of the weights in `mlmodel/src/MILBlob/Blob/StorageFormat.hpp`, and compressed weights in its MIL operation
reference,
<https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html>.
"""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.exporters.model_file import StoredConvolution
from u2export.reference import stamp
from u2export.reference.dtypes import stored_name

Arguments = Mapping[str, Any]
SENTINEL = 0xDEADBEEF
AGAIN = "export it again"

# Bits of the MIL data types that are packed.
PACKED = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}


@dataclass(frozen=True)
class Type:
    """The declared type of a value.

    Attributes:
        scalar: MIL's name of the scalar type, such as "FLOAT16".
        shape: the shape, None for an open dimension.
    """

    scalar: str
    shape: tuple[int | None, ...]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape has the declared type."""
        return len(shape) == len(self.shape) and all(
            d is None or d == n for d, n in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True)
class Operation:
    """One operation that is not a constant.

    Attributes:
        kind: MIL's name of the operation.
        name: name of the output.
        type: declared type of the output.
        arguments: by MIL's names: a `Name`, a `Constant`, or a list of both.
    """

    kind: str
    name: str
    type: Type
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Name:
    """An argument that another operation makes, or that the caller gives."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A constant as it is stored.

    Attributes:
        name: its name; empty for a constant that stands inside an argument.
        type: its declared type.
        value: a numpy array, or a string.
    """

    name: str
    type: Type
    value: Any

    @property
    def bytes(self) -> int:
        """Size as stored; values of fewer than 8 bits are packed."""
        bits = PACKED.get(self.type.scalar, 0)
        return -(-self.value.size * bits // 8) if bits else int(self.value.nbytes)


class Package:
    """A saved .mlpackage of one ML Program.

    Raises:
        UserError: the package is missing or damaged, or holds no ML Program with a function `main`.
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
        """The content of weight.bin; empty where the program has no file of weights."""
        path = self.path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
        return path.read_bytes() if path.is_file() else b""

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All operations except constants, in the order of execution."""
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
        return np.array(values, dtype_of(declared.scalar)).reshape([d or 0 for d in declared.shape])

    def _blob(self, offset: int, declared: Type, name: str) -> NDArray[Any]:
        try:
            sentinel, _, size, start = struct.unpack_from("<IIQQ", self.weights, offset)
        except struct.error:
            sentinel, size, start = 0, 0, 0
        data = self.weights[start : start + size]
        if sentinel != SENTINEL or len(data) != size:
            raise UserError(f"{self.path}: weight.bin ends before {name}, or is damaged", AGAIN)
        return _decode(data, declared)

    def layers(self) -> tuple[StoredConvolution, ...]:
        """Return the convolutions, in the order of execution."""
        made = {op.name: op for op in self.operations}
        return tuple(_layer(op, made) for op in self.operations if op.kind == "conv")

    def counts(self) -> Counter[str]:
        """Return how many operations there are of each kind, without constants."""
        return Counter(op.kind for op in self.operations)

    def stamped(self, key: str) -> Any:
        """Return what u2export stamped into the package under a key, see `reference.stamp`.

        Raises:
            UserError: the package has no such stamp.
        """
        value = stamp.read(self.spec.description.metadata.userDefined).get(key)
        if not value:
            raise UserError(f"{self.path}: not written by u2export (no {key} in its metadata)", AGAIN)
        return value


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars, warnings and log lines of coremltools, which writes dozens; exceptions pass."""
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
    """Return the parsed model.mlmodel that the manifest names as the root."""
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


def _layer(op: Operation, made: Mapping[str, Operation]) -> StoredConvolution:
    weight, x = op.arguments["weight"], op.arguments["x"]
    integer = isinstance(x, Name) and x.name in made and made[x.name].kind == "dequantize"
    activation = "int8" if integer else op.type.scalar.lower()
    if isinstance(weight, Name):
        source = made[weight.name]
        name, declared, stored = weight.name, source.type, _storage(source)
        size = sum(c.bytes for c in source.arguments.values() if isinstance(c, Constant) and c.type.shape)
    else:
        name, declared, stored = weight.name, weight.type, weight.type.scalar.lower()
        size = weight.bytes
    shape = tuple(d or 0 for d in declared.shape)
    for suffix in ("_quantized", "_palettized", "_to_fp16", "_weight"):
        name = name.removesuffix(suffix)
    return StoredConvolution(name.removeprefix("network_"), shape, stored, activation, size)


def _storage(op: Operation) -> str:
    """Return in words how a compressed weight is stored."""
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


def dtype_of(scalar: str) -> np.dtype[Any]:
    """Return the numpy type in which a MIL type is stored.

    Raises:
        TypeError: numpy has no such type.
    """
    return np.dtype(stored_name(scalar)).newbyteorder("<")


def _decode(data: bytes, declared: Type) -> NDArray[Any]:
    shape = [d or 0 for d in declared.shape]
    try:
        if declared.scalar in PACKED:
            return _unpack(data, PACKED[declared.scalar], shape, signed=declared.scalar.startswith("INT"))
        return np.frombuffer(data, dtype_of(declared.scalar)).reshape(shape)
    except (TypeError, ValueError) as error:
        raise UserError(f"a weight of {declared.scalar} {shape} cannot be read ({error})", AGAIN) from None


def _unpack(data: bytes, bits: int, shape: Sequence[int], signed: bool = False) -> NDArray[Any]:
    """Return integers of fewer than 8 bits that are packed lowest bit first."""
    count = int(np.prod(shape))
    flat = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    values = flat.reshape(count, bits) @ (1 << np.arange(bits))
    if signed:
        values = np.where(values >= 1 << bits - 1, values - (1 << bits), values)
    return values.astype(np.int8 if signed else np.uint8).reshape(shape)


# Compressed weights, decompressed by numpy in float32. `evaluate` rounds the result to the declared type.


def _along(values: NDArray[Any], axis: int, rank: int) -> NDArray[Any]:
    """Return a scalar, or a vector with one value per index of `axis`, in a shape that broadcasts."""
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
    """Return values, one per block, repeated to the shape of the tensor that they scale."""
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
