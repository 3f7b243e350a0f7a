"""The profilers of the runtimes on this machine: ONNX Runtime's profile, and OpenVINO's performance counters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from u2export.benchmarks.profiling.layer_times import LayerTime, Profile
from u2export.benchmarks.roofline import LayerWork, count
from u2export.errors import Unavailable, UserError
from u2export.exporters.onnx_runtime import OnnxRuntime, runner_of, to_pixels
from u2export.exporters.open import target_of
from u2export.exporters.openvino import OpenVINO, hints
from u2export.exporters.runtime import processors
from u2export.reference.dtypes import precision_name
from u2export.reference.golden import picture
from u2export.reference.onnx_file import read_onnx
from u2export.reference.onnx_session import open_session

if TYPE_CHECKING:
    import onnx

    from u2export.exporters.artifact import Artifact
    from u2export.reference.image import Floats

# The work of a kernel by its name, and whether it has weights.
Works = Mapping[tuple[str, bool], LayerWork]
WARM_UP = 3
# What ONNX Runtime adds to the name of a node: its blocked layout, copies of a node, and the kind of the event.
_ADDED = re.compile(r"(_nchwc|_token_\d+|_quant)*_kernel_time$")
_INT8 = ("QLinear", "ConvInteger", "MatMulInteger", "QGemm", "Nhwc")
WORKS = "profile an artifact of onnx, ort or openvino, or the file of trtexec --exportProfile"
MEANS = "OpenVINO counts means over the runs, in whole microseconds"
_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")


def measured(artifact: Artifact, runs: int, threads: int) -> Profile:
    """Return the times of an artifact's layers on this machine's CPU.

    The input is the golden picture of `u2export golden`; the first runs are a warm-up and do not count.

    Args:
        artifact: an artifact of ONNX, ONNX Runtime or OpenVINO.
        runs: how many runs count.
        threads: threads of the runtime; 0 for all processors.

    Raises:
        UserError: its runtime has no profiler that Python can read, or cannot open it.
        Unavailable: its runtime is not installed.
    """
    target = target_of(artifact)
    if not isinstance(target, (OnnxRuntime, OpenVINO)):
        raise UserError(f"{artifact.name}: the times of layers in {target.title} cannot be read from Python", WORKS)
    if problem := target.missing_runtime():
        raise problem
    x = artifact.contract.tensor(picture(artifact.contract.channels))
    profiler = _in_openvino if isinstance(target, OpenVINO) else _in_onnx_runtime
    return profiler(artifact, x, runs, threads or processors())


def _in_onnx_runtime(artifact: Artifact, x: Floats, runs: int, threads: int) -> Profile:
    import onnxruntime

    with TemporaryDirectory(prefix="u2export-") as scratch:
        session = open_session(artifact.path, threads=threads, profile=f"{scratch}/profile")
        runner = runner_of(session, artifact, {})
        fed = runner.prepare(x)
        for _ in range(WARM_UP + runs):
            runner.predict(fed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    info = _info(f"ONNX Runtime {onnxruntime.__version__}", artifact.precision, threads)
    works, notes = _onnx_works(artifact.path)
    wholes = [1000 * int(e["dur"]) for e in events if e.get("name") == "model_run"][WARM_UP:]
    return Profile(artifact.name, info, _of_events(events, works), tuple(wholes), runs, notes=notes)


def _of_events(events: Sequence[Mapping[str, Any]], works: Works) -> tuple[LayerTime, ...]:
    """Return the layers of a profile of ONNX Runtime; a layer is a kernel, known by its number in the graph."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            found.setdefault(f"{event['args'].get('node_index')} {event['name']}", []).append(event)
    layers = []
    for kernels in found.values():
        name, args = _ADDED.sub("", str(kernels[0]["name"])), kernels[0]["args"]
        kind = str(args.get("op_name", ""))
        work = works.get((name, _is_weighted(kind)))
        ns = tuple(1000 * int(e["dur"]) for e in kernels[WARM_UP:])
        layers.append(LayerTime(work.name if work else name, kind, _computed_in(kind, args), ns, work))
    return tuple(layers)


def _computed_in(kind: str, args: Mapping[str, Any]) -> str:
    """Return the precision of a kernel: int8 of quantised operations, else the type of its first input or output."""
    types = [name for port in (*args.get("input_type_shape", ()), *args.get("output_type_shape", ())) for name in port]
    if kind.startswith(_INT8) or (types and types[0] in ("int8", "uint8")):
        return "int8"
    return precision_name(types[0]) if types else ""


def _is_weighted(kind: str) -> bool:
    return "Conv" in kind or "MatMul" in kind or "Gemm" in kind


def _onnx_works(path: Path) -> tuple[Works, tuple[str, ...]]:
    """Return the work of a graph's nodes by the names that a kernel can have, and a note where it is not known."""
    try:
        work = {layer.name: layer for layer in count(path).layers}
        model = read_onnx(path, "give an .onnx file")
    except (UserError, Unavailable) as problem:
        return {}, (f"no work of layers, so no bounds: {problem.problem}",)
    return _by_any_name(model, work), ()


def _by_any_name(model: onnx.ModelProto, work: Mapping[str, LayerWork]) -> Works:
    """Return works by the name of a kernel, and whether the kernel has weights.

    A kernel is named after its node, or after the tensor that the node makes. A kernel with weights can have the name
    of what the activation behind it makes, because it computes the activation too.
    """
    readers = {name: node for node in model.graph.node for name in node.input}
    names: dict[tuple[str, bool], LayerWork] = {}
    for node in model.graph.node:
        own = node.name or node.output[0]
        if own in work:
            weighted = _is_weighted(node.op_type)
            after = readers.get(node.output[0]) if weighted else None
            for name in (own, *node.output, *(after.output if after is not None else ())):
                names.setdefault((name, weighted), work[own])
    return names


def _in_openvino(artifact: Artifact, x: Floats, runs: int, threads: int) -> Profile:
    import openvino

    core = openvino.Core()
    arithmetic = OpenVINO().arithmetics(artifact)[0]
    try:
        model = core.read_model(artifact.path)
        compiled = core.compile_model(model, "CPU", {**hints(arithmetic, threads), "PERF_COUNT": True})
    except RuntimeError as error:
        last = [line for line in str(error).splitlines() if line.strip()][-1]
        raise UserError(f"OpenVINO cannot open {artifact.path}: {last}", "export it again") from None
    pixels = compiled.input(0).get_element_type() == openvino.Type.u8
    fed = to_pixels(x, artifact.contract) if pixels else x
    request = compiled.create_infer_request()
    before, wholes = {}, []
    for number in range(WARM_UP + runs):
        start = perf_counter_ns()
        request.infer({0: fed}, share_inputs=True)
        wholes.append(perf_counter_ns() - start)
        if number == WARM_UP - 1:
            before = _counters(request)
    times = _means(before, _counters(request), runs)
    info = _info(f"OpenVINO {openvino.__version__.partition('-')[0]}", arithmetic, threads)
    described = _described(compiled.get_runtime_model(), _openvino_works(model))
    layers = tuple(replace(described[name], ns=(ns,)) for name, ns in times.items() if name in described)
    return Profile(artifact.name, info, layers, tuple(wholes[WARM_UP:]), runs, notes=(MEANS,))


def _counters(request: Any) -> dict[str, int]:
    """Return nanoseconds by layer: OpenVINO's mean over all runs since it compiled the model, in whole microseconds."""
    import openvino

    ran = openvino.ProfilingInfo.Status.EXECUTED
    return {i.node_name: round(i.real_time.total_seconds() * 1e9) for i in request.profiling_info if i.status == ran}


def _means(before: Mapping[str, int], after: Mapping[str, int], runs: int) -> dict[str, int]:
    """Return the mean over the runs that count: the warm-up is taken out of the mean over all runs.

    Example:
        >>> _means({"a": 9}, {"a": 6}, 3)
        {'a': 3}
    """
    total = WARM_UP + runs
    return {name: max(0, total * ns - WARM_UP * before.get(name, ns)) // runs for name, ns in after.items()}


def _described(graph: Any, works: Mapping[str, LayerWork]) -> dict[str, LayerTime]:
    """Return the layers of OpenVINO's execution graph by their names, without times."""
    found = {}
    for op in graph.get_ordered_ops():
        info = {key: value.astype(str) for key, value in op.get_rt_info().items() if isinstance(key, str)}
        name, kind = op.get_friendly_name(), info.get("layerType", op.get_type_name())
        parts = [works[part] for part in info.get("originalLayersNames", "").split(",") if part in works]
        work = _joined(name, kind, parts, op) if parts else None
        precision = precision_name(info.get("runtimePrecision", ""))
        shown = (parts[0].name if parts else name).removesuffix("/WithoutBiases")
        found[name] = LayerTime(shown, kind, "int8" if precision == "uint8" else precision, (), work)
    return found


def _joined(name: str, kind: str, parts: Sequence[LayerWork], op: Any) -> LayerWork:
    """Return the work of operations that run as one layer: only what the layer reads and writes moves."""
    read = sum(_size(entry.get_partial_shape()) for entry in op.inputs() if not _is_constant(entry))
    written = sum(_size(output.get_partial_shape()) for output in op.outputs())
    weights = sum(part.weights for part in parts)
    return LayerWork(name, kind, sum(part.macs for part in parts), read + written, weights)


def _is_constant(entry: Any) -> bool:
    source = entry.get_source_output().get_node()
    info = source.get_rt_info()
    return "layerType" in info and info["layerType"].astype(str) == "Const"


def _openvino_works(model: Any) -> dict[str, LayerWork]:
    """Return the work of convolutions and matrix products by their names; operations without weights have no macs."""
    found = {}
    for op in model.get_ops():
        name, kind = op.get_friendly_name(), op.get_type_name()
        if kind in ("Constant", "Parameter", "Result"):
            continue
        macs = weights = 0
        if kind in _WEIGHTED:
            out, second = (port.get_partial_shape() for port in (op.output(0), op.input(1)))
            inner = [int(d.get_length()) for d in second if d.is_static]
            weights = prod(inner) if kind != "MatMul" else 0
            each = prod(inner[2 if kind == "GroupConvolution" else 1 :]) if kind != "MatMul" else inner[-2]
            macs = _size(out) * each
        found[name] = LayerWork(name, kind, macs, 0, weights)
    return found


def _size(shape: Any) -> int:
    return int(prod(int(d.get_length()) for d in shape)) if shape.is_static else 0


def _info(runtime: str, arithmetic: str, threads: int) -> dict[str, str]:
    return {"runtime": runtime, "arithmetic": arithmetic, "device": "CPU", "threads": str(threads)}
