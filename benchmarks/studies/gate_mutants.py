"""Does the gate catch faulty artifacts? Faults are put into real exports, one each, and each goes through the gate.

    python -m u2export.benchmarks.studies.gate_mutants --out benchmarks/results/gate

Every faulty file gets a record as if it were good, is benched in a child process on a few photos, and checked against
a baseline of the good files under the default policy. What a fault does is measured apart from that: on other photos,
against the same reference, with the policy's limits. A fault beyond them that the gate lets pass has survived.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper
from PIL import Image

from u2export.benchmarks.device import environment
from u2export.benchmarks.gate.baseline import Baseline, updated
from u2export.benchmarks.gate.judging import LOSSES, judge
from u2export.benchmarks.gate.policy import DEFAULTS, Policy
from u2export.benchmarks.measuring.bench import measure
from u2export.benchmarks.measuring.plan import Plan
from u2export.benchmarks.report import Settings
from u2export.calibration.dataset import Calibration
from u2export.errors import UserError
from u2export.exporters.artifact import Artifact, hashes
from u2export.exporters.exporter import Request
from u2export.exporters.onnx import Onnx, open_session, runner_of, to_fp16
from u2export.exporters.open import read_artifact
from u2export.exporters.ort import Ort
from u2export.files import make_folder, write_json, write_text
from u2export.reference.fidelity import ImageFidelity, compare
from u2export.reference.image import Contract, Floats, read_photo
from u2export.reference.onnx_export import Graph
from u2export.reference.source import Source
from u2export.reference.spread import evenly_spread
from u2export.reference.verification import verification_photos

Model = Any
Change = Callable[[Model], Any]
OTHERS = 6


@dataclass(frozen=True)
class Mutant:
    """A fault: what it is, which good artifact it goes into, and the change of the model (in place, or returned)."""

    name: str
    origin: str
    change: Change


# Surgery


def node(model: Model, name: str) -> NodeProto:
    """The node of that name."""
    found: NodeProto = next(n for n in model.graph.node if n.name == name)
    return found


def nodes(model: Model, kind: str) -> list[NodeProto]:
    """All nodes of an operator, in order."""
    return [n for n in model.graph.node if n.op_type == kind]


def get(model: Model, name: str) -> NDArray[Any]:
    """An initializer's values, to be changed."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def put(model: Model, name: str, values: NDArray[Any]) -> None:
    """Replace an initializer, or add one."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(numpy_helper.to_array(tensor).dtype), name))
            return
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def number(value: float) -> NDArray[Any]:
    """A scalar for a graph."""
    return np.array(value, np.float32)


def edit(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """A change of one initializer."""
    return lambda model: put(model, name, change(get(model, name)))


def each_weight(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """A change of every convolution's weights (O, I, kH, kW)."""

    def mutate(model: Model) -> None:
        for conv in nodes(model, "Conv"):
            put(model, conv.input[1], change(get(model, conv.input[1])))

    return mutate


def channel(index: int, factor: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """One output channel scaled."""

    def change(values: NDArray[Any]) -> NDArray[Any]:
        values[index] *= factor
        return values

    return change


def rounded(bits: int, axis: tuple[int, ...] | None = None) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Values on a symmetric grid of so many bits, its step one for all, or one along the first axis."""

    def change(values: NDArray[Any]) -> NDArray[Any]:
        step = np.abs(values).max(axis=axis, keepdims=True) / (2 ** (bits - 1) - 1)
        return np.asarray(np.rint(values / np.maximum(step, 1e-12)) * step, np.float32)

    return change


def set_attribute(target: NodeProto, name: str, value: Any) -> None:
    """Give a node an attribute in place of what it had."""
    kept = [a for a in target.attribute if a.name != name]
    del target.attribute[:]
    target.attribute.extend([*kept, helper.make_attribute(name, value)])


def resizes(attribute: str, value: str, which: Callable[[str], bool] = lambda name: True) -> Change:
    """An attribute of the Resize nodes whose names `which` accepts."""

    def mutate(model: Model) -> None:
        for resize in nodes(model, "Resize"):
            if which(resize.name):
                set_attribute(resize, attribute, value)

    return mutate


def bypass(name: str) -> Change:
    """Drop a node: its first input takes its output's place."""

    def mutate(model: Model) -> None:
        gone = node(model, name)
        for other in model.graph.node:
            for i, entry in enumerate(other.input):
                if entry == gone.output[0]:
                    other.input[i] = gone.input[0]
        model.graph.node.remove(gone)

    return mutate


def at_input(*ops: tuple[str, dict[str, NDArray[Any]], dict[str, Any]]) -> Change:
    """Operators (kind, further inputs, attributes) between the graph's input and its first reader."""

    def mutate(model: Model) -> None:
        last = "image"
        made = []
        for i, (kind, more, attributes) in enumerate(ops):
            for name, values in more.items():
                put(model, f"fault_{i}_{name}", values)
            inputs = [last, *(f"fault_{i}_{name}" for name in more)]
            made.append(helper.make_node(kind, inputs, [last := f"fault_{i}"], **attributes))
        for other in model.graph.node:
            other.input[:] = [last if entry == "image" else entry for entry in other.input]
        for new in reversed(made):
            model.graph.node.insert(0, new)

    return mutate


def at_output(*ops: tuple[str, dict[str, NDArray[Any]], dict[str, Any]]) -> Change:
    """Operators between the node that gives the mask and the graph's output."""

    def mutate(model: Model) -> None:
        maker = next(n for n in model.graph.node if "mask" in n.output)
        maker.output[:] = [last := "fault_start"]
        for i, (kind, more, attributes) in enumerate(ops):
            for name, values in more.items():
                put(model, f"fault_{i}_{name}", values)
            inputs = [last, *(f"fault_{i}_{name}" for name in more)]
            last = "mask" if i == len(ops) - 1 else f"fault_{i}"
            model.graph.node.append(helper.make_node(kind, inputs, [last], **attributes))

    return mutate


def renormalised(mean: Sequence[float], std: Sequence[float]) -> Change:
    """The network input as it were under another mean and deviation."""
    right = Contract()
    old_mean, old_std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (right.mean, right.std))
    new_mean, new_std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (mean, std))
    return at_input(
        ("Mul", {"scale": old_std / new_std}, {}), ("Add", {"shift": (old_mean - new_mean) / new_std}, {})
    )  # fmt: skip


def gathered(order: Sequence[int], axis: int) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    """A Gather along an axis."""
    return "Gather", {"order": np.array(order, np.int64)}, {"axis": axis}


def source_of_mask(name: str) -> Change:
    """Feed the last Sigmoid from another tensor."""

    def mutate(model: Model) -> None:
        node(model, "/Sigmoid").input[0] = name

    return mutate


def reorder(name: str, order: Sequence[int]) -> Change:
    """The inputs of a node in another order."""

    def mutate(model: Model) -> None:
        found = node(model, name)
        found.input[:] = [found.input[i] for i in order]

    return mutate


def through_fp16(name: str, factor: float) -> Change:
    """A node's output times a factor kept in fp16, and back."""

    def mutate(model: Model) -> None:
        found, out = node(model, name), node(model, name).output[0]
        found.output[0] = "fault_in"
        put(model, "fault_factor", number(factor))
        chain = (
            helper.make_node("Mul", ["fault_in", "fault_factor"], ["fault_big"]),
            helper.make_node("Cast", ["fault_big"], ["fault_half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["fault_half"], ["fault_back"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["fault_back", "fault_factor"], [out]),
        )
        index = list(model.graph.node).index(found)
        for i, new in enumerate(chain, start=1):
            model.graph.node.insert(index + i, new)

    return mutate


def replaced(name: str, kind: str, inputs: Sequence[int] = (0,), **attributes: Any) -> Change:
    """Another operator in a node's place, on some of its inputs."""

    def mutate(model: Model) -> None:
        found = node(model, name)
        new = helper.make_node(kind, [found.input[i] for i in inputs], list(found.output), name, **attributes)
        found.CopyFrom(new)

    return mutate


def attribute(name: str, key: str, value: Any) -> Change:
    """One attribute of one node."""
    return lambda model: set_attribute(node(model, name), key, value)


def noisy(share: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Every value off by a random share of the tensor's deviation."""
    random = np.random.default_rng(0)
    return lambda values: np.asarray(values + share * values.std() * random.standard_normal(values.shape), np.float32)


def activation_scales(model: Model) -> list[str]:
    """Names of the scales of activations in a Q/DQ graph."""
    return [n.input[1] for n in nodes(model, "QuantizeLinear")]


def scaled(factor: float, which: Callable[[int], bool] = lambda i: True) -> Change:
    """Activation scales times a factor, those whose number `which` accepts."""

    def mutate(model: Model) -> None:
        for i, name in enumerate(dict.fromkeys(activation_scales(model))):
            if which(i):
                put(model, name, get(model, name) * np.float32(factor))

    return mutate


def scales_from_noise(model: Model) -> None:
    """Scales and zero points of all activations from their ranges on Gaussian noise."""
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
    """The same architecture with weights that were never trained, as a file that was not updated would be."""
    state = dict(Source.open("random-u2netp").model.state_dict())
    for name in [t.name for t in model.graph.initializer if t.name in state]:
        put(model, name, state[name].numpy())


def constant(model: Model) -> None:
    """A mask of 0.5 whatever the photo."""
    at_output(("Mul", {"zero": number(0)}, {}), ("Add", {"half": number(0.5)}, {}))(model)


SIDES = ("/Resize_5", "/Resize_6", "/Resize_7", "/Resize_8", "/Resize_9")
RIGHT = Contract()


def catalogue(good: Model) -> list[Mutant]:
    """All faults; `good` tells which convolution holds the largest bias."""
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


def renormalised_after(swap: tuple[str, dict[str, NDArray[Any]], dict[str, Any]]) -> Change:
    """The channels of the photo in another order, then normalised as if they were right."""
    mean, std = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (RIGHT.mean, RIGHT.std))
    return at_input(
        ("Mul", {"std": std}, {}), ("Add", {"mean": mean}, {}), swap, ("Sub", {"mean": mean}, {}),
        ("Div", {"std": std}, {}),
    )  # fmt: skip


def relu6(model: Model, name: str) -> None:
    """Clip at 6 in place of a ReLU."""
    put(model, "fault_zero", number(0))
    put(model, "fault_six", number(6))
    found = node(model, name)
    found.CopyFrom(helper.make_node("Clip", [found.input[0], "fault_zero", "fault_six"], list(found.output), name))


def dilation_off(model: Model) -> None:
    """The first dilated convolution of stage 1 as if it were not."""
    found = next(
        c for c in nodes(model, "Conv") for a in c.attribute if a.name == "dilations" and list(a.ints) == [2, 2]
    )
    set_attribute(found, "dilations", [1, 1])
    set_attribute(found, "pads", [1, 1, 1, 1])


def bypass_last(model: Model) -> None:
    """The last Sigmoid left out: the graph gives logits."""
    found = node(model, "/Sigmoid")
    found.CopyFrom(helper.make_node("Identity", list(found.input), list(found.output), "/Sigmoid"))


def off_by_one(model: Model) -> None:
    """The photo cut by a pixel at the right and below, then stretched back."""
    put(model, "fault_size", np.array([1, 3, 320, 320], np.int64))
    cut = {"starts": np.array([0, 0]), "ends": np.array([319, 319]), "axes": np.array([2, 3])}
    at_input(("Slice", cut, {}), ("Resize", {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32),
             "sizes": np.array([1, 3, 320, 320])}, {"mode": "linear"}))(model)  # fmt: skip


def divide_by(model: Model, by: float) -> None:
    """A fixed divisor where the photo's maximum belongs."""
    put(model, "fault_divisor", number(by))
    node(model, "/Div").input[1] = "fault_divisor"


def stretch_missing(model: Model) -> None:
    """The graph ends with the Sigmoid."""
    last = next(n for n in model.graph.node if "mask" in n.output)
    last.CopyFrom(helper.make_node("Identity", ["/Sigmoid_output_0"], ["mask"], last.name))


def zero_point_off(model: Model, index: int, by: int) -> None:
    """The zero point of one activation moved, for both who write and who read it: values beyond are cut."""
    reader = next(
        n for n in nodes(model, "DequantizeLinear")
        if n.input[2] == nodes(model, "QuantizeLinear")[index].input[2]
    )  # fmt: skip
    values = get(model, reader.input[2])
    kind = np.iinfo(values.dtype)
    put(model, "fault_zero_point", np.clip(values.astype(int) + by, kind.min, kind.max).astype(values.dtype))
    reader.input[2] = "fault_zero_point"


# The proof


class Proof:
    """Good artifacts, their baseline, and the other photos that tell what a fault does."""

    def __init__(self, folder: Path, given: Path | None) -> None:
        self.folder = folder
        self.good = opened(given) if given else self._export(folder / "good")
        self.photos = {p.name: p for p in verification_photos()} | self._dark(verification_photos()[2])
        self.others = self._others()
        self.maps: dict[str, Path] = {}
        self.baselines: dict[str, Baseline] = {}
        self.inputs: dict[str, list[Floats]] = {}
        self.want: dict[str, list[Floats]] = {}
        self.was: dict[str, list[ImageFidelity]] = {}
        for origin, artifact in self.good.items():
            self._accept(origin, artifact)

    def _export(self, folder: Path) -> dict[str, Artifact]:
        source = Source.open("u2netp")
        calibration = Calibration.bundled(source.contract)
        return {
            "onnx": Onnx().export(source, folder, Request("fp32")),
            "uint8": Onnx(Graph(embed_preprocess=True)).export(source, folder, Request("fp32")),
            "int8": Ort().export(source, folder, Request("int8", calibration)),
        }

    def _dark(self, photo: Path) -> dict[str, Path]:
        """A photo that never gets bright: where dividing by 255 and by the maximum differ."""
        path = self.folder / f"dark-{photo.stem}.png"
        make_folder(self.folder)
        Image.fromarray(np.asarray(read_photo(photo) // 2, np.uint8)).save(path)
        return {path.name: path}

    def _others(self) -> list[Path]:
        """Photos of the bundled calibration set, spread evenly, one of them also dark."""
        import u2export.calibration as room

        found = sorted(p for p in (Path(str(room.__path__[0])) / "images").iterdir() if not p.name.startswith("scene"))
        picked = evenly_spread(found, OTHERS - 1, first=True)
        return [*picked, *self._dark(picked[1]).values()]

    def _accept(self, origin: str, artifact: Artifact) -> None:
        """Reference maps, the baseline, and what the good file makes of the other photos."""
        self.maps[origin] = self.folder / f"{origin}.npz"
        good = self._bench(artifact, str(self.good["onnx"].path) if origin != "uint8" else "auto", self.maps[origin])
        judged = good if good.rows[0].images else self._bench(artifact, str(self.maps[origin]))
        only = tuple(row for row in judged.rows if row.digest and row.name == artifact.name)
        self.baselines[origin] = updated(replace(judged, rows=only), None, True, "good")
        contract = artifact.contract
        source = Source.open("u2netp", contract)
        self.inputs[origin] = [contract.read(p) for p in self.others]
        self.want[origin] = [source.predict(x)[0, 0] for x in self.inputs[origin]]
        self.was[origin] = self._effect(artifact, origin)

    def _bench(self, artifact: Artifact, reference: str, save: Path | None = None) -> Any:
        plan = Plan(
            [artifact], self.photos, settings=Settings(threads=1), arithmetics="default", reference=reference,
            latency=False, save_reference=save,
        )  # fmt: skip
        return measure(plan)

    def _effect(self, artifact: Artifact, origin: str) -> list[ImageFidelity]:
        """Fidelity to PyTorch on the other photos, in this process."""
        runner = runner_of(open_session(artifact.path, threads=1), artifact.contract, {})
        pairs = zip(self.inputs[origin], self.want[origin], strict=True)
        return [compare(runner(x)[0, 0], want) for x, want in pairs]

    def judge(self, mutant: Mutant, number: int) -> dict[str, Any]:
        """What the gate says of a fault, and what the fault does."""
        good = self.good[mutant.origin]
        model = onnx.load(good.path)
        changed = mutant.change(model)
        path = self.folder / str(number) / good.path.name
        make_folder(path.parent)
        onnx.save(model if changed is None else changed, path)
        bad = recorded(good, path)
        return {**self._gate(bad, mutant.origin), **self._losses(bad, mutant.origin)}

    def _gate(self, bad: Artifact, origin: str) -> dict[str, Any]:
        report = self._bench(bad, str(self.maps[origin]))
        found = judge(report, self.baselines[origin])
        (judgement,) = found.judgements
        reasons = [f"{f.title}: {f.text}" for f in judgement.reasons]
        return {"outcome": found.outcome, "why": reasons[0] if judgement.verdict != "pass" else ""}

    def _losses(self, bad: Artifact, origin: str) -> dict[str, Any]:
        """Mean and worst losses on the other photos, and whether any is beyond the policy's limits."""
        now, was = self._effect(bad, origin), self.was[origin]
        values: dict[str, float] = {}
        for name, loss in LOSSES.items():
            each = [loss(a, b) for a, b in zip(now, was, strict=True) if name == "mae" or not b.empty]
            values |= {f"mean {name}": float(np.mean(each)), f"worst {name}": max(each)}
        limits = {f"{part} {m}": limit for part in ("mean", "worst") for m, limit in DEFAULTS[part].items()}
        beyond = [name for name, value in values.items() if value > limits[name]]
        finite = all(i.finite for i in now)
        return {"harmful": bool(beyond) or not finite, "losses": {k: round(v, 7) for k, v in values.items()}}

    def damaged(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Faults of the file itself: what the gate, or opening the artifact, says."""
        good = self.good["onnx"]
        data = good.path.read_bytes()
        path = self.folder / "cut" / good.path.name
        make_folder(path.parent)
        path.write_bytes(data[: len(data) // 2])
        yield "file cut in half", {**self._gate(recorded(good, path), "onnx"), "harmful": True, "losses": {}}
        path.write_bytes(b"")
        yield "file empty", {**self._gate(recorded(good, path), "onnx"), "harmful": True, "losses": {}}
        recorded(good, path)
        path.write_bytes(data[:-4] + b"\0\0\0\1")
        try:
            read_artifact(path)
        except UserError as error:
            yield "file changed after its record was written", {
                "outcome": "fail", "why": f"opening it: {error.problem.replace(str(path), path.name)}",
                "harmful": True, "losses": {},
            }  # fmt: skip


def opened(folder: Path) -> dict[str, Artifact]:
    """Good artifacts that were exported before."""
    names = {"onnx": "onnx-fp32", "uint8": "onnx-fp32-uint8", "int8": "ort-int8"}
    return {origin: read_artifact(folder / f"u2netp-320-{name}.onnx") for origin, name in names.items()}


def recorded(good: Artifact, path: Path) -> Artifact:
    """The artifact at a path, with a record as the good one's."""
    artifact = replace(good, path=path, files=hashes(path))
    write_json(artifact.to_json(), artifact.record)
    return artifact


def sentence(found: Mapping[str, Any]) -> str:
    """What became of a fault."""
    if found["outcome"] == "pass":
        return "survived" if found["harmful"] else "equivalent"
    if found["outcome"] == "inconclusive":
        return "open"
    return "caught" if found["harmful"] else "caught, harmless on the other photos"


COLUMNS = ("mean mae", "worst mae", "mean iou", "worst iou")


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    counts, score = results["counts"], results["score"]
    became = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    text = f"""# Mutation score of the gate

{results["faults"]} faults in real exports of u2netp. Gate: {len(results["gate_photos"])} photos, default policy.
Effect: what masks of {results["other_photos"]} other photos lose against PyTorch's, compared with the good artifact's.
{results["seconds"]:.0f} s; again with

    {results["rerun"]}

Of {score["harmful"]} faults beyond the policy's limits on the other photos {score["caught"]} fail, {score["open"]} are
inconclusive (exit code 3, which stops a CI too) and {score["survived"]} pass. All faults: {became}.

| fault | in | gate | what became of it | {" | ".join(COLUMNS)} | why |
| :-- | :-- | :-- | :-- | --: | --: | --: | --: | :-- |
"""
    for row in results["mutants"]:
        told = [f"{row['losses'][k]:+.2g}" if row["losses"] else "–" for k in COLUMNS]
        cells = [row["fault"], row["origin"], row["outcome"], row["became"], *told, row["why"].replace("|", "\\|")]
        text += "| " + " | ".join(cells) + " |\n"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit code 1 where a harmful fault passed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for mutants.json and mutants.md")
    parser.add_argument("--good", type=Path, help="folder of exports to put faults into; made anew where left out")
    parser.add_argument("--only", default="", help="faults whose names hold this")
    given = parser.parse_args(arguments)
    start = perf_counter()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="u2export-mutants-") as scratch:
        proof = Proof(Path(scratch), given.good)
        chosen = [m for m in catalogue(onnx.load(proof.good["onnx"].path)) if given.only in m.name]
        found = chain(
            ((m.name, m.origin, proof.judge(m, i)) for i, m in enumerate(chosen)),
            ((name, "onnx", result) for name, result in proof.damaged() if given.only in name),
        )
        for name, origin, result in found:
            rows.append({"fault": name, "origin": origin, **result, "became": sentence(result)})
            print(f"{len(rows)} {name}: {rows[-1]['became']}", file=sys.stderr, flush=True)
        results = summary(rows, proof, perf_counter() - start)
    write_json(results, given.out / "mutants.json")
    write_text(markdown(results), given.out / "mutants.md")
    print(markdown(results))
    return int(results["score"]["survived"] > 0)


def summary(rows: list[dict[str, Any]], proof: Proof, seconds: float) -> dict[str, Any]:
    """All results as plain data."""
    harmful = [row for row in rows if row["harmful"]]
    outcomes = Counter(row["outcome"] for row in harmful)
    score = {"harmful": len(harmful), "caught": outcomes["fail"], "open": outcomes["inconclusive"],
             "survived": outcomes["pass"]}  # fmt: skip
    return {
        "schema": 1, "rerun": "python -m u2export.benchmarks.studies.gate_mutants --out benchmarks/results/gate",
        "environment": environment(), "seconds": round(seconds, 1), "gate_photos": list(proof.photos),
        "other_photos": len(proof.others), "policy": asdict(Policy()), "faults": len(rows),
        "counts": dict(Counter(row["became"] for row in rows)), "score": score, "mutants": rows,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
