"""The options of one engine build."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from u2export.errors import UserError, WrongValue
from u2export.exporters.trt.installed import LOCAL
from u2export.exporters.trt.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """How to build an engine.

    Attributes:
        targets: "local", or GPU generations such as "sm86" (TensorRT-RTX only).
        typing: "weak" (flags allow precisions, TensorRT chooses), "strong" (the graph decides), or "auto".
        shapes: smallest, usual and largest input shape of a graph with free axes, see `parse_shapes`.
        workspace: limit of scratch memory in MiB; 0 for TensorRT's own limit.
        level: optimisation level of the builder, 0 to 5; -1 for TensorRT's own.
        timing_cache: file of measured kernel times. The build reads it if it exists, and writes it anew.
        version_compatible, hardware_compatible: build an engine that later versions open too, or that all GPUs from
            Ampere on open.
        dla: core of the deep learning accelerator to prefer; -1 for none.
    """

    targets: tuple[str, ...] = (LOCAL,)
    typing: str = "auto"
    shapes: tuple[tuple[int, ...], ...] = ()
    workspace: int = 0
    level: int = -1
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int = -1

    def to_json(self) -> dict[str, Any]:
        """Return plain data without paths of this machine."""
        cache = self.timing_cache.name if self.timing_cache else ""
        return {**asdict(self), "timing_cache": cache}


def parse_shapes(text: str, recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, usual and largest input shape, each (N, C, H, W), that a text gives.

    Args:
        text: batch sizes such as "1,4,8", or shapes such as "1x3x320x320,4x3x320x320,8x3x320x320"; "" for none.
        recipe: the recipe that gives the other dimensions for batch sizes.

    Raises:
        UserError: the text has another form, or the shapes have another number of dimensions than the input.
    """
    if not text:
        return ()
    parts = [part.strip().lower() for part in text.split(",")]
    if len(parts) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
        raise WrongValue(
            f"the shapes {text!r} are not min,opt,max", "for example 1,4,8, or three shapes NxCxHxW", "shapes"
        )
    shapes = tuple(tuple(map(int, part.split("x"))) for part in parts)
    if all(len(shape) == 1 for shape in shapes) and min(recipe.shape[1:]) > 0:
        return tuple((*shape, *recipe.shape[1:]) for shape in shapes)
    if any(len(shape) != len(recipe.shape) for shape in shapes):
        raise UserError(
            f"the shapes {text!r} are not of {len(recipe.shape)} dimensions", "give three shapes NxCxHxW", "shapes"
        )
    return shapes
