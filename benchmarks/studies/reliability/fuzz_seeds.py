"""The intact files that the study `fuzz` damages: small, one or more for each form that a reader accepts."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

SIZE = (48, 64)
# What a Canon or a phone writes beside the orientation, as far as it matters here.
ORIENTATIONS = (1, 3, 6, 8)

Seed = tuple[str, str, bytes]


def seeds() -> list[Seed]:
    """Return all seeds: the kind of reader, the name of a file, and its bytes.

    Those of .tflite and .pte files are there where the packages of the runtimes are.
    """
    return [*_pictures(), *_arrays(), *_checkpoints(), *_graphs(), *_imports(), *phone_seeds()]


# What a kind of file cannot be read without.
NEEDS = {"tflite": "ai_edge_litert", "pte": "executorch", "import aihub": "yaml", "onnx": "onnx", "checkpoint": "torch",
         "model": "onnxruntime"}  # fmt: skip


def corpus(folder: Path) -> list[Seed]:
    """Return the files below a folder whose kinds can be read here.

    The folder of a file says its kind: json/report/a.json is of the kind "json report".
    """
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        kind = " ".join(path.parent.relative_to(folder).parts)
        if kind and not (kind in NEEDS and find_spec(NEEDS[kind]) is None):
            found.append((kind, path.name, path.read_bytes()))
    return found


def _picture(bands: int, top: int) -> NDArray[np.float64]:
    """Return a smooth picture with an object, shape (48, 64, bands), values from 0 to `top`."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 48.0
    disc = np.exp(-((x - 0.7) ** 2 + (y - 0.5) ** 2) * 12)
    planes = [disc * (0.5 + 0.5 * np.cos(3 * x + i)) + 0.2 * y for i in range(bands)]
    return np.stack(planes, -1) / 1.3 * top


def _pictures() -> Iterator[Seed]:
    rgb = Image.fromarray(_picture(3, 255).astype(np.uint8))
    grey = Image.fromarray(_picture(1, 255)[..., 0].astype(np.uint8))
    deep = Image.fromarray(_picture(1, 65535)[..., 0].astype(np.uint16))
    real = Image.fromarray(_picture(1, 1)[..., 0].astype(np.float32))
    whole = Image.fromarray(_picture(1, 100000)[..., 0].astype(np.int32))
    alpha = Image.fromarray(_picture(4, 255).astype(np.uint8))
    for orientation in ORIENTATIONS:
        yield _saved(rgb, f"photo{orientation}.jpg", "JPEG", exif=_exif(orientation), quality=85)
    yield _saved(rgb, "progressive.jpg", "JPEG", progressive=True, icc_profile=bytes(128) + b"profile")
    yield _saved(rgb.convert("CMYK"), "cmyk.jpg", "JPEG")
    yield _saved(grey, "grey.jpeg", "JPEG")
    for name, image in (("rgb", rgb), ("grey", grey), ("deep", deep), ("alpha", alpha), ("index", rgb.quantize(16))):
        yield _saved(image, f"{name}.png", "PNG")
    yield _saved(alpha.quantize(8), "index_alpha.png", "PNG", transparency=0, exif=_exif(6))
    yield "photo", "deep_rgb.png", deep_png(_picture(3, 65535).astype(">u2"), 2)
    yield "photo", "deep_rgba.png", deep_png(_picture(4, 65535).astype(">u2"), 6)
    yield "photo", "deep_grey_alpha.png", deep_png(_picture(2, 65535).astype(">u2"), 4)
    for name, image in (("rgb", rgb), ("deep", deep), ("real", real), ("whole", whole), ("alpha", alpha)):
        for packing in (None, "tiff_deflate", "tiff_lzw"):
            yield _saved(image, f"{name}_{packing}.tif", "TIFF", **({"compression": packing} if packing else {}))
    yield "photo", "deep_rgb.tiff", _deep_tiff(_picture(3, 65535).astype("<u2"))
    yield _saved(rgb, "fax.tif", "TIFF", compression="jpeg")
    yield _saved(rgb, "photo.webp", "WEBP", exif=_exif(8))
    yield _saved(alpha, "lossless.webp", "WEBP", lossless=True)
    if features.check("avif"):
        yield _saved(rgb, "photo.avif", "AVIF", exif=_exif(6))
        yield _saved(alpha, "alpha.avif", "AVIF")
    yield _saved(rgb, "photo.gif", "GIF")
    yield _saved(rgb.quantize(8), "moving.gif", "GIF", save_all=True, append_images=[grey.convert("P")])
    yield _saved(rgb, "photo.bmp", "BMP")
    yield _saved(rgb.quantize(16), "index.bmp", "BMP")
    for suffix in ("ppm", "tga"):
        yield _saved(rgb, f"photo.{suffix}", suffix.upper())
    yield _saved(deep, "deep.pgm", "PPM")
    if features.check("jpg_2000"):
        yield _saved(rgb, "photo.jp2", "JPEG2000")


def _saved(image: Image.Image, name: str, form: str, **options: Any) -> Seed:
    file = io.BytesIO()
    image.save(file, form, **options)
    return "photo", name, file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x011A] = "Maker", 72.0
    exif.get_ifd(0x8769)[0x829A] = 0.01
    return exif


def deep_png(pixels: NDArray[Any], colours: int) -> bytes:
    """Return a PNG of 16 bits a sample, which Pillow does not write.

    Args:
        pixels: (height, width, bands), type ">u2".
        colours: the type of colour by the PNG specification, section 11.2.1: 2, 4 or 6.
    """
    import zlib

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in parts)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG with its length and its checksum."""
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _deep_tiff(pixels: NDArray[Any]) -> bytes:
    """Return an uncompressed TIFF of three bands of 16 bits (TIFF 6.0, section 6)."""
    height, width, bands = pixels.shape
    data = pixels.tobytes()
    entries = 9
    after = 8 + 2 + 12 * entries + 4
    tags = [
            (256, 3, 1, width), (257, 3, 1, height), (258, 3, bands, after), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, after + 2 * bands), (277, 3, 1, bands), (278, 3, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack(f"<{bands}H", *[16] * bands) + data


def _arrays() -> Iterator[Seed]:
    for kind in ("u1", "<u2", ">u2", "<f2", "<f4", "<f8", "<i4"):
        for bands in (1, 3, 5):
            file = io.BytesIO()
            np.save(file, (_picture(bands, 200)[:16, :16]).astype(kind))
            yield "array", f"{kind.strip('<>')}{bands}.npy", file.getvalue()


def _checkpoints() -> Iterator[Seed]:
    import torch
    from safetensors.torch import save

    first = "stage1.rebnconvin"
    state: dict[str, Any] = {
        f"{first}.conv_s1.weight": torch.linspace(-1, 1, 64 * 3 * 9).reshape(64, 3, 3, 3),
        f"{first}.conv_s1.bias": torch.zeros(64),
        f"{first}.bn_s1.running_mean": torch.zeros(64),
        f"{first}.bn_s1.running_var": torch.ones(64),
        "side1.weight": torch.ones(1, 64, 3, 3),
    }
    short = {name: tensor[:2] for name, tensor in state.items()}
    about = {"epoch": np.int64(3), "loss": np.float64(0.25), "curve": np.arange(4.0), "net": {"state_dict": short}}
    forms: dict[str, Any] = {
        "plain.pth": short,
        "prefix.pt": {f"module._orig_mod.{name}": tensor for name, tensor in short.items()},
        "container.ckpt": {"state_dict": short, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        "numpy.pth.tar": about,
        "half.bin": {name: tensor.half() for name, tensor in short.items()},
        "bfloat.pth": {name: tensor.bfloat16() for name, tensor in short.items()},
        "extra.pth": {**short, "total_ops": torch.zeros(1), "loss.weight": torch.ones(2)},
    }
    for name, data in forms.items():
        for new in (True, False):
            file = io.BytesIO()
            torch.save(data, file, _use_new_zipfile_serialization=new)
            yield "checkpoint", name if new else f"old_{name}", file.getvalue()
    yield "checkpoint", "plain.safetensors", save(short)
    yield "checkpoint", "prefix.safetensors", save({f"model.{n}": t.half() for n, t in short.items()})


def _graphs() -> Iterator[Seed]:
    """Yield graphs with as many convolutions as U²-Net has, each of one channel, with and without batch norms."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from u2export.reference.model import U2Net, conv_names

    names = conv_names(U2Net("u2netp"))
    for form in ("folded", "apart", "external"):
        nodes, stored, at = [], [], "input"
        for name in names:
            nodes.append(helper.make_node("Conv", [at, f"{name}.weight", f"{name}.bias"], [f"{name}.y"]))
            stored.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), f"{name}.weight"))
            stored.append(numpy_helper.from_array(np.zeros(1, np.float32), f"{name}.bias"))
            at = f"{name}.y"
            if form == "apart":
                values = [f"{name}.{part}" for part in ("scale", "shift", "mean", "variance")]
                nodes.append(helper.make_node("BatchNormalization", [at, *values], [f"{name}.z"]))
                stored += [numpy_helper.from_array(np.ones(1, np.float32), value) for value in values]
                at = f"{name}.z"
        shape = [1, 1, 8, 8]
        graph = helper.make_graph(
            nodes, "u2net", [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(at, TensorProto.FLOAT, shape)], stored,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        if form == "external":
            for tensor in model.graph.initializer[:4]:
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", "weights.data"), ("offset", "0"), ("length", "4")):
                    entry = tensor.external_data.add()
                    entry.key, entry.value = key, value
        yield "onnx", f"{form}.onnx", model.SerializeToString()


def _imports() -> Iterator[Seed]:
    sample = {"startComputeMs": 500.0, "h2dMs": 0.1, "computeMs": 3.0, "d2hMs": 0.1, "latencyMs": 3.2}
    layers = [{"count": 10}, {"name": "conv", "averageMs": 1.5}, {"name": "relu", "averageMs": 0.5}]
    kit = {"format": "u2export-device/1", "runtime": "Core ML", "device": {"model": "Phone", "cores": "6"},
           "predict_ms": [3.0, 3.1], "load_ms": [40], "first_ms": 9, "peak_bytes": 1 << 20}  # fmt: skip
    report = {
              "cmd_options": {"m": "u2netp.xml"}, "configuration_setup": {"target device": "CPU"},
              "execution_results": {"latency (ms)": "12.5", "avg latency": "13", "read model time (ms)": "4"},
    }  # fmt: skip
    for form, name, data in (("trtexec", "times", [sample] * 4), ("trtexec", "profile", layers),
                             ("kit", "kit", kit), ("benchmark_app", "report", report)):  # fmt: skip
        text = json.dumps(data, indent=1)
        yield f"import {form}", f"{name}.json", text.encode("utf-8-sig")
        yield f"import {form}", f"{name}16.json", text.encode("utf-16")
    sections = "Execution results\nlatency (ms);12.5\navg latency;13\n"
    yield "import benchmark_app", "report.csv", sections.encode()
    yield "import onnxruntime-perf", "perf.csv", b"u2netp.onnx,0.0125,1048576,90,0\nu2netp.onnx,0.0127,1048576,90,1\n"
    latency = {"init_ms": 8, "warmup_first_ms": 14, "num_warmup_runs": 5, "avg_ms": 15, "min_ms": 5, "max_ms": 74,
               "median_ms": 12.6, "p95_ms": 21, "num_runs": 20}  # fmt: skip
    litert = {"model": "m.tflite", "accelerators": ["CPU"], "fully_accelerated": False, "num_threads": 1}
    yield "import litert-benchmark", "litert.json", json.dumps({**litert, "latency": latency}).encode()
    yield (
        "import executorch",
        "run.log",
        b"Model executed successfully 9 time(s) in 90.5 ms.",
    )
    yield "import onnxruntime-perf", "perf.txt", b"P50 Latency: 0.0125 s\nPeak working set size: 1048576 bytes\n"
    figure = "{inference_time_milliseconds: 3.5, job_id: j1, primary_compute_unit: NPU}"
    new = "precisions:\n  float:\n    components:\n      u2net:\n        performance_metrics:\n"
    yield "import aihub", "perf.yaml", f"{new}          Phone:\n            tflite: {figure}\n".encode()
    old = "models:\n- name: u2net\n  performance_metrics:\n  - torchscript_onnx_tflite:\n      inference_time: 3500.0\n"
    yield "import aihub", "old.yaml", f"{old}    reference_device_info: {{name: Phone}}\n".encode("utf-16")


def phone_seeds() -> Iterator[Seed]:
    """Yield a model of one convolution as .tflite and as .pte, each where its package is installed."""
    if find_spec("ai_edge_litert"):
        yield "tflite", "convolution.tflite", _tflite()
    if find_spec("executorch"):
        yield "pte", "convolution.pte", _pte()


def _tflite() -> bytes:
    """Return a model (1, 8, 8, 3) to (1, 8, 8, 1) with a stamp."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from u2export.exporters.litert.tflite import stamped
    from u2export.reference.image import Contract

    def tensor(name: str, shape: list[int], buffer: int = 0) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer = name, shape, buffer
        return made

    code, convolution, options = schema.OperatorCodeT(), schema.OperatorT(), schema.Conv2DOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    options.strideW = options.strideH = 1
    convolution.inputs, convolution.outputs, convolution.builtinOptions = [0, 1, 2], [3], options
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.inputs, graph.outputs, graph.operators = [0], [3], [convolution]
    graph.tensors = [tensor("image", [1, 8, 8, 3]), tensor("weight", [1, 3, 3, 3], 1), tensor("bias", [1], 2),
                     tensor("mask", [1, 8, 8, 1])]  # fmt: skip
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT() for _ in range(3)]
    model.buffers[1].data = np.linspace(-1, 1, 27, dtype=np.float32).view(np.uint8)
    model.buffers[2].data = np.zeros(4, np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    contract = json.dumps(Contract(8, 8).to_json())
    return stamped(bytes(builder.Output()), {"u2export.contract": contract})


def _pte() -> bytes:
    """Return a program (1, 3, 8, 8) to (1, 1, 8, 8) with a stamp, the convolution in XNNPACK."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from u2export.exporters.executorch.program import stamped_methods
    from u2export.exporters.quiet import quiet
    from u2export.reference.image import Contract

    with quiet(), torch.no_grad():
        exported = torch.export.export(torch.nn.Conv2d(3, 1, 3, padding=1).eval(), (torch.zeros(1, 3, 8, 8),))
        lowered = to_edge_transform_and_lower(
            exported, partitioner=[XnnpackPartitioner()],
            constant_methods=stamped_methods({"contract": json.dumps(Contract(8, 8).to_json())}),
        )  # fmt: skip
        return bytes(lowered.to_executorch().buffer)
