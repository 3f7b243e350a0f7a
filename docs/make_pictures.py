"""Make the pictures of the README's first screen: `nox -s pictures`.

`masks`: photos, the masks of the published u2netp in fp32, after ONNX Runtime's own static quantization, and as
u2export's int8; below each mask its IoU with fp32 and the median time. All networks run in this process in turns.
`bench`: what `u2export bench` prints in a terminal, recorded by rich.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

import u2export as u2
from u2export.api.inspecting import pull_weights
from u2export.benchmarks.device import this_device
from u2export.calibration.dataset import Calibration
from u2export.reference.image import Contract, Floats, Pixels, mask_for
from u2export.reference.onnx_session import open_session
from u2export.reference.photos import open_photo
from u2export.reference.verification import verification_photos

OUT = Path(__file__).with_name("images")
CONTRACT = Contract()
SHOWN = ("astronaut.jpg", "chelsea.jpg")
ROUNDS, THREADS = 24, 1
COLUMNS = 110  # of the recorded terminal
CELL, GAP, MARGIN, HEAD, FOOT = 300, 16, 24, 64, 88
INK, PALE, GOOD, BAD = (24, 26, 30), (96, 100, 108), (16, 110, 60), (190, 30, 30)


def quantised_by_the_book(published: Path, target: Path, per_channel: bool) -> Path:
    """Write the published file as ONNX Runtime's documentation says: pre-processed, then quantize_static.

    The file is of opset 11, which has no scales for channels; ONNX's converter brings it to opset 13 before.
    """
    import onnx
    from onnx.version_converter import convert_version
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.name, self.photos = name, iter(Calibration.bundled(CONTRACT).subset(16))

        def get_next(self) -> dict[str, Floats] | None:
            photo = next(self.photos, None)
            return None if photo is None else {self.name: photo}

    ready = target.with_suffix(".ready.onnx")
    onnx.save(convert_version(onnx.load(published), 13), ready)
    quant_pre_process(str(ready), str(ready))
    name = open_session(published).get_inputs()[0].name
    quantize_static(ready, target, Reader(name), per_channel=per_channel)
    return target


class Network:
    """A file in ONNX Runtime with one thread; `times` are those of its runs in ms."""

    def __init__(self, title: str, file: Path) -> None:
        self.title, self.size = title, file.stat().st_size
        self.session = open_session(file, threads=THREADS)
        self.name = self.session.get_inputs()[0].name
        self.times: list[float] = []

    def mask(self, pixels: Pixels) -> Pixels:
        """Return the mask of a photo."""
        d0 = self.session.run(None, {self.name: CONTRACT.tensor(pixels)})[0]
        return mask_for(np.asarray(d0, np.float32).reshape(CONTRACT.height, CONTRACT.width), *pixels.shape[:2])

    def timed(self, batch: Floats) -> None:
        """Run once and note the processor time: that of one thread, which other programs change little."""
        start = time.process_time()
        self.session.run(None, {self.name: batch})
        self.times.append((time.process_time() - start) * 1000)


def networks(scratch: Path) -> list[Network]:
    """Open the four networks of the picture."""
    published, _ = pull_weights("u2netp")
    made = [("published u2netp, fp32", published)]
    for per_channel, how in ((False, "its defaults"), (True, "per channel")):
        file = quantised_by_the_book(published, scratch / f"plain{per_channel}.onnx", per_channel)
        made.append((f"quantize_static, {how}", file))
    made.append(("u2export int8", u2.pull("u2netp-int8", scratch).path))
    return [Network(title, file) for title, file in made]


def measured(opened: Sequence[Network]) -> None:
    """Time the networks in turns on one photo."""
    batch = CONTRACT.tensor(np.asarray(open_photo(verification_photos()[0]).pixels))
    for network in opened:
        network.timed(batch)
        network.times.clear()  # the first run is a warm-up
    for turn in range(ROUNDS):
        for network in np.roll(np.array(opened, object), turn):
            network.timed(batch)


def iou(got: Pixels, want: Pixels) -> float:
    """Return the IoU of two masks at half height."""
    a, b = got > 127, want > 127
    return float((a & b).sum() / max((a | b).sum(), 1))


def masks() -> Path:
    """Draw the picture of masks."""
    with TemporaryDirectory() as scratch:
        opened = networks(Path(scratch))
        measured(opened)
        rows = [_row(photo, opened) for photo in verification_photos() if photo.name in SHOWN]
        others = [photo for photo in verification_photos() if photo.name not in SHOWN]
        rest = [[iou(n.mask(p), opened[0].mask(p)) for n in opened[1:]] for p in map(_pixels, others)]
    width = 2 * MARGIN + 5 * CELL + 4 * GAP
    sheet = Image.new("RGB", (width, HEAD + MARGIN + sum(row.height for row in rows) + FOOT), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(("photo", *(network.title for network in opened))):
        left = MARGIN + column * (CELL + GAP)
        _text(pen, left, MARGIN, title, 21, INK)
        if column:
            network = opened[column - 1]
            _text(pen, left, MARGIN + 28, f"{median(network.times):.0f} ms, {network.size / 1e6:.1f} MB", 19, PALE)
    top = HEAD + MARGIN
    for row in rows:
        sheet.paste(row, (MARGIN, top))
        top += row.height
    figures = "; ".join(
        f"{photo.stem} {', '.join(f'{v:.3f}' for v in values)}" for photo, values in zip(others, rest, strict=True)
    )
    for line, text in enumerate((f"The other photos of the repository, IoU in the same order: {figures}.", *_notes())):
        _text(pen, MARGIN, top + 24 * line, text, 17, PALE)
    sheet.save(OUT / "masks.png", optimize=True)
    return OUT / "masks.png"


def _notes() -> Iterator[str]:
    import onnxruntime

    device = this_device()
    yield (
        f"IoU: with the fp32 mask, at 0.5. ms: processor time, median of {ROUNDS} runs in turns, {THREADS} thread, "
        f"{device.cpu}, {device.int8_instructions or 'no 8-bit instructions'}."
    )
    yield (
        f"ONNX Runtime {onnxruntime.__version__}. All int8 files were calibrated on photos that the package brings, "
        "and not on these."
    )


def _pixels(photo: Path) -> Pixels:
    return np.asarray(open_photo(photo).pixels, np.uint8)


def _row(photo: Path, opened: Sequence[Network]) -> Image.Image:
    pixels = _pixels(photo)
    made = [network.mask(pixels) for network in opened]
    pictures = [ImageOps.contain(Image.fromarray(p).convert("RGB"), (CELL, CELL)) for p in (pixels, *made)]
    row = Image.new("RGB", (5 * CELL + 4 * GAP, pictures[0].height + 46), (255, 255, 255))
    pen = ImageDraw.Draw(row)
    for column, picture in enumerate(pictures):
        left = column * (CELL + GAP)
        row.paste(picture, (left, 0))
        pen.rectangle((left, 0, left + picture.width - 1, picture.height - 1), outline=(210, 214, 220))
        if column == 1:
            _text(pen, left, picture.height + 8, "the mask to keep", 21, PALE)
        if column > 1:
            value = iou(made[column - 1], made[0])
            _text(pen, left, picture.height + 8, f"IoU {value:.3f}", 21, GOOD if value > 0.95 else BAD)
    return row


def _text(pen: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, ink: tuple[int, int, int]) -> None:
    pen.text((left, top), text, ink, ImageFont.load_default(size))


def bench() -> Path:
    """Record `u2export bench` on two artifacts as an SVG of a terminal."""
    from rich.console import Console
    from rich.text import Text

    words = ["u2export", "bench", "u2netp.onnx", "u2netp-320-ort-int8.onnx", "--images", "photos/", "--threads", "1"]
    words += ["--tier", "quick"]
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(pull_weights("u2netp")[0], folder / "u2netp.onnx")
        u2.pull("u2netp-int8", folder)
        (folder / "photos").mkdir()
        for photo in verification_photos():
            shutil.copy(photo, folder / "photos")
        command = [sys.executable, "-m", *words]
        said = subprocess.run(command, cwd=folder, env=_terminal(), capture_output=True, text=True, check=True)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    console.print(Text("$ " + " ".join(words), style="bold green"))
    console.print(Text.from_ansi(said.stdout))
    svg = console.export_svg(title="u2export bench", unique_id="bench")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # the picture loads nothing
    svg = svg.replace("Fira Code", "ui-monospace")
    (OUT / "bench.svg").write_text(svg, encoding="utf-8")
    return OUT / "bench.svg"


def _terminal() -> dict[str, str]:
    return {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"}


if __name__ == "__main__":
    for name in sys.argv[1:] or ("masks", "bench"):
        print({"masks": masks, "bench": bench}[name]())
