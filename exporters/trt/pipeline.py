"""From a recipe to an engine with its record: the steps of `u2export trt build` as one function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from u2export.exporters.artifact import Artifact
from u2export.exporters.open import read_artifact
from u2export.exporters.trt.build import Built, build
from u2export.exporters.trt.build_log import Progress
from u2export.exporters.trt.engine_file import save_engine
from u2export.exporters.trt.installed import choose_builder, load
from u2export.exporters.trt.options import Options, parse_shapes
from u2export.exporters.trt.recipe import Recipe


def build_engine(
    recipe_file: Path,
    folder: Path | None = None,
    runtime: str = "auto",
    options: Options | None = None,
    shapes: str = "",
    progress: Progress = lambda phase, done, total: None,
) -> tuple[Artifact, Built]:
    """Build the engine of a recipe, check its precisions, save it with its record, and trust it on this machine.

    Args:
        recipe_file: the .recipe.json, or the typed ONNX beside it.
        folder: where the engine goes; the recipe's folder by default.
        runtime: "tensorrt", "rtx", or "auto" for the one that can build here, see `installed.choose_builder`.
        options: how to build; for the GPU of this machine by default.
        shapes: text for the options' shapes, see `options.parse_shapes`; "" leaves those of `options`.
        progress: is called with the name of a phase, the steps done and the steps in all. TensorRT before version 10
            tells no progress.

    Returns:
        The engine as an artifact, and what was seen while it was built.

    Raises:
        Unavailable: no engine can be built here; the hint names the command for a machine that can.
        UserError: the recipe is damaged, TensorRT refuses the graph or an option, or the engine computes in other
            precisions than the recipe says. No file is written then.
    """
    options = options or Options()
    name = choose_builder(runtime, options.targets, recipe_file)
    recipe, graph = Recipe.read(recipe_file)
    if shapes:
        options = replace(options, shapes=parse_shapes(shapes, recipe))
    built = build(load(name), graph, recipe, options, progress)
    return save_engine(built, read_artifact(graph), recipe, options, folder or recipe_file.parent), built
