"""Exact re-parametrisation before quantising: channels that hardly vary are shifted towards zero.

In the published U²-Net-small, one channel stays between 226 and 228 on every picture. The next convolution subtracts
this value again with a bias of 1361. Where one of the two is rounded to 8 bit, fp16 or bf16, the difference is mostly
rounding error. Conditioning replaces such a channel y. For a constant mu just below the channel's smallest value,

    relu(y) = mu + relu(y - mu) - relu(mu - y) + relu(-y)        for every y.

The producer writes relu(y - mu) in the channel's place, and it writes two guard channels. The guards are zero wherever
y >= mu. On pictures like the calibration photos they are always zero; on other pictures they keep the network right.
The biases of the readers take mu, except at taps that can fall on zero padding: these taps read one more channel,
which is constant. Resizing and concatenation pass sums and constants through. Max pooling and additions do not, so a
channel that reaches one of these stays as it is. The network keeps its operators; two or three convolutions get a few
more channels.

Other forms were compared on the published U²-Net-small in simulated 8 bit on 8 photos. Their mask errors, relative to
this form: without the rescaling 4.0; with every tap's share in the bias 2.7; with a constant four times as large or as
small 1.2; with cross-layer equalisation on top 1.2; with a shift of channels that vary more 1.0.

The idea is the bias absorption of Nagel et al., "Data-Free Quantization through Weight Equalization and Bias
Correction", ICCV 2019, section 4.1.3. This form needs no approximation: it is exact for every input and at the border.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from u2export.calibration.channel_routes import Conv, Doubles, Network, Route, from_module, module_conv
from u2export.calibration.condition_report import Change, ConditionReport, Criteria, Refused
from u2export.calibration.probes import ChannelStatistics, channel_statistics, module_probe
from u2export.errors import UserError
from u2export.reference.image import Floats

if TYPE_CHECKING:
    from torch import nn

    from u2export.reference.model import U2Net


def condition(
    model: U2Net, how: ConditionReport | Iterable[Floats], criteria: Criteria = Criteria()
) -> tuple[U2Net, ConditionReport]:
    """Copy a network, fold its batch norms and shift its near-constant channels: its maps stay the same.

    The copy gives the maps of the original for any input of any size.

    Args:
        model: the reference network; it is not changed.
        how: calibration inputs, each (N, C, H, W) as `Contract.tensor` makes them; they are read once, one at a time,
            and 16 photos are enough. Or the report of an earlier conditioning of the same network.
        criteria: when a channel is shifted. With a report, the criteria have no effect.

    Returns:
        The copy in evaluation mode, and what was changed. The modules keep their names; some convolutions have more
        channels.

    Raises:
        UserError: there are no inputs, or the report belongs to another network.
    """
    folded = fold_batch_norm(model)
    network = from_module(folded)
    routes = network.routes()
    if isinstance(how, ConditionReport):
        _check_fit(how, network, routes)
        report = how
    else:
        needed = dict.fromkeys(name for r in routes for name in (r.producer, *(reader.conv for reader in r.readers)))
        statistics, inputs, digest = channel_statistics(module_probe(folded, list(needed)), how)
        changes, refused = choose(network, routes, statistics, criteria)
        report = ConditionReport(changes, refused, inputs, digest, criteria)
    changes = rewrite(network, routes, report.changes)
    for conv in network.convs.values():
        _write_module(folded, conv)
    return folded, replace(report, changes=changes)


def fold_batch_norm(model: U2Net) -> U2Net:
    """Copy a network in evaluation mode and fold its batch norms into the convolutions, computed in float64.

    Modules keep their names. An `nn.Identity` takes the place of each batch norm.
    """
    import torch
    from torch import nn

    from u2export.reference.model import ConvBnRelu

    folded = copy.deepcopy(model).eval()
    for name, unit in folded.named_modules():
        if isinstance(unit, ConvBnRelu) and isinstance(norm := unit.bn_s1, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
            raw = module_conv(f"{name}.conv_s1", unit.conv_s1)
            bias = (torch.from_numpy(raw.bias) - norm.running_mean) * scale + norm.bias
            weight = raw.weight * scale.detach().numpy()[:, None, None, None]
            _write_module(folded, replace(raw, weight=weight, bias=bias.detach().numpy()))
            setattr(unit, "bn_s1", nn.Identity())  # noqa: B010 - a type checker takes the name for a BatchNorm2d
    return folded


# --- choosing channels -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NearConstant:
    """A channel that is worth shifting: its range over the inputs, the shift, and its worst reader's dB."""

    channel: int
    low: float
    high: float
    shift: float
    sqnr: float


def choose(
    network: Network, routes: Sequence[Route], statistics: Mapping[str, ChannelStatistics], criteria: Criteria
) -> tuple[tuple[Change, ...], tuple[Refused, ...]]:
    """Find the near-constant channels that are worth a shift: those that can be shifted, and those that cannot.

    Args:
        network: weights and operators, batch norms folded.
        routes: of the network.
        statistics: of every producer and reader of the routes, by name.
        criteria: when a shift is worth it.

    Returns:
        The changes to make in execution order, and the refused channels with the reason.
    """
    changes: list[Change] = []
    refused: list[Refused] = []
    order = {name: index for index, name in enumerate(network.convs)}
    for route in routes:
        found = _near_constant(network, route, statistics, criteria)
        if route.blocked:
            refused += [Refused(route.producer, c.channel, c.low, c.high, c.sqnr, route.blocked) for c in found]
        elif found:
            seen = statistics[route.producer]
            changes += _changes(found, route, order[route.producer], seen, network, criteria)
    return tuple(changes), tuple(refused)


def _near_constant(
    network: Network, route: Route, statistics: Mapping[str, ChannelStatistics], criteria: Criteria
) -> list[_NearConstant]:
    """The channels of one producer that never reach zero and that the criteria find worth a shift."""
    seen = statistics[route.producer]
    found = []
    for channel in np.flatnonzero(seen.low > 0).tolist():
        low, high = float(seen.low[channel]), float(seen.high[channel])
        shift = shift_below(low, high, criteria.margin)
        readers = range(len(route.readers))
        sqnr = min((_sqnr(network, route, i, channel, statistics) for i in readers), default=math.inf)
        if high >= criteria.gain * (high - shift) and sqnr <= criteria.sqnr:
            found.append(_NearConstant(channel, low, high, shift, sqnr))
    return found


def _changes(
    found: Sequence[_NearConstant],
    route: Route,
    index: int,
    seen: ChannelStatistics,
    network: Network,
    criteria: Criteria,
) -> list[Change]:
    """The changes of one producer, with their scales and the value of its constant channel."""
    readers = tuple(reader.conv for reader in route.readers)
    others = np.delete(seen.high, [c.channel for c in found])
    room = max(float(others.max(initial=0.0)), *(c.high - c.shift for c in found))
    bordered = any(network.convs[name].border == "same" for name in readers)
    constant = 2.0 ** math.floor(math.log2(room)) if bordered else 0.0
    changes = []
    for c in found:
        scale = 2.0 ** math.floor(math.log2(room / (c.high - c.shift))) if criteria.rescale else 1.0
        changes.append(
            Change(
                route.producer, index, c.channel, c.shift, scale, constant, c.low, c.high, c.low - c.shift, c.sqnr,
                readers,
            )
        )  # fmt: skip
    return changes


def shift_below(low: float, high: float, margin: float) -> float:
    """Return a number below `low` with few binary digits, so that every float format holds it exactly."""
    spread = max(high - low, low * 2.0**-10)
    grid = 2.0 ** (math.floor(math.log2(spread)) - 2)
    return max(math.floor((low - margin * spread) / grid) * grid, 0.0)


def _sqnr(network: Network, route: Route, which: int, channel: int, seen: Mapping[str, ChannelStatistics]) -> float:
    """A reader's signal to noise in dB.

    The signal is the variance of the reader's output. The noise is what 8-bit weights make of the channel's mean.
    """
    reader = network.convs[route.readers[which].conv]
    live = seen[reader.name].high > 0
    step = np.abs(reader.weight).max((1, 2, 3))[live] / 127
    taps = reader.weight[0, 0].size
    noise = (step**2 / 12).sum() * taps * seen[route.producer].mean[channel] ** 2
    signal = seen[reader.name].variance[live].sum()
    return float(10 * np.log10(signal / noise)) if signal > 0 and noise > 0 else math.inf


def _check_fit(report: ConditionReport, network: Network, routes: Sequence[Route]) -> None:
    """Refuse a report whose changes this network cannot take."""
    by_name = {route.producer: route for route in routes}
    for change in report.changes:
        route = by_name.get(change.producer)
        fits = (
            route is not None
            and not route.blocked
            and tuple(reader.conv for reader in route.readers) == change.readers
            and change.channel < len(network.convs[change.producer].bias)
        )
        if not fits:
            raise UserError(
                "the conditioning report does not fit the network: it cannot shift channel "
                f"{change.channel} of the convolution {change.producer}",
                "condition this model with calibration inputs instead",
            )


# --- rewriting weights -------------------------------------------------------------------------------------------


def rewrite(network: Network, routes: Sequence[Route], changes: Sequence[Change]) -> tuple[Change, ...]:
    """Rewrite the weights of a network, producers in execution order.

    Returns:
        The changes, with the largest bias of their readers before and after.
    """
    before = {name: _peak(conv) for name, conv in network.convs.items()}
    inserted: dict[str, list[tuple[int, int]]] = {}  # by reader: original input channel, channels inserted there
    for route in routes:
        group = [c for c in changes if c.producer == route.producer]
        if not group:
            continue
        width = len(network.convs[route.producer].bias)
        for reader in route.readers:
            moved = inserted.setdefault(reader.conv, [])
            offset = reader.offset + sum(count for position, count in moved if position <= reader.offset)
            added = _read(network.convs[reader.conv], offset, width, group)
            moved.append((reader.offset + width, added))
        _produce(network.convs[route.producer], group)
    return tuple(
        replace(
            c,
            bias_before=max(before[name] for name in c.readers),
            bias_after=max(_peak(network.convs[name]) for name in c.readers),
        )
        for c in changes
    )


def _peak(conv: Conv) -> float:
    return float(np.abs(conv.bias).max())


def _produce(conv: Conv, changes: Sequence[Change]) -> None:
    """Shift the changed outputs of a producer; append two guards for each, then the constant channel."""
    weights, biases = [], []
    for c in changes:
        w, b = conv.weight[c.channel] * c.scale, conv.bias[c.channel] * c.scale
        shift = c.shift * c.scale
        weights += [-w, -w]
        biases += [shift - b, -b]
    weight, bias = conv.weight.copy(), conv.bias.copy()
    for c in changes:
        weight[c.channel] *= c.scale
        bias[c.channel] = (bias[c.channel] - c.shift) * c.scale
    if constant := changes[0].constant:
        weights.append(np.zeros_like(weight[0]))
        biases.append(np.float64(constant))
    conv.weight, conv.bias = np.concatenate((weight, np.stack(weights))), np.append(bias, biases)


def _read(conv: Conv, offset: int, width: int, changes: Sequence[Change]) -> int:
    """Let a convolution read the changed channels, which begin at its input channel `offset`.

    Returns:
        How many input channels were inserted.
    """
    weight, extra = conv.weight.copy(), []
    border = np.zeros_like(weight[:, 0])
    for c in changes:
        taps = conv.weight[:, offset + c.channel]
        weight[:, offset + c.channel] = taps / c.scale
        extra += [-taps / c.scale, taps / c.scale]
        always = _inside(taps) if conv.border == "same" else taps
        conv.bias = conv.bias + c.shift * always.sum((1, 2))
        border += c.shift * (taps - always)
    if changes[0].constant:
        extra.append(border / changes[0].constant)
    conv.weight = np.insert(weight, [offset + width] * len(extra), np.stack(extra, 1), axis=1)
    return len(extra)


def _inside(taps: Doubles) -> Doubles:
    """The centre taps alone, zero elsewhere: only the centre tap never falls on padding."""
    centre = np.zeros_like(taps)
    row, column = taps.shape[1] // 2, taps.shape[2] // 2
    centre[:, row, column] = taps[:, row, column]
    return centre


def _write_module(model: nn.Module, conv: Conv) -> None:
    import torch
    from torch import nn

    module = model.get_submodule(conv.name)
    assert isinstance(module, nn.Conv2d)
    module.out_channels, module.in_channels = conv.weight.shape[:2]
    dtype = module.weight.dtype
    module.weight = nn.Parameter(torch.from_numpy(conv.weight).to(dtype))
    module.bias = nn.Parameter(torch.from_numpy(conv.bias).to(dtype))
