"""Which layers 8 bit or fp16 will break, before anything is exported: from the weights alone, or with photos.

The prediction is the error of a convolution's output when its weights are rounded to 8 bit (symmetric, one scale per
output channel). With calibration inputs, the error is computed from their means and variances and is compared with the
variance of the output. On the published U²-Net-small at 320x320, this prediction differs by 1 dB (rms over layers) from
the error of really rounding one layer. On maps of a few pixels, where taps read padding, it overestimates the error.

Without inputs, one fact remains: something has to cancel the bias, or the output would be all bias. The smallest input
with w.x = -b has the length |b| / |w|. Rounding w (variance step^2 / 12 for each weight) turns this input into an error
of step / sqrt(12) * |b| / |w|. A bias that is large compared with its weights therefore names the layer that breaks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from u2export.calibration.channel_routes import Conv, Doubles, Network, from_module, from_onnx
from u2export.calibration.condition import choose, fold_batch_norm
from u2export.calibration.condition_report import Criteria
from u2export.calibration.probes import ChannelStatistics, Probe, channel_statistics, module_probe, onnx_probe, source
from u2export.errors import UserError
from u2export.reference.image import Floats

if TYPE_CHECKING:
    import onnx

    from u2export.reference.model import U2Net

STEPS = 127  # steps of a symmetric 8-bit weight on each side of zero
LEVELS = 255  # steps of an 8-bit activation
FP16_MAX, FP16_NORMAL, FP16_ROUNDING = 65504.0, 2.0**-14, 2.0**-12
DEAD = 1e-6  # an output channel whose weights are shorter than this is ignored
# Limits at which numbers become problems. On the published U²-Net-small, the layer that alone breaks 8 bit has an error
# of 3.1 and -9 dB; a layer with 0.21 and 20 dB has a visible cost; the median layer has 0.001 and 40 dB.
ERROR8, ERROR16, SQNR = 0.1, 0.05, 25.0


@dataclass(frozen=True)
class LayerDamage:
    """What 8 bit and fp16 do to one convolution. Decibels are those of signal over rounding error.

    Attributes:
        name, index: its name, and its place in execution order.
        bias, weight: largest magnitudes.
        error8, error16: largest error over the outputs where 8-bit weights, or fp16, round what cancels the bias.
        channel_sqnr, tensor_sqnr: dB of the weights themselves: with one scale per output channel (the worst channel),
            and with one scale for all channels.
        subnormal: share of the weights that fp16 holds with fewer digits or not at all.
        overflow: the number of weights and biases that fp16 cannot hold.
        dead: the number of output channels that are zero after the ReLU for every input.
        weights_sqnr, inputs_sqnr: dB of the output with 8-bit weights, and with 8-bit inputs (one scale for the
            tensor); None without calibration inputs.
        low, high: range of the output before the ReLU; None without calibration inputs.
        silent: the number of output channels that never were above zero; None without calibration inputs.
    """

    name: str
    index: int
    bias: float
    weight: float
    error8: float
    error16: float
    channel_sqnr: float
    tensor_sqnr: float
    subnormal: float
    overflow: int
    dead: int
    weights_sqnr: float | None = None
    inputs_sqnr: float | None = None
    low: float | None = None
    high: float | None = None
    silent: int | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems of the layer, in words."""
        found = []
        if self.weights_sqnr is not None and self.weights_sqnr < SQNR:
            found.append(f"8-bit weights leave {self.weights_sqnr:.0f} dB of its output")
        elif self.weights_sqnr is None and self.error8 > ERROR8:
            found.append(
                f"cancels a bias of {self.bias:.4g}, of which 8-bit weights leave an error of {self.error8:.2g}"
            )
        if self.inputs_sqnr is not None and self.inputs_sqnr < SQNR:
            found.append(f"8-bit inputs leave {self.inputs_sqnr:.0f} dB of its output")
        if self.error16 > ERROR16:
            found.append(f"fp16 leaves an error of {self.error16:.2g}")
        if self.tensor_sqnr < SQNR:
            found.append(f"needs a scale per output channel (one for all: {self.tensor_sqnr:.0f} dB)")
        if self.overflow:
            found.append(f"{self.overflow} values overflow fp16")
        return tuple(found)

    @property
    def damage(self) -> float:
        """The number that orders layers: predicted error over signal with inputs, else the predicted error."""
        if self.weights_sqnr is None or self.inputs_sqnr is None:
            return self.error8
        return 10 ** (-self.weights_sqnr / 10) + 10 ** (-self.inputs_sqnr / 10)


@dataclass(frozen=True)
class NearConstant:
    """A channel that hardly varies over the calibration inputs; `obstacle` says why conditioning cannot shift it."""

    producer: str
    channel: int
    low: float
    high: float
    sqnr: float
    obstacle: str = ""


@dataclass(frozen=True)
class WeakLayers:
    """The layers of a network by their damage, the worst first.

    Attributes:
        layers: all convolutions, the worst first.
        near_constant: channels that hardly vary over the inputs, the worst first.
        inputs: the number of calibration inputs; 0 where the weights alone were judged.
    """

    layers: tuple[LayerDamage, ...]
    near_constant: tuple[NearConstant, ...] = ()
    inputs: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON; infinite values become null."""
        layers = [{**_finite(asdict(layer)), "problems": list(layer.problems)} for layer in self.layers]
        return {
            "inputs": self.inputs,
            "layers": layers,
            "near_constant": [_finite(asdict(channel)) for channel in self.near_constant],
        }


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


def weak_layers(model: U2Net, inputs: Iterable[Floats] | None = None) -> WeakLayers:
    """Predict how 8 bit and fp16 damage each layer of the reference network.

    Args:
        model: the network; it is not changed.
        inputs: calibration inputs (N, C, H, W), read once; without them, the weights alone are judged.
    """
    folded = fold_batch_norm(model)
    network = from_module(folded)
    return _weak_layers(network, module_probe(folded, list(network.convs), sources=True), inputs)


def weak_layers_of_graph(model: onnx.ModelProto, inputs: Iterable[Floats] | None = None) -> WeakLayers:
    """Predict the damage as `weak_layers` does, for an fp32 ONNX graph.

    Raises:
        UserError: the weights of a convolution are not float32 constants, or there is no convolution.
    """
    network = from_onnx(model)
    if not network.convs:
        raise UserError("the graph has no convolution", "give a U²-Net in ONNX")
    probe = onnx_probe(model, list(network.convs), sources=True) if inputs else None
    return _weak_layers(network, probe, inputs)


def _weak_layers(network: Network, probe: Probe | None, inputs: Iterable[Floats] | None) -> WeakLayers:
    layers = [_weights(index, conv) for index, conv in enumerate(network.convs.values())]
    if inputs is None or probe is None:
        return WeakLayers(_ordered(layers))
    statistics, count, _ = channel_statistics(probe, inputs)
    layers = [_activations(layer, network.convs[layer.name], statistics) for layer in layers]
    changes, refused = choose(network, network.routes(), statistics, Criteria(sqnr=math.inf))
    found = [NearConstant(c.producer, c.channel, c.low, c.high, c.sqnr) for c in changes]
    found += [NearConstant(r.producer, r.channel, r.low, r.high, r.sqnr, r.reason) for r in refused]
    return WeakLayers(_ordered(layers), tuple(sorted(found, key=lambda c: c.sqnr)), count)


def _ordered(layers: Sequence[LayerDamage]) -> tuple[LayerDamage, ...]:
    return tuple(sorted(layers, key=lambda layer: layer.damage, reverse=True))


def _weights(index: int, conv: Conv) -> LayerDamage:
    rows = conv.weight.reshape(len(conv.weight), -1)
    length = np.linalg.norm(rows, axis=1)
    live = length > DEAD
    step = np.abs(rows).max(1) / STEPS
    cancelled = np.abs(conv.bias[live]) / length[live]
    squares = (rows**2).mean(1)[live]
    values = np.append(rows, conv.bias)
    return LayerDamage(
        name=conv.name,
        index=index,
        bias=float(np.abs(conv.bias).max()),
        weight=float(np.abs(rows).max()),
        error8=float((step[live] / math.sqrt(12) * cancelled).max(initial=0)),
        # The rounding of the bias itself; what cancels the bias, and their sum, are rounded in the same way.
        error16=float(np.abs(conv.bias[live]).max(initial=0) * FP16_ROUNDING),
        channel_sqnr=min(
            (_decibels(s, d) for s, d in zip(squares, step[live] ** 2 / 12, strict=True)), default=math.inf
        ),
        tensor_sqnr=_decibels(float((rows**2).mean()), float(step.max() ** 2 / 12)),
        subnormal=float(((np.abs(rows) < FP16_NORMAL) & (rows != 0)).mean()),
        overflow=int((np.abs(values) > FP16_MAX).sum()),
        dead=int((~live & (conv.bias <= 0)).sum()),
    )


def _activations(layer: LayerDamage, conv: Conv, statistics: Mapping[str, ChannelStatistics]) -> LayerDamage:
    read, written = statistics[source(conv.name)], statistics[conv.name]
    live = written.high > 0
    signal = float(written.variance[live].sum())
    error = conv.weight - rounded(conv.weight)
    # Inputs behind a ReLU have means, on which the errors of a kernel add up. Deviations count as independent.
    steady = (error.sum((2, 3)) @ read.mean) ** 2
    of_weights = float((steady + (error**2).sum((2, 3)) @ read.variance)[live].sum())
    of_inputs = float(_step(read) ** 2 / 12 * (conv.weight[live] ** 2).sum())
    return LayerDamage(
        **{
            **asdict(layer),
            "weights_sqnr": _decibels(signal, of_weights),
            "inputs_sqnr": _decibels(signal, of_inputs),
            "low": float(written.low.min()),
            "high": float(written.high.max()),
            "silent": int((~live).sum()),
        }
    )


def rounded(weight: Doubles) -> Doubles:
    """Round a weight (O, I, kH, kW) to 8 bit, symmetric, one scale per output channel."""
    step = np.maximum(np.abs(weight).max((1, 2, 3), keepdims=True), np.finfo(np.float32).tiny) / STEPS
    return np.asarray(np.round(weight / step) * step, np.float64)


def _step(values: ChannelStatistics) -> float:
    """Step of one asymmetric 8-bit scale for the whole tensor."""
    return (max(float(values.high.max()), 0.0) - min(float(values.low.min()), 0.0)) / LEVELS


def _decibels(signal: float | Doubles, noise: float | Doubles) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf
