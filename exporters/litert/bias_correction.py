"""Bias correction for full int8: the mean error of each output channel, measured before the quantiser runs.

The errors are those of `u2export.calibration.bias_correction`, on the grids of LiteRT's quantiser: activations are int8
with a zero point, weights int8 without one and with a scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.exporters.litert.tflite import convolutions, with_biases

if TYPE_CHECKING:
    import torch

    from u2export.exporters.litert.deployed import Deployed

Ranges = Mapping[str, Mapping[str, Any]]
Errors = dict[str, NDArray[np.float32]]


def errors_of(model: bytes, network: Deployed, inputs: Iterable[Any], ranges: Ranges) -> Errors:
    """Return the mean error that int8 will add to each output channel (O,) of each convolution of an fp32 model.

    Args:
        model: from `conversion.converted`.
        network: the `Deployed` that it was converted from.
        inputs: calibration photos, each as the model takes it.
        ranges: "min" and "max" of each tensor of the model over these photos.
    """
    return bias_errors(network, inputs, {conv.name: ranges[conv.entry] for conv in convolutions(model)})


def corrected(model: bytes, errors: Errors, floats: Collection[str] = ()) -> bytes:
    """Return an fp32 model whose biases subtract the errors, except those of the convolutions that stay in float."""
    known = {conv.name: conv.bias - errors[conv.name] for conv in convolutions(model) if conv.name in errors}
    return with_biases(model, {name: bias for name, bias in known.items() if name not in floats})


def bias_errors(network: Deployed, inputs: Iterable[Any], entries: Ranges) -> Errors:
    """Measure the mean error of each output channel (O,) of each convolution over photos and pixels.

    Args:
        network: runs in float; each convolution runs a second time, with rounded weights and a rounded input.
        inputs: photos, as the model takes them.
        entries: "min" and "max" of the inputs of convolutions, by `tflite.module_name`.
    """
    import torch

    totals: dict[str, NDArray[np.float64]] = {}
    hooks, count = [], 0
    for path, module in network.named_modules():
        name = path.removeprefix("backbone.network.").removeprefix("sides.")
        if isinstance(module, torch.nn.Conv2d) and name in entries:
            totals[name] = np.zeros(module.out_channels)
            hooks.append(module.register_forward_hook(_hook(totals, name, entries[name])))
    with torch.no_grad():
        for photo in inputs:
            # In one layout whatever the ports are: PyTorch's sums differ between layouts, and with them the rounding.
            network.sides(network.backbone(network.entry(torch.from_numpy(photo)).contiguous()))
            count += 1
    for hook in hooks:
        hook.remove()
    return {name: np.asarray(total / count, np.float32) for name, total in totals.items()}


def _hook(totals: dict[str, NDArray[np.float64]], name: str, seen: Mapping[str, Any]) -> Any:
    """What adds the mean error of one convolution on one photo to its total."""

    low, high = min(float(np.min(seen["min"])), 0.0), max(float(np.max(seen["max"])), 0.0)
    step = max((high - low) / 255, 1e-12)
    zero = round(-128 - low / step)

    def add(module: torch.nn.Conv2d, given: tuple[torch.Tensor, ...], exact: torch.Tensor) -> None:
        entry = ((given[0] / step).round() + zero).clamp(-128, 127).sub(zero) * step
        scale = (module.weight.abs().amax((1, 2, 3), keepdim=True) / 127).clamp(min=1e-12)
        twin = module._conv_forward(entry, (module.weight / scale).round() * scale, module.bias)
        totals[name] += (twin - exact).double().mean((0, 2, 3)).numpy()

    return add
