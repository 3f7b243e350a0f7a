"""`u2export trt` and `u2export trt build|check|cache|trust`: typed ONNX anywhere, engines where a builder is."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from u2export.commands import options as o
from u2export.commands.console import stderr
from u2export.commands.export import Placement, exported, show
from u2export.errors import Unavailable, UserError
from u2export.exporters.trt.exporter import TensorRT
from u2export.exporters.trt.installed import check_targets, choose_builder
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from u2export.exporters.trt.layer_table import LayerTable
    from u2export.exporters.trt.recipe import Recipe

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


class Rest(str, Enum):
    """What int8 leaves in floating point."""

    fp32 = "fp32"
    fp16 = "fp16"


class Runtime(str, Enum):
    """Who builds the engine."""

    auto = "auto"
    tensorrt = "tensorrt"
    rtx = "rtx"


class Typing(str, Enum):
    """Who decides on precisions: the builder within the flags, or the graph."""

    auto = "auto"
    weak = "weak"
    strong = "strong"


RuntimeOption = Annotated[
    Runtime, typer.Option(help="tensorrt (of a Jetson or GPU box) or rtx (builds without a GPU); auto: what is here.")
]
Target = Annotated[
    str,
    typer.Option(help="local, or GPU generations for rtx: sm75, or any of sm80,sm86,sm89,sm120 in one engine."),
]
TypingOption = Annotated[
    Typing, typer.Option("--typing", help="weak (8.5 to 10): TensorRT chooses within the flags; strong (10, 11, rtx).")
]
Shapes = Annotated[
    str, typer.Option(help="min,opt,max of a graph with free axes, as batches or NxCxHxW; memory grows with max.")
]
Workspace = Annotated[int, typer.Option(min=0, metavar="MIB", help="Scratch memory at most; 0: TensorRT's limit.")]
Level = Annotated[int, typer.Option(min=-1, max=5, help="Builder's optimisation, 0 to 5; -1: TensorRT's own.")]
TimingCache = Annotated[
    Path | None, typer.Option(help="Kernel times to start from and to write: a second build is quick.")
]
VersionCompatible = Annotated[bool, typer.Option("--version-compatible", help="An engine for later versions too.")]
HardwareCompatible = Annotated[
    bool, typer.Option("--hardware-compatible", help="An engine for all GPUs from Ampere on; slower.")
]
Dla = Annotated[
    int, typer.Option(min=-1, metavar="CORE", help="Accelerator core to prefer; tells how much fits on it.")
]
RecipeFile = Annotated[Path, typer.Argument(help="The .recipe.json that u2export trt wrote, its .onnx beside it.")]


@app.callback()
def trt(
    context: typer.Context,
    weights: o.Weights = "u2netp",
    out: o.Out = Path("artifacts"),
    size: o.Size = "320",
    resize: o.Resize = "bilinear",
    fp32: o.Fp32 = False,
    fp16: o.Fp16 = False,
    int8: o.Int8 = False,
    placement: Annotated[
        Placement, typer.Option(help="Of int8's Q/DQ pairs: producer moves the least memory.")
    ] = Placement.producer,
    rest: Annotated[
        Rest, typer.Option(help="What int8 leaves in float: fp32 for every version, fp16 for TensorRT 10 and later.")
    ] = Rest.fp32,
    keep_float: o.KeepFloat = None,
    dynamic: Annotated[str, typer.Option(help="Free axes: any of batch,height,width; batch is advised.")] = "",
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Typed ONNX and recipe are all that is wanted from this machine.")
    ] = False,
    runtime: RuntimeOption = Runtime.auto,
    target: Target = "local",
    typing: TypingOption = Typing.auto,
    shapes: Shapes = "",
    calib: o.Calib = None,
    no_condition: o.NoCondition = False,
    budget: o.Budget = "",
    as_json: o.AsJson = False,
) -> None:
    """Export typed ONNX for TensorRT (fp16 by default), then build the engine, where that can be done here."""
    if context.invoked_subcommand:
        _nothing_before(context)
        return
    precision = o.chosen({"fp32": fp32, "fp16": fp16, "int8": int8}, "fp16")
    exporter = TensorRT(placement.value, o.kept(keep_float), rest.value, o.words(dynamic))
    targets = _targets(target)
    check_targets(runtime.value, targets)
    contract = o.contract_of(size, resize)
    made = exported(exporter, weights, out, contract, precision, calib, not no_condition, budget)
    recipe = made.path.with_suffix(SUFFIX)
    if not as_json:
        show(made, as_json)
        print(recipe)
    if prepare_only:
        if as_json:
            show(made, as_json)
        return
    try:
        name = choose_builder(runtime.value, targets, recipe)
    except Unavailable as error:
        if as_json:
            show(made, as_json)
        raise Unavailable(f"prepared, not built: {error.problem}", error.hint) from None
    _build(recipe, out, name, Options(targets, typing.value), shapes, as_json)


@app.command()
def build(
    recipe: RecipeFile,
    out: Annotated[Path | None, typer.Option(help="Folder for the engine; the recipe's by default.")] = None,
    runtime: RuntimeOption = Runtime.auto,
    target: Target = "local",
    typing: TypingOption = Typing.auto,
    shapes: Shapes = "",
    workspace: Workspace = 0,
    level: Level = -1,
    timing_cache: TimingCache = None,
    version_compatible: VersionCompatible = False,
    hardware_compatible: HardwareCompatible = False,
    dla: Dla = -1,
    as_json: o.AsJson = False,
) -> None:
    """Build the engine of a recipe, and hold its layers' precisions against it."""
    options = Options(
        _targets(target), typing.value, (), workspace, level, timing_cache, version_compatible, hardware_compatible, dla
    )
    name = choose_builder(runtime.value, options.targets, recipe)
    _build(recipe, out or recipe.parent, name, options, shapes, as_json)


@app.command()
def check(
    recipe: RecipeFile,
    table: Annotated[Path, typer.Argument(help="JSON of trtexec --exportLayerInfo, or a build log.")],
    weak: Annotated[bool, typer.Option("--weak", help="It was built with the flags --fp16 or --int8.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Hold the layer table of an engine built with trtexec against its recipe; a silent fallback is an error."""
    from u2export.exporters.trt.layer_table import read
    from u2export.exporters.trt.precision_check import check_table
    from u2export.exporters.trt.recipe import Recipe

    wanted, _ = Recipe.read(recipe)
    found = read(table)
    comparison = check_table(wanted, found, weak)
    if as_json:
        print(o.shown({"table": found.to_json(), "precisions": comparison.to_json()}))
        return
    print(_confirmed(found, comparison.got))


@app.command()
def cache(
    recipe: RecipeFile,
    out: Annotated[Path, typer.Option(help="File to write.")],
    tensorrt: Annotated[
        str, typer.Option(help="TensorRT's version, such as 8.6.2; that of the package here by default.")
    ] = "",
) -> None:
    """Write a calibration cache with the recipe's scales, for implicit INT8 of TensorRT up to 10 (DLA needs it)."""
    from u2export.exporters.trt.installed import installed, load
    from u2export.exporters.trt.recipe import Recipe, write_calibration_cache

    if not tensorrt and "tensorrt" not in installed():
        raise Unavailable("no TensorRT here to ask its version of", "give --tensorrt 8.6.2, that of the device")
    write_calibration_cache(Recipe.read(recipe)[0], tensorrt or str(load("tensorrt").__version__), out)
    print(out)


@app.command()
def trust(
    engine: Annotated[Path, typer.Argument(help="An engine built on another machine.")],
) -> None:
    """Let this machine open a foreign engine from now on; engines are native code, so know where it comes from."""
    from u2export.exporters.trt.trust import trust as remember

    remember(engine)
    print(engine)


def _nothing_before(context: typer.Context) -> None:
    """Options of the export mean nothing to a sub-command."""
    given = [
        p.opts[0]
        for p in context.command.params
        if p.name and getattr(context.get_parameter_source(p.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise UserError(f"{given[0]} before {context.invoked_subcommand} has no effect", "put it behind")


def _targets(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(o.words(text.lower())))
    if not found:
        raise UserError("--target names nothing", "give local, or such as sm86")
    return found


def _build(recipe_file: Path, out: Path, runtime: str, options: Options, shapes: str, as_json: bool) -> None:
    from u2export.exporters.trt.pipeline import build_engine
    from u2export.exporters.trt.recipe import Recipe

    recipe, graph = Recipe.read(recipe_file)
    _advise(runtime, recipe)
    with stderr().status(f"building {graph.name} with {runtime}") as status:
        artifact, built = build_engine(
            recipe_file, out, runtime, options, shapes,
            lambda phase, done, total: status.update(f"{phase}: {done}/{total}"),
        )  # fmt: skip
    if as_json:
        print(o.shown({**artifact.to_json(), "path": str(artifact.path)}))
        return
    print(artifact.path)
    facts = built.facts
    lines = [f"  {len(built.plan) / 1e6:.2f} MB, built in {facts['seconds']} s, {facts['typing']} typing"]
    if facts["activation_bytes"]:
        lines.append(f"  {facts['activation_bytes'] / 1e6:.0f} MB of activations when it runs")
    if built.table and built.comparison:
        lines.append(f"  {_confirmed(built.table, built.comparison.got)}")
    lines += [f"  note: {note}" for note in artifact.notes]
    stderr().print("\n".join(lines), markup=False)


def _advise(runtime: str, recipe: Recipe) -> None:
    if runtime == "rtx" and recipe.precision == "int8":
        stderr().print("[yellow]note:[/] on RTX fp16 is advised: its int8 convolutions move more memory than fp16 ones")


def _confirmed(table: LayerTable, got: Mapping[str, str]) -> str:
    from collections import Counter

    counts = ", ".join(f"{n} {name}" for name, n in Counter(got.values()).most_common())
    return (
        f"convolutions in {counts}, as asked for; {len(table.layers)} layers, {table.traffic / 1e6:.0f} MB moved a run"
    )
