"""Typed ONNX to engine, with TensorRT 8.5 to 11 or TensorRT-RTX, by one path through features that are looked for.

Versions are never compared: what a version has is asked of its module, and values of flags come from its enums
(`STRONGLY_TYPED` is bit 1 in TensorRT 10 and bit 0 in 11). A missing `BuilderFlag.FP16` means that the graph alone says
the precisions.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.errors import Unavailable, UserError
from u2export.exporters.trt.layer_table import Comparison, Table, parse
from u2export.exporters.trt.recipe import VERSIONS, Recipe
from u2export.exporters.trt.typed_graph import lint, refuse
from u2export.install import how_to_install

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
LOCAL = "local"
# Boards TensorRT-RTX does not build for, whatever its version: only their own TensorRT does.
JETSON = {
    "sm53": "Jetson Nano and TX1", "sm62": "Jetson TX2", "sm72": "Jetson Xavier", "sm87": "Jetson Orin",
    "sm101": "Jetson Thor", "sm110": "Jetson Thor",
}  # fmt: skip
TYPINGS = ("auto", "weak", "strong")
# Said as warnings, these mean an engine that computes something else, or fails when run.
FATAL = ("Defaulting to INT8 instead", "not self-consistent")
NO_GPU = "cudaError"
Progress = Callable[[str, int, int], None]
_log = logging.getLogger("tensorrt")


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


@dataclass(frozen=True)
class Built:
    """An engine and what was seen while it was built.

    Attributes:
        plan: the serialised engine.
        layers: text of the layer table, empty where the version told none.
        table, comparison: the same read, and held against the recipe; None without a table.
        facts: version, typing, flags, activation memory, seconds and the like, for the record.
        warnings: TensorRT's, each once.
    """

    plan: bytes
    layers: str
    table: Table | None
    comparison: Comparison | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


# --- what is there ----------------------------------------------------------------------------------------------


def installed() -> list[str]:
    """Of "tensorrt" and "rtx", those whose Python package is here."""
    return [name for name, module in MODULES.items() if find_spec(module) is not None]


def choose(runtime: str, targets: Sequence[str], gpu: bool) -> str:
    """The runtime to build with: the one asked for, or for "auto" the one that can build for the targets here.

    Raises:
        UserError: no such runtime or target, or one that the runtime does not build for.
        Unavailable: the runtime is not installed, or the target takes a GPU that is not here.
    """
    if runtime not in (*MODULES, "auto"):
        raise UserError(f"no runtime named {runtime!r}", f"choose one of auto, {', '.join(MODULES)}")
    elsewhere = [t for t in targets if t != LOCAL]
    for target in elsewhere:
        if target in JETSON:
            raise Unavailable(
                f"{target} is {JETSON[target]}: its engines are built on the board alone; RTX has no such target",
                "copy the recipe and its .onnx to the board, and run u2export trt build RECIPE there",
            )
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise UserError(f"no target named {target!r}", "give local, or GPU generations such as sm75,sm86,sm120")
    if elsewhere and LOCAL in targets:
        raise UserError("local and named targets exclude each other", "give one or the other")
    here = installed()
    wanted = ("rtx" if elsewhere else next(iter(here), "tensorrt")) if runtime == "auto" else runtime
    if wanted == "tensorrt" and elsewhere:
        raise UserError("TensorRT builds for the GPU at hand alone", "leave out --target, or add --runtime rtx")
    if wanted not in here:
        extra = {
            "rtx": f"run u2export trt build RECIPE where it is installed, or here: {how_to_install('trt-rtx')}",
            "tensorrt": "run u2export trt build RECIPE on a Jetson or GPU box, with the system's Python",
        }
        nothing = "neither tensorrt nor tensorrt_rtx is" if not here else f"{MODULES[wanted]} is not"
        raise Unavailable(f"{nothing} installed here", extra[wanted])
    if not elsewhere and not gpu:
        raise Unavailable(
            "no CUDA device here, and an engine for the GPU at hand was asked for",
            "build on the device with u2export trt build RECIPE, or ahead of time with --runtime rtx --target sm86",
        )
    return wanted


def load(runtime: str) -> Any:
    """The module of a runtime.

    Raises:
        Unavailable: it is installed, but does not load.
    """
    try:
        return importlib.import_module(MODULES[runtime])
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Unavailable(
            f"{MODULES[runtime]} does not load: {reason}", "install it again, with its libraries"
        ) from None


def devices() -> list[str]:
    """Names of the CUDA devices of this machine, from the driver; empty where there is none."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_device_name(driver, i) for i in range(count.value)]
    return []


def _device_name(driver: Any, index: int) -> str:
    device, text, major, minor = ctypes.c_int(), ctypes.create_string_buffer(100), ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(text, len(text), device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # compute capability, major and minor
    driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return f"{text.value.decode(errors='replace')} (sm{major.value}{minor.value})"


def strong_only(trt: Any) -> bool:
    """Whether the graph alone says the precisions: TensorRT 11 and RTX."""
    return not hasattr(trt.BuilderFlag, "FP16")


def typing_of(trt: Any, wanted: str, recipe: Recipe) -> str:
    """ "weak" or "strong": what was asked for, or what the graph is best built with.

    Raises:
        UserError: the version has not what was asked for.
    """
    can_strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    if wanted not in TYPINGS:
        raise UserError(f"no typing named {wanted!r}", f"choose one of {', '.join(TYPINGS)}")
    if wanted == "strong" and not can_strong:
        raise UserError(f"TensorRT {trt.__version__} has no strong typing", "leave out --typing; 10.0 brought it")
    if wanted == "weak" and strong_only(trt):
        raise UserError(f"TensorRT {trt.__version__} has no weak typing", "leave out --typing; 11.0 removed it")
    if wanted != "auto":
        return wanted
    # Int8 beside fp32 is left weak where that can be: TensorRT may then use fp16 for what is not int8.
    return "strong" if strong_only(trt) or (can_strong and not _rest_is_fp32(recipe)) else "weak"


def _rest_is_fp32(recipe: Recipe) -> bool:
    return recipe.precision == "int8" and recipe.rest == "fp32"


def limits_of(trt: Any) -> str:
    """The key of `VERSIONS` for a module, by its features."""
    if hasattr(trt, "ComputeCapability"):
        return "rtx"
    if strong_only(trt):
        return "11.0"
    return "10.0" if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else "8.5"


# --- building ---------------------------------------------------------------------------------------------------


class Log:
    """TensorRT's messages, gathered; `logger` is what TensorRT takes."""

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""
        self.activation = 0
        severity = trt.ILogger.Severity
        ours = self

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, level: Any, text: str) -> None:
                ours.take(level in (severity.ERROR, severity.INTERNAL_ERROR), level == severity.WARNING, text)

        self.logger = Logger()

    def take(self, error: bool, warning: bool, text: str) -> None:
        """Sort one message; all of them show with -v and -vv."""
        _log.log(logging.INFO if error or warning else logging.DEBUG, "%s", text)
        if error and NO_GPU not in text:  # without a GPU each error is followed by one about that
            self.errors.append(text.strip())
        elif warning:
            self.warnings.append(text.strip())
        elif text.startswith("Layers:"):
            self.layers = text
        elif found := re.match(r"Total Activation Memory: (\d+)", text):
            self.activation = int(found[1])

    @property
    def fatal(self) -> str:
        """A warning that means a wrong engine; empty if there is none."""
        return next((w for w in self.warnings if any(f in w for f in FATAL)), "")


def build(
    trt: Any, graph: Path, recipe: Recipe, options: Options, progress: Progress = lambda phase, done, total: None
) -> Built:
    """An engine of a typed ONNX.

    Args:
        trt: module of TensorRT or TensorRT-RTX, see `load`.
        graph: the typed ONNX. recipe: its recipe. options: how. progress: gets phase, steps done, steps in all.

    Raises:
        UserError: the lint, the parser or the builder refuses it, with the node and the reason; an option the version
            has not; or the engine computes in other precisions than the recipe says.
    """
    began = time.monotonic()
    typing = typing_of(trt, options.typing, recipe)
    _lint(trt, graph)
    log = Log(trt)
    builder = trt.Builder(log.logger)
    network, _parser = _parsed(
        trt, builder, graph, typing, log
    )  # the parser owns the weights until the engine is built
    config = builder.create_builder_config()
    flags = _configure(trt, builder, network, config, recipe, options, typing)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    _check_warnings(log)
    if plan is None:
        reason = log.errors[-1].splitlines()[0] if log.errors else "it gave no reason"
        raise UserError(f"{_title(trt)} cannot build {graph.name}: {reason}", _advice(reason))
    if options.timing_cache:
        _save_cache(config, options.timing_cache)
    layers = log.layers or _inspected(trt, log, plan)
    table = parse(layers) if layers else None
    comparison = None
    if table:
        comparison = Comparison(recipe.layers, table.precisions(recipe.layers), typing == "weak", recipe.islands)
        check_precisions(comparison)
    facts = {
        "runtime": "rtx" if hasattr(trt, "ComputeCapability") else "tensorrt", "version": str(trt.__version__),
        "typing": typing, "flags": sorted(flags), "seconds": round(time.monotonic() - began, 2),
        "activation_bytes": log.activation, "plan_bytes": len(bytes(plan)),
        **({"dla_layers": _on_dla(network, config)} if options.dla >= 0 else {}),
    }  # fmt: skip
    return Built(bytes(plan), layers, table, comparison, facts, tuple(dict.fromkeys(log.warnings)))


def _parsed(trt: Any, builder: Any, graph: Path, typing: str, log: Log) -> tuple[Any, Any]:
    network = builder.create_network(_creation_flags(trt, typing))
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(graph)):
        raise _refused(trt, parser, log)
    _check_warnings(log)
    return network, parser


def check_precisions(comparison: Comparison) -> None:
    """Refuse an engine that computes in other precisions than asked for.

    Raises:
        UserError: naming the first layer, and how many others there are.
    """
    if changed := comparison.changed:
        node, (wanted, got) = next(iter(changed.items()))
        more = f" ({len(changed)} of {len(comparison.wanted)} convolutions)" if len(changed) > 1 else ""
        seen = f"computes in {got}" if got else "is not in the layer table"
        raise UserError(
            f"the engine falls back: {node} was to compute in {wanted} and {seen}{more}",
            "it was not kept; keep that layer in float, or build with another version",
        )


def _title(trt: Any) -> str:
    return f"TensorRT{'-RTX' if hasattr(trt, 'ComputeCapability') else ''} {trt.__version__}"


def _lint(trt: Any, graph: Path) -> None:
    """Where onnx is installed; on a device it need not be, and the graph was linted when it was made."""
    if find_spec("onnx") is None:
        return
    import onnx

    refuse(lint(onnx.load(graph), VERSIONS[limits_of(trt)].opset))


def _creation_flags(trt: Any, typing: str) -> int:
    kinds = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(kinds.EXPLICIT_BATCH) if hasattr(kinds, "EXPLICIT_BATCH") else 0
    if typing == "strong" and hasattr(kinds, "STRONGLY_TYPED"):
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return flags


def _refused(trt: Any, parser: Any, log: Log) -> UserError:
    """The parser's first error with its node, in two lines."""
    if not parser.num_errors:
        return UserError(f"{_title(trt)} cannot parse it: {(log.errors or ['no reason given'])[0]}", "export it again")
    error = parser.get_error(0)
    reason = " ".join(str(error.desc()).split())
    where = ""
    if hasattr(error, "node_name"):
        where = f" at {error.node_name()} ({error.node_operator()})"
    elif error.node() >= 0:
        where = f" at node {error.node()}"
    more = f", and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    return UserError(f"{_title(trt)} cannot parse the graph{where}: {reason}{more}", _advice(reason))


def _advice(reason: str) -> str:
    known = {
        "must have type FP8": "quantise with u2export trt --int8, which leaves biases in float",
        "zero point": "TensorRT takes symmetric int8 alone; quantise with u2export trt --int8",
        "Scale coefficients": "a scale is 0 in fp16; export again, or with --rest fp32",
        "optimization profile": "add --shapes min,opt,max",
        "equal for concatenation": "give sides that are multiples of 32",
        "out of memory": "lower --workspace, or the largest of --shapes",
    }
    return next((hint for words, hint in known.items() if words in reason), "see TensorRT's messages with -v")


def _check_warnings(log: Log) -> None:
    if log.fatal:
        advice = "quantise with u2export trt --int8; sizes in a profile must be multiples of 32"
        raise UserError(f"TensorRT would build another network: {' '.join(log.fatal.split())}", advice)


def _configure(
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
        raise UserError(f"{_title(trt)} has no {option}", "leave it out")
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
        raise UserError(f"{_title(trt)} has no --hardware-compatible", "leave it out; RTX takes several --target")
    config.hardware_compatibility_level = levels.AMPERE_PLUS


def _use_dla(trt: Any, builder: Any, config: Any, recipe: Recipe, core: int) -> None:
    cores = getattr(builder, "num_DLA_cores", 0)
    if cores <= core:
        raise UserError(
            f"{_title(trt)} finds {cores} DLA cores here, core {core} was asked for",
            "leave out --dla; only Xavier and AGX/NX Orin have any, and TensorRT 11.0 to 11.3 do not know them",
        )
    if recipe.dynamic or recipe.precision == "fp32":
        raise UserError("DLA takes fixed shapes in fp16 or int8", "export without --dynamic, with --fp16 or --int8")
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _on_dla(network: Any, config: Any) -> dict[str, int]:
    """How many layers the accelerator could take."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    return {"possible": sum(bool(config.can_run_on_DLA(layer)) for layer in layers), "all": len(layers)}


def _set_targets(trt: Any, config: Any, targets: Sequence[str]) -> None:
    named = [t.upper() for t in targets if t != LOCAL]
    if not named:
        return
    if lost := [n for n in named if not hasattr(trt.ComputeCapability, n)]:
        known = ", ".join(n.lower() for n in sorted(trt.ComputeCapability.__members__) if n.startswith("SM"))
        raise UserError(f"{_title(trt)} does not build for {lost[0].lower()}", f"it builds for {known}")
    if "SM75" in named and len(named) > 1:
        raise UserError("sm75 is to be built alone: its layers would replace those of the others", "build it apart")
    config.num_compute_capabilities = len(named)
    for i, name in enumerate(named):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, name), i):
            raise UserError(f"{_title(trt)} refuses the target {name.lower()}", "build it apart from the others")


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


def _load_cache(trt: Any, config: Any, path: Path) -> None:
    if hasattr(trt, "ComputeCapability"):
        raise UserError(f"{_title(trt)} builds ahead of time and measures nothing", "leave out --timing-cache")
    try:
        stored = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "give another --timing-cache") from None
    config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False)


def _save_cache(config: Any, path: Path) -> None:
    from u2export.files import staged

    with staged(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's progress, as far as the version tells any (10 and later)."""
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, steps.get(phase_name, 0), steps.get(phase_name, 0))

    return Monitor()


def _inspected(trt: Any, log: Log, plan: Any) -> str:
    """The layer table from the engine inspector; takes a GPU."""
    engine = trt.Runtime(log.logger).deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
