"""Golden vectors: one picture made of integers, its network input and its mask, with which ports check themselves.

A port on a phone or a microcontroller draws `picture()` or reads picture.png, and runs its own pre-processing. It then
compares its input with input.npy and its mask with mask.npy, so an error shows at the stage that causes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from u2export.files import publish, staging, write_json
from u2export.reference.classes import class_map, classes_for, palette, probabilities, stacked
from u2export.reference.image import Contract, Floats, Pixels, digest, mask_for, saliency
from u2export.reference.photos import write_classes, write_mask, write_png

GRID = 8
HEIGHT, WIDTH = 210, 280
# Largest absolute differences of a correct fp32 port. An fp16 port needs 0.02.
TOLERANCE = {"input": 1e-4, "mask": 2e-3}


def picture(channels: int = 3) -> Pixels:
    """Draw a bright disc over a textured gradient, (210, 280, channels) uint8, in integer arithmetic only.

    The picture shows common mistakes. Its sides differ from the network's (a wrong resize), its peak is 240 (x / 255 in
    place of x / max(x)), and its colours differ (BGR in place of RGB).
    """
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    disc = (y - 96) ** 2 + (x - 150) ** 2 < 58**2
    texture = (x * 7 + y * 13) % 23
    ground = np.stack([30 + x // 5, 60 + y // 4, 110 - x // 6], -1) + texture[..., None]
    ball = np.stack([240 - (y - 38) // 2, 150 - (x - 92) // 2, 40 + (x - 92) // 8], -1)
    rgb = np.where(disc[..., None], ball, ground).clip(0, 240).astype(np.uint8)
    return rgb[..., [i % 3 for i in range(channels)]]


def summary(contract: Contract, d0: Floats) -> dict[str, Any]:
    """Return the golden record of a model: hashes of picture and input, and an 8 x 8 grid of block means of the mask.

    Args:
        contract: how the picture becomes an input.
        d0: the reference's fused map (H, W) of that input, or one for each class (K, H, W). Of several classes, the
            record has a grid for each, of the maps as they are.
    """
    maps = stacked(d0)
    one = len(maps) == 1
    grids = [_grid(saliency(maps[0]))] if one else [_grid(shown) for shown in probabilities(maps)]
    pixels = picture(contract.channels)
    return {
        "picture_sha256": digest(pixels),
        "input_sha256": digest(contract.tensor(pixels)),
        **({"mask_grid": grids[0]} if one else {"class_grids": grids}),
        "d0_range": [float(d0.min()), float(d0.max())],
        "tolerance": TOLERANCE,
    }


def _grid(mask: Floats) -> list[list[float]]:
    rows = [band.mean(0) for band in np.array_split(mask, min(GRID, len(mask)))]
    return [[round(float(cell.mean()), 5) for cell in np.array_split(row, min(GRID, len(row)))] for row in rows]


def write(contract: Contract, d0: Floats, stamp: dict[str, Any], folder: Path) -> Path:
    """Write picture.png, input.npy, d0.npy, mask.npy, mask.png and golden.json to `folder`, all files or none.

    Of several classes, classes.npy (the class of each pixel of d0) and classes.png stand in place of the masks.

    Args:
        contract: how the picture becomes an input.
        d0: the reference's fused map (H, W) of that input, or one for each class (K, H, W).
        stamp: what golden.json says about the weights.
        folder: the target; its old content is replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    pixels, maps = picture(contract.channels), stacked(d0)
    with staging(folder.parent) as scratch:
        made = scratch / folder.name
        made.mkdir()
        write_png(pixels if contract.channels == 3 else pixels[..., 0], made / "picture.png")
        np.save(made / "input.npy", contract.tensor(pixels))
        if len(maps) == 1:
            np.save(made / "d0.npy", maps[0])
            np.save(made / "mask.npy", saliency(maps[0]))
            write_mask(mask_for(maps[0], HEIGHT, WIDTH), made / "mask.png")
        else:
            np.save(made / "d0.npy", maps)
            np.save(made / "classes.npy", class_map(maps))
            write_classes(classes_for(maps, HEIGHT, WIDTH), palette(len(maps)), made / "classes.png")
        write_json({"contract": contract.to_json(), **stamp, **summary(contract, d0)}, made / "golden.json")
        publish(made, folder)
    return folder
