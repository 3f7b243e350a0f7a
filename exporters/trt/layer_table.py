"""An engine's layer table, read without a GPU: what each kernel reads and writes, and in which precision it computes.

Sources, all brought to one structure: the text that the builder of TensorRT-RTX and 11 logs at detailed verbosity, and
the JSON of the engine inspector or of `trtexec --exportLayerInfo` from TensorRT 8.5 to 11.
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

HINT = "build with detailed profiling verbosity: u2export trt build does, trtexec with --profilingVerbosity=detailed"
TYPES = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16",
    "int8": "int8", "uint8": "uint8", "int32": "int32", "int64": "int64", "bool": "bool", "fp8": "fp8", "int4": "int4",
}  # fmt: skip
BYTES = {"fp32": 4, "int32": 4, "fp16": 2, "bf16": 2, "int64": 8, "int4": 0.5}
HIDDEN = "hidden"
# Words of kinds and kernels that do arithmetic with weights, the surest first; "" stands for any other kind.
CONVOLUTIONS = ("conv", "correlation", "fusion", "gemm", "")
# Kinds that carry a convolution's name without computing it: layout changes and what a kernel leaves to a next one.
HELPERS = ("kgen", "reformat", "pointwise", "noop", "pool", "signal", "wait", "constant", "shape", "resize", "scale")


@dataclass(frozen=True)
class Tensor:
    """One tensor a layer reads or writes: its type is "fp32", "fp16", "int8" …, empty where the table says none."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def bytes(self) -> int:
        """Size in memory; 0 while a dimension is unknown."""
        return 0 if min(self.shape, default=0) < 0 else int(prod(self.shape) * BYTES.get(self.type, 1))


@dataclass(frozen=True)
class Layer:
    """One kernel.

    Attributes:
        name, kind, kernel: as TensorRT calls them.
        inputs, outputs, constants: in its order; JSON tables tell a weight's type only, as `weights`.
        nodes: of the ONNX graph that it covers.
        weights: type of the weights, empty where the table does not say.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...] = ()
    kernel: str = ""
    constants: tuple[Tensor, ...] = ()
    weights: str = ""

    @property
    def precision(self) -> str:
        """What it computes in: the type it reads, of its weights where that is hidden by dynamic shapes."""
        read = [t.type for t in self.inputs if t.type]
        return read[0] if read else self.weights


@dataclass(frozen=True)
class Table:
    """All layers of an engine, in execution order."""

    layers: tuple[Layer, ...]
    bindings: tuple[str, ...] = ()

    @property
    def kinds(self) -> Counter[str]:
        """How many layers of each kind."""
        return Counter(layer.kind for layer in self.layers)

    @property
    def traffic(self) -> int:
        """Bytes of all tensors that layers read and write, constants left out: what memory has to carry per run."""
        return sum(t.bytes for layer in self.layers for t in (*layer.inputs, *layer.outputs))

    @cached_property
    def _by_node(self) -> dict[str, list[Layer]]:
        found: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for node in layer.nodes:
                found.setdefault(node, []).append(layer)
        return found

    def layer_of(self, node: str) -> Layer | None:
        """The layer that computes a convolution of the ONNX graph, None where the table names it nowhere."""
        named = self._by_node.get(node, [])
        for word in CONVOLUTIONS:
            for layer in named:
                kind = layer.kind.lower()
                if word in f"{kind} {layer.kernel.lower()}" and not any(h in kind for h in HELPERS):
                    return layer
        return next(iter(named), None)

    @property
    def convolutions(self) -> dict[str, Layer]:
        """The layers that compute convolutions, by the ONNX node named so."""
        names = dict.fromkeys(n for layer in self.layers for n in layer.nodes if re.search(r"Conv(_\d+)?$", n))
        found = {n: layer for n in names if (layer := self.layer_of(n))}
        return {n: layer for n, layer in found.items() if not any(h in layer.kind.lower() for h in HELPERS)}

    def precisions(self, nodes: Mapping[str, str]) -> dict[str, str]:
        """What the convolutions named really compute in; "" for those the table does not show, HIDDEN for those that
        may be inside a layer that TensorRT does not open.
        """
        unseen = HIDDEN if any("ForeignNode[" in layer.name for layer in self.layers) else ""
        found = {node: self.layer_of(node) for node in nodes}
        return {
            n: layer.precision if layer and "ForeignNode[" not in layer.name else unseen for n, layer in found.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain data for records: totals, not layers."""
        return {"layers": len(self.layers), "kinds": dict(self.kinds.most_common()), "traffic_bytes": self.traffic}


def is_table(path: Path) -> bool:
    """Whether a JSON file holds a layer table, and not a record."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return '"Layers"' in file.read(1000)
    except OSError:
        return False


def read(path: Path) -> Table:
    """The layer table in a file: JSON of the inspector or trtexec, or a build log that holds the text table.

    Raises:
        UserError: unreadable, or no layer table in it.
    """
    try:
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give a layer table or a build log") from None
    except UserError as error:
        raise UserError(f"{path}: {error.problem}", error.hint) from None


def parse(text: str) -> Table:
    """The layer table in a text, see `read`.

    Raises:
        UserError: there is none.
    """
    if text.lstrip().startswith("{"):
        return _parse_json(text)
    layers = tuple(_text_layers(text))
    if not layers:
        raise UserError("no layer table in it", HINT)
    return Table(layers)


_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*)(?:, (?P<rest>.*))?$")
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<shape>[-\d, ]*)\](?P<rest>.*?) \}")
_TYPE = re.compile(r"(?:Format/)?Datatype: (?P<type>[^,}]*)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f\s]|$)")
_PARTS = ("Inputs", "Constants", "Outputs")


def _text_layers(text: str) -> Iterator[Layer]:
    for line in text.splitlines():
        if found := _LINE.search(line):
            rest = found["rest"] or ""
            parts = {name: tuple(_text_tensors(_section(rest, name))) for name in _PARTS}
            kernel = re.search(r"TacticName: (.*?), StreamId", rest)
            nodes = tuple(_NODE.findall(rest.partition("Metadata: ")[2]))
            yield Layer(
                found["name"], found["kind"], parts["Inputs"], parts["Outputs"], nodes,
                kernel[1] if kernel else "", parts["Constants"],
            )  # fmt: skip


def _section(rest: str, name: str) -> str:
    """What stands in a layer's list of tensors."""
    begin = rest.find(f"{name}: [")
    ends = [at for end in (*(f"{p}: [" for p in _PARTS), "TacticName: ") if (at := rest.find(end, begin + 1)) > 0]
    return rest[begin : min(ends, default=len(rest))] if begin >= 0 else ""


def _text_tensors(section: str) -> Iterator[Tensor]:
    for found in _TENSOR.finditer(section):
        kind = _TYPE.search(found["rest"])
        shape = tuple(int(n) for n in found["shape"].split(",") if n.strip())
        yield Tensor(found["name"], shape, _type(kind["type"]) if kind else "")


def _type(text: str) -> str:
    """The type in "Half", or in "Channel major FP16 format where channel % 8 == 0"."""
    words = re.findall(r"[a-z]+\d*", text.lower())
    return next((TYPES[word] for word in words if word in TYPES), "")


def _parse_json(text: str) -> Table:
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
        bindings = tuple(b if isinstance(b, str) else b["Name"] for b in data.get("Bindings") or _ios(data))
        return Table(tuple(_json_layer(layer) for layer in layers), bindings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"its layer table has another form ({type(error).__name__}: {error})", HINT) from None


def _ios(data: Mapping[str, Any]) -> list[Any]:
    """TensorRT 11's word for bindings."""
    return list(data.get("I/O Tensors") or [])


def _json_layer(layer: Mapping[str, Any]) -> Layer:
    name = str(layer["Name"])
    nodes = _NODE.findall(str(layer.get("Metadata", ""))) or re.split(r" \+ |\|\|", name)
    weights = layer.get("Weights")
    kind = str(layer.get("LayerType", ""))
    if layer.get("ParameterType") == "Convolution" and "conv" not in kind.lower():
        kind = f"{kind} Convolution".strip()
    return Layer(
        name=name,
        kind=kind,
        inputs=tuple(_json_tensor(t) for t in layer.get("Inputs", ())),
        outputs=tuple(_json_tensor(t) for t in layer.get("Outputs", ())),
        nodes=tuple(nodes),
        kernel=str(layer.get("TacticName", "")),
        constants=tuple(_json_tensor(t) for t in layer.get("Constants", ())),
        weights=_type(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else "",
    )


def _json_tensor(tensor: Mapping[str, Any]) -> Tensor:
    kind = tensor.get("Datatype") or tensor.get("Format/Datatype") or ""
    return Tensor(str(tensor.get("Name", "")), tuple(int(n) for n in tensor.get("Dimensions", ())), _type(str(kind)))
