"""Typed ONNX to engine, with TensorRT 8.5 to 11 or TensorRT-RTX.

All versions go the same way through features that the code looks for. Values of flags come from a version's own enums:
`STRONGLY_TYPED` is bit 1 in TensorRT 10 and bit 0 in 11.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.build_log import BuildLog, Progress, advice_for, monitor_for
from u2export.exporters.trt.configuration import Configuration
from u2export.exporters.trt.graph_rules import broken_rules, refuse
from u2export.exporters.trt.installed import is_rtx, limits_of, title, typing_of
from u2export.exporters.trt.layer_table import LayerTable, parse
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.precision_check import Comparison, check_table
from u2export.exporters.trt.recipe import VERSIONS, Recipe
from u2export.reference.onnx_file import read_onnx


@dataclass(frozen=True)
class Built:
    """An engine, and what was seen while it was built.

    Attributes:
        plan: the serialised engine.
        layers: text of the layer table, empty where the version gave none.
        table: the same as a structure; None without a layer table.
        comparison: the precisions of the table and those of the recipe; None without a layer table.
        facts: runtime, version, typing, flags, seconds, and bytes of activations and plan, for the record.
        warnings: TensorRT's warnings, each once.
    """

    plan: bytes
    layers: str
    table: LayerTable | None
    comparison: Comparison | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def build(
    trt: Any, graph: Path, recipe: Recipe, options: Options, progress: Progress = lambda phase, done, total: None
) -> Built:
    """Build the engine of a typed ONNX.

    Args:
        trt: module of TensorRT or TensorRT-RTX, see `installed.load`.
        graph: the typed ONNX.
        recipe: its recipe.
        options: how to build.
        progress: is called with phase, steps done and steps in all, where the version reports progress.

    Raises:
        UserError: the graph breaks a rule; the parser or the builder refuses the graph; this version does not have an
            option; or the engine computes in other precisions than the recipe says. The error names the node.
    """
    began = time.monotonic()
    typing = typing_of(trt, options.typing, recipe)
    _check_graph(trt, graph)
    log = BuildLog(trt)
    builder = trt.Builder(log.logger)
    network = builder.create_network(_creation_flags(trt, typing))
    parser = trt.OnnxParser(network, log.logger)  # owns the weights, and must live until the engine is built
    _parse(trt, parser, graph, log)
    configuration = Configuration(trt, builder, network, recipe)
    configuration.apply(options, typing)
    config = configuration.config
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = monitor_for(trt, progress)
    plan = builder.build_serialized_network(network, config)
    log.check()
    if plan is None:
        raise UserError(f"{title(trt)} cannot build {graph.name}: {log.last_error}", advice_for(log.last_error))
    if options.timing_cache:
        configuration.write_timing_cache(options.timing_cache)
    layers = log.layers or inspected(trt, log, plan)
    table = parse(layers) if layers else None
    comparison = check_table(recipe, table, weak=typing == "weak") if table else None
    facts = {
        "runtime": "rtx" if is_rtx(trt) else "tensorrt", "version": str(trt.__version__),
        "typing": typing, "flags": sorted(configuration.flags), "seconds": round(time.monotonic() - began, 2),
        "activation_bytes": log.activation, "plan_bytes": len(bytes(plan)),
        **({"dla_layers": configuration.on_accelerator()} if options.dla >= 0 else {}),
    }  # fmt: skip
    return Built(bytes(plan), layers, table, comparison, facts, tuple(dict.fromkeys(log.warnings)))


def inspected(trt: Any, log: BuildLog, plan: bytes) -> str:
    """Return the layer table of an engine as JSON, which takes a GPU; "" where TensorRT cannot open the engine."""
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _check_graph(trt: Any, graph: Path) -> None:
    """Refuse a graph that breaks a rule of this version.

    A device need not have onnx. The export has checked the graph with the rules of the newest version.
    """
    if find_spec("onnx") is None:
        return
    refuse(broken_rules(read_onnx(graph), VERSIONS[limits_of(trt)].opset))


def _creation_flags(trt: Any, typing: str) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(kinds.EXPLICIT_BATCH) if hasattr(kinds, "EXPLICIT_BATCH") else 0
    if typing == "strong" and hasattr(kinds, "STRONGLY_TYPED"):
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def _parse(trt: Any, parser: Any, graph: Path, log: BuildLog) -> None:
    """Fill the parser's network with the graph; refuse the graph with the parser's first error and its node."""
    if parser.parse_from_file(str(graph)):
        log.check()
        return
    if not parser.num_errors:
        raise UserError(f"{title(trt)} cannot parse {graph.name}: {log.first_error}", "export it again")
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    where = ""
    if hasattr(error, "node_name"):
        where = f" at {error.node_name()} ({error.node_operator()})"
    elif error.node() >= 0:
        where = f" at node {error.node()}"
    more = f", and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    raise UserError(f"{title(trt)} cannot parse the graph{where}: {reason}{more}", advice_for(reason))
