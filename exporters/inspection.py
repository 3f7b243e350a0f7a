"""What is inside an exported file, whatever its kind: operations, weights as stored, inputs and outputs, metadata.

Nothing is taken from the record beside the file; a reader for one more kind is one function and one line in `READERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install

if TYPE_CHECKING:
    from u2export.exporters.trt.layer_table import Layer as TableLayer
    from u2export.exporters.trt.layer_table import Table, Tensor

PREFIX = "u2export."
FLOATS = ("float16", "float32", "bfloat16")


@dataclass(frozen=True)
class Port:
    """An input or output: its name, what it is of ("float32", "RGB picture, 8 bit"), its shape as declared."""

    name: str
    kind: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A convolution as stored.

    Attributes:
        name: the PyTorch module's, as far as the format keeps it.
        shape: of the weight: outputs, inputs, height, width.
        weight: how it is stored, such as "float16", "int8 per channel", "palette of 8 bits".
        activation: what it reads: a floating-point type, or "int8" behind quantisation.
        bytes: of the stored weight with its scales or palettes, the bias left out.
    """

    name: str
    shape: tuple[int, ...]
    weight: str
    activation: str
    bytes: int

    @property
    def compressed(self) -> bool:
        """Whether the weight is anything but floating point."""
        return self.weight not in FLOATS


@dataclass(frozen=True)
class Inspection:
    """One model file.

    Attributes:
        kind: format and its version.
        bytes: on disk, all files.
        inputs, outputs: the input and output contract.
        operations: how many of each kind, constants left out.
        layers: the convolutions in order of execution.
        metadata: what u2export stamped into the file (its prefix left out), and the format's own entries.
    """

    kind: str
    bytes: int
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    operations: Mapping[str, int]
    layers: tuple[Layer, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights(self) -> Counter[str]:
        """How many convolutions are stored in which way."""
        return Counter(layer.weight for layer in self.layers)

    @property
    def activations(self) -> Counter[str]:
        """How many convolutions read what."""
        return Counter(layer.activation for layer in self.layers)

    @property
    def kept(self) -> tuple[Layer, ...]:
        """Those left in floating point although others are compressed: what a compressor has skipped."""
        kept = tuple(layer for layer in self.layers if not layer.compressed)
        return kept if len(kept) < len(self.layers) else ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            **asdict(self),
            "weights": dict(self.weights),
            "activations": dict(self.activations),
            "kept": [layer.name for layer in self.kept],
        }


def inspect(path: Path) -> Inspection:
    """What is in a model file or folder.

    Raises:
        UserError: no such file, of no known kind, or damaged.
        Unavailable: reading this kind takes a package that is not installed.
    """
    if not path.exists():
        raise UserError(f"no such file: {path}", "give a model file, or the record beside one")
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: no reader for {path.suffix or 'such'} files", f"give one of {', '.join(READERS)}")
    return reader(path)


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise Unavailable(f"inspecting this file needs {module}", how_to_install(extra, [module]))


def _stamped(pairs: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(PREFIX): str(value) for key, value in pairs.items()}


def _size(path: Path, *more: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in (*files, *(m for m in more if m.is_file())))


def _granularity(scale: Any) -> str:
    return "per channel" if np.size(scale) > 1 else "per tensor"


# ONNX


def _onnx(path: Path) -> Inspection:
    _need("onnx", "onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX file ({type(error).__name__})", "export it again") from None
    graph = model.graph
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    values = {t.name: t for t in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    convs = [node for node in graph.node if node.op_type in ("Conv", "QLinearConv", "ConvInteger")]
    return Inspection(
        kind=f"ONNX, opset {opset}, IR {model.ir_version}",
        bytes=_size(path),
        inputs=tuple(_onnx_port(v) for v in graph.input if v.name not in values),
        outputs=tuple(_onnx_port(v) for v in graph.output),
        operations=dict(Counter(node.op_type for node in graph.node).most_common()),
        layers=tuple(_onnx_layer(node, values, made) for node in convs),
        metadata=_stamped({p.key: p.value for p in model.metadata_props}),
    )


def _onnx_port(value: Any) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return Port(value.name, _onnx_type(tensor.elem_type), shape)


def _onnx_type(number: int) -> str:
    import onnx

    name: str = onnx.TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name


def _onnx_layer(node: Any, values: Mapping[str, Any], made: Mapping[str, Any]) -> Layer:
    from onnx import numpy_helper

    x = made.get(node.input[0])
    quantised = node.op_type != "Conv" or (x is not None and x.op_type == "DequantizeLinear")
    name = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    scale = node.input[4] if node.op_type == "QLinearConv" else ""
    while name in made and name not in values:  # through DequantizeLinear and Cast to what is stored
        if made[name].op_type == "DequantizeLinear":
            scale = made[name].input[1]
        name = made[name].input[0]
    stored = values.get(name)
    if stored is None:
        return Layer(node.name, (), "computed", "unknown", 0)
    kind, size = _onnx_type(stored.data_type), numpy_helper.to_array(stored).nbytes
    floating = kind if kind in FLOATS else "float32"
    if scale in values:
        scales = numpy_helper.to_array(values[scale])
        kind, size = f"{kind} {_granularity(scales)}", size + scales.nbytes
    return Layer(node.name.strip("/"), tuple(stored.dims), kind, "int8" if quantised else floating, size)


def _ort(path: Path) -> Inspection:
    """ONNX Runtime's own format: the runtime tells its inputs and outputs, but not its operations."""
    _need("onnxruntime", "onnx")
    from u2export.exporters.onnx import open_session

    session = open_session(path)
    inputs, outputs = (
        tuple(
            Port(v.name, v.type.removeprefix("tensor(").removesuffix(")"), tuple(str(d) for d in v.shape)) for v in vs
        )
        for vs in (session.get_inputs(), session.get_outputs())
    )
    stamped = _stamped(session.get_modelmeta().custom_metadata_map)
    return Inspection("ONNX Runtime format, operations not readable", _size(path), inputs, outputs, {}, (), stamped)


# OpenVINO


def _openvino(path: Path) -> Inspection:
    _need("openvino", "openvino")
    import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        raise UserError(
            f"{path}: not an OpenVINO IR ({last})", "keep the .bin beside the .xml, or export it again"
        ) from None
    ops = model.get_ordered_ops()
    counted = Counter(op.get_type_name() for op in ops)
    for name in ("Constant", "Parameter", "Result"):
        counted.pop(name, None)
    info = model.get_rt_info()
    stamped = _plain(info["u2export"]) if "u2export" in info else {}
    version = _plain(info["Runtime_version"]) if "Runtime_version" in info else "an unknown version"
    return Inspection(
        kind=f"OpenVINO IR, made by {version}",
        bytes=_size(path, path.with_suffix(".bin")),
        inputs=tuple(_openvino_port(p) for p in model.inputs),
        outputs=tuple(_openvino_port(p) for p in model.outputs),
        operations=dict(counted.most_common()),
        layers=tuple(_openvino_layer(op) for op in ops if op.get_type_name() in ("Convolution", "GroupConvolution")),
        metadata=_stamped({key: _plain(value) for key, value in stamped.items()}),
    )


def _plain(entry: Any) -> Any:
    """Runtime info comes as plain values or wrapped ones, by OpenVINO's version and by kind."""
    return getattr(entry, "value", entry)


def _openvino_type(element: Any) -> str:
    name: str = element.to_string()
    return {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}.get(name, name)


def _openvino_port(port: Any) -> Port:
    shape = tuple(str(d) for d in port.get_partial_shape())
    return Port(port.get_any_name() if port.get_names() else "", _openvino_type(port.get_element_type()), shape)


def _openvino_layer(op: Any) -> Layer:
    node, scale = op.input_value(1).get_node(), None
    while node.get_type_name() != "Constant":  # through Convert, Subtract, Multiply, FakeQuantize to what is stored
        if node.get_type_name() in ("Multiply", "FakeQuantize"):
            scale = node.input_value(node.get_input_size() - 1).get_node()
        if node.get_input_size() == 0:
            return Layer(op.get_friendly_name(), (), "computed", "unknown", 0)
        node = node.input_value(0).get_node()
    kind = _openvino_type(node.get_element_type())
    if scale is not None:
        kind = f"{kind} {_granularity(scale.get_data())}" if scale.get_type_name() == "Constant" else kind
    entry = op.input_value(0).get_node().get_type_name()
    activation = "int8" if entry == "FakeQuantize" else "float32"
    name = op.get_friendly_name().strip("/").removesuffix("/WithoutBiases")
    return Layer(name, tuple(node.get_output_shape(0)), kind, activation, node.get_byte_size())


# Core ML


def _coreml(path: Path) -> Inspection:
    _need("coremltools", "coreml")
    from u2export.exporters.coreml.package import Package

    package = Package(path)
    description = package.spec.description
    metadata = description.metadata
    own = {"author": metadata.author, "license": metadata.license, "description": metadata.shortDescription}
    return Inspection(
        kind=f"Core ML program, specification {package.spec.specificationVersion}, {package.opset}",
        bytes=_size(path),
        inputs=tuple(_coreml_port(f) for f in description.input),
        outputs=tuple(_coreml_port(f) for f in description.output),
        operations=dict(package.counts().most_common()),
        layers=package.layers(),
        metadata=_stamped({**{k: v for k, v in own.items() if v}, **metadata.userDefined}),
    )


def _coreml_port(feature: Any) -> Port:
    picture = feature.type.imageType
    if feature.type.WhichOneof("Type") == "imageType":
        space = picture.ColorSpace.Name(picture.colorSpace)
        sizes = [(s.height, s.width) for s in picture.enumeratedSizes.sizes] or [(picture.height, picture.width)]
        return Port(feature.name, f"picture, {space.lower()}, 8 bit", (" or ".join(f"{h}x{w}" for h, w in sizes),))
    array = feature.type.multiArrayType
    return Port(feature.name, array.ArrayDataType.Name(array.dataType).lower(), tuple(str(n) for n in array.shape))


# TensorRT


def _engine(path: Path) -> Inspection:
    """By the layer table beside it; without one, on a GPU."""
    from u2export.exporters.trt.layer_table import parse, read

    beside = path.with_suffix(".layers.txt")
    if beside.is_file():
        return _table(path, read(beside))
    from u2export.exporters.trt.engine import layer_table

    return _table(path, parse(layer_table(path)))


def _layer_table(path: Path) -> Inspection:
    """A build log, or the JSON of `trtexec --exportLayerInfo`."""
    from u2export.exporters.trt.layer_table import read

    return _table(path, read(path))


def _table(path: Path, table: Table) -> Inspection:
    convs = table.convolutions
    known = {tensor.name for layer in table.layers for tensor in layer.outputs}
    read = {t.name: t for layer in table.layers for t in layer.inputs}
    ends = {t.name: t for layer in table.layers for t in layer.outputs if t.name not in read}
    return Inspection(
        kind="TensorRT layer table, engine not opened",
        bytes=_size(path),
        inputs=tuple(_table_port(t) for name, t in read.items() if name not in known),
        outputs=tuple(_table_port(t) for t in ends.values()),
        operations=dict(table.kinds.most_common()),
        layers=tuple(_table_layer(node, layer) for node, layer in convs.items()),
        metadata={"traffic": f"{table.traffic / 1e6:.0f} MB read and written by all layers in one run"},
    )


def _table_port(tensor: Tensor) -> Port:
    return Port(tensor.name, _long(tensor.type), tuple(str(n) for n in tensor.shape))


def _table_layer(node: str, layer: TableLayer) -> Layer:
    weight = next((t for t in layer.constants if len(t.shape) == 4), None)
    stored = weight.type if weight else layer.weights
    return Layer(
        node.strip("/"), weight.shape if weight else (), _long(stored), _long(layer.precision),
        weight.bytes if weight else 0,
    )  # fmt: skip


def _long(kind: str) -> str:
    return {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "": "unknown"}.get(kind, kind)


READERS: dict[str, Callable[[Path], Inspection]] = {
    ".onnx": _onnx,
    ".ort": _ort,
    ".xml": _openvino,
    ".mlpackage": _coreml,
    ".engine": _engine,
    ".plan": _engine,
    ".log": _layer_table,
    ".txt": _layer_table,
    ".json": _layer_table,
}
