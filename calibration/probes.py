"""What the convolutions of a network write and read over calibration inputs, as statistics of every channel."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.calibration.channel_routes import Doubles, conv_name
from u2export.errors import UserError
from u2export.reference.image import Floats, digest

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


# Runs the network on one input (N, C, H, W); returns arrays (N, C, H, W) by name.
Probe = Callable[[Floats], Mapping[str, Any]]


@dataclass
class ChannelStatistics:
    """What a convolution wrote over the calibration inputs, before its ReLU; each array has the shape (channels,).

    Attributes:
        low, high: smallest and largest value.
        total, squares: sum of the values, and sum of their squares.
        pixels: the number of values that were summed.
    """

    low: Doubles
    high: Doubles
    total: Doubles
    squares: Doubles
    pixels: int

    @classmethod
    def of(cls, values: Any) -> ChannelStatistics:
        """Statistics of one array (N, C, H, W)."""
        values = np.asarray(values)
        axes, pixels = (0, 2, 3), values.size // values.shape[1]
        mean = values.mean(axes, dtype=np.float64)
        # Two passes: in a single pass the squares of a channel near 228 would drown its variance.
        variance = values.var(axes).astype(np.float64)
        low, high = (f(axes).astype(np.float64) for f in (values.min, values.max))
        return cls(low, high, mean * pixels, (variance + mean**2) * pixels, pixels)

    def __add__(self, other: ChannelStatistics) -> ChannelStatistics:
        return ChannelStatistics(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.total + other.total,
            self.squares + other.squares,
            self.pixels + other.pixels,
        )

    @property
    def mean(self) -> Doubles:
        """Mean of each channel over pixels and inputs."""
        return self.total / self.pixels

    @property
    def variance(self) -> Doubles:
        """Variance of each channel over pixels and inputs."""
        return np.maximum(self.squares / self.pixels - self.mean**2, 0)


def channel_statistics(probe: Probe, inputs: Iterable[Floats]) -> tuple[dict[str, ChannelStatistics], int, str]:
    """Collect statistics of what a probe gives back.

    Returns:
        Statistics by the probe's names; the number of inputs; sha256 over the digests of the inputs, in order.

    Raises:
        UserError: there are no inputs.
    """
    found: dict[str, ChannelStatistics] = {}
    total, count = hashlib.sha256(), 0
    for batch in inputs:
        total.update(digest(batch).encode())
        count += 1
        for name, values in probe(batch).items():
            new = ChannelStatistics.of(values)
            found[name] = found[name] + new if name in found else new
    if not count:
        raise UserError("no calibration inputs to find near-constant channels with", "give a folder with photos")
    return found, count, total.hexdigest()


def module_probe(model: nn.Module, names: Sequence[str], sources: bool = False) -> Probe:
    """Make a probe that runs a module and returns what its named convolutions write, before the ReLU.

    Args:
        model: a PyTorch network.
        names: dotted names of convolutions.
        sources: return what the convolutions read too, under `source(name)`.
    """
    import torch

    def run(batch: Floats) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_module: nn.Module, read: tuple[Tensor, ...], written: Tensor) -> None:
                found[name] = written.numpy().copy()  # the ReLU that follows works in place
                if sources:
                    found[source(name)] = read[0].numpy().copy()

            return hook

        hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        try:
            with torch.no_grad():
                model(torch.from_numpy(batch).to(next(model.parameters()).dtype))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    return run


def onnx_probe(model: onnx.ModelProto, names: Sequence[str], sources: bool = False) -> Probe:
    """Make a probe as `module_probe` does, of an ONNX graph that ONNX Runtime runs; names are those of its nodes."""
    import onnx

    from u2export.reference.onnx_session import open_graph

    probe = copy.deepcopy(model)
    nodes = {conv_name(node): node for node in probe.graph.node if node.op_type == "Conv"}
    tensors = {name: nodes[name].output[0] for name in names}
    if sources:
        tensors |= {source(name): nodes[name].input[0] for name in names}
    present = {value.name for value in (*probe.graph.output, *probe.graph.input)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=t) for t in dict.fromkeys(tensors.values()) if t not in present)
    running = open_graph(probe)
    feed = running.get_inputs()[0].name
    wanted = {key: tensor for key, tensor in tensors.items() if tensor != feed}

    def run(batch: Floats) -> dict[str, Any]:
        found = dict(zip(wanted, running.run(list(wanted.values()), {feed: batch}), strict=True))
        return found | dict.fromkeys(tensors.keys() - wanted.keys(), batch)

    return run


def source(name: str) -> str:
    """Name under which a probe returns the tensor that a convolution reads."""
    return f"{name} reads"
