"""Weights of U²-Net out of an ONNX file, compared with what the file itself computes.

Parameters are found by the published names where the file keeps those, else by the order of the convolutions. Batch
norms that stand apart are read; those that were folded into the convolutions become identities. The network that is
rebuilt so must give the file's own maps on real photos: a file of another structure is refused, with the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.reference.image import Contract, Floats, sigmoid

if TYPE_CHECKING:
    import onnx
    import torch

    from u2export.reference.model import U2Net

EPSILON = 1e-5  # of torch.nn.BatchNorm2d
# Largest difference of two maps in 0..1 that rounding explains: fp32 through 119 layers in another order, and fp16.
AGREE, AGREE_HALF = 2e-3, 5e-2
PHOTOS = 2
HINT = "give a published U²-Net release file, or the .pth it was exported from"


class Reader:
    """The constants and convolutions of a graph."""

    def __init__(self, model: onnx.ModelProto, path: Path) -> None:
        self.path, self.nodes = path, list(model.graph.node)
        self.stored = {t.name: t for t in model.graph.initializer}
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def value(self, name: str) -> NDArray[Any] | None:
        """A constant: an initialiser, a Constant node, or one of these behind Identity and Cast; None for all else.

        Raises:
            UserError: its values are damaged.
        """
        seen: set[str] = set()
        while name not in self.stored:
            node = self.maker.get(name)
            if node is None or name in seen:
                return None
            seen.add(name)
            if node.op_type == "Constant":
                given = next((a.t for a in node.attribute if a.name == "value"), None)
                return None if given is None else self._array(given)
            if node.op_type not in ("Identity", "Cast"):
                return None
            name = node.input[0]
        return self._array(self.stored[name])

    def _array(self, tensor: onnx.TensorProto) -> NDArray[Any]:
        from onnx import numpy_helper

        try:
            return numpy_helper.to_array(tensor)
        except Exception as error:  # onnx names no set of errors: TypeError, ValueError, ValidationError and others
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{self.path}: the tensor {tensor.name!r} is damaged ({said})", HINT) from None

    def convolutions(self) -> list[tuple[onnx.NodeProto, NDArray[Any], NDArray[Any] | None]]:
        """Nodes, weights and biases in the graph's order."""
        found = []
        for node in self.nodes:
            if node.op_type == "Conv":
                weight = self.value(node.input[1])
                if weight is not None:
                    found.append((node, weight, self.value(node.input[2]) if len(node.input) > 2 else None))
        return found

    def norm_after(self, conv: onnx.NodeProto) -> dict[str, NDArray[Any]]:
        """Parameters of the batch norm that alone reads a convolution, by PyTorch's names; empty where there is none.

        Raises:
            UserError: its parameters are not constant, or it was exported in training mode.
        """
        readers = self.readers.get(conv.output[0], [])
        if len(readers) != 1 or readers[0].op_type != "BatchNormalization":
            return {}
        node = readers[0]
        attributes = {a.name: a for a in node.attribute}
        if "training_mode" in attributes and attributes["training_mode"].i:
            raise UserError(
                f"{self.path}: its batch norms were exported in training mode: masks depend on the batch",
                "call model.eval() before the export",
            )
        values = [self.value(name) for name in node.input[1:5]]
        if any(v is None for v in values):
            raise UserError(f"{self.path}: {node.name or 'a batch norm'} has parameters that are not constant", HINT)
        weight, bias, mean, variance = (np.asarray(v, np.float32) for v in values)
        epsilon = attributes["epsilon"].f if "epsilon" in attributes else EPSILON
        # The module's epsilon is 1e-5; another one of the file goes into the variance.
        return {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance + (epsilon - EPSILON)}


def read_onnx_weights(path: Path, model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """The state dict of a graph; `verify` must confirm the network that is built of it.

    Raises:
        UserError: another number of convolutions, batch norms that cannot be read, or damaged tensors.
    """
    try:
        return _state(Reader(model, path), path)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:  # tensors or nodes that are damaged
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its weights cannot be read ({text})", "download it again") from None


def _state(reader: Reader, path: Path) -> dict[str, torch.Tensor]:
    import torch

    names, convolutions = _order(), reader.convolutions()
    if len(convolutions) != len(names):
        raise UserError(
            f"{path}: {len(convolutions)} convolutions with constant weights, U²-Net has {len(names)}",
            f"{HINT} (quantised or restructured graphs cannot be read back)",
        )
    state: dict[str, torch.Tensor] = {}
    for name, (node, weight, bias) in zip(_named(reader, convolutions) or names, convolutions, strict=True):
        offset = np.zeros(len(weight), np.float32) if bias is None else bias
        state[f"{name}.weight"] = torch.from_numpy(np.array(weight, np.float32))
        state[f"{name}.bias"] = torch.from_numpy(np.array(offset, np.float32))
        if name.endswith(".conv_s1"):
            norm = name.removesuffix("conv_s1") + "bn_s1"
            state.update(_norm(norm, len(weight), reader.norm_after(node)))
    return state


def _order() -> list[str]:
    from u2export.reference.model import U2Net, conv_names

    return conv_names(U2Net("u2netp"))


def _named(reader: Reader, convolutions: list[Any]) -> list[str]:
    """Modules of the convolutions as the file's own tensor names tell; empty where it does not keep all names."""
    wanted, found = set(_order()), []
    for node, _, _ in convolutions:
        name = node.input[1].removesuffix(".weight")
        short = next((name[i:] for i in _starts(name) if name[i:] in wanted), "")
        found.append(short)
    return found if set(found) == wanted else []


def _starts(name: str) -> list[int]:
    return [0, *(i + 1 for i, c in enumerate(name) if c == ".")]


def _norm(name: str, channels: int, read: dict[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    import torch

    if read:
        made = {f"{name}.{key}": torch.from_numpy(np.array(v, np.float32)) for key, v in read.items()}
        return {**made, f"{name}.num_batches_tracked": torch.tensor(0)}
    # var + eps must be exactly 1 in float32, or every layer scales by 1 - 5e-6: 2e-3 in the mask at worst.
    variance = torch.full((channels,), 1.0 - EPSILON)
    return {
        f"{name}.weight": torch.sqrt(variance + EPSILON),
        f"{name}.bias": torch.zeros(channels),
        f"{name}.running_mean": torch.zeros(channels),
        f"{name}.running_var": variance,
        f"{name}.num_batches_tracked": torch.tensor(0),
    }


def verify(path: Path, session: Any, network: U2Net) -> None:
    """Compare a rebuilt network with the file it came from, run by ONNX Runtime on real photos, all maps of the file.

    Args:
        path: the file. session: an ONNX Runtime session of it. network: what was built of its weights.

    Raises:
        UserError: a map of the file is none of the network's, or the fused map is not among the file's.
    """
    entry = session.get_inputs()[0]
    half = "float16" in entry.type
    if entry.type not in ("tensor(float)", "tensor(float16)") or len(entry.shape) != 4:
        raise UserError(f"{path}: its input {entry.name} is {entry.type} {entry.shape}, not (N, C, H, W) floats", HINT)
    contract = _contract(entry.shape, network.in_channels)
    limit = AGREE_HALF if half else AGREE
    for x in _photos(contract):
        batch = np.repeat(x, entry.shape[0], 0) if isinstance(entry.shape[0], int) else x
        theirs = session.run(None, {entry.name: batch.astype(np.float16) if half else batch})
        _agree(path, [np.asarray(y, np.float32)[:1] for y in theirs], _maps(network, x), limit)


def _contract(shape: list[Any], channels: int) -> Contract:
    height, width = (side if isinstance(side, int) else 320 for side in shape[2:])
    return Contract(height, width).with_channels(channels)


def _photos(contract: Contract) -> list[Floats]:
    from itertools import islice

    from u2export.reference.verification import verification_inputs

    return list(islice(verification_inputs(contract), PHOTOS))


def _maps(network: U2Net, x: Floats) -> list[Floats]:
    import torch

    with torch.inference_mode():
        return [y.numpy() for y in network(torch.from_numpy(x))]


def _agree(path: Path, theirs: list[Floats], ours: list[Floats], limit: float) -> None:
    """Every map of the file must be one of the network's, and one of them the fused map."""
    matched = set()
    for i, found in enumerate(theirs):
        if found.shape != ours[0].shape:
            raise UserError(f"{path}: output {i} has shape {found.shape}, a map has {ours[0].shape}", HINT)
        shown = sigmoid(found) if found.min() < 0 or found.max() > 1 else found
        differences = [float(np.abs(shown - own).max()) for own in ours]
        best = int(np.argmin(differences))
        if not differences[best] <= limit:
            raise UserError(
                f"{path}: the network built of its weights gives other maps: output {i} differs by "
                f"{differences[best]:.2g} (mean {float(np.abs(shown - ours[best]).mean()):.2g})",
                f"its graph is not U²-Net as published; {HINT}",
            )
        matched |= {n for n, d in enumerate(differences) if d <= limit}
    if 0 not in matched:
        raise UserError(f"{path}: the fused map d0 is not among its {len(theirs)} outputs", HINT)
