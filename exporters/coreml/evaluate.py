"""Running a saved .mlpackage with PyTorch, on machines without Core ML.

The program and the weights come from the saved file, not from the converter's memory, so a phone gets what is measured.
The meaning of each operation is in coremltools' MIL operation reference,
<https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from u2export.errors import UserError, WrongValue
from u2export.exporters.coreml.package import AGAIN, COMPRESSED, Arguments, Name, Operation, Package, Type, dtype_of

# fp32: declared types are ignored, weights stay rounded as stored. fp16: operations compute in fp32, and every tensor
# that is declared fp16 is rounded. fp16-accumulate: each partial sum inside a convolution is rounded too. No order in
# which hardware with fp16 accumulators may add is more pessimistic.
ARITHMETICS = ("fp32", "fp16", "fp16-accumulate")


# All tensors are float32. 8-bit codes are whole numbers in float32.


def _padding(a: Arguments) -> tuple[int, int, int, int]:
    """Return the padding at top, bottom, left and right."""
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
    """Compute a convolution as one chain of fp16 fused multiply-adds per output, tap by tap and channel by channel."""
    weight, (top, bottom, left, right) = a["weight"].half(), _padding(a)
    strides, dilations = a.get("strides", (1, 1)), a.get("dilations", (1, 1))
    if a.get("groups", 1) != 1 or tuple(strides) != (1, 1):
        raise UserError("fp16-accumulate executes dense convolutions of stride 1 only", "choose another arithmetic")
    x = F.pad(a["x"], (left, right, top, bottom)).half()
    height = x.shape[2] - dilations[0] * (weight.shape[2] - 1)
    width = x.shape[3] - dilations[1] * (weight.shape[3] - 1)
    total = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            tap = x[:, :, row * dilations[0] :, column * dilations[1] :][:, :, :height, :width].contiguous()
            for c in range(weight.shape[1]):
                # PyTorch computes this in float32, where the product is exact, and rounds the sum to fp16.
                total.addcmul_(tap[:, c : c + 1], weight[:, c, row, column].view(1, -1, 1, 1))
    bias = _vector(a.get("bias"))
    return total.float() if bias is None else total.float() + bias.view(1, -1, 1, 1)


def _max_pool(a: Arguments) -> Tensor:
    top, bottom, left, right = _padding(a)
    if (top, left) != (bottom, right):
        raise UserError("max_pool with unequal padding is not executed here", AGAIN)
    return F.max_pool2d(a["x"], a["kernel_sizes"], a["strides"], (top, left), ceil_mode=bool(a.get("ceil_mode", False)))


def _upsample_bilinear(a: Arguments) -> Tensor:
    """Resize. By MIL's definition the factor gives the output size; sampling uses input size over output size."""
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
    """Return a scalar, or a vector that broadcasts along `axis`."""
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


def _matmul(a: Arguments) -> Tensor:
    x, y = (a[k].transpose(-1, -2) if a.get(f"transpose_{k}", False) else a[k] for k in ("x", "y"))
    product: Tensor = x @ y
    return product


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
    "matmul": _matmul,
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], int(a["upscale_factor"])),
    "reduce_max": lambda a: a["x"].amax(a["axes"], keepdim=a["keep_dims"]),
    "reduce_min": lambda a: a["x"].amin(a["axes"], keepdim=a["keep_dims"]),
    # Casts are between floating-point types only. The rounding after every operation does the whole cast.
    "cast": lambda a: a["x"],
    "dequantize": _dequantize,
}


def half(x: Tensor) -> Tensor:
    """Return x rounded to the nearest fp16 value, infinite beyond 65504, in float32."""
    return x.half().float()


class Program:
    """An ML Program with decompressed weights, ready to run.

    Args:
        package: the package to run.
        arithmetic: one of `ARITHMETICS`.

    Raises:
        UserError: this module does not know some operations (the error names all of them), or the program is damaged.
    """

    def __init__(self, package: Package, arithmetic: str = "fp16") -> None:
        if arithmetic not in ARITHMETICS:
            raise WrongValue(f"no arithmetic named {arithmetic!r}", f"choose one of {', '.join(ARITHMETICS)}")
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
        """Return a compressed weight, decompressed and rounded to its declared type.

        Args:
            name: name of the output of the operation that decompresses the weight.
        """
        return self._constants[name]

    @property
    def compressed(self) -> tuple[str, ...]:
        """The names of the compressed weights."""
        return tuple(self._constants)

    def _decompressed(self, op: Operation) -> NDArray[Any]:
        arguments = {k: self._constants[v.name] if isinstance(v, Name) else v.value for k, v in op.arguments.items()}
        dense = COMPRESSED[op.kind](arguments)
        return np.asarray(dense.astype(dtype_of(op.type.scalar)))

    def _prepared(self, argument: Any) -> Any:
        """Return an argument as operations take it: a string, a number, a tuple of integers, or a float32 tensor."""
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
        """Execute the program once.

        Args:
            inputs: arrays by name, in the declared shapes.
            keep: names of values inside the program that are returned as well.
            watch: is called with the name and value of every input and every result.

        Returns:
            The program's outputs and `keep`, by name.

        Raises:
            UserError: an input is missing, or an input or a result has another shape than declared.
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
    """Return the smallest and largest value of every input and every result, over all samples.

    Args:
        program: the program to run.
        samples: inputs by name, as for `Program.run`.
    """
    found: dict[str, tuple[float, float]] = {}

    def watch(name: str, x: Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(x))
        before = found.get(name, (low, high))
        found[name] = (min(low, before[0]), max(high, before[1]))

    for sample in samples:
        program.run(sample, watch=watch)
    return found
