"""What the int8 targets share: quantisation within the budget, judged as the finished file will be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from u2export.exporters.exporter import Exporter, Request
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import onnx
    import torch

    from u2export.calibration.float_fallback import Quantised
    from u2export.calibration.quant_plan import QuantSpec
    from u2export.reference.fidelity import Fidelity
    from u2export.reference.source import Source

Operation = TypeVar("Operation")
# What the choice of float layers needs, of targets that do not start from an ONNX graph.
ORDERING = ("onnx", "onnxsim", "onnxruntime")
# Opens a graph as the target will run it.
Opener = Callable[["onnx.ModelProto"], Callable[[Floats], Floats]]


def in_onnx_runtime(session: Any) -> Callable[[Floats], Floats]:
    """The fused map (1, K, H, W) of a network input (1, C, H, W) in a session of a Q/DQ graph."""
    entry, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return lambda x: np.asarray(session.run([output], {entry: x})[0], np.float32)


def quantised(
    exporter: Exporter, model: onnx.ModelProto, source: Source, request: Request, spec: QuantSpec, opener: Opener
) -> Quantised:
    """Return the 8-bit graph of an export, with float layers where pure 8 bit misses the budget.

    Args:
        exporter: the target; its limits are the budget, as far as the request has none of its own.
        model: the conditioned fp32 graph.
        source: the reference that the masks are compared with.
        request: has the calibration photos and the held-back photos.
        spec: how to quantise.
        opener: opens a graph as the target will run it.

    Raises:
        UserError: as `u2export.calibration.float_fallback.quantise_within`.
    """
    from u2export.calibration.float_fallback import quantise_within

    assert request.calibration  # `Exporter.check` refuses the request otherwise

    def judge(graph: onnx.ModelProto) -> Fidelity:
        return source.compare(opener(graph), request.held_back or ())

    return quantise_within(
        model, request.calibration, spec, judge, exporter.budget(request), request.max_float, request.progress
    )


@dataclass(frozen=True)
class FloatLayers:
    """What stays in float so that an int8 file keeps its budget; empty where pure int8 does.

    Attributes:
        names: convolutions, by their names in PyTorch: "stage1.rebnconv1.conv_s1".
        added: facts for the record.
        note: the same in one sentence.
    """

    names: frozenset[str] = frozenset()
    added: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def float_layers(
    exporter: Exporter,
    network: torch.nn.Module,
    source: Source,
    request: Request,
    judge: Callable[[Collection[str]], Fidelity],
) -> FloatLayers:
    """Choose the float layers of a target that quantises the PyTorch network itself, and not an ONNX graph.

    The network's ONNX graph, with int8 as these targets store it, only orders the layers.

    Args:
        exporter: the target; its limits are the budget, as far as the request has none of its own.
        network: the conditioned network.
        source: the reference that the masks are compared with.
        request: has the calibration photos, and says how much of the work may become float.
        judge: gives the fidelity of the target's int8 masks with the named convolutions in float.

    Raises:
        UserError: as `u2export.calibration.float_fallback.float_layers_within`.
    """
    from u2export.calibration.float_fallback import float_layers_within
    from u2export.calibration.float_search import load_of
    from u2export.calibration.quant_plan import ONNX_RUNTIME, float_nodes
    from u2export.reference.onnx_export import Graph, to_onnx

    budget = exporter.budget(request)
    if not request.max_float:
        return FloatLayers()
    pure = judge(())
    if load_of(pure, budget) <= 1:
        return FloatLayers()
    assert request.calibration  # `Exporter.check` refuses the request otherwise
    model = to_onnx(network, source.contract, Graph(), source.stamp("fp32", {}))

    def names(spec: QuantSpec) -> frozenset[str]:
        return frozenset(_module_of(node) for node in float_nodes(model, spec) if node.endswith("/Conv"))

    def judged(spec: QuantSpec) -> Fidelity:
        return judge(found) if (found := names(spec)) else pure

    spec = replace(ONNX_RUNTIME, pair_safe=False, fit_weights=False)  # these targets round to the nearest step
    chosen = float_layers_within(model, request.calibration, spec, judged, budget, request.max_float, request.progress)
    return FloatLayers(names(chosen.spec), chosen.added, chosen.note)


def float_region(
    sources: Mapping[Operation, Collection[Operation]], convolutions: Collection[Operation], floats: Iterable[Operation]
) -> set[Operation]:
    """Return all operations that run in float, so that float layers do not read values that 8 bit rounded needlessly.

    An operation between convolutions (joining, pooling, resizing, adding) runs in float where a float layer reads what
    it makes, and where all that it reads is float.

    Args:
        sources: the operations that each operation reads, in the order of their run.
        convolutions: those that only the caller's choice puts into float.
        floats: the float convolutions.
    """
    region = set(floats)
    readers: dict[Operation, list[Operation]] = {}
    for name, read in sources.items():
        for source in read:
            readers.setdefault(source, []).append(name)
    for name in reversed(list(sources)):
        if name not in convolutions and region.intersection(readers.get(name, ())):
            region.add(name)
    for name, read in sources.items():
        if name not in convolutions and read and region.issuperset(read):
            region.add(name)
    return region


def _module_of(node: str) -> str:
    """The PyTorch name of the convolution that a node of the ONNX graph was traced from."""
    return node.strip("/").removesuffix("/Conv").replace("/", ".")
