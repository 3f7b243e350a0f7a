"""The settings of one build on TensorRT's IBuilderConfig."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.installed import LOCAL, title
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import Recipe
from u2export.files import staged


def configure(
    trt: Any, builder: Any, network: Any, config: Any, recipe: Recipe, options: Options, typing: str
) -> set[str]:
    """Everything set on the builder's configuration; the names of the flags set."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.level >= 0:
        config.builder_optimization_level = options.level
    flags = _precision_flags(recipe) if typing == "weak" else set()
    if options.version_compatible:
        flags.add(_supported(trt, "VERSION_COMPATIBLE", "--version-compatible"))
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if "OBEY_PRECISION_CONSTRAINTS" in flags:
        _hold(trt, network, recipe.islands)
    if options.hardware_compatible:
        _hardware_compatible(trt, config)
    if options.dla >= 0:
        _use_dla(trt, builder, config, recipe, options.dla)
        flags.add("GPU_FALLBACK")
    _set_targets(trt, config, options.targets)
    _set_profile(builder, network, config, recipe, options.shapes)
    if options.timing_cache:
        _load_cache(trt, config, options.timing_cache)
    return flags


def _precision_flags(recipe: Recipe) -> set[str]:
    flags: set[str] = {"int8": {"INT8", "FP16"}, "fp16": {"FP16"}, "fp32": set()}[recipe.precision]
    return flags | ({"OBEY_PRECISION_CONSTRAINTS"} if recipe.islands else set())


def _supported(trt: Any, flag: str, option: str) -> str:
    if not hasattr(trt.BuilderFlag, flag) or hasattr(trt, "ComputeCapability"):
        raise UserError(f"{title(trt)} has no {option}", "leave it out")
    return flag


def _hold(trt: Any, network: Any, islands: Iterable[str]) -> None:
    """Constrain layers to fp32 in weak typing."""
    kept = set(islands)
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.name in kept:
            layer.precision = trt.float32
            layer.set_output_type(0, trt.float32)


def _hardware_compatible(trt: Any, config: Any) -> None:
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    if levels is None or hasattr(trt, "ComputeCapability"):
        raise UserError(f"{title(trt)} has no --hardware-compatible", "leave it out; RTX takes several --target")
    config.hardware_compatibility_level = levels.AMPERE_PLUS


def _use_dla(trt: Any, builder: Any, config: Any, recipe: Recipe, core: int) -> None:
    cores = getattr(builder, "num_DLA_cores", 0)
    if cores <= core:
        raise UserError(
            f"{title(trt)} finds {cores} DLA cores here, core {core} was asked for",
            "leave out --dla; only Xavier and AGX/NX Orin have any, and TensorRT 11.0 to 11.3 do not know them",
        )
    if recipe.dynamic or recipe.precision == "fp32":
        raise UserError("DLA takes fixed shapes in fp16 or int8", "export without --dynamic, with --fp16 or --int8")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def on_dla(network: Any, config: Any) -> dict[str, int]:
    """How many layers the accelerator could take."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {"possible": sum(bool(config.can_run_on_DLA(layer)) for layer in layers), "all": len(layers)}


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    named = [t.upper() for t in targets if t != LOCAL]
    if not named:
        return
    if lost := [n for n in named if not hasattr(trt.ComputeCapability, n)]:
        known = ", ".join(n.lower() for n in sorted(trt.ComputeCapability.__members__) if n.startswith("SM"))
        raise UserError(f"{title(trt)} does not build for {lost[0].lower()}", f"it builds for {known}")
    if "SM75" in named and len(named) > 1:
        raise UserError("sm75 is to be built alone: its layers would replace those of the others", "build it apart")
    config.num_compute_capabilities = len(named)
    for i, name in enumerate(named):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), i):
            raise UserError(f"{title(trt)} refuses the target {name.lower()}", "build it apart from the others")


def _set_profile(builder: Any, network: Any, config: Any, recipe: Recipe, shapes: Sequence[Sequence[int]]) -> None:
    if not recipe.dynamic:
        if shapes and any(tuple(s) != tuple(recipe.shape) for s in shapes):
            raise UserError("--shapes is for graphs with free axes", "export with --dynamic batch")
        return
    if len(shapes) != 3:
        raise UserError("the graph has free axes and no profile was given", "add --shapes min,opt,max")
    fixed = [all(f in (-1, n) for f, n in zip(recipe.shape, s, strict=False)) for s in shapes]
    ordered = all(a <= b <= c for a, b, c in zip(*shapes, strict=True))
    if not ordered or not all(fixed):
        given = ",".join("x".join(map(str, s)) for s in shapes)
        free = "x".join("N" if n < 0 else str(n) for n in recipe.shape)
        raise UserError(f"--shapes {given} do not fit {free}", "give shapes that grow from min over opt to max")
    profile = builder.create_optimization_profile()
    profile.set_shape(recipe.input, *map(tuple, shapes))
    if config.add_optimization_profile(profile) < 0:
        raise UserError("TensorRT refuses the profile of --shapes", "give shapes that grow from min over opt to max")


def _load_cache(trt: Any, config: Any, path: Path) -> None:
    if hasattr(trt, "ComputeCapability"):
        raise UserError(f"{title(trt)} builds ahead of time and measures nothing", "leave out --timing-cache")
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give another --timing-cache") from None
    config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False)


def save_cache(config: Any, path: Path) -> None:
    """Write the timing cache after a build."""
    with staged(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
