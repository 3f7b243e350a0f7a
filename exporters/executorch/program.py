"""What is inside a .pte program: the stamp, ports, the operations that XNNPACK took, and those that it left.

XNNPACK's part is a graph of its own inside the file. It is read with the schema and the tool of ExecuTorch's package.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.model_file import ModelFile, Port, StoredConvolution
from u2export.exporters.quiet import quiet, quiet_library
from u2export.reference import stamp
from u2export.reference.dtypes import stored_name
from u2export.reference.stamp import PREFIX

METHOD = "forward"
# A stamp is a method without inputs that gives a text; names of methods have no dots.
STAMPED = "u2export_"
BACKEND = "XnnpackBackend"
HINT = "export it again, or give a .pte file of U²-Net"
# XNNPACK's names of types, by those of this project.
TYPES = {
    "fp32": "float32", "fp16": "float16", "qint8": "int8", "quint8": "uint8", "qcint8": "int8 per channel",
    "qcint4": "int4 per channel", "qdint8": "int8, quantised in each run",
}  # fmt: skip


@dataclass(frozen=True)
class Contents:
    """What a program holds.

    Attributes:
        inputs, outputs: of its method `forward`.
        delegated, other: how many operations of each kind XNNPACK runs, and ExecuTorch's own kernels.
        layers: the convolutions in XNNPACK's part.
        shares: multiply-adds of each of these convolutions.
        work: multiply-adds of the convolutions in XNNPACK's part, and of all convolutions.
        texts: what u2export stamped into the file, by key with `PREFIX`.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    delegated: Counter[str]
    other: Counter[str]
    layers: tuple[StoredConvolution, ...]
    shares: tuple[int, ...]
    work: tuple[int, int]
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The part of the work that XNNPACK does, 0..1."""
        return self.work[0] / self.work[1] if self.work[1] else 0.0

    @property
    def arithmetic(self) -> str:
        """What most of XNNPACK's work is computed in: "fp32", "int8" …"""
        work = Counter[str]()
        for layer, share in zip(self.layers, self.shares, strict=True):
            work[_short_type(layer)] += share
        return work.most_common(1)[0][0] if work else "fp32"

    @property
    def kinds(self) -> Counter[str]:
        """How many convolutions in XNNPACK's part compute in what, by the types of what they read."""
        return Counter(map(_short_type, self.layers))


def stamped_methods(texts: Mapping[str, str]) -> dict[str, str]:
    """Return the constant methods that carry a stamp."""
    return {STAMPED + key: text for key, text in texts.items()}


@cache
def introduce() -> None:
    """Import ExecuTorch where nobody reads what it says about itself and its parts."""
    with quiet(), quiet_library():
        import executorch.exir._serialize._program
        import executorch.extension.pybindings.portable_lib
        import executorch.runtime  # noqa: F401


def read_contents(path: Path) -> Contents:
    """Return what a program holds.

    Raises:
        UserError: the file is no program, or damaged.
    """
    introduce()
    from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        program = deserialize_pte_binary(path.read_bytes()).program
        plans = {plan.name: plan for plan in program.execution_plan}
        return _contents(program, plans)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", HINT) from None
    except (struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: not an ExecuTorch program, or damaged ({_short(error)})", HINT) from None
    except RuntimeError as error:  # the tool that reads the schema
        raise UserError(f"{path}: damaged ({_short(error)})", HINT) from None


def read_pte(path: Path) -> ModelFile:
    """Return what is in a program, in the form that all formats share.

    Raises:
        UserError: as `read_contents`.
    """
    held = read_contents(path)
    return ModelFile(
        kind=f"ExecuTorch program, {held.share:.0%} of the work in XNNPACK",
        bytes=path.stat().st_size,
        inputs=held.inputs,
        outputs=held.outputs,
        operations=dict((held.delegated + held.other).most_common()),
        layers=held.layers,
        metadata={key.removeprefix(PREFIX): text for key, text in held.texts.items()},
        stamp=stamp.read(held.texts),
    )


def _short_type(layer: StoredConvolution) -> str:
    named = {"float32": "fp32", "float16": "fp16", "int8, quantised in each run": "dynamic-int8"}
    return named.get(layer.activation, layer.activation)


def _short(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _contents(program: Any, plans: Mapping[str, Any]) -> Contents:
    plan = plans[METHOD]
    calls = [call.instr_args for chain in plan.chains for call in chain.instructions]
    delegated, other = Counter[str](), Counter[str]()
    layers: list[StoredConvolution] = []
    shares: list[int] = []
    left = 0
    for call in calls:
        kind = type(call).__name__
        if kind == "DelegateCall":
            delegate = plan.delegates[call.delegate_index]
            if delegate.id != BACKEND:
                other[delegate.id] += 1
                continue
            graph = _graph(bytes(program.backend_delegate_data[delegate.processed.index].data))
            delegated.update(node["xnode_union_type"].removeprefix("XNN") for node in graph["xnodes"])
            for layer, work in _convolutions(graph):
                layers.append(layer)
                shares.append(work)
        elif kind == "KernelCall":
            name = plan.operators[call.op_index].name
            other[name] += 1
            if "convolution" in name:
                values = [plan.values[number].val for number in call.args]
                left += prod(values[-1].sizes) * prod(values[1].sizes[1:])
    return Contents(
        _ports(plan, plan.inputs), _ports(plan, plan.outputs), delegated, other, tuple(layers),
        tuple(shares), (sum(shares), sum(shares) + left),
        {PREFIX + name.removeprefix(STAMPED): other_plan.values[other_plan.outputs[0]].val.string_val
         for name, other_plan in plans.items() if name.startswith(STAMPED)},
    )  # fmt: skip


def _ports(plan: Any, numbers: list[int]) -> tuple[Port, ...]:
    found = []
    for number in numbers:
        tensor = plan.values[number].val
        found.append(Port("", stored_name(tensor.scalar_type.name), tuple(str(n) for n in tensor.sizes)))
    return tuple(found)


def _graph(data: bytes) -> dict[str, Any]:
    """Return XNNPACK's graph in the bytes of a delegate, as plain data."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader, _get_schema_bytes
    from executorch.exir._serialize._flatbuffer import _get_flatc_path

    header = XNNHeader.from_bytes(data[: XNNHeader.EXPECTED_LENGTH])
    with tempfile.TemporaryDirectory() as scratch:
        schema, graph = Path(scratch) / "schema.fbs", Path(scratch) / "graph.bin"
        schema.write_bytes(_get_schema_bytes())
        graph.write_bytes(data[header.flatbuffer_offset :][: header.flatbuffer_size])
        words = ("--json", "--defaults-json", "--strict-json", "-o", scratch, str(schema), "--", str(graph))
        done = subprocess.run([_get_flatc_path(), *words], capture_output=True)
        if done.returncode:
            raise ValueError("its XNNPACK graph cannot be read")
        text = graph.with_suffix(".json").read_text()
    # The tool writes infinite limits as "inf", which no reader of JSON takes.
    found: dict[str, Any] = json.loads(re.sub(r"([:\s\[,]-?)inf\b", r"\1Infinity", text))
    return found


def _convolutions(graph: Mapping[str, Any]) -> list[tuple[StoredConvolution, int]]:
    """Return the convolutions of XNNPACK's graph with their multiply-adds; the graph keeps no names."""
    tensors = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)
        tensors[tensor["id_out"]] = tensor
    found: list[tuple[StoredConvolution, int]] = []
    for node in graph["xnodes"]:
        if node["xnode_union_type"] not in ("XNNConv2d", "XNNDepthwiseConv2d"):
            continue
        union = node["xnode_union"]
        weight, entry = tensors[union["filter_id"]], tensors[union["input1_id"]]
        out, height, width, into = weight["dims"]
        work = prod(tensors[union["output_id"]]["dims"]) * height * width * into
        kind = _type(weight)
        size = prod(weight["dims"]) * (1 if kind.startswith("int8") else 2 if kind == "float16" else 4)
        size += 4 * out * kind.endswith("per channel")
        name = f"convolution {len(found) + 1}"
        found.append((StoredConvolution(name, (out, into, height, width), kind, _type(entry), size), work))
    return found


def _type(tensor: Mapping[str, Any]) -> str:
    told = str(tensor["datatype"]).removeprefix("xnn_datatype_")
    return TYPES.get(told, told)
