"""The settings of one build on TensorRT's IBuilderConfig."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from u2export.errors import UserError
from u2export.exporters.trt.installed import LOCAL, is_rtx, title
from u2export.exporters.trt.options import Options
from u2export.exporters.trt.recipe import Recipe
from u2export.files import staged

GROWING = "give shapes that grow from min over opt to max"


class Configuration:
    """The builder configuration of one engine. Each method makes one group of settings.

    Attributes:
        config: TensorRT's IBuilderConfig.
        flags: names of the builder flags that are set.
    """

    def __init__(self, trt: Any, builder: Any, network: Any, recipe: Recipe) -> None:
        self.trt, self.builder, self.network, self.recipe = trt, builder, network, recipe
        self.config = builder.create_builder_config()
        self.config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self.flags: set[str] = set()

    def apply(self, options: Options, typing: str) -> None:
        """Make all settings.

        Args:
            options: how to build.
            typing: "weak" or "strong". Strong typing takes no precision flags.

        Raises:
            UserError: this version of TensorRT, this machine or the recipe does not allow an option.
        """
        self.limits(options)
        if typing == "weak":
            self.precisions()
        self.compatibility(options)
        if options.dla >= 0:
            self.accelerator(options.dla)
        self.targets(options.targets)
        self.profile(options.shapes)
        if options.timing_cache:
            self.read_timing_cache(options.timing_cache)

    def set_flag(self, name: str) -> None:
        """Set a flag of the enum BuilderFlag by its name; values differ between versions."""
        self.config.set_flag(getattr(self.trt.BuilderFlag, name))
        self.flags.add(name)

    def limits(self, options: Options) -> None:
        """Set scratch memory and optimisation level."""
        if options.workspace:
            self.config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
        if options.level >= 0:
            self.config.builder_optimization_level = options.level

    def precisions(self) -> None:
        """Allow the recipe's precisions, and hold its islands in fp32.

        Int8 allows fp16 too: on a Jetson, the layers that int8 leaves in float would be slow in fp32.
        """
        for name in {"int8": ("INT8", "FP16"), "fp16": ("FP16",), "fp32": ()}[self.recipe.precision]:
            self.set_flag(name)
        if not self.recipe.islands:
            return
        self.set_flag("OBEY_PRECISION_CONSTRAINTS")
        for layer in self._layers():
            if layer.name in self.recipe.islands:
                layer.precision = self.trt.float32
                layer.set_output_type(0, self.trt.float32)

    def compatibility(self, options: Options) -> None:
        """Make the engine open in later versions, or on other GPUs.

        Raises:
            UserError: the version cannot.
        """
        trt = self.trt
        if options.version_compatible:
            if is_rtx(trt) or not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
                raise UserError(
                    f"{title(trt)} builds no engine for later versions", "leave it out", "version_compatible"
                )
            self.set_flag("VERSION_COMPATIBLE")
        if options.hardware_compatible:
            if is_rtx(trt) or not hasattr(trt, "HardwareCompatibilityLevel"):
                raise UserError(
                    f"{title(trt)} builds no engine for other GPUs",
                    "leave it out; RTX takes several targets",
                    "hardware_compatible",
                )
            self.config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def accelerator(self, core: int) -> None:
        """Prefer a core of the deep learning accelerator (DLA); the GPU computes what the core cannot.

        Raises:
            UserError: there is no such core, or the graph is not for DLA.
        """
        cores = getattr(self.builder, "num_DLA_cores", 0)
        if cores <= core:
            raise UserError(
                f"{title(self.trt)} finds {cores} DLA cores here, core {core} was asked for",
                "leave it out; only Xavier and AGX/NX Orin have any, and TensorRT 11.0 to 11.3 do not know them",
                "dla",
            )
        if self.recipe.dynamic or self.recipe.precision == "fp32":
            raise UserError("DLA takes fixed shapes in fp16 or int8", "export without free axes, in fp16 or int8")
        self.config.default_device_type = self.trt.DeviceType.DLA
        self.config.DLA_core = core
        self.set_flag("GPU_FALLBACK")

    def on_accelerator(self) -> dict[str, int]:
        """Return how many layers the accelerator could take, and how many layers there are."""
        layers = self._layers()
        return {"possible": sum(bool(self.config.can_run_on_DLA(layer)) for layer in layers), "all": len(layers)}

    def targets(self, targets: Sequence[str]) -> None:
        """Set the GPU generations that TensorRT-RTX builds for; nothing is set for "local".

        Raises:
            UserError: the version does not build for one of them, or for all of them together.
        """
        trt = self.trt
        named = [target.upper() for target in targets if target != LOCAL]
        if not named:
            return
        if unknown := [name for name in named if not hasattr(trt.ComputeCapability, name)]:
            known = ", ".join(n.lower() for n in sorted(trt.ComputeCapability.__members__) if n.startswith("SM"))
            raise UserError(f"{title(trt)} does not build for {unknown[0].lower()}", f"it builds for {known}")
        if "SM75" in named and len(named) > 1:
            raise UserError(
                "sm75 needs an engine of its own: its layers would replace those of the other targets",
                "build for sm75 alone",
            )
        self.config.num_compute_capabilities = len(named)
        for i, name in enumerate(named):
            if not self.config.set_compute_capability(getattr(trt.ComputeCapability, name), i):
                raise UserError(f"{title(trt)} refuses the target {name.lower()}", "build an engine for it alone")

    def profile(self, shapes: Sequence[Sequence[int]]) -> None:
        """Set the smallest, usual and largest input shape of a graph with free axes.

        Raises:
            UserError: shapes are missing, do not fit the input, or do not grow; or the graph has no free axes.
        """
        recipe = self.recipe
        if not recipe.dynamic:
            if any(tuple(shape) != tuple(recipe.shape) for shape in shapes):
                raise UserError("a profile of shapes is for graphs with free axes", "export with a free batch")
            return
        if len(shapes) != 3:
            raise UserError("the graph has free axes, and there is no profile", "give min,opt,max", "shapes")
        fit = all(free in (-1, n) for shape in shapes for free, n in zip(recipe.shape, shape, strict=False))
        grow = all(least <= usual <= most for least, usual, most in zip(*shapes, strict=True))
        if not fit or not grow:
            given = ",".join("x".join(map(str, shape)) for shape in shapes)
            free = "x".join("N" if n < 0 else str(n) for n in recipe.shape)
            raise UserError(f"the shapes {given} do not fit {free}", GROWING, "shapes")
        profile = self.builder.create_optimization_profile()
        profile.set_shape(recipe.input, *map(tuple, shapes))
        if self.config.add_optimization_profile(profile) < 0:
            raise UserError("TensorRT refuses the profile of shapes", GROWING, "shapes")

    def read_timing_cache(self, path: Path) -> None:
        """Start from measured kernel times; a file that does not exist yet counts as empty.

        Raises:
            UserError: the version measures nothing, or the file cannot be read.
        """
        if is_rtx(self.trt):
            raise UserError(
                f"{title(self.trt)} builds ahead of time and measures nothing", "leave it out", "timing_cache"
            )
        try:
            stored = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", "give another file", "timing_cache") from None
        self.config.set_timing_cache(self.config.create_timing_cache(stored), ignore_mismatch=False)

    def write_timing_cache(self, path: Path) -> None:
        """Write the measured kernel times after a build."""
        with staged(path) as temporary:
            temporary.write_bytes(bytes(self.config.get_timing_cache().serialize()))

    def _layers(self) -> list[Any]:
        return [self.network.get_layer(i) for i in range(self.network.num_layers)]
