"""PyTorch to ONNX, in memory: the module is traced, and the graph is simplified, checked and stamped."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from u2export.errors import UserError, WrongValue
from u2export.reference import stamp
from u2export.reference.image import FLAT, Contract
from u2export.reference.onnx_file import check_onnx

if TYPE_CHECKING:
    import onnx
    import torch

INPUT, OUTPUT = "image", "mask"
OUTPUTS = (OUTPUT, *(f"side{n}" for n in range(1, 7)))
AXES = {"batch": 0, "height": 2, "width": 3}
OPSETS = range(13, 19)


@dataclass(frozen=True)
class Graph:
    """The form of an ONNX graph.

    Attributes:
        opset: 13 to 18. Per-channel Q/DQ needs 13. Resize-19 falls back to the CPU in ONNX Runtime's CUDA provider,
            and ONNX Runtime's static INT8 refuses 21.
        all_outputs: give the seven maps `mask`, `side1` … `side6` instead of d0 alone.
        dynamic: axes of any length, among "batch", "height", "width".
        embed_preprocess: the graph takes uint8 (1, H, W, C), and holds the division by max(x), mean and std, and the
            min-max stretch.
    """

    opset: int = 17
    all_outputs: bool = False
    dynamic: tuple[str, ...] = ()
    embed_preprocess: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            why = "per-channel Q/DQ needs 13" if self.opset < 13 else "Resize of 19 falls back to the CPU on ORT-CUDA"
            raise WrongValue(f"opset {self.opset} is not supported: {why}", "give 13 to 18", "opset")
        if unknown := set(self.dynamic) - AXES.keys():
            raise WrongValue(f"no dynamic axis named {', '.join(sorted(unknown))}", f"choose among {', '.join(AXES)}")
        if self.embed_preprocess and (self.dynamic or self.all_outputs):
            raise WrongValue(
                "embedded preprocessing is for one photo of a fixed size and the fused map",
                "leave out the free axes and the further maps, or embed no preprocessing",
            )


def to_onnx(module: torch.nn.Module, contract: Contract, graph: Graph, stamped: Mapping[str, Any]) -> onnx.ModelProto:
    """The graph of a module, simplified, checked and stamped.

    Args:
        module: its forward takes (N, C, H, W) and gives seven maps, d0 first.
        contract: pre- and postprocessing, and with it the input size.
        graph: the form of the graph.
        stamped: what to write into the model beside contract and graph, from `Source.stamp`.

    Raises:
        UserError: the simplified graph breaks a rule of `lint`.
    """
    import onnx
    import onnxsim

    traced = onnx.load_from_string(_trace(module, contract, graph))
    model: onnx.ModelProto
    model, ok = onnxsim.simplify(traced)
    if not ok:
        raise UserError("onnxsim changed the network's result", "report it with the versions of onnx and onnxsim")
    _tidy(model)
    model.producer_name = "u2export"
    texts = stamp.texts(contract, stamped, graph=vars(graph))
    onnx.helper.set_model_props(model, stamp.prefixed(texts))
    lint(model, graph.opset)
    return model


def _trace(module: torch.nn.Module, contract: Contract, graph: Graph) -> bytes:
    import torch

    deployed = _deployed(module, contract, graph).eval()
    dtype = torch.uint8 if graph.embed_preprocess else torch.float32
    _, channels, height, width = contract.shape
    shape = (1, height, width, channels) if graph.embed_preprocess else contract.shape
    outputs = list(OUTPUTS if graph.all_outputs else OUTPUTS[:1])
    axes = {AXES[name]: name for name in graph.dynamic}
    buffer = io.BytesIO()
    # The TorchScript exporter writes every opset from 13 to 18 as asked, which the newer exporter does not. It names
    # nodes after the modules, and the simplified graph has the same 365 nodes.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            deployed, (torch.zeros(shape, dtype=dtype),), cast(Any, buffer), dynamo=False, opset_version=graph.opset,
            input_names=[INPUT], output_names=outputs, do_constant_folding=True,
            dynamic_axes=dict.fromkeys((INPUT, *outputs), axes) if axes else None,
        )  # fmt: skip
    return buffer.getvalue()


def _deployed(module: torch.nn.Module, contract: Contract, graph: Graph) -> torch.nn.Module:
    """The module that is traced. The class is defined here so that torch is imported only when it is needed."""
    import torch

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module
            self.mean = torch.nn.Buffer(torch.tensor(contract.mean).view(1, -1, 1, 1))
            self.std = torch.nn.Buffer(torch.tensor(contract.std).view(1, -1, 1, 1))

        def forward(self, x: torch.Tensor) -> Any:
            if not graph.embed_preprocess:
                maps = self.network(x)
                return maps if graph.all_outputs else maps[0]
            x = x.permute(0, 3, 1, 2).float()
            x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=FLAT)
            d0 = self.network((x - self.mean) / self.std)[0]
            low, high = d0.amin((1, 2, 3), keepdim=True), d0.amax((1, 2, 3), keepdim=True)
            return (d0 - low) / (high - low).clamp(min=FLAT)

    return Deployed()


def _tidy(model: onnx.ModelProto) -> None:
    """Remove the wrapper's prefix from names, and write absent inputs of Resize as absent, not as empty tensors."""
    graph = model.graph
    empty = {t.name for t in graph.initializer if 0 in t.dims}
    for node in graph.node:
        node.name = _bare(node.name)
        node.input[:] = ["" if node.op_type == "Resize" and name in empty else _bare(name) for name in node.input]
        node.output[:] = [_bare(name) for name in node.output]
    for named in (*graph.initializer, *graph.value_info):
        named.name = _bare(named.name)
    _rename_weights(model)
    used = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _bare(name: str) -> str:
    return name.removeprefix("network.").replace("/network/", "/")


def _rename_weights(model: onnx.ModelProto) -> None:
    """Give each convolution its own weight and bias, named after its module; the tracer shares equal tensors."""
    import onnx

    stored = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            module = node.name.strip("/").removesuffix("/Conv").replace("/", ".")
            for i, kind in enumerate(("weight", "bias")[: len(node.input) - 1], start=1):
                name = f"{module}.{kind}"
                if name not in stored:
                    stored[name] = onnx.TensorProto()
                    stored[name].CopyFrom(stored[node.input[i]])
                    stored[name].name = name
                    model.graph.initializer.append(stored[name])
                node.input[i] = name


def lint(model: onnx.ModelProto, opset: int) -> None:
    """Check a graph against the standard and against what runtimes stumble over.

    Raises:
        UserError: onnx.checker or shape inference refuses the graph, the opset is not the one asked for, a Resize has
            both or neither of sizes and scales, or a node has no name or shares its name with another node.
    """
    hint = "this is a fault of the export; report it with the versions of torch, onnx and onnxsim"
    found = {o.domain: o.version for o in model.opset_import}
    if found.get("") != opset or set(found) - {""}:
        raise UserError(f"the exported graph has opsets {found}, but {opset} was asked for", hint)
    for node in model.graph.node:
        if node.op_type == "Resize":
            given = [len(node.input) > i and bool(node.input[i]) for i in (2, 3)]
            if sum(given) != 1:
                raise UserError(f"{node.name}: Resize needs exactly one of scales and sizes", hint)
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) != len(names):
        raise UserError("nodes of the exported graph lack names of their own", hint)
    check_onnx(model, "the exported graph", hint, full=True)
