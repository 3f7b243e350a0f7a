"""How an engine is built: the options of one build."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.installed import LOCAL
from u2export.exporters.trt.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """How to build.

    Attributes:
        targets: "local", or GPU generations such as "sm86" (TensorRT-RTX only).
        typing: "weak" (flags allow precisions, TensorRT chooses), "strong" (the graph decides), "auto".
        shapes: least, usual and largest input shape of a graph with free axes.
        workspace: MiB of scratch memory at most; 0 for TensorRT's own limit.
        level: of the builder's optimisation, 0 to 5; -1 for TensorRT's own.
        timing_cache: file of measured kernel times, read if there and written anew.
        version_compatible, hardware_compatible: an engine for later versions, or for other GPUs of Ampere and later.
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
        """Plain data, machine paths left out."""
        cache = self.timing_cache.name if self.timing_cache else ""
        return {**asdict(self), "timing_cache": cache}


def parse_shapes(text: str, recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """`1,4,8` (batches) or `1x3x320x320,…` as least, usual and largest shape.

    Raises:
        UserError: of another form.
    """
    if not text:
        return ()
    parts = [part.strip().lower() for part in text.split(",")]
    if len(parts) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
        raise UserError(f"--shapes {text!r} is not min,opt,max", "for example 1,4,8, or three shapes NxCxHxW")
    found = tuple(tuple(map(int, part.split("x"))) for part in parts)
    if all(len(shape) == 1 for shape in found) and min(recipe.shape[1:]) > 0:
        return tuple((*shape, *recipe.shape[1:]) for shape in found)
    if any(len(shape) != len(recipe.shape) for shape in found):
        raise UserError(f"--shapes {text!r} are not of {len(recipe.shape)} dimensions", "give three shapes NxCxHxW")
    return found
