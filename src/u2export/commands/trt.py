"""`u2export trt` and `u2export trt build|check|cache|trust`: typed ONNX anywhere, engines where a builder is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from u2export.api import tensorrt
from u2export.api.exporting import CHOICES
from u2export.commands import options as o
from u2export.commands.console import echo, remark, waiting
from u2export.commands.parsing import Command, Group
from u2export.commands.recipe import ways_to_build
from u2export.errors import Unavailable, WrongValue

app = typer.Typer(cls=Group, invoke_without_command=True, no_args_is_help=False)
RecipeFile = Annotated[
    Path, typer.Argument(help="The .recipe.json that `u2export trt` wrote, with its .onnx beside it.")
]


@dataclass(frozen=True)
class Builder:
    """The options of a build that `trt` and `trt build` share."""

    runtime: Annotated[
        str,
        o.choice(
            tensorrt.RUNTIMES, "tensorrt: of a Jetson or GPU box; rtx: builds without a GPU; auto: what is installed."
        ),
    ] = "auto"
    target: Annotated[
        str,
        typer.Option(help="local, or GPU generations for rtx: sm75, or any of sm80,sm86,sm89,sm120 in one engine."),
    ] = "local"
    typing: Annotated[
        str,
        o.choice(
            tensorrt.TYPINGS,
            "weak (8.5 to 10): TensorRT chooses within the flags; strong (10, 11, rtx): the graph decides.",
        ),
    ] = "auto"
    shapes: Annotated[
        str,
        typer.Option(help="min,opt,max of a graph with free axes, as batches or NxCxHxW; memory grows with max."),
    ] = ""

    def options(self) -> tensorrt.BuildOptions:
        """Return the same for the API."""
        return tensorrt.BuildOptions(self.runtime, self.target, self.typing, self.shapes)


@dataclass(frozen=True)
class FullBuilder(Builder):
    """All options of a build."""

    workspace: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Scratch memory at most; 0 for TensorRT's own limit.")
    ] = 0
    level: Annotated[
        int, typer.Option(min=-1, max=5, help="The builder's optimisation, 0 to 5; -1 for TensorRT's own.")
    ] = -1
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of kernel times to read and write; a second build is quick with it.")
    ] = None
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Build an engine that later versions open too.")
    ] = False
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Build an engine for all GPUs from Ampere on; slower.")
    ] = False
    dla: Annotated[
        int,
        typer.Option(min=-1, metavar="CORE", help="Accelerator core to prefer; the output says how much fits on it."),
    ] = -1

    def options(self) -> tensorrt.BuildOptions:
        """Return the same for the API."""
        return tensorrt.BuildOptions(
            self.runtime, self.target, self.typing, self.shapes, self.workspace, self.level, self.timing_cache,
            self.version_compatible, self.hardware_compatible, self.dla,
        )  # fmt: skip


@app.callback()
@o.with_precisions("trt")
def trt(
    context: typer.Context,
    common: o.Export,
    precision: str,
    placement: Annotated[
        str,
        o.choice(CHOICES["trt", "placement"], "With --int8: where Q/DQ pairs stand; producer moves the least memory."),
    ] = "producer",
    rest: Annotated[
        str,
        o.choice(
            CHOICES["trt", "rest"],
            "With --int8: what the other layers are in; fp32 for every version, fp16 for TensorRT 10 and later.",
        ),
    ] = "fp32",
    keep_float: o.KeepFloat = None,
    dynamic: Annotated[
        str, typer.Option(help="Axes whose size stays free: any of batch,height,width; batch is advised.")
    ] = "",
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Write typed ONNX and recipe, and build nothing.")
    ] = False,
    builder: Builder = Builder(),
    as_json: o.AsJson = "",
) -> None:
    """Export typed ONNX for TensorRT (fp16 by default), then build the engine, where that can be done here."""
    if context.invoked_subcommand:
        _nothing_before(context)
        return
    options = builder.options()
    options.check()
    made = common.run("trt", precision, placement=placement, rest=rest, keep_float=keep_float, dynamic=dynamic)
    recipe = tensorrt.recipe_of(made)
    obstacle = None if prepare_only else _obstacle(options, recipe)
    if prepare_only or obstacle or not as_json:
        o.show_artifact(made, as_json)
    if not as_json:
        echo(recipe)
    if obstacle:
        if not as_json:
            remark(*ways_to_build(recipe, tensorrt.read_recipe(recipe)[0]))
            remark("with --prepare-only the same export ends with exit code 0")
        raise Unavailable(f"prepared, not built: {obstacle.problem}", obstacle.hint)
    if not prepare_only:
        _build(recipe, options, common.out, as_json)


@app.command(cls=Command)
@o.grouped
def build(
    recipe: RecipeFile,
    builder: FullBuilder,
    out: Annotated[Path | None, typer.Option(help="Folder for the engine; the recipe's by default.")] = None,
    as_json: o.AsJson = "",
) -> None:
    """Build the engine of a recipe, and compare the precisions of its layers with the recipe."""
    _build(recipe, builder.options(), out, as_json)


@app.command(cls=Command)
def check(
    recipe: RecipeFile,
    table: Annotated[Path, typer.Argument(help="JSON of trtexec --exportLayerInfo, or a build log.")],
    weak: Annotated[bool, typer.Option("--weak", help="The engine was built with the flags --fp16 or --int8.")] = False,
    as_json: o.AsJson = "",
) -> None:
    """Compare the layer table of an engine built with trtexec with its recipe; a silent fallback is an error."""
    found, comparison = tensorrt.check(recipe, table, weak=weak)
    if o.print_json({"table": found.to_json(), "precisions": comparison.to_json()}, as_json):
        return
    echo(_confirmed(found, comparison.got))


@app.command(cls=Command)
def cache(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="File to write.")],
    version: Annotated[
        str,
        typer.Option("--tensorrt", help="TensorRT's version, such as 8.6.2; that of the package here by default."),
    ] = "",
) -> None:
    """Write a calibration cache with the recipe's scales, for implicit INT8 of TensorRT up to 10 (DLA needs it)."""
    echo(tensorrt.calibration_cache(recipe, out, tensorrt=version))


@app.command(cls=Command)
def trust(engine: Annotated[Path, typer.Argument(help="An engine built on another machine.")]) -> None:
    """Let this machine open a foreign engine from now on. An engine is native code: know where it comes from."""
    echo(tensorrt.trust(engine))


def _nothing_before(context: typer.Context) -> None:
    """Refuse options of the export before a sub-command, where they have no effect."""
    given = [
        p.opts[0]
        for p in context.command.params
        if p.name and getattr(context.get_parameter_source(p.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise WrongValue(f"{given[0]} before {context.invoked_subcommand} has no effect", "put it behind")


def _obstacle(options: tensorrt.BuildOptions, recipe: Path) -> Unavailable | None:
    """Return why no engine can be built here, with the command for a machine that can."""
    try:
        tensorrt.builder(options, recipe)
    except Unavailable as reason:
        return reason
    return None


def _build(recipe: Path, options: tensorrt.BuildOptions, out: Path | None, as_json: str) -> None:
    with waiting() as show:
        engine = tensorrt.build(
            recipe, options, out=out, progress=lambda phase, done, total: show(f"{phase}: {done}/{total}")
        )
    artifact, built = engine.artifact, engine.built
    if o.print_json({**artifact.to_json(), "path": str(artifact.path)}, as_json):
        return
    echo(artifact.path)
    facts = built.facts
    lines = [f"  {len(built.plan) / 1e6:.2f} MB, built in {facts['seconds']} s, {facts['typing']} typing"]
    if facts["activation_bytes"]:
        lines.append(f"  {facts['activation_bytes'] / 1e6:.0f} MB of activations when it runs")
    if built.table and built.comparison:
        lines.append(f"  {_confirmed(built.table, built.comparison.got)}")
    lines += [f"  note: {note}" for note in artifact.notes]
    remark(*lines)


def _confirmed(table: tensorrt.LayerTable, got: Mapping[str, str]) -> str:
    counts = ", ".join(f"{n} {name}" for name, n in Counter(got.values()).most_common())
    return (
        f"convolutions in {counts}, as asked for; {len(table.layers)} layers, {table.traffic / 1e6:.0f} MB moved a run"
    )
