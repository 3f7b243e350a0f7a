"""What common mistakes around U²-Net cost: each is made on purpose, and its masks are compared with the right ones.

Masks are compared at the size of the photo, as 8-bit pictures, the way a user sees them. The right mask is that of the
PyTorch network under the image contract. docs/wrong-mask.md shows the figures.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from u2export.benchmarks.studies.study import RESULTS, Pages, Study, listed, progress
from u2export.benchmarks.tables.markdown import table
from u2export.calibration.dataset import Calibration
from u2export.calibration.prepare import prepared
from u2export.exporters.runtime import versions
from u2export.reference.golden import picture
from u2export.reference.image import Contract, Floats, Pixels, mask_for, saliency
from u2export.reference.onnx_export import Graph, to_onnx
from u2export.reference.onnx_session import open_session
from u2export.reference.photos import open_photo
from u2export.reference.source import Source
from u2export.reference.verification import verification_photos

if TYPE_CHECKING:
    import torch

SCHEMA = 1
RIGHT = Contract()
# Photos that plain int8 is calibrated on.
CALIBRATED_ON = 16
Maps = tuple[Floats, ...]
# The network: input (1, 3, H, W) to the maps d0 to d6, each (H, W).
Network = Callable[[Floats], Maps]
Finish = Callable[[Maps, int, int], Pixels]


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        group: where it is made: "input", "output", "precision" or "fixed".
        name: what is wrong, in words.
        make: makes the mask (H, W) of a photo (H, W, 3).
        entry: makes the network input of a photo where the mistake changes it; the golden picture shows how far.
    """

    group: str
    name: str
    make: Callable[[Pixels], Pixels]
    entry: Callable[[Pixels], Floats] | None = None


def right(maps: Maps, height: int, width: int) -> Pixels:
    """Return the mask of the maps as the contract says."""
    return mask_for(maps[0], height, width)


def unstretched(values: Floats, height: int, width: int) -> Pixels:
    """Return the mask of one map without the stretch: values are cut at 0 and 1."""
    small = Image.fromarray(np.asarray(np.nan_to_num(values).clip(0, 1) * 255, np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def by_pillow(pixels: Pixels, how: Image.Resampling) -> Floats:
    """Return the network input of a photo that Pillow resized."""
    small = Image.fromarray(pixels).resize((RIGHT.width, RIGHT.height), how)
    return RIGHT.tensor(np.asarray(small))


def scaled(pixels: Pixels, divisor: float, mean: Sequence[float], std: Sequence[float]) -> Floats:
    """Return the network input with another divisor, 0 for the largest value, and another mean and deviation."""
    x = RIGHT._resized(pixels)
    x = x / np.float32(divisor or max(float(x.max()), 1e-6))
    x = np.asarray((x - np.array(mean, np.float32)) / np.array(std, np.float32), np.float32)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def rows_read_as_planes(pixels: Pixels) -> Floats:
    """Return memory of (H, W, 3) that is read as (3, H, W)."""
    x = RIGHT.tensor(pixels).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(RIGHT.shape)


def letterboxed(pixels: Pixels) -> Pixels:
    """Return the photo on a black square, as detectors are fed."""
    side = max(pixels.shape[:2])
    square = np.zeros((side, side, 3), np.uint8)
    square[: pixels.shape[0], : pixels.shape[1]] = pixels
    return square


def logits(d0: Floats) -> Floats:
    """Return the values before the last Sigmoid."""
    p = d0.astype(np.float64).clip(1e-7, 1 - 1e-7)
    return np.asarray(np.log(p / (1 - p)), np.float32)


def squashed(d0: Floats) -> Floats:
    """Return a map after one Sigmoid too many."""
    return np.asarray(1 / (1 + np.exp(-d0)), np.float32)


class Mistakes:
    """The mistakes that are made around one network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._known: dict[int, Maps] = {}

    def maps(self, pixels: Pixels) -> Maps:
        """The maps of a photo under the contract, computed once for each photo that stays in memory."""
        if id(pixels) not in self._known:
            self._known[id(pixels)] = self.network(RIGHT.tensor(pixels))
        return self._known[id(pixels)]

    def mask(self, pixels: Pixels) -> Pixels:
        """The right mask of a photo."""
        return right(self.network(RIGHT.tensor(pixels)), *pixels.shape[:2])

    def all(self) -> Iterator[Mistake]:
        """Yield the mistakes at the input, then those at the output."""
        for name, entry in self._entries().items():
            yield Mistake("input", name, partial(self._entered, entry), entry)
        yield Mistake("input", "EXIF orientation not applied (photo lies on its side)", self._on_its_side)
        yield Mistake("input", "photo padded to a square, mask not cut back", self._padded)
        yield Mistake("input", "transparent background pasted on white, not the file's own colours", self._on_white)
        for side in (256, 512):
            yield Mistake("input", f"input of {side} x {side} pixels", partial(self._sized, side))
        for name, finish in self._finishes().items():
            yield Mistake("output", name, partial(self._finished, finish))

    def _entries(self) -> Mapping[str, Callable[[Pixels], Floats]]:
        mean, std, half = RIGHT.mean, RIGHT.std, (0.5, 0.5, 0.5)
        return {
            "resized by Pillow, LANCZOS (what rembg does)": replace(RIGHT, resize="lanczos").tensor,
            "resized by Pillow, BILINEAR (averages, unlike OpenCV and PyTorch)": lambda p: by_pillow(
                p, Image.Resampling.BILINEAR
            ),
            "resized to the nearest pixel": lambda p: by_pillow(p, Image.Resampling.NEAREST),
            "BGR in place of RGB": lambda p: RIGHT.tensor(np.ascontiguousarray(p[..., ::-1])),
            "x / 255 in place of x / max(x)": lambda p: scaled(p, 255, mean, std),
            "x / 255 on a photo at half brightness": lambda p: scaled(p // 2, 255, mean, std),
            "0..255 not scaled, then mean and deviation": lambda p: scaled(p, 1, mean, std),
            "0..1 without mean and deviation": lambda p: scaled(p, 0, (0.0,) * 3, (1.0,) * 3),
            "mean and deviation 0.5": lambda p: scaled(p, 0, half, half),
            "mean and deviation in BGR order": lambda p: scaled(p, 0, mean[::-1], std[::-1]),
            "normalised twice": lambda p: np.asarray(
                (RIGHT.tensor(p) - np.reshape(mean, (1, 3, 1, 1))) / np.reshape(std, (1, 3, 1, 1)), np.float32
            ),
            "NHWC memory read as NCHW": rows_read_as_planes,
        }

    @staticmethod
    def _finishes() -> Mapping[str, Finish]:
        return {
            "d0 not stretched to 0..1": lambda maps, h, w: unstretched(maps[0], h, w),
            "Sigmoid twice, then stretched": lambda maps, h, w: mask_for(squashed(maps[0]), h, w),
            "Sigmoid twice, not stretched": lambda maps, h, w: unstretched(squashed(maps[0]), h, w),
            "no Sigmoid, cut at 0 and 1": lambda maps, h, w: unstretched(logits(maps[0]), h, w),
            "no Sigmoid, then stretched": lambda maps, h, w: mask_for(logits(maps[0]), h, w),
            "NHWC mask read as transposed": lambda maps, h, w: mask_for(np.ascontiguousarray(maps[0].T), h, w),
            "mask cut at 0.5 before it is resized": lambda maps, h, w: mask_for(
                np.asarray(saliency(maps[0]) > 0.5, np.float32), h, w
            ),
            **{f"d{n} in place of d0": partial(_side, n) for n in range(1, 7)},
        }

    def _entered(self, entry: Callable[[Pixels], Floats], pixels: Pixels) -> Pixels:
        return right(self.network(entry(pixels)), *pixels.shape[:2])

    def _finished(self, finish: Finish, pixels: Pixels) -> Pixels:
        return finish(self.maps(pixels), *pixels.shape[:2])

    def _on_its_side(self, pixels: Pixels) -> Pixels:
        return np.rot90(self.mask(np.ascontiguousarray(np.rot90(pixels))), -1)

    def _padded(self, pixels: Pixels) -> Pixels:
        square = letterboxed(pixels)
        return right(self.network(RIGHT.tensor(square)), *pixels.shape[:2])

    def _on_white(self, pixels: Pixels) -> Pixels:
        """The photo as a cut-out: what the right mask calls background is transparent, and white shows through."""
        seen = self.mask(pixels)[..., None] > 127
        return self.mask(np.where(seen, pixels, 255).astype(np.uint8))

    def _sized(self, side: int, pixels: Pixels) -> Pixels:
        return right(self.network(replace(RIGHT, height=side, width=side).tensor(pixels)), *pixels.shape[:2])


def _side(number: int, maps: Maps, height: int, width: int) -> Pixels:
    return mask_for(maps[number], height, width)


def in_torch(module: torch.nn.Module, kind: str = "") -> Network:
    """Return the network in PyTorch.

    With a `kind`, "float16" or "bfloat16", weights and the result of every layer are rounded to it; sums are float32.
    Processors with units for these types do the same; PyTorch's own kernels take minutes a photo on others.
    """
    import torch

    network = deepcopy(module).eval()
    if kind:
        dtype = getattr(torch, kind)
        network.to(dtype).float()
        for layer in network.modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda _layer, _given, made: made.to(dtype).float())

    def run(batch: Floats) -> Maps:
        with torch.inference_mode():
            return tuple(m[0, 0].numpy() for m in network(torch.from_numpy(batch)))

    return run


def lower_precisions(source: Source) -> Iterator[Mistake]:
    """Yield the precisions that are lowered without care, and with the conditioning where that is the fix."""
    for kind, name in (("float16", "fp16"), ("bfloat16", "bf16")):
        yield Mistake("precision", f"{name}, plain", _masks_of(in_torch(source.model, kind)))
        conditioned, _ = prepared(source, "fp16", None, True)
        yield Mistake("fixed", f"{name}, conditioned", _masks_of(in_torch(conditioned, kind)))
    for per_channel in (False, True):
        name = "a scale for each channel" if per_channel else "one scale for each tensor"
        made = _masks_of(plain_int8(source, per_channel))
        yield Mistake("precision", f"int8 by quantize_static's defaults, {name}", made)


def _masks_of(network: Network) -> Callable[[Pixels], Pixels]:
    return Mistakes(network).mask


def plain_int8(source: Source, per_channel: bool) -> Network:
    """Return the network as ONNX Runtime's quantize_static makes it, calibrated on the bundled photos."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.photos = iter(Calibration.bundled(RIGHT).subset(CALIBRATED_ON))

        def get_next(self) -> dict[str, Floats] | None:
            photo = next(self.photos, None)
            return None if photo is None else {"image": photo}

    import onnx

    with TemporaryDirectory() as scratch:
        plain, quantised = Path(scratch) / "plain.onnx", Path(scratch) / "int8.onnx"
        onnx.save(to_onnx(source.model, RIGHT, Graph(), {}), plain)
        quantize_static(plain, quantised, Reader(), per_channel=per_channel)
        session = open_session(quantised)
    return lambda batch: (np.asarray(session.run(None, {"image": batch})[0][0, 0], np.float32),)


def measured(mistake: Mistake, photos: Sequence[Pixels], masks: Sequence[Pixels]) -> dict[str, Any]:
    """Return what the mistake costs on the photos: MAE of the masks, IoU at half height, each mean and worst."""
    maes, ious = [], []
    for pixels, want in zip(photos, masks, strict=True):
        got = mistake.make(pixels)
        maes.append(float(np.abs(got.astype(np.float32) - want).mean() / 255))
        a, b = got > 127, want > 127
        ious.append(float((a & b).sum() / max((a | b).sum(), 1)))
    found: dict[str, Any] = {"group": mistake.group, "mistake": mistake.name, "mae": maes, "iou": ious}
    if mistake.entry:
        golden = picture()
        found["golden"] = float(np.abs(mistake.entry(golden) - RIGHT.tensor(golden)).max())
    return found


def page(data: Mapping[str, Any], command: str) -> str:
    """Return the page of the figures, a table for each group."""
    titles = {
        "input": "At the input",
        "output": "At the output",
        "precision": "Precision lowered without care",
        "fixed": "The same precisions after the conditioning of u2export",
    }
    text = [
        "# What wrong masks cost\n",
        f"{data['weights']} at {RIGHT.width} x {RIGHT.height}, PyTorch; photos: {', '.join(data['photos'])}.",
        "Each mask is compared with the right one at the size of the photo: MAE of masks from 0 to 1, IoU at 0.5.",
        'The column "golden" is the largest difference of the network input from `input.npy` of `u2export golden`.',
        f"Tools: {listed(data['tools'])}. Again with\n\n    {command}\n",
    ]
    for group, title in titles.items():
        rows = [row for row in data["rows"] if row["group"] == group]
        cells = [
            (r["mistake"], *(f"{v:.4f}" for v in (np.mean(r["mae"]), max(r["mae"]))),
             *(f"{v:.3f}" for v in (np.mean(r["iou"]), min(r["iou"]))), f"{r['golden']:.3g}" if "golden" in r else "–")
            for r in rows
        ]  # fmt: skip
        head = ("mistake", "MAE", "MAE worst", "IoU", "IoU worst", "golden")
        text += [f"## {title}\n", table(head, cells, "lrrrrr") + "\n"]
    return "\n".join(text)


def run(given: Namespace, pages: Pages) -> int:
    """Measure all mistakes and write the pages."""
    source = Source.open(given.weights)
    files = verification_photos()
    photos = [np.asarray(open_photo(file).pixels, np.uint8) for file in files]
    mistakes = Mistakes(in_torch(source.model))
    masks = [mistakes.mask(pixels) for pixels in photos]
    rows = []
    for mistake in (*mistakes.all(), *lower_precisions(source)):
        rows.append(measured(mistake, photos, masks))
        progress(f"{mistake.name}: MAE {np.mean(rows[-1]['mae']):.4f}, worst IoU {min(rows[-1]['iou']):.3f}")
    tools = versions("torch", "onnxruntime", "pillow", "numpy")
    data = {
        "schema": SCHEMA, "weights": source.weights.label, "photos": [file.name for file in files], "tools": tools,
        "rows": rows,
    }  # fmt: skip
    pages.publish(data, page(data, pages.command))
    return 0


def options(parser: ArgumentParser) -> None:
    """Add the options of the study."""
    parser.add_argument("--weights", default="u2netp", help="a name or a file; %(default)s")


STUDY = Study("wrong_masks", "What common mistakes cost the masks.", "wrong_masks", options, run, RESULTS / "masks")
