"""Readers of model files: what is inside one, whatever its kind. Nothing is taken from the record beside the file.

A reader for one more kind is one function, and one line in `READERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.errors import Unavailable, UserError
from u2export.exporters.model_file import ModelFile, Port, StoredConvolution
from u2export.files import no_pipe
from u2export.install import how_to_install
from u2export.reference.dtypes import FLOATS, stored_name
from u2export.reference.onnx_file import read_onnx
from u2export.reference.onnx_files import model_files
from u2export.reference.onnx_graph import GraphView, opset_of
from u2export.reference.onnx_session import open_session
from u2export.reference.stamp import PREFIX, prefixed, read

if TYPE_CHECKING:
    from u2export.exporters.trt.layer_table import EngineLayer, EngineTensor, LayerTable


def inspect(path: Path) -> ModelFile:
    """What is in a model file or folder.

    Raises:
        UserError: there is no such file, no reader knows its kind, or it is damaged.
        Unavailable: the package that reads this kind is not installed.
    """
    if not path.exists():
        raise UserError(f"no such file: {path}", "give a model file, or the record beside one")
    no_pipe(path, "give a model file")
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: no reader for {path.suffix or 'such'} files", f"give one of {', '.join(READERS)}")
    return reader(path)


def _need(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise Unavailable(f"inspecting this file needs {module}", how_to_install(extra, [module]))


def _metadata(pairs: Mapping[str, Any]) -> dict[str, Any]:
    """A format's metadata: all entries as texts, u2export's own without their prefix, and the stamp as values."""
    return {"metadata": {k.removeprefix(PREFIX): str(v) for k, v in pairs.items()}, "stamp": read(pairs)}


def _size(path: Path, *more: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(p.stat().st_size for p in (*files, *(m for m in more if m.is_file())))


def _granularity(scale: Any) -> str:
    return "per channel" if np.size(scale) > 1 else "per tensor"


# ONNX


def _onnx(path: Path) -> ModelFile:
    model = read_onnx(path)
    graph, view = model.graph, GraphView(model)
    convs = [node for node in view.nodes if node.op_type in ("Conv", "QLinearConv", "ConvInteger")]
    return ModelFile(
        kind=f"ONNX, opset {opset_of(model)}, IR {model.ir_version}",
        bytes=_size(*model_files(path)),
        inputs=tuple(_onnx_port(v) for v in graph.input if v.name not in view.constants),
        outputs=tuple(_onnx_port(v) for v in graph.output),
        operations=dict(Counter(node.op_type for node in view.nodes).most_common()),
        layers=tuple(_onnx_layer(node, view) for node in convs),
        **_metadata({p.key: p.value for p in model.metadata_props}),
    )


def _onnx_port(value: Any) -> Port:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
    return Port(value.name, _onnx_type(tensor.elem_type), shape)


def _onnx_type(number: int) -> str:
    import onnx

    return stored_name(onnx.TensorProto.DataType.Name(number))


def _onnx_layer(node: Any, view: GraphView) -> StoredConvolution:
    quantised = node.op_type != "Conv" or view.made_by(node.input[0], "DequantizeLinear")
    name = node.input[3] if node.op_type == "QLinearConv" else node.input[1]
    scale = node.input[4] if node.op_type == "QLinearConv" else ""
    while name in view.maker and name not in view.constants:  # through DequantizeLinear and Cast to what is stored
        if view.made_by(name, "DequantizeLinear"):
            scale = view.maker[name].input[1]
        if not view.maker[name].input:  # a node that holds its values itself, such as Constant
            break
        name = view.maker[name].input[0]
    stored = view.constants.get(name)
    if stored is None:
        return StoredConvolution(node.name, (), "computed", "unknown", 0)
    kind, size = _onnx_type(stored.data_type), view.constant(name).nbytes
    floating = kind if kind in FLOATS else "float32"
    if (scales := view.array(scale)) is not None:
        kind, size = f"{kind} {_granularity(scales)}", size + scales.nbytes
    return StoredConvolution(node.name.strip("/"), tuple(stored.dims), kind, "int8" if quantised else floating, size)


def _ort(path: Path) -> ModelFile:
    """ONNX Runtime's own format: the runtime tells inputs and outputs, but not the operations."""
    _need("onnxruntime", "onnx")
    session = open_session(path)
    inputs, outputs = (
        tuple(
            Port(v.name, stored_name(v.type.removeprefix("tensor(").removesuffix(")")), tuple(str(d) for d in v.shape))
            for v in vs
        )
        for vs in (session.get_inputs(), session.get_outputs())
    )
    told = _metadata(session.get_modelmeta().custom_metadata_map)
    return ModelFile("ONNX Runtime format, operations not readable", _size(path), inputs, outputs, {}, (), **told)


# OpenVINO


def _openvino(path: Path) -> ModelFile:
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
    return ModelFile(
        kind=f"OpenVINO IR, made by {version}",
        bytes=_size(path, path.with_suffix(".bin")),
        inputs=tuple(_openvino_port(p) for p in model.inputs),
        outputs=tuple(_openvino_port(p) for p in model.outputs),
        operations=dict(counted.most_common()),
        layers=tuple(_openvino_layer(op) for op in ops if op.get_type_name() in ("Convolution", "GroupConvolution")),
        **_metadata(prefixed({key: str(_plain(value)) for key, value in stamped.items()})),
    )


def _plain(entry: Any) -> Any:
    """The value of an entry of the runtime information, which is wrapped or plain by OpenVINO's version and kind."""
    return getattr(entry, "value", entry)


def _openvino_port(port: Any) -> Port:
    shape = tuple(str(d) for d in port.get_partial_shape())
    return Port(
        port.get_any_name() if port.get_names() else "", stored_name(port.get_element_type().to_string()), shape
    )


def _openvino_layer(op: Any) -> StoredConvolution:
    node, scale = op.input_value(1).get_node(), None
    while node.get_type_name() != "Constant":  # through Convert, Subtract, Multiply, FakeQuantize to what is stored
        if node.get_type_name() in ("Multiply", "FakeQuantize"):
            scale = node.input_value(node.get_input_size() - 1).get_node()
        if node.get_input_size() == 0:
            return StoredConvolution(op.get_friendly_name(), (), "computed", "unknown", 0)
        node = node.input_value(0).get_node()
    kind = stored_name(node.get_element_type().to_string())
    if scale is not None:
        kind = f"{kind} {_granularity(scale.get_data())}" if scale.get_type_name() == "Constant" else kind
    entry = op.input_value(0).get_node().get_type_name()
    activation = "int8" if entry == "FakeQuantize" else "float32"
    name = op.get_friendly_name().strip("/").removesuffix("/WithoutBiases")
    return StoredConvolution(name, tuple(node.get_output_shape(0)), kind, activation, node.get_byte_size())


# Core ML


def _coreml(path: Path) -> ModelFile:
    _need("coremltools", "coreml")
    from u2export.exporters.coreml.package import Package

    package = Package(path)
    description = package.spec.description
    metadata = description.metadata
    own = {"author": metadata.author, "license": metadata.license, "description": metadata.shortDescription}
    return ModelFile(
        kind=f"Core ML program, specification {package.spec.specificationVersion}, {package.opset}",
        bytes=_size(path),
        inputs=tuple(_coreml_port(f) for f in description.input),
        outputs=tuple(_coreml_port(f) for f in description.output),
        operations=dict(package.counts().most_common()),
        layers=package.layers(),
        **_metadata({**{k: v for k, v in own.items() if v}, **metadata.userDefined}),
    )


def _coreml_port(feature: Any) -> Port:
    picture = feature.type.imageType
    if feature.type.WhichOneof("Type") == "imageType":
        space = picture.ColorSpace.Name(picture.colorSpace)
        sizes = [(s.height, s.width) for s in picture.enumeratedSizes.sizes] or [(picture.height, picture.width)]
        return Port(feature.name, f"picture, {space.lower()}, 8 bit", (" or ".join(f"{h}x{w}" for h, w in sizes),))
    array = feature.type.multiArrayType
    return Port(feature.name, stored_name(array.ArrayDataType.Name(array.dataType)), tuple(str(n) for n in array.shape))


# LiteRT


def _litert(path: Path) -> ModelFile:
    _need("ai_edge_litert", "litert-runtime")
    from u2export.exporters.litert.tflite import read_tflite

    return read_tflite(path)


# ExecuTorch


def _executorch(path: Path) -> ModelFile:
    _need("executorch", "executorch")
    from u2export.exporters.executorch.program import read_pte

    return read_pte(path)


# TensorRT


def _engine(path: Path) -> ModelFile:
    """An engine: by the layer table beside it, or without one on a GPU."""
    from u2export.exporters.trt.layer_table import parse
    from u2export.exporters.trt.layer_table import read as read_table

    beside = path.with_suffix(".layers.txt")
    if beside.is_file():
        return _table(path, read_table(beside))
    from u2export.exporters.trt.engine import layer_table

    return _table(path, parse(layer_table(path)))


def _layer_table(path: Path) -> ModelFile:
    """A build log, or the JSON of `trtexec --exportLayerInfo`."""
    from u2export.exporters.trt.layer_table import read as read_table

    return _table(path, read_table(path))


def _table(path: Path, table: LayerTable) -> ModelFile:
    convs = table.convolutions
    known = {tensor.name for layer in table.layers for tensor in layer.outputs}
    taken = {t.name: t for layer in table.layers for t in layer.inputs}
    ends = {t.name: t for layer in table.layers for t in layer.outputs if t.name not in taken}
    return ModelFile(
        kind="TensorRT layer table, engine not opened",
        bytes=_size(path),
        inputs=tuple(_table_port(t) for name, t in taken.items() if name not in known),
        outputs=tuple(_table_port(t) for t in ends.values()),
        operations=dict(table.kinds.most_common()),
        layers=tuple(_table_layer(node, layer) for node, layer in convs.items()),
        metadata={"traffic": f"{table.traffic / 1e6:.0f} MB read and written by all layers in one run"},
    )


def _table_port(tensor: EngineTensor) -> Port:
    return Port(tensor.name, _type_name(tensor.type), tuple(str(n) for n in tensor.shape))


def _table_layer(node: str, layer: EngineLayer) -> StoredConvolution:
    weight = next((t for t in layer.constants if len(t.shape) == 4), None)
    stored = weight.type if weight else layer.weights
    return StoredConvolution(
        node.strip("/"), weight.shape if weight else (), _type_name(stored), _type_name(layer.precision),
        weight.bytes if weight else 0,
    )  # fmt: skip


def _type_name(told: str) -> str:
    return stored_name(told) if told else "unknown"


READERS: dict[str, Callable[[Path], ModelFile]] = {
    ".onnx": _onnx,
    ".ort": _ort,
    ".xml": _openvino,
    ".mlpackage": _coreml,
    ".tflite": _litert,
    ".pte": _executorch,
    ".engine": _engine,
    ".plan": _engine,
    ".log": _layer_table,
    ".txt": _layer_table,
    ".json": _layer_table,
}
