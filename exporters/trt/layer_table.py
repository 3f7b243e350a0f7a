"""The layer table of an engine, read without a GPU: what each kernel reads and writes, and in which precision.

Two kinds of sources are read into one structure: the text that the builder of TensorRT-RTX and 11 logs at detailed
verbosity, and the JSON that the engine inspector or `trtexec --exportLayerInfo` writes with TensorRT 8.5 to 11.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.reference.dtypes import precision_name

HINT = "build with detailed profiling verbosity: u2export trt build does, trtexec with --profilingVerbosity=detailed"
TYPES = ("fp32", "fp16", "bf16", "fp8", "int64", "int32", "int8", "int4", "uint8", "bool")
BYTES = {"fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int64": 8, "int4": 0.5}
HIDDEN = "hidden"
# TensorRT does not show what is inside a layer with this in its name.
CLOSED = "ForeignNode["
# Words in the kinds and kernels of layers that compute with weights, the surest first; "" stands for any other kind.
CONVOLUTIONS = ("conv", "correlation", "fusion", "gemm", "")
# Kinds that carry the name of a convolution and do not compute it: layout changes and work left to another kernel.
HELPERS = ("kgen", "reformat", "pointwise", "noop", "pool", "signal", "wait", "constant", "shape", "resize", "scale")


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer of an engine reads or writes.

    Attributes:
        name: as TensorRT calls the tensor.
        shape: the tensor's shape, -1 for an unknown dimension.
        type: "fp32", "fp16", "int8" …; empty where the table says none.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        """Size in memory; 0 while a dimension is unknown."""
        return 0 if min(self.shape, default=0) < 0 else int(prod(self.shape) * BYTES.get(self.type, 1))


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: a kernel.

    Attributes:
        name, kind, kernel: as TensorRT calls them.
        inputs, outputs, constants: tensors in TensorRT's order. JSON tables have no constants; they give the type of
            the weights only, as `weights`.
        nodes: nodes of the ONNX graph that the kernel computes.
        weights: type of the weights, empty where the table does not say.
    """

    name: str
    kind: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    nodes: tuple[str, ...] = ()
    kernel: str = ""
    constants: tuple[EngineTensor, ...] = ()
    weights: str = ""

    @property
    def precision(self) -> str:
        """The precision it computes in: the type it reads, or the type of its weights where the table hides the first.

        Tables hide the types of tensors with dynamic shapes.
        """
        read = [t.type for t in self.inputs if t.type]
        return read[0] if read else self.weights

    @property
    def is_helper(self) -> bool:
        """Whether its kind is one of `HELPERS`."""
        return any(word in self.kind.lower() for word in HELPERS)


@dataclass(frozen=True)
class LayerTable:
    """All layers of an engine, in the order of execution."""

    layers: tuple[EngineLayer, ...]
    bindings: tuple[str, ...] = ()

    @property
    def kinds(self) -> Counter[str]:
        """How many layers there are of each kind."""
        return Counter(layer.kind for layer in self.layers)

    @property
    def traffic(self) -> int:
        """Bytes of all tensors that layers read and write in one run, without constants."""
        return sum(t.bytes for layer in self.layers for t in (*layer.inputs, *layer.outputs))

    @cached_property
    def _by_node(self) -> dict[str, list[EngineLayer]]:
        found: dict[str, list[EngineLayer]] = {}
        for layer in self.layers:
            for node in layer.nodes:
                found.setdefault(node, []).append(layer)
        return found

    def layer_of(self, node: str) -> EngineLayer | None:
        """Return the layer that computes a convolution of the ONNX graph; None where the table does not name it."""
        named = self._by_node.get(node, [])
        for word in CONVOLUTIONS:
            for layer in named:
                if word in f"{layer.kind} {layer.kernel}".lower() and not layer.is_helper:
                    return layer
        return next(iter(named), None)

    @property
    def convolutions(self) -> dict[str, EngineLayer]:
        """The layers that compute convolutions, by the ONNX node; exporters name these nodes Conv or Conv_1."""
        names = dict.fromkeys(n for layer in self.layers for n in layer.nodes if re.search(r"Conv(_\d+)?$", n))
        found = {n: layer for n in names if (layer := self.layer_of(n))}
        return {n: layer for n, layer in found.items() if not layer.is_helper}

    def precisions(self, nodes: Mapping[str, str]) -> dict[str, str]:
        """Return the precision that each named convolution really computes in.

        A convolution that the table does not show has "". It has `HIDDEN` where it may be inside a layer that TensorRT
        does not open.
        """
        unseen = HIDDEN if any(CLOSED in layer.name for layer in self.layers) else ""
        found = {node: self.layer_of(node) for node in nodes}
        return {n: layer.precision if layer and CLOSED not in layer.name else unseen for n, layer in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for records: totals, not layers."""
        return {"layers": len(self.layers), "kinds": dict(self.kinds.most_common()), "traffic_bytes": self.traffic}


def is_table(path: Path) -> bool:
    """Whether a JSON file holds a layer table, and not a record."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return '"Layers"' in file.read(1000)
    except OSError:
        return False


def read(path: Path) -> LayerTable:
    """Return the layer table in a file: JSON of the inspector or of trtexec, or a build log with the text table.

    Raises:
        UserError: the file cannot be read, or holds no layer table.
    """
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a layer table or a build log") from None
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.hint) from None


def parse(text: str) -> LayerTable:
    """Return the layer table in a text, see `read`.

    Raises:
        UserError: the text holds none.
    """
    if text.lstrip().startswith("{"):
        return _parse_json(text)
    layers = tuple(_text_layers(text))
    if not layers:
        raise UserError("no layer table in it", HINT)
    return LayerTable(layers)


# --- text -------------------------------------------------------------------------------------------------------

_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*)(?:, (?P<rest>.*))?$")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d, ]*)\](?P<rest>.*?) \}")
_TYPE = re.compile(r"(?:Format/)?Datatype: (?P<type>[^,}]*)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f\s]|$)")
_PARTS = ("Inputs", "Constants", "Outputs")


def _text_layers(text: str) -> Iterator[EngineLayer]:
    for line in text.splitlines():
        if found := _LINE.search(line):
            rest = found["rest"] or ""
            parts = {name: tuple(_text_tensors(_section(rest, name))) for name in _PARTS}
            kernel = re.search(r"TacticName: (.*?), StreamId", rest)
            nodes = tuple(_NODE.findall(rest.partition("Metadata: ")[2]))
            yield EngineLayer(
                found["name"], found["kind"], parts["Inputs"], parts["Outputs"], nodes,
                kernel[1] if kernel else "", parts["Constants"],
            )  # fmt: skip


def _section(rest: str, name: str) -> str:
    """Return the text of one of a layer's lists of tensors."""
    begin = rest.find(f"{name}: [")
    ends = [at for end in (*(f"{p}: [" for p in _PARTS), "TacticName: ") if (at := rest.find(end, begin + 1)) > 0]
    return rest[begin : min(ends, default=len(rest))] if begin >= 0 else ""


def _text_tensors(section: str) -> Iterator[EngineTensor]:
    for found in _TENSOR.finditer(section):
        kind = _TYPE.search(found["rest"])
        shape = tuple(int(n) for n in re.findall(r"-?\d{1,18}", found["shape"]))
        yield EngineTensor(found["name"], shape, _type(kind["type"]) if kind else "")


def _type(text: str) -> str:
    """Return the type in "Half", or in "Channel major FP16 format where channel % 8 == 0"; "" where there is none."""
    names = map(precision_name, re.findall(r"[a-z]+\d*", text.lower()))
    return next((name for name in names if name in TYPES), "")


# --- JSON -------------------------------------------------------------------------------------------------------


def _parse_json(text: str) -> LayerTable:
    try:
        data = json.loads(text)
        layers = data["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"no layer table in it ({type(error).__name__}: {error})", HINT) from None
    if not isinstance(layers, list) or not layers:
        raise UserError("its layer table is empty", HINT)
    if isinstance(layers[0], str):
        raise UserError("its layer table holds names only", HINT)
    try:
        named = data.get("Bindings") or data.get("I/O Tensors") or ()  # the second is the word of TensorRT 11
        bindings = tuple(b if isinstance(b, str) else b["Name"] for b in named)
        return LayerTable(tuple(_json_layer(layer) for layer in layers), bindings)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"its layer table has another form ({type(error).__name__}: {error})", HINT) from None


def _json_layer(layer: Mapping[str, Any]) -> EngineLayer:
    name = str(layer["Name"])
    nodes = _NODE.findall(str(layer.get("Metadata", ""))) or re.split(r" \+ |\|\|", name)
    weights = layer.get("Weights")
    kind = str(layer.get("LayerType", ""))
    if layer.get("ParameterType") == "Convolution" and "conv" not in kind.lower():
        kind = f"{kind} Convolution".strip()
    return EngineLayer(
        name=name,
        kind=kind,
        inputs=tuple(_json_tensor(t) for t in layer.get("Inputs", ())),
        outputs=tuple(_json_tensor(t) for t in layer.get("Outputs", ())),
        nodes=tuple(nodes),
        kernel=str(layer.get("TacticName", "")),
        constants=tuple(_json_tensor(t) for t in layer.get("Constants", ())),
        weights=_type(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else "",
    )


def _json_tensor(tensor: Mapping[str, Any]) -> EngineTensor:
    kind = tensor.get("Datatype") or tensor.get("Format/Datatype") or ""
    return EngineTensor(
        str(tensor.get("Name", "")), tuple(int(n) for n in tensor.get("Dimensions", ())), _type(str(kind))
    )
