"""The faults of the study `gate_mutants`: the name of each, the artifact that gets it, and the change that makes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from u2export.benchmarks.studies.reliability.graph_surgery import (
    Change,
    Model,
    Operator,
    at_input,
    at_output,
    attribute,
    bypass,
    channel,
    each_weight,
    edit,
    gathered,
    get,
    node,
    nodes,
    noisy,
    number,
    put,
    renormalised,
    reorder,
    replaced,
    resizes,
    rounded,
    scaled,
    set_attribute,
    source_of_mask,
    through_fp16,
)
from u2export.exporters.onnx import to_fp16
from u2export.reference.image import Contract
from u2export.reference.onnx_session import open_session
from u2export.reference.source import Source


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: what is wrong, in words.
        origin: the good artifact that gets the fault: "onnx", "uint8" or "int8".
        change: changes the model in place, or returns another model.
    """

    name: str
    origin: str
    change: Change


def renormalised_after(swap: Operator) -> Change:
    """Swap the channels of the photo, then normalise them as if their order were right."""
    mean, std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (RIGHT.mean, RIGHT.std))
    return at_input(
        ("Mul", {"std": std}, {}), ("Add", {"mean": mean}, {}), swap, ("Sub", {"mean": mean}, {}),
        ("Div", {"std": std}, {}),
    )  # fmt: skip


def relu6(model: Model, name: str) -> None:
    """Replace a ReLU by a Clip from 0 to 6."""
    put(model, "fault_zero", number(0))
    put(model, "fault_six", number(6))
    found = node(model, name)
    found.CopyFrom(helper.make_node("Clip", [found.input[0], "fault_zero", "fault_six"], list(found.output), name))


def dilation_off(model: Model) -> None:
    """Remove the dilation of the first dilated convolution."""
    found = next(
        c for c in nodes(model, "Conv") for a in c.attribute if a.name == "dilations" and list(a.ints) == [2, 2]
    )
    set_attribute(found, "dilations", [1, 1])
    set_attribute(found, "pads", [1, 1, 1, 1])


def bypass_last(model: Model) -> None:
    """Remove the last Sigmoid: the graph gives logits."""
    found = node(model, "/Sigmoid")
    found.CopyFrom(helper.make_node("Identity", list(found.input), list(found.output), "/Sigmoid"))


def off_by_one(model: Model) -> None:
    """Cut one pixel off the photo at the right and at the bottom, then resize it to the old size."""
    put(model, "fault_size", np.array([1, 3, 320, 320], np.int64))
    cut = {"starts": np.array([0, 0]), "ends": np.array([319, 319]), "axes": np.array([2, 3])}
    at_input(("Slice", cut, {}), ("Resize", {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32),
             "sizes": np.array([1, 3, 320, 320])}, {"mode": "linear"}))(model)  # fmt: skip


def divide_by(model: Model, by: float) -> None:
    """Divide by a fixed number, not by the maximum of the photo."""
    put(model, "fault_divisor", number(by))
    node(model, "/Div").input[1] = "fault_divisor"


def stretch_missing(model: Model) -> None:
    """Leave out the stretching: the graph ends with the Sigmoid."""
    last = next(n for n in model.graph.node if "mask" in n.output)
    last.CopyFrom(helper.make_node("Identity", ["/Sigmoid_output_0"], ["mask"], last.name))


def zero_point_off(model: Model, index: int, by: int) -> None:
    """Move the zero point of the reader of one activation."""
    reader = next(
        n for n in nodes(model, "DequantizeLinear")
        if n.input[2] == nodes(model, "QuantizeLinear")[index].input[2]
    )  # fmt: skip
    values = get(model, reader.input[2])
    kind = np.iinfo(values.dtype)
    put(model, "fault_zero_point", np.clip(values.astype(int) + by, kind.min, kind.max).astype(values.dtype))
    reader.input[2] = "fault_zero_point"


def scales_from_noise(model: Model) -> None:
    """Compute the scales and zero points of all activations from their ranges on Gaussian noise."""
    quantizers = nodes(model, "QuantizeLinear")
    ranges: dict[str, tuple[float, float]] = {}
    noise = np.random.default_rng(0).standard_normal(Contract().shape).astype(np.float32)
    names = [n.input[0] for n in quantizers if n.input[0] != "image"]
    for start in range(0, len(names), 48):  # all at once would take gigabytes
        some = names[start : start + 48]
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in some)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "probe.onnx"
            onnx.save(probe, file)
            values = open_session(file, optimise=False).run(some, {"image": noise})
        ranges.update(
            (n, (float(v.min()), float(v.max()))) for n, v in zip(names[start : start + 48], values, strict=True)
        )
    ranges["image"] = float(noise.min()), float(noise.max())
    for quantizer in quantizers:
        low, high = min(ranges[quantizer.input[0]][0], 0.0), max(ranges[quantizer.input[0]][1], 0.0)
        step = max((high - low) / 255, 1e-8)
        kind = np.iinfo(get(model, quantizer.input[2]).dtype)
        put(model, quantizer.input[1], np.full_like(get(model, quantizer.input[1]), step))
        zero = np.full_like(get(model, quantizer.input[2]), np.clip(round(kind.min - low / step), kind.min, kind.max))
        put(model, quantizer.input[2], zero)


def other_weights(model: Model) -> None:
    """Put weights that were never trained into the graph."""
    state = dict(Source.open("random-u2netp").model.state_dict())
    for name in [t.name for t in model.graph.initializer if t.name in state]:
        put(model, name, state[name].numpy())


def constant(model: Model) -> None:
    """Return a mask of 0.5 for every photo."""
    at_output(("Mul", {"zero": number(0)}, {}), ("Add", {"half": number(0.5)}, {}))(model)


SIDES = ("/Resize_5", "/Resize_6", "/Resize_7", "/Resize_8", "/Resize_9")
RIGHT = Contract()


def catalogue(good: Model) -> list[Mutant]:
    """Return all faults. `good` is the model without a fault; it shows which convolution has the largest bias."""
    convs = [c.input[1].removesuffix(".weight") for c in nodes(good, "Conv")]
    heavy = max(convs, key=lambda c: float(np.abs(get(good, f"{c}.bias")).max()))
    first, deep, late = convs[0], "stage4.rebnconv2.conv_s1", "stage2d.rebnconv1.conv_s1"
    zero: Callable[[NDArray[Any]], NDArray[Any]] = np.zeros_like
    one, grey = number(1), number(15)
    fp32: dict[str, Change] = {
        "bias of the first convolution dropped": edit(f"{first}.bias", zero),
        "bias dropped deep in stage 4": edit(f"{deep}.bias", zero),
        "bias dropped in decoder stage 2": edit(f"{late}.bias", zero),
        "largest bias dropped": edit(f"{heavy}.bias", zero),
        "bias of the fusion dropped": edit("outconv.bias", zero),
        "bias of side 1 dropped": edit("side1.bias", zero),
        "a channel doubled in the first convolution": edit(f"{first}.weight", channel(3, 2)),
        "a channel doubled in stage 4": edit(f"{deep}.weight", channel(3, 2)),
        "a channel doubled in decoder stage 2": edit(f"{late}.weight", channel(3, 2)),
        "a channel of the first convolution zero": edit(f"{first}.weight", channel(5, 0)),
        "a channel's sign flipped in stage 4": edit(f"{deep}.weight", channel(1, -1)),
        "weights rounded to 8 bit per tensor": each_weight(rounded(8)),
        "weights of the heaviest convolution rounded to 8 bit per tensor": edit(f"{heavy}.weight", rounded(8)),
        "weights rounded to 8 bit per channel": each_weight(rounded(8, (1, 2, 3))),
        "weights rounded to 6 bit per channel": each_weight(rounded(6, (1, 2, 3))),
        "weights rounded to 4 bit per channel": each_weight(rounded(4, (1, 2, 3))),
        "plain fp16, not conditioned": to_fp16,
        "weights 1 % off at random": each_weight(noisy(0.01)),
        "RGB and BGR swapped": renormalised_after(gathered((2, 1, 0), 1)),
        "red and green swapped": renormalised_after(gathered((1, 0, 2), 1)),
        "mean of BGR": renormalised(RIGHT.mean[::-1], RIGHT.std),
        "deviation of BGR": renormalised(RIGHT.mean, RIGHT.std[::-1]),
        "mean and deviation 0.5": renormalised((0.5,) * 3, (0.5,) * 3),
        "not normalised": renormalised((0.0,) * 3, (1.0,) * 3),
        "normalised twice": renormalised(
            [m + s * m for m, s in zip(RIGHT.mean, RIGHT.std, strict=True)], [s * s for s in RIGHT.std]
        ),
        "align_corners in all resizes": resizes("coordinate_transformation_mode", "align_corners"),
        "align_corners in the side outputs": resizes(
            "coordinate_transformation_mode", "align_corners", lambda n: n in SIDES
        ),
        "align_corners in one resize": resizes("coordinate_transformation_mode", "align_corners", SIDES[0].__eq__),
        "asymmetric resizes": resizes("coordinate_transformation_mode", "asymmetric"),
        "nearest for bilinear": resizes("mode", "nearest"),
        "nearest for bilinear in side 2": resizes("mode", "nearest", SIDES[0].__eq__),
        "nearest for bilinear in side 6": resizes("mode", "nearest", SIDES[4].__eq__),
        "cubic for bilinear": resizes("mode", "cubic"),
        "first ReLU dropped": bypass("/stage1/rebnconvin/relu_s1/Relu"),
        "a ReLU dropped in stage 4": bypass("/stage4/rebnconv2/relu_s1/Relu"),
        "a ReLU dropped in decoder stage 2": bypass("/stage2d/rebnconv1/relu_s1/Relu"),
        "first ReLU leaky": replaced("/stage1/rebnconvin/relu_s1/Relu", "LeakyRelu", alpha=0.1),
        "first ReLU clipped at 6": lambda model: relu6(model, "/stage1/rebnconvin/relu_s1/Relu"),
        "average for maximum in the first pooling": replaced(
            "/stage1/MaxPool", "AveragePool", kernel_shape=[2, 2], strides=[2, 2]
        ),
        "a residual connection dropped": replaced("/stage2/Add", "Identity"),
        "dilation of one convolution 1 for 2": dilation_off,
        "one convolution shifted by a pixel": attribute("/stage1d/rebnconv1d/conv_s1/Conv", "pads", [2, 2, 0, 0]),
        "inputs of a concatenation swapped": reorder("/stage1/Concat", (1, 0)),
        "sides 1 and 2 swapped": reorder("/Concat_15", (1, 0, 2, 3, 4, 5)),
        "sides in reverse": reorder("/Concat_15", (5, 4, 3, 2, 1, 0)),
        "d1 for d0": source_of_mask("/side1/Conv_output_0"),
        "d2 for d0": source_of_mask("/Resize_5_output_0"),
        "d6 for d0": source_of_mask("/Resize_9_output_0"),
        "Sigmoid missing": bypass_last,
        "Sigmoid twice": at_output(("Sigmoid", {}, {})),
        "mask inverted": at_output(("Sub", {"one": one}, {}), ("Neg", {}, {})),
        "mask transposed": at_output(("Transpose", {}, {"perm": [0, 1, 3, 2]})),
        "mask mirrored": at_output(gathered(range(319, -1, -1), 3)),
        "mask shifted by a pixel": at_output(gathered([0, *range(319)], 3)),
        "mask rounded to 4 bit": at_output(("Mul", {"a": grey}, {}), ("Round", {}, {}), ("Div", {"b": grey}, {})),
        "mask constant": constant,
        "mask scaled to a tenth": at_output(("Mul", {"tenth": number(0.1)}, {})),
        "photo shifted by a pixel": at_input(gathered([0, *range(319)], 3)),
        "photo resized off by one pixel": off_by_one,
        "overflow of fp16": through_fp16("/stage1/rebnconv1/relu_s1/Relu", 1e5),
        "fp16 in one place": through_fp16("/stage1/rebnconv1/relu_s1/Relu", 1.0),
        "weights never trained in the record of trained ones": other_weights,
        "one weight off by a millionth": edit(f"{deep}.weight", lambda v: np.asarray(v + np.float32(1e-6), np.float32)),
        "another order of initializers": lambda model: model.graph.initializer.sort(key=lambda t: t.name),
    }
    uint8: dict[str, Change] = {
        "/255 for /max": lambda model: divide_by(model, 255.0),
        "/256 for /max": lambda model: divide_by(model, 256.0),
        "/max missing": lambda model: divide_by(model, 1.0),
        "uint8: mean of BGR": edit("mean", lambda v: np.ascontiguousarray(v[:, ::-1])),
        "uint8: stretching of the mask missing": stretch_missing,
    }
    int8: dict[str, Change] = {
        "int8 scales from noise": scales_from_noise,
        "int8 scales doubled": scaled(2),
        "int8 scales halved": scaled(0.5),
        "one int8 scale doubled": scaled(2, lambda i: i == 40),
        "int8 scale of the photo halved": scaled(0.5, lambda i: i == 0),
        "a zero point off by 16": lambda model: zero_point_off(model, 60, 16),
        "a zero point off by 1": lambda model: zero_point_off(model, 60, 1),
        "weight scales of one convolution reversed": edit(
            f"{deep}.weight_scale", lambda v: np.ascontiguousarray(v[::-1])
        ),
        "int8 bias of the first convolution dropped": edit(f"{first}.bias_quantized", zero),
    }
    origins = {"onnx": fp32, "uint8": uint8, "int8": int8}
    return [Mutant(name, origin, change) for origin, found in origins.items() for name, change in found.items()]
