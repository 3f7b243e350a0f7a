"""Rounding of weights by what a layer's output loses: later weights make up for the rounding of earlier ones.

Rounding each weight to its nearest step ignores that a layer's inputs are correlated. Here the weights of an output
channel are rounded one after another, and each error is spread over the weights that are not rounded yet, so that the
output on calibration photos changes least. Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", ICLR 2023; its formula is that of Hassibi and Stork, "Second order derivatives
for network pruning: Optimal Brain Surgeon", 1992.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from u2export.calibration.quant_plan import LARGEST, QuantSpec, round_weight, weight_scale
from u2export.reference.image import Floats
from u2export.reference.onnx_graph import GraphView, conv_nodes, with_outputs
from u2export.reference.onnx_session import run

if TYPE_CHECKING:
    import onnx

PHOTOS = 32
POSITIONS = 1200  # of each photo and layer, drawn at random; half as many, of 16 photos, left a larger error
DAMPING = 0.01  # of the mean of the diagonal, added to it: inputs that hardly vary must not take large corrections
AT_ONCE = 1 << 26  # entries of the matrices of a pass over the photos: 256 MB
MOST = 128.0  # the sum of two neighbours of one sign, in steps, see `u2export.calibration.quant_plan.PAIR`
BLOCK = 128  # columns whose corrections of later columns are applied together

Rounded = Mapping[str, NDArray[np.int8]]


def rounded_weights(
    model: onnx.ModelProto,
    photos: Iterable[Floats],
    spec: QuantSpec,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, NDArray[np.int8]]:
    """Return the rounded weights (O, I, kH, kW) of all convolutions by the names of their nodes.

    Nothing is returned for a scheme that rounds each weight to its nearest step. The steps are those of `weight_scale`
    without a bias. Only the matrices of some layers are in memory at a time.

    Args:
        model: the fp32 graph.
        photos: network inputs (1, C, H, W); `PHOTOS` of them are enough.
        spec: the scheme.
        progress: is told what happens now, in a few words.
    """
    found: dict[str, NDArray[np.int8]] = {}
    if not spec.fit_weights:
        return found
    view, pair_safe = GraphView(model), spec.pair_safe
    groups = list(_groups(view, [n for n in conv_nodes(model) if not _grouped(n)]))
    for i, convs in enumerate(groups):
        progress(f"rounding weights, part {i + 1} of {len(groups)}")
        for conv, moments in zip(convs, _moments(model, view, convs, photos), strict=True):
            weight = view.constant(conv.input[1]).astype(np.float32)
            found[conv.name] = rounded(weight, weight_scale(weight, pair_safe=pair_safe), moments, pair_safe)
    return found


def steps_of(
    known: Rounded, name: str, weight: Floats, scale: NDArray[np.float32], pair_safe: bool
) -> NDArray[np.int8]:
    """The weight of a convolution in steps: its rounded weights where they have these scales, else the nearest steps.

    Args:
        known: from `rounded_weights`.
        name: of the convolution's node.
        weight, scale: (O, I, kH, kW) and (O,).
        pair_safe: as of `u2export.calibration.quant_plan.QuantSpec`.
    """
    if name in known and (scale == weight_scale(weight, pair_safe=pair_safe)).all():
        return known[name]
    return round_weight(weight, scale)


def _grouped(conv: onnx.NodeProto) -> bool:
    return int(_attributes(conv).get("group", 1)) != 1


def _groups(view: GraphView, convs: Iterable[onnx.NodeProto]) -> Iterator[list[onnx.NodeProto]]:
    """Convolutions in groups whose matrices fit into memory together."""
    group: list[onnx.NodeProto] = []
    entries = 0
    for conv in convs:
        more = int(np.prod(view.constants[conv.input[1]].dims[1:])) ** 2
        if group and entries + more > AT_ONCE:
            yield group
            group, entries = [], 0
        group.append(conv)
        entries += more
    if group:
        yield group


def _moments(
    model: onnx.ModelProto, view: GraphView, convs: Sequence[onnx.NodeProto], photos: Iterable[Floats]
) -> list[NDArray[np.float32]]:
    """The second moments (n, n) of the inputs of each convolution, as its weights (I, kH, kW) see them."""
    entry = view.inputs[0]
    names = list(dict.fromkeys(conv.input[0] for conv in convs if conv.input[0] != entry))
    outputs = names or [next(iter(view.outputs))]
    sums: list[Any] = [0.0] * len(convs)
    random = np.random.default_rng(0)
    fed: list[Floats] = []

    def kept(inputs: Iterable[Floats]) -> Iterator[Floats]:
        for x in inputs:
            fed[:] = [x]
            yield x

    for values in run(with_outputs(model, (), outputs), kept(photos), outputs):
        seen = {**dict(zip(outputs, values, strict=True)), entry: fed[0]}
        for i, conv in enumerate(convs):
            columns, share = _columns(seen[conv.input[0]][0], view.constants[conv.input[1]].dims[2:], conv, random)
            sums[i] = sums[i] + (columns @ columns.T) * np.float32(share)
    return sums


def _columns(
    x: Floats, kernel: Sequence[int], conv: onnx.NodeProto, random: np.random.Generator
) -> tuple[Floats, float]:
    """The values (n, positions) under a kernel at some positions of a map (C, H, W), and how many each stands for."""
    given = _attributes(conv)
    top, left, bottom, right = given.get("pads", [0, 0, 0, 0])
    (down, across), (step_y, step_x) = given.get("dilations", [1, 1]), given.get("strides", [1, 1])
    wide = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    height = (wide.shape[1] - down * (kernel[0] - 1) - 1) // step_y + 1
    width = (wide.shape[2] - across * (kernel[1] - 1) - 1) // step_x + 1
    count = min(POSITIONS, height * width)
    where = random.choice(height * width, count, replace=False)
    rows, columns = where // width * step_y, where % width * step_x
    taps = [wide[:, rows + i * down, columns + j * across] for i in range(kernel[0]) for j in range(kernel[1])]
    return np.stack(taps, 1).reshape(-1, count).astype(np.float32), height * width / count


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def rounded(
    weight: Floats, scale: NDArray[np.float32], moments: NDArray[np.float32], pair_safe: bool = False
) -> NDArray[np.int8]:
    """Return a weight (O, I, kH, kW) in steps of `scale` (O,), rounded for the least change of the layer's output.

    Args:
        weight: of a convolution.
        scale: of each output channel.
        moments: second moments (n, n) of the layer's inputs, n = I x kH x kW.
        pair_safe: keep same-sign neighbours at a sum of 128 at most, see `u2export.calibration.quant_plan.pair_peak`.
    """
    size = len(moments)
    matrix = moments.astype(np.float64)
    level = float(np.trace(matrix)) / size
    if not np.isfinite(level) or level <= 0:
        return round_weight(weight, scale)
    matrix[np.diag_indices(size)] += DAMPING * level
    order = np.argsort(-np.diag(matrix), kind="stable")  # first the weights whose rounding shows most
    factor = _factor(matrix[order][:, order])
    left = (weight.reshape(len(weight), -1) / scale[:, None].astype(np.float64))[:, order]
    partners = _partners(weight.shape[1:]) if pair_safe else []
    steps = np.zeros(left.shape)
    known = np.zeros((len(weight), size))  # by the weight's own place
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        errors = np.zeros((len(weight), stop - start))
        for i in range(start, stop):
            low, high = _bounds(known, [p[order[i]] for p in partners])
            steps[:, i] = np.clip(np.rint(left[:, i]), low, high)
            known[:, order[i]] = steps[:, i]
            errors[:, i - start] = (left[:, i] - steps[:, i]) / factor[i, i]
            left[:, i + 1 : stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : stop])
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return known.reshape(weight.shape).astype(np.int8)


def _factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangular U with U.T @ U the inverse of a positive definite matrix (n, n).

    The rows and columns of the matrix are reversed before its Cholesky factor is taken, and reversed again in the
    inverse of this factor: less than half the work of inverting the matrix itself.
    """
    lower = np.asarray(np.linalg.cholesky(matrix[::-1, ::-1]), np.float64)
    return _inverse(lower)[::-1, ::-1]


def _inverse(lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of a lower triangular matrix (n, n), by halves."""
    size = len(lower)
    if size <= 64:
        return np.asarray(np.linalg.inv(lower))
    half = size // 2
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    made = np.zeros_like(lower)
    made[:half, :half], made[half:, half:] = first, last
    made[half:, :half] = -(last @ lower[half:, :half]) @ first
    return made


def _partners(shape: Sequence[int]) -> list[NDArray[np.intp]]:
    """For each weight of a channel (I, kH, kW) its neighbour in both orders of `pair_peak`, itself if it has none."""
    channels, taps = shape[0], int(np.prod(shape[1:]))
    channel, tap = np.divmod(np.arange(channels * taps), taps)
    beside = channel ^ 1
    by_tap = np.where(beside < channels, beside * taps + tap, np.arange(channels * taps))
    if channels % 2 == 0:
        return [by_tap]  # both orders have the same neighbours
    place = tap * channels + channel
    other = np.where((place ^ 1) < channels * taps, place ^ 1, place)
    return [by_tap, other % channels * taps + other // channels]


def _bounds(known: NDArray[np.float64], partners: Sequence[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest step of a weight in each channel, given the steps of its neighbours so far."""
    low, high = np.full(len(known), -float(LARGEST)), np.full(len(known), float(LARGEST))
    for partner in partners:
        beside = known[:, partner]
        high = np.minimum(high, MOST - np.maximum(beside, 0))
        low = np.maximum(low, -MOST - np.minimum(beside, 0))
    return low, high
