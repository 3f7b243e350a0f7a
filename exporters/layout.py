"""How an ONNX file that somebody else exported takes pictures and gives maps, and how ours are turned into that.

u2export feeds float32 (N, C, H, W) and reads float32 (N, K, H, W). Other files take float16 or float64, have the
channels last, a fixed batch, or no axis for the channels of a map. What a file does not say is assumed and noted; what
cannot be told is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from u2export.errors import UserError
from u2export.reference.image import Contract, Floats

TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
}
HINT = "give a U²-Net that takes pictures (N, C, H, W) or (N, H, W, C) as floats"
# A side that a file leaves open counts as this many pixels where channels are told from sides.
LEAST_SIDE = 32
# A file with a larger fixed batch is damaged, or no network for photos; one photo would have to fill all of it.
MOST_PICTURES = 1024


class Fed(NamedTuple):
    """What a file takes: the input, and how many of its first rows are pictures and no repetition."""

    values: NDArray[Any]
    rows: int


@dataclass(frozen=True)
class Layout:
    """The input of a file.

    Attributes:
        name: of the input.
        dtype: numpy's name of its type.
        channels_last: whether it is (N, H, W, C).
        batch: the number of pictures that it takes at once; 0 for any number.
        channels, height, width: of the picture; None where the file leaves them open.
    """

    name: str
    dtype: str
    channels_last: bool
    batch: int
    channels: int | None
    height: int | None
    width: int | None

    def contract(self, standard: Contract) -> Contract:
        """The contract with the sizes and the channels of the file, where the file has its own."""
        return Contract(
            self.height or standard.height, self.width or standard.width, standard.resize, standard.mean, standard.std,
            standard.rounded,
        ).with_channels(self.channels or standard.channels)  # fmt: skip

    def notes(self, contract: Contract) -> Iterator[str]:
        """Yield what a reader of a mask or a time must know: what was assumed, and what is done to a picture."""
        if self.height is None or self.width is None:
            yield f"any input size: {contract.height}x{contract.width} assumed"
        if self.channels is None:
            yield f"any number of channels: {contract.channels} assumed"
        if self.channels_last:
            yield "the input has its channels last"
        if self.dtype not in ("float32", "uint8"):
            yield f"the input is cast to {self.dtype}"
        if self.batch > 1:
            yield f"fixed batch of {self.batch}: one photo fills it, and times are those of the whole batch"

    def feed(self, batch: Floats) -> Fed:
        """The file's input of a network input (N, C, H, W) float32.

        Raises:
            UserError: N is larger than the file's fixed batch.
        """
        rows = len(batch)
        if self.batch > 1 and rows != self.batch:
            if rows > self.batch:
                raise UserError(
                    f"the model takes {self.batch} pictures at once, not {rows}", "choose a smaller batch", "batch"
                )
            batch = np.concatenate((batch, np.repeat(batch[:1], self.batch - rows, axis=0)))
        if self.channels_last:
            batch = batch.transpose(0, 2, 3, 1)
        return Fed(np.ascontiguousarray(batch, self.dtype), rows)


def read_layout(path: Path, session: Any) -> Layout:
    """The input of a file that is open in ONNX Runtime.

    Raises:
        UserError: it has several inputs, or its input is no picture of floats; or channels and sides cannot be told
            apart.
    """
    entries = session.get_inputs()
    if len(entries) != 1:
        names = ", ".join(e.name for e in entries)
        raise UserError(f"{path}: {len(entries)} inputs ({names}), one picture is expected", HINT)
    entry = entries[0]
    if entry.type not in TYPES:
        raise UserError(f"{path}: its input {entry.name} has the type {entry.type}", HINT)
    if len(entry.shape) != 4:
        raise UserError(f"{path}: its first input has shape {entry.shape}, not (N, C, H, W)", HINT)
    sizes = [size if isinstance(size, int) and size > 0 else None for size in entry.shape]
    last = _channels_last(path, entry.shape, sizes)
    channels, height, width = (sizes[i] for i in ((3, 1, 2) if last else (1, 2, 3)))
    if (batch := sizes[0] or 0) > MOST_PICTURES:
        raise UserError(f"{path}: its input {entry.name} takes {batch} pictures at once", HINT)
    return Layout(entry.name, TYPES[entry.type], last, batch, channels, height, width)


def _channels_last(path: Path, shape: Sequence[Any], sizes: Sequence[int | None]) -> bool:
    """Whether the last axis is that of the channels: it is smaller than both sides. The same holds for the first."""
    _, first, middle, last = sizes
    if first is not None and first < min(middle or LEAST_SIDE, last or LEAST_SIDE):
        return False
    if last is not None and last < min(first or LEAST_SIDE, middle or LEAST_SIDE):
        return True
    if first is None and not (last is not None and last < LEAST_SIDE):
        return False  # the order of most exports, which a note on the assumed channels tells
    raise UserError(f"{path}: its input {shape} does not tell which axis holds the channels", HINT)


def as_maps(values: Floats, size: tuple[int, int], what: str, batch: int = 1) -> Floats:
    """Maps (N, K, H, W) of an output (N, K, H, W), (N, H, W, K), (N, H, W) or (H, W).

    Args:
        values: the output.
        size: height and width of the network input, which are those of d0.
        what: the output's name in the error.
        batch: how many pictures were fed.

    Raises:
        UserError: the output has another shape.
    """
    shape = values.shape
    if values.ndim == 4 and shape[0] == batch and shape[2:] == size:
        return values
    if values.ndim == 4 and shape[:3] == (batch, *size):
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    if shape == (batch, *size):
        return values[:, None]
    if shape == size and batch == 1:
        return values[None, None]
    expected = f"({batch}, K, {size[0]}, {size[1]})"
    raise UserError(f"{what} has shape {shape}, not {expected}", "give a U²-Net whose d0 has the size of its input")
