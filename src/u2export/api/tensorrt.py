"""Build and check TensorRT engines from the typed ONNX and the recipe that `export("trt", …)` writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.artifact import Artifact
from u2export.exporters.trt.build import Built
from u2export.exporters.trt.installed import LOCAL, RUNTIMES, TYPINGS, check_targets, choose_builder, installed, load
from u2export.exporters.trt.layer_table import LayerTable, read
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.pipeline import build_engine
from u2export.exporters.trt.precision_check import Comparison, check_table
from u2export.exporters.trt.recipe import SUFFIX, Recipe, write_calibration_cache
from u2export.exporters.trt.trust import trust as _trust

__all__ = [
    "RUNTIMES", "TYPINGS", "BuildOptions", "Comparison", "Engine", "LayerTable", "Recipe", "build", "builder",
    "calibration_cache", "check", "read_recipe", "recipe_of", "trust",
]  # fmt: skip

Progress = Callable[[str, int, int], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        runtime: "tensorrt" (of a Jetson or a GPU box), "rtx" (builds without a GPU), or "auto": what is installed.
        targets: "local", or GPU generations for rtx, such as ("sm80", "sm86"). The text "sm80,sm86" means the same.
        typing: "weak" (TensorRT 8.5 to 10: it chooses within the flags), "strong" (10, 11 and rtx: the graph decides),
            or "auto".
        shapes: least, usual and largest input of a graph with free axes: "1,4,8" as batches, or three of NxCxHxW.
        workspace: MiB of scratch memory at most; 0 for TensorRT's own limit.
        level: the builder's optimisation, 0 to 5; -1 for TensorRT's own.
        timing_cache: a file of kernel times, which is read and written; a second build is quick with it.
        version_compatible: build an engine that later versions open too.
        hardware_compatible: build an engine for all GPUs from Ampere on; it is slower.
        dla: the deep learning accelerator's core to prefer; -1 for none.
    """

    runtime: str = "auto"
    targets: str | tuple[str, ...] = LOCAL
    typing: str = "auto"
    shapes: str = ""
    workspace: int = 0
    level: int = -1
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    dla: int = -1

    def names(self) -> tuple[str, ...]:
        """Return the targets in lower case, each once.

        Raises:
            UserError: there are none.
        """
        given = self.targets.split(",") if isinstance(self.targets, str) else self.targets
        found = tuple(dict.fromkeys(name.strip().lower() for name in given if name.strip()))
        if not found:
            raise WrongValue("no target is named", "give local, or a GPU generation such as sm86", "target")
        return found

    def check(self) -> None:
        """Refuse a runtime and targets that are not valid or do not fit, whatever is installed here.

        Raises:
            UserError: as said.
        """
        check_targets(self.runtime, self.names())


@dataclass(frozen=True)
class Engine:
    """An engine that was built here: its artifact, and what was seen while it was built."""

    artifact: Artifact
    built: Built


def recipe_of(artifact: Artifact) -> Path:
    """Return the recipe that `export("trt", …)` wrote beside a typed ONNX."""
    return artifact.path.with_suffix(SUFFIX)


def read_recipe(file: str | Path) -> tuple[Recipe, Path]:
    """Return a recipe, and the typed ONNX beside it, which is unchanged.

    Args:
        file: the .recipe.json, the graph, or the graph's record.

    Raises:
        UserError: the recipe or the graph is missing or damaged, or the graph is not the one of the recipe.
    """
    return Recipe.read(Path(file))


def builder(options: BuildOptions | None = None, recipe: Path | None = None) -> str:
    """Return the runtime that builds with these options here: "tensorrt" or "rtx".

    Args:
        options: how to build; for this machine's GPU by default.
        recipe: the recipe that an error's hint names.

    Raises:
        UserError: a target or a runtime is not valid, or the two do not fit.
        Unavailable: no engine can be built here; the hint says where it can.
    """
    chosen = options or BuildOptions()
    return choose_builder(chosen.runtime, chosen.names(), recipe)


def build(
    recipe: str | Path,
    options: BuildOptions | None = None,
    *,
    out: str | Path | None = None,
    progress: Progress = lambda phase, done, total: None,
) -> Engine:
    """Build the engine of a recipe, and compare the precisions of its layers with the recipe.

    Args:
        recipe: the .recipe.json that `export("trt", …)` wrote, with its .onnx beside it.
        options: how to build.
        out: the folder for the engine; the recipe's folder by default.
        progress: is called with TensorRT's phase, steps done, and steps in all.

    Raises:
        UserError: the recipe, an option or the graph is not valid, or the engine computes in other precisions.
        Unavailable: no engine can be built here.

    Example:
        >>> engine = build(recipe, BuildOptions(runtime="rtx", targets="sm86"))  # doctest: +SKIP
        >>> engine.artifact.precision  # doctest: +SKIP
        'fp16'
    """
    chosen, file = options or BuildOptions(), Path(recipe)
    name = builder(chosen, file)
    found, graph = Recipe.read(file)
    if name == "rtx" and found.precision == "int8":
        _log.warning("on RTX fp16 is advised: its int8 convolutions move more memory than its fp16 ones")
    progress(f"building {graph.name} with {name}", 0, 1)
    how = Options(
        chosen.names(), chosen.typing, (), chosen.workspace, chosen.level, chosen.timing_cache,
        chosen.version_compatible, chosen.hardware_compatible, chosen.dla,
    )  # fmt: skip
    artifact, built = build_engine(
        file, Path(out) if out is not None else graph.parent, name, how, chosen.shapes, progress
    )
    return Engine(artifact, built)


def check(recipe: str | Path, table: str | Path, *, weak: bool = False) -> tuple[LayerTable, Comparison]:
    """Compare the layer table of an engine that trtexec built with the engine's recipe.

    Args:
        recipe: the .recipe.json that `export("trt", …)` wrote.
        table: the JSON of `trtexec --exportLayerInfo`, or a build log.
        weak: the engine was built with the flags --fp16 or --int8.

    Returns:
        The table, and the precision of every convolution as asked for and as found.

    Raises:
        UserError: a file cannot be read, or the engine computes in another precision than the recipe asks for.
    """
    wanted, _ = Recipe.read(Path(recipe))
    found = read(Path(table))
    return found, check_table(wanted, found, weak)


def calibration_cache(recipe: str | Path, out: str | Path, *, tensorrt: str = "") -> Path:
    """Write a calibration cache with the recipe's scales, for implicit INT8 of TensorRT up to 10, which DLA needs.

    Args:
        recipe: the .recipe.json of an int8 export.
        out: the file to write.
        tensorrt: TensorRT's version on the device, such as "8.6.2"; that of the package here by default.

    Raises:
        UserError: the recipe has no scales, or the version has no implicit INT8.
        Unavailable: no version was given, and no TensorRT is installed here.
    """
    if not tensorrt and "tensorrt" not in installed():
        raise Unavailable(
            "no TensorRT is installed here, so its version is not known", "give the device's, such as 8.6.2", "tensorrt"
        )
    write_calibration_cache(Recipe.read(Path(recipe))[0], tensorrt or str(load("tensorrt").__version__), Path(out))
    return Path(out)


def trust(engine: str | Path) -> Path:
    """Let this machine open an engine of another machine from now on. An engine is native code.

    Raises:
        UserError: there is no such file.
    """
    path = Path(engine)
    if not path.is_file():
        raise UserError(f"no such file: {path}", "give an .engine file")
    _trust(path)
    return path
