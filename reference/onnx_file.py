"""ONNX files: the one place that reads a file that a user named, and that checks a graph against the standard."""

from __future__ import annotations

import math
from collections import defaultdict
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from u2export.errors import Unavailable, UserError
from u2export.install import how_to_install
from u2export.reference.onnx_files import model_files

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path, hint: str = "export it again, or download it again", shapes: bool = False) -> onnx.ModelProto:
    """The model in an ONNX file, with the weights that lie in files beside it.

    Args:
        path: the file.
        hint: advice to the user whose file is damaged.
        shapes: infer the shapes of all tensors.

    Raises:
        UserError: there is no such file, the file is no ONNX or holds no graph, a file of weights beside it is missing,
            or the shapes contradict each other.
        Unavailable: onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise Unavailable(f"{path}: reading .onnx needs the onnx package", how_to_install("onnx"))
    import onnx
    from google.protobuf.message import DecodeError

    if not path.exists():
        raise UserError(f"no such file: {path}", "give an .onnx file")
    model_files(path)  # names what is missing, cut short, or outside the model's folder
    try:
        model = onnx.load(path)
        if problem := flaw(model):
            raise UserError(f"{path}: damaged ONNX file ({problem})", hint)
        if shapes:
            model = onnx.shape_inference.infer_shapes(model)
    except onnx.checker.ValidationError as error:  # what onnx raises for a missing or misplaced file of weights
        raise UserError(
            f"{path}: its weights lie in another file, which cannot be read ({_first_line(error)})",
            "keep the files of weights beside the .onnx",
        ) from None
    except (DecodeError, OSError, ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{path}: not an ONNX file ({_first_line(error)})", hint) from None
    return model


def flaw(model: onnx.ModelProto) -> str:
    """Return what keeps a graph from being read, in a few words; empty for a sound graph.

    The checker of onnx would refuse graphs that runtimes accept, such as those with attributes of newer versions.
    """
    graph = model.graph
    if not graph.node:
        return "it holds no graph"
    made = {name for node in graph.node for name in node.output}
    known = made | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    if unknown := [value.name for value in graph.output if value.name not in known]:
        return f"no node makes its output {unknown[0]!r}"
    if not graph.output:
        return "it has no output"
    problems = chain(map(_tensor_flaw, graph.initializer), map(_NodeFlaws(model), graph.node))
    return next(filter(None, problems), "") or _cycle(graph)


def _tensor_flaw(tensor: onnx.TensorProto) -> str:
    import onnx
    from onnx import numpy_helper

    name = f"the tensor {tensor.name!r}"
    try:
        bits = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8
    except (KeyError, TypeError, ValueError):
        return f"{name} has no known type"
    if any(side < 0 for side in tensor.dims):
        return f"{name} has a negative side"
    values = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        # Types below 8 bits are packed. Their count of bytes is checked when they are unpacked.
        return f"{name} is cut short" if bits > 8 and len(tensor.raw_data) * 8 != values * bits else ""
    try:
        return "" if numpy_helper.to_array(tensor).size == values else f"{name} is cut short"
    except (TypeError, ValueError):
        return f"{name} is cut short"


class _NodeFlaws:
    """Says of a node that it has too few inputs for its operator, by the standard's own table."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.versions = {entry.domain or "": entry.version for entry in model.opset_import}

    def __call__(self, node: onnx.NodeProto) -> str:
        import onnx

        texts: tuple[object, ...] = (node.name, node.op_type, node.domain, *node.input, *node.output)
        if not all(isinstance(text, str) for text in texts):  # protobuf hands over what it cannot decode as bytes
            return "a node has a name that is not UTF-8"
        name = f"the node {node.name or node.op_type!r}"
        if not node.output or not any(node.output):
            return f"{name} has no output"
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            least = onnx.defs.get_schema(node.op_type, self.versions.get(domain, 1), domain).min_input
        except onnx.defs.SchemaError:
            return ""  # an operator of a runtime, or of a newer standard
        return f"{name} has {len(node.input)} inputs, {node.op_type} takes {least}" if len(node.input) < least else ""


def _cycle(graph: onnx.GraphProto) -> str:
    """Return that nodes read each other's results in a circle, if they do (Kahn's algorithm)."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waits = [{maker[name] for name in node.input if name in maker} for node in graph.node]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, sources in enumerate(waits):
        for source in sources:
            readers[source].append(i)
    left = [len(sources) for sources in waits]
    ready = [i for i, count in enumerate(left) if count == 0]
    done = 0
    while ready:
        done += 1
        for reader in readers[ready.pop()]:
            left[reader] -= 1
            if left[reader] == 0:
                ready.append(reader)
    if done == len(waits):
        return ""
    node = graph.node[next(i for i, count in enumerate(left) if count)]
    return f"the node {node.name or node.op_type!r} reads its own result, directly or through others"


def check_onnx(model: onnx.ModelProto, what: str, hint: str, full: bool = False) -> None:
    """Check a graph against the ONNX standard.

    Args:
        model: the graph.
        what: what the graph is called in the error.
        hint: what to do about it.
        full: infer the shapes too, and check them.

    Raises:
        UserError: the graph is not valid.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{what} is not valid ONNX: {_first_line(error)}", hint) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
