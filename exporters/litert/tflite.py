"""What is inside a .tflite file: the stamp, inputs and outputs, operations, convolutions as stored.

A .tflite is a FlatBuffer. It is read and written with the classes that LiteRT's own package generates from the schema.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from u2export.errors import UserError
from u2export.exporters.model_file import ModelFile, Port, StoredConvolution
from u2export.reference import stamp
from u2export.reference.dtypes import FLOATS, stored_name
from u2export.reference.image import Floats
from u2export.reference.stamp import PREFIX

IDENTIFIER = b"TFL3"  # at byte 4 of every file
ALIGNMENT = 16  # bytes; the schema asks for it in all buffers
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
# A tensor's name is the path of the PyTorch modules, each as "package.Class_name"; the last one is the convolution.
MODULE = re.compile(r"[\w.]+\.[A-Z][A-Za-z0-9]*_(\w+)")


class Convolution(NamedTuple):
    """A convolution of an fp32 model.

    Attributes:
        name: its name in PyTorch, see `module_name`.
        entry, output, kernel: names of the tensors that it reads and writes, and of its weight.
        weight, bias: (O, H, W, I) and (O,).
    """

    name: str
    entry: str
    output: str
    kernel: str
    weight: Floats
    bias: Floats


def stamped(model: bytes, pairs: Mapping[str, str]) -> bytes:
    """Return a model with these pairs in its metadata, one entry a key."""
    from ai_edge_litert import schema_py_generated as schema

    made = _parsed(model)
    made.metadata = list(made.metadata or ())
    for key, text in pairs.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry.name, entry.buffer = key, len(made.buffers)
        made.buffers.append(buffer)
        made.metadata.append(entry)
    return _packed(made, len(model))


def with_biases(model: bytes, biases: Mapping[str, Floats]) -> bytes:
    """Return an fp32 model with other biases, by `module_name`; convolutions that share a bias get one of their own."""
    from ai_edge_litert import schema_py_generated as schema

    made = _parsed(model)
    graph, names = made.subgraphs[0], [_operation(code) for code in made.operatorCodes]
    tensors = Counter(int(n) for op in graph.operators for n in op.inputs)
    buffers = Counter(int(tensor.buffer) for tensor in graph.tensors)
    for op in graph.operators:
        if names[op.opcodeIndex] not in CONVOLUTIONS:
            continue
        weight, old = (graph.tensors[int(n)] for n in op.inputs[1:3])
        name = module_name(_text(weight.name))
        if name in biases:
            data = np.ascontiguousarray(biases[name], np.float32).view(np.uint8)
            if tensors[int(op.inputs[2])] == buffers[int(old.buffer)] == 1:
                made.buffers[old.buffer].data = data
                continue
            tensor, buffer = copy(old), schema.BufferT()
            buffer.data = data
            tensor.name, tensor.buffer = f"{name}.bias", len(made.buffers)
            op.inputs = [*(int(n) for n in op.inputs[:2]), len(graph.tensors)]
            made.buffers.append(buffer)
            graph.tensors.append(tensor)
    return _packed(made, len(model))


def _packed(made: Any, size: int) -> bytes:
    import flatbuffers

    made.buffers = [_Aligned(buffer) for buffer in made.buffers]
    builder = flatbuffers.Builder(size)
    builder.Finish(made.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def convolutions(model: bytes) -> Iterator[Convolution]:
    """Yield the convolutions of an fp32 model."""
    made = _parsed(model)
    graph = made.subgraphs[0]
    names = [_operation(code) for code in made.operatorCodes]

    def values(number: int) -> Floats:
        tensor = graph.tensors[number]
        return np.asarray(made.buffers[tensor.buffer].data, np.uint8).view(np.float32).reshape(_shape(tensor))

    for op in graph.operators:
        if names[op.opcodeIndex] in CONVOLUTIONS:
            entry, weight, bias = (int(n) for n in op.inputs[:3])
            read, written, kernel = (_text(graph.tensors[n].name) for n in (entry, int(op.outputs[0]), weight))
            yield Convolution(module_name(kernel), read, written, kernel, values(weight), values(bias))


def one_operation() -> bytes:
    """Return the smallest model: ReLU of one number."""
    from ai_edge_litert import schema_py_generated as schema

    made, graph, code, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    code.deprecatedBuiltinCode = code.builtinCode = schema.BuiltinOperator.RELU
    graph.tensors = [schema.TensorT(), schema.TensorT()]
    for tensor in graph.tensors:
        tensor.shape, tensor.type = [1], schema.TensorType.FLOAT32
    op.inputs, op.outputs = [0], [1]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [op]
    made.version, made.operatorCodes, made.subgraphs, made.buffers = 3, [code], [graph], [schema.BufferT()]
    return _packed(made, 1024)


def sources_of(model: bytes) -> dict[str, list[str]]:
    """Return what each operation of a model reads from others, in their order; a name is that of the first output."""
    graph = _parsed(model).subgraphs[0]
    name = {int(out): _text(graph.tensors[int(op.outputs[0])].name) for op in graph.operators for out in op.outputs}
    return {name[int(op.outputs[0])]: [name[int(n)] for n in op.inputs if int(n) in name] for op in graph.operators}


class _Aligned:
    """A buffer that is written inside the FlatBuffer, at a multiple of 16 bytes.

    The schema asks for this multiple, and the generated classes do not keep to it.
    """

    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer

    def Pack(self, builder: Any) -> Any:  # noqa: N802 - the name that the generated classes call
        from ai_edge_litert import schema_py_generated as schema

        data = None
        if self.buffer.data is not None and len(self.buffer.data):
            content = bytes(np.asarray(self.buffer.data, np.uint8))
            builder.StartVector(1, len(content), ALIGNMENT)
            builder.head = builder.head - len(content)
            builder.Bytes[builder.Head() : builder.Head() + len(content)] = content
            data = builder.EndVector()
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


def stamp_of(path: Path) -> dict[str, Any]:
    """Return the values that u2export stamped into a file; empty for files of others.

    Raises:
        UserError: the file is no .tflite, or damaged.
    """
    return stamp.read(_metadata(_read(path)))


def read_tflite(path: Path) -> ModelFile:
    """Return what is in a .tflite file.

    Raises:
        UserError: the file is no .tflite, or damaged.
    """
    model = _read(path)
    try:
        return _described(path, model)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: a damaged .tflite file ({error})", "export it again") from None


def _described(path: Path, model: Any) -> ModelFile:
    graph = model.subgraphs[0]
    names = [_operation(code) for code in model.operatorCodes]
    operators = [(names[op.opcodeIndex], op) for op in graph.operators]
    maker = {int(out): (name, op) for name, op in operators for out in op.outputs}
    pairs = _metadata(model)
    return ModelFile(
        kind=f"LiteRT (TensorFlow Lite), schema {model.version}",
        bytes=path.stat().st_size,
        inputs=tuple(_port(graph.tensors[i]) for i in graph.inputs),
        outputs=tuple(_port(graph.tensors[i]) for i in graph.outputs),
        operations=dict(Counter(name for name, _ in operators).most_common()),
        layers=tuple(_layer(model, graph, op, maker) for name, op in operators if name in CONVOLUTIONS),
        metadata={key.removeprefix(PREFIX): text for key, text in pairs.items()},
        stamp=stamp.read(pairs),
    )


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a .tflite file") from None
    if data[4:8] != IDENTIFIER:
        raise UserError(f"{path}: not a .tflite file", "give a .tflite file, or export it again")
    try:
        return _parsed(data)
    except (struct.error, ValueError, IndexError, TypeError, OverflowError, AttributeError, MemoryError) as error:
        raise UserError(f"{path}: a damaged .tflite file ({error})", "export it again") from None


def _parsed(data: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for buffer in model.buffers:
        if buffer.size:  # the quantiser writes weights behind the FlatBuffer, and only their place into it
            buffer.data = np.frombuffer(data, np.uint8, int(buffer.size), int(buffer.offset))
    return model


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _metadata(model: Any) -> dict[str, str]:
    """Return all entries of the metadata; of those that hold no text, only their length."""
    pairs = {}
    for entry in model.metadata or ():
        held = model.buffers[entry.buffer].data
        data = bytes(np.asarray([] if held is None else held, np.uint8))
        try:
            text = data.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            text = "\0"
        pairs[_text(entry.name)] = text if text.isprintable() else f"{len(data)} bytes"
    return pairs


@cache
def _names(enumeration: str) -> dict[int, str]:
    """Return the names of the values of one of the schema's enumerations."""
    from ai_edge_litert import schema_py_generated as schema

    kind = getattr(schema, enumeration)
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}


def _operation(code: Any) -> str:
    if code.customCode:
        return _text(code.customCode)
    # Files of older converters hold the number in the field of one byte.
    number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
    return _names("BuiltinOperator").get(number, f"operator {number}")


def _type(tensor: Any) -> str:
    return stored_name(_names("TensorType").get(int(tensor.type), "unknown"))


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(n) for n in tensor.shape)


def _port(tensor: Any) -> Port:
    return Port(_text(tensor.name), _type(tensor), tuple(map(str, _shape(tensor))))


def _layer(model: Any, graph: Any, op: Any, maker: Mapping[int, tuple[str, Any]]) -> StoredConvolution:
    entry, number = (int(n) for n in op.inputs[:2])
    weight = graph.tensors[number]
    name = module_name(_text(weight.name))
    source = maker.get(number)
    if source and source[0] == "DEQUANTIZE":  # fp16 weights are stored behind a cast to float32
        weight = graph.tensors[int(source[1].inputs[0])]
    shape, held = _shape(weight), model.buffers[weight.buffer].data
    size, kind = 0 if held is None else len(held), _type(weight)
    activation = _type(graph.tensors[entry])
    if kind not in FLOATS:
        scales = weight.quantization.scale if weight.quantization else ()
        count = 0 if scales is None else len(scales)
        kind, size = f"{kind} per {'channel' if count > 1 else 'tensor'}", size + 4 * count
        activation = activation if activation not in FLOATS else "int8, quantised in each run"
    # Stored as outputs, height, width, inputs.
    ordered = (shape[0], shape[3], *shape[1:3]) if len(shape) == 4 else shape
    return StoredConvolution(name, ordered, kind, activation, size)


def module_name(name: str) -> str:
    """Return the PyTorch name of the convolution that a tensor belongs to; the tensor's own name for files of others.

    A tensor that stands for several fused modules lists their paths, with ";" in between.
    """
    paths: Sequence[str] = [path for path in name.split(";") if ".Conv2d_" in path]
    found = MODULE.findall(paths[-1]) if paths else []
    return ".".join(found[1:] if found[:1] in (["backbone"], ["sides"]) else found) or name
