"""Int8 for XNNPACK: the network with int8 weights per channel and int8 activations, float layers apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from u2export.exporters.int8 import float_region
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import torch
    from torch.fx import Graph, Node


def quantised(module: torch.nn.Module, photos: Iterable[Floats], floats: Collection[str] = ()) -> torch.nn.Module:
    """Return the int8 form of an exported module, whose masks PyTorch can compute too.

    Args:
        module: from `torch.export`, and changed here; the `network` of what was exported is the network.
        photos: network inputs to calibrate with.
        floats: convolutions that stay in float, by their names in the network.
    """
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    observed = prepare_pt2e(module, _quantizer(floats))
    for photo in photos:
        observed(torch.from_numpy(photo))
    made: torch.nn.Module = convert_pt2e(observed)
    return made


def _quantizer(floats: Collection[str]) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    wanted = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """XNNPACK's own choice, from which float layers and what lies between them are taken back."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            made: torch.fx.GraphModule = super().annotate(model)
            if floats:
                _take_back(made.graph, floats, wanted.input_activation)
            return made

    return Quantizer().set_global(wanted)


def _take_back(graph: Graph, floats: Collection[str], plain: Any) -> None:
    """Remove the annotations of float layers; what shared its scale with one of them gets a scale of its own."""
    from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    region = _region(graph, floats)

    def own(spec: Any) -> Any:
        if not isinstance(spec, SharedQuantizationSpec):
            return spec
        shared = spec.edge_or_node
        return plain if region.intersection(shared[1:] if isinstance(shared, tuple) else (shared,)) else spec

    for node in graph.nodes:
        if node in region:
            node.meta.pop(Q_ANNOTATION_KEY, None)
        elif found := node.meta.get(Q_ANNOTATION_KEY):
            found.input_qspec_map = {source: own(spec) for source, spec in found.input_qspec_map.items()}
            found.output_qspec = own(found.output_qspec)


def _region(graph: Graph, floats: Collection[str]) -> set[Node]:
    """The nodes that run in float: see `float_region`. What is fused into a convolution goes with it."""
    import torch

    aten = torch.ops.aten
    fused = (aten.batch_norm.default, aten.relu.default, aten.relu_.default)
    owner: dict[Node, Node] = {}  # the convolution that a node is fused into; of all others the node itself
    sources: dict[Node, Sequence[Node]] = {}
    convolutions: dict[Node, bool] = {}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        owner[node] = node
        read = [owner[source] for source in node.all_input_nodes if source in owner]
        if node.target is aten.conv2d.default:
            convolutions[node] = _name(node) in floats
        elif node.target in fused and read and read[0] in convolutions:
            owner[node] = read[0]
            continue
        sources[node] = read
    region = float_region(sources, convolutions, (conv for conv, kept in convolutions.items() if kept))
    return {node for node, whole in owner.items() if whole in region}


def _name(node: Node) -> str:
    """The name of the module in the network that a node was traced from."""
    *_, (path, _) = node.meta["nn_module_stack"].values()
    return str(path).removeprefix("network.")
