"""What several test files build: rows and reports, artifacts, photos, sources and networks. Every call builds anew."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from u2export.benchmarks.device import Device
from u2export.benchmarks.latency import Latency
from u2export.benchmarks.report import Report, Row, Settings
from u2export.exporters.artifact import Artifact
from u2export.files import write_json
from u2export.reference.fidelity import ImageFidelity
from u2export.reference.image import Contract, Floats, Pixels
from u2export.reference.weights import Identity, file_digest

if TYPE_CHECKING:
    from u2export.reference.source import Source

MS = 1_000_000  # nanoseconds
BOARD = Device("Board", "CPU", "x86_64", 4, ("avx2",), 8.0, "Linux")
SMALL = Contract(64, 64)
# The budget for untrained weights, whose masks are noise.
ANY_MASKS = {"mae": 1.0, "mae_worst": 1.0, "class_iou_worst": 0.0}
# Units for `plant`: behind an upsampling; in a block without pooling, read by two dilated convolutions; at the dilated
# bottom of a U.
PLANTED = ("stage2d.rebnconv2d", "stage5.rebnconv2", "stage3.rebnconv5")
LEVEL = 200.0  # what a planted channel holds


def free_port() -> int:
    """A port of this machine that nothing uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


# Rows and reports


def row(name: str = "a.onnx", arithmetic: str = "fp32", **changes: Any) -> Row:
    """A row of u2netp in ONNX with neither masks nor times; of random weights where the name says so."""
    weights = Identity("random-u2net" if "random" in name else "u2netp", "0" * 64, "random" in name)
    made = Row(
        name, "onnx", "fp32", arithmetic, "u2netp", weights, Contract().to_json(), "1" * 64, 4_600_000,
        reference="ref", runtime={"arithmetic": arithmetic},
    )  # fmt: skip
    return replace(made, **changes)


def measured_row(name: str, arithmetic: str = "fp32", **changes: Any) -> Row:
    """A row with the masks of two photos, calm times of about 201 ms, and memory."""
    fields: dict[str, Any] = {
        "reference": "u2netp-320-pytorch-fp32", "load_ns": (300 * MS, 200 * MS), "first_ns": 250 * MS,
        "memory": {"start": 2**25, "peak": 2**28}, "latency": rounds_of(200, 202),
        "images": {"a.png": ImageFidelity(0.0021, 0.3, 0.991, 0.98, 1.01, 0.002),
                   "b.png": ImageFidelity(0.0108, 0.4, 0.973, 0.9, 0.9, 0.002)},
        "runtime": {"runtime": "ONNX Runtime 1.32.0", "arithmetic": arithmetic},
    }  # fmt: skip
    return row(name, arithmetic, **(fields | changes))


def rounds_of(even: int, odd: int) -> Latency:
    """Ten rounds of eight samples, which alternate between two times in ms."""
    return Latency(tuple((even * MS + i, odd * MS) * 4 for i in range(10)))


def report(*rows: Row, **changes: Any) -> Report:
    """A complete report of the board `BOARD` over all photos of its rows."""
    photos = tuple(dict.fromkeys(photo for r in rows for photo in r.images))
    made = Report(BOARD, Settings(), {}, photos, "2" * 64, rows=rows, complete=True, created="2026-01-01")
    return replace(made, **changes)


def mixed_report() -> Report:
    """A reference, a row of half its time, a row of random weights with two samples, and one that could not run."""
    rows = (
        measured_row("u2netp-320-pytorch-fp32", exporter="pytorch", reference="", images={}, size=0,
                     runtime={"runtime": "PyTorch 2.13.0"}),
        measured_row("u2netp-320-openvino-fp16.xml", latency=rounds_of(100, 101),
                     accuracy={"maxf": 0.951, "mae": 0.038, "s": 0.932}),
        measured_row("random-u2net-320-onnx-fp32.onnx", latency=Latency(((5 * MS, 50 * MS),))),
        measured_row("u2netp-320-trt-fp16.engine", "fp16", latency=Latency(), images={}, runtime={}, first_ns=0,
                     memory={}, load_ns=(), reason="unavailable", problem="no NVIDIA GPU | here"),
    )  # fmt: skip
    return report(
        *rows, device=Device("", "AMD EPYC", "x86_64", 2, (), 23.5, "Debian"), broken={"c.png": "c.png: empty"},
        environment={"onnxruntime": "1.32.0", "before": {"load": 1.75}}, baseline=rows[0].name, created="",
    )  # fmt: skip


def imported_report() -> Report:
    """A row with samples and three with statistics alone, as importers make them."""
    source = {"tool": "trtexec", "version": "10.3.0", "file": "t.json", "sha256": "ab" * 32, "timed": "GPU compute"}
    more: dict[str, Any] = {
        "images": {}, "reference": "", "memory": {}, "provenance": "imported", "source": source, "digest": ""
    }  # fmt: skip
    rows = (
        measured_row("sampled.engine", **more),
        measured_row("stated.engine", **more, latency=Latency(), stated={"p50": 7.5, "p90": 8.25}, load_ns=()),
        measured_row("mean.engine", **more, latency=Latency(), stated={"mean": 4.0}),
        measured_row("range.engine", **more, latency=Latency(), stated={"min": 2.0, "max": 3.0}),
    )
    return Report(Device("Orin Nano", "", "", 0), Settings("custom", 0, 0.0, 0), rows=rows, complete=True)


# Artifacts


def stub_artifact(
    path: Path, exporter: str, contract: Contract = SMALL, weights: Identity | None = None, variant: str = "u2netp"
) -> Artifact:
    """An artifact whose file is no model, with its record beside it."""
    path.write_text(f"model {path.stem}")
    weights = weights or Identity("random-u2netp", "1" * 64, True)
    made = Artifact(exporter, "fp32", variant, weights, contract, path, {path.name: file_digest(path)})
    write_json(made.to_json(), made.record)
    return made


# Photos


def picture(seed: int, height: int = 120, width: int = 160) -> Pixels:
    """A smooth random picture, cheap and unlike any other."""
    grid = np.random.default_rng(seed).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    """A folder of smooth random pictures p000.png and on, made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        Image.fromarray(picture(seed)).save(folder / f"p{seed:03d}.png")
    return folder


def noise_pictures(folder: Path, names: Iterable[str], height: int = 30, width: int = 41) -> Path:
    """A new folder of small pictures of noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in names:
        Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).save(folder / name)
    return folder


# Sources and networks (these take torch)


def random_source(contract: Contract = SMALL, variant: str = "u2netp") -> Source:
    """Untrained weights at a small size: structure and plumbing in little time."""
    from u2export.reference.source import Source

    return Source.open(f"random-{variant}", contract)


def smooth(
    size: tuple[int, int], channels: int = 3, count: int = 1, seed: int = 0, grid: tuple[int, int] = (6, 7)
) -> Floats:
    """Network inputs as smooth as photos (count, channels, height, width)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, *grid, generator=generator)
    values: Floats = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").numpy()
    return values


def untrained(variant: str = "u2netp", inputs: int = 3, outputs: int = 1) -> Any:
    """A network of random weights, with batch statistics that keep activations in range."""
    import torch
    from torch import nn

    from u2export.reference.model import U2Net

    torch.manual_seed(0)
    model = U2Net(variant, inputs, outputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    with torch.no_grad():
        model.train()(torch.from_numpy(smooth((96, 96), inputs, count=2)))
    return model.eval()


def plant(model: Any, unit: str, channel: int = 3) -> Any:
    """Make a channel near-constant, and its readers cancel the constant: what training did to the published weights.

    `PLANTED` names units where conditioning can help.
    """
    import torch

    from u2export.calibration.channel_routes import from_module
    from u2export.calibration.condition import fold_batch_norm

    with torch.no_grad():
        folded = fold_batch_norm(model)
        readers = next(r for r in from_module(folded).routes() if r.producer == f"{unit}.conv_s1").readers
        norm = model.get_submodule(unit).bn_s1
        norm.weight[channel] *= 0.02
        norm.bias[channel] = LEVEL
        for reader in readers:
            conv = model.get_submodule(reader.conv)
            conv.weight[:, reader.offset + channel] *= 0.1  # else the border, where taps fall on zeros, is all there is
            conv.weight[:, reader.offset + channel, 1, 1] *= 50
            taps = conv.weight[:, reader.offset + channel].sum((1, 2))
            model.get_submodule(reader.conv.removesuffix("conv_s1") + "bn_s1").running_mean += LEVEL * taps
    return model


def four_classes() -> Any:
    """A network of random weights with maps of four classes, each of which wins on some pixels of smooth inputs."""
    import torch

    model = untrained(outputs=4)
    with torch.no_grad():
        logits = torch.logit(model(torch.from_numpy(smooth((64, 64), count=4, seed=3)))[0].double(), 1e-9)
        spread, mean = logits.std((0, 2, 3)).float(), logits.mean((0, 2, 3)).float()
        model.outconv.weight /= spread[:, None, None, None]
        model.outconv.bias.copy_((model.outconv.bias - mean) / spread)
    return model


def bands(trained: Any) -> Any:
    """A network of four classes with the features of a trained one: by how sure it is, its logit is cut into bands.

    The maps are lines in the logit x: 0, (x + 3) / 4, (2x + 3) / 4 and (3x - 1) / 4. The largest is 0 for x below -3,
    and then 1, 2 and 3 from x = 0 and x = 4 on.
    """
    import torch

    from u2export.reference.model import U2Net

    slopes, offsets = torch.tensor([0.0, 1, 2, 3]) / 4, torch.tensor([0.0, 3, 3, -1]) / 4
    state = dict(trained.state_dict())
    for level in range(1, 7):
        state[f"side{level}.weight"] = state[f"side{level}.weight"].repeat(4, 1, 1, 1)
        state[f"side{level}.bias"] = state[f"side{level}.bias"].repeat(4)
    fuse = state["outconv.weight"][0, :, 0, 0]
    state["outconv.weight"] = (slopes.diag()[:, None] * fuse[:, None]).reshape(4, 24, 1, 1)
    state["outconv.bias"] = state["outconv.bias"] * slopes + offsets
    model = U2Net("u2netp", 3, 4)
    model.load_state_dict(state)
    return model.eval()


def classes_file(path: Path, lost: int | None = None, logits: bool = False, classes: int = 4) -> Path:
    """An ONNX file without a record, 32 x 48: class 0 is constant, the others follow red, green and blue.

    Args:
        path: the file. lost: a class that wins nowhere; all other maps stay as they are. logits: leave out the sigmoid.
        classes: number of maps.
    """
    import onnx

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight, bias = np.eye(4, 3, -1, dtype=np.float32)[:classes] * 3, np.zeros(classes, np.float32)
    if lost is not None:
        weight[lost], bias[lost] = 0, -9
    stored = [helper.make_tensor("w", kind, (classes, 3, 1, 1), weight), helper.make_tensor("b", kind, [classes], bias)]
    nodes = [helper.make_node("Conv", ["image", "w", "b"], ["sum"]), helper.make_node("Sigmoid", ["sum"], ["maps"])]
    out = "sum" if logits else "maps"
    ports = [helper.make_tensor_value_info(n, kind, (1, c, 32, 48)) for n, c in (("image", 3), (out, classes))]
    graph = helper.make_graph(nodes[: 1 if logits else 2], "classes", ports[:1], ports[1:], stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
