"""Typed ONNX to engine, with TensorRT 8.5 to 11 or TensorRT-RTX, by one path through features that are looked for.

Versions are never compared: what a version has is asked of its module, and values of flags come from its enums
(`STRONGLY_TYPED` is bit 1 in TensorRT 10 and bit 0 in 11).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.build_log import Log, Progress, advice_for, check_warnings, monitor
from u2export.exporters.trt.configuration import configure, on_dla, save_cache
from u2export.exporters.trt.graph_rules import lint, refuse
from u2export.exporters.trt.installed import limits_of, title, typing_of
from u2export.exporters.trt.layer_table import Table, parse
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.precision_check import Comparison, check_table
from u2export.exporters.trt.recipe import VERSIONS, Recipe


@dataclass(frozen=True)
class Built:
    """An engine and what was seen while it was built.

    Attributes:
        plan: the serialised engine.
        layers: text of the layer table, empty where the version told none.
        table, comparison: the same read, and held against the recipe; None without a table.
        facts: version, typing, flags, activation memory, seconds and the like, for the record.
        warnings: TensorRT's, each once.
    """

    plan: bytes
    layers: str
    table: Table | None
    comparison: Comparison | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def build(
    trt: Any, graph: Path, recipe: Recipe, options: Options, progress: Progress = lambda phase, done, total: None
) -> Built:
    """An engine of a typed ONNX.

    Args:
        trt: module of TensorRT or TensorRT-RTX, see `load`.
        graph: the typed ONNX. recipe: its recipe. options: how. progress: gets phase, steps done, steps in all.

    Raises:
        UserError: the lint, the parser or the builder refuses it, with the node and the reason; an option the version
            has not; or the engine computes in other precisions than the recipe says.
    """
    began = time.monotonic()
    typing = typing_of(trt, options.typing, recipe)
    _lint(trt, graph)
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network, _parser = _parsed(
        trt, builder, graph, typing, log
    )  # the parser owns the weights until the engine is built
    config = builder.create_builder_config()
    flags = configure(trt, builder, network, config, recipe, options, typing)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    check_warnings(log)
    if plan is None:
        reason = log.errors[-1].splitlines()[0] if log.errors else "it gave no reason"
        raise UserError(f"{title(trt)} cannot build {graph.name}: {reason}", advice_for(reason))
    if options.timing_cache:
        save_cache(config, options.timing_cache)
    layers = log.layers or _inspected(trt, log, plan)
    table = parse(layers) if layers else None
    comparison = check_table(recipe, table, weak=typing == "weak") if table else None
    facts = {
        "runtime": "rtx" if hasattr(trt, "ComputeCapability") else "tensorrt", "version": str(trt.__version__),
        "typing": typing, "flags": sorted(flags), "seconds": round(time.monotonic() - began, 2),
        "activation_bytes": log.activation, "plan_bytes": len(bytes(plan)),
        **({"dla_layers": on_dla(network, config)} if options.dla >= 0 else {}),
    }  # fmt: skip
    return Built(bytes(plan), layers, table, comparison, facts, tuple(dict.fromkeys(log.warnings)))


def _parsed(trt: Any, builder: Any, graph: Path, typing: str, log: Log) -> tuple[Any, Any]:
    network = builder.create_network(_creation_flags(trt, typing))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise _refused(trt, parser, log)
    check_warnings(log)
    return network, parser


def _lint(trt: Any, graph: Path) -> None:
    """Where onnx is installed; on a device it need not be, and the graph was linted when it was made."""
    if find_spec("onnx") is None:
        return
    import onnx

    refuse(lint(onnx.load(graph), VERSIONS[limits_of(trt)].opset))


def _creation_flags(trt: Any, typing: str) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(kinds.EXPLICIT_BATCH) if hasattr(kinds, "EXPLICIT_BATCH") else 0
    if typing == "strong" and hasattr(kinds, "STRONGLY_TYPED"):
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def _refused(trt: Any, parser: Any, log: Log) -> UserError:
    """The parser's first error with its node, in two lines."""
    if not parser.num_errors:
        return UserError(f"{title(trt)} cannot parse it: {(log.errors or ['no reason given'])[0]}", "export it again")
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    where = ""
    if hasattr(error, "node_name"):
        where = f" at {error.node_name()} ({error.node_operator()})"
    elif error.node() >= 0:
        where = f" at node {error.node()}"
    more = f", and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    return UserError(f"{title(trt)} cannot parse the graph{where}: {reason}{more}", advice_for(reason))


def _inspected(trt: Any, log: Log, plan: Any) -> str:
    """The layer table from the engine inspector; takes a GPU."""
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
