"""Which TensorRT is installed here, which GPUs this machine has, and what the installed version can do.

This package never compares versions. It asks the module of a version for a feature. A module without
`BuilderFlag.FP16` takes all precisions from the graph.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from u2export.errors import Unavailable, UserError, WrongValue
from u2export.exporters.trt.recipe import Recipe
from u2export.install import how_to_install

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
RUNTIMES = ("auto", *MODULES)
LOCAL = "local"
# TensorRT-RTX does not build for these boards in any version. Only the TensorRT on the board does.
JETSON = {
    "sm53": "Jetson Nano and TX1", "sm62": "Jetson TX2", "sm72": "Jetson Xavier", "sm87": "Jetson Orin",
    "sm101": "Jetson Thor", "sm110": "Jetson Thor",
}  # fmt: skip
TYPINGS = ("auto", "weak", "strong")
# Attributes of a device in the CUDA driver: major and minor number of its compute capability.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


def installed() -> list[str]:
    """Return those of "tensorrt" and "rtx" whose Python package is installed."""
    return [name for name, module in MODULES.items() if find_spec(module) is not None]


def check_targets(runtime: str, targets: Sequence[str]) -> None:
    """Refuse a runtime or targets that are wrong on every machine.

    Args:
        runtime: one of `RUNTIMES`.
        targets: "local" alone, or GPU generations such as "sm86".

    Raises:
        UserError: an unknown name, "local" beside a generation, or a generation with TensorRT.
    """
    if runtime not in RUNTIMES:
        raise WrongValue(f"no runtime named {runtime!r}", f"choose one of {', '.join(RUNTIMES)}")
    if not targets:
        raise WrongValue("no target is named", "give local, or GPU generations such as sm86")
    generations = [target for target in targets if target != LOCAL]
    for target in generations:
        if not re.fullmatch(r"sm\d{2,3}", target):
            raise WrongValue(f"no target named {target!r}", "give local, or GPU generations such as sm75,sm86,sm120")
    if generations and LOCAL in targets:
        raise WrongValue("local and named targets exclude each other", "give one or the other")
    if runtime == "tensorrt" and any(target not in JETSON for target in generations):
        raise WrongValue(
            "TensorRT builds for the GPU of this machine only", "name no target, or choose the runtime rtx", "runtime"
        )


def choose_builder(runtime: str = "auto", targets: Sequence[str] = (LOCAL,), recipe: Path | None = None) -> str:
    """Return the runtime that builds an engine on this machine, after loading it.

    Args:
        runtime: one of `RUNTIMES`. "auto" takes TensorRT-RTX for GPU generations, and what is installed for "local".
        targets: as for `check_targets`.
        recipe: the recipe that the hint of an error names; hints say RECIPE without it.

    Raises:
        UserError: as `check_targets`.
        Unavailable: the runtime is not installed or does not load, "local" needs a GPU and there is none, or the target
            is a Jetson.
    """
    check_targets(runtime, targets)
    command = f"u2export trt build {shlex.quote(str(recipe)) if recipe else 'RECIPE'}"
    generations = [target for target in targets if target != LOCAL]
    if boards := [target for target in generations if target in JETSON]:
        raise Unavailable(
            f"{boards[0]} is {JETSON[boards[0]]}: only the board itself builds engines for it",
            f"copy the recipe and its .onnx to the board, and run {command} there",
        )
    here = installed()
    name = runtime
    if runtime == "auto":
        name = "rtx" if generations else next(iter(here), "tensorrt")
    if name not in here:
        missing = f"{MODULES[name]} is not" if here else "neither tensorrt nor tensorrt_rtx is"
        elsewhere = {
            "rtx": f"run {command} where it is installed, or here: {how_to_install('trt-rtx')}",
            "tensorrt": f"run {command} on a Jetson or GPU box, with the system's Python",
        }
        raise Unavailable(f"{missing} installed here", elsewhere[name])
    if not generations and not devices():
        raise Unavailable(
            "this machine has no CUDA device, and the target is its own GPU",
            f"run {command} on the device, or build ahead of time with the runtime rtx for a target such as sm86",
        )
    load(name)
    return name


def load(runtime: str) -> Any:
    """Return the Python module of a runtime, a key of `MODULES`.

    Raises:
        Unavailable: the module is installed but does not load.
    """
    try:
        return importlib.import_module(MODULES[runtime])
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise Unavailable(
            f"{MODULES[runtime]} does not load: {reason}", "install it again, with its libraries"
        ) from None


def devices() -> list[str]:
    """Return the names of this machine's CUDA devices, as the driver gives them; an empty list without a driver."""
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
    driver.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return f"{text.value.decode(errors='replace')} (sm{major.value}{minor.value})"


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT-RTX, which alone builds for named compute capabilities."""
    return hasattr(trt, "ComputeCapability")


def title(trt: Any) -> str:
    """Return the name and version of a module, for messages."""
    return f"TensorRT{'-RTX' if is_rtx(trt) else ''} {trt.__version__}"


def strong_only(trt: Any) -> bool:
    """Whether the graph alone decides on precisions, as in TensorRT 11 and RTX."""
    return not hasattr(trt.BuilderFlag, "FP16")


def typing_of(trt: Any, wanted: str, recipe: Recipe) -> str:
    """Return "weak" or "strong": the typing that was asked for, or for "auto" the better one for the graph.

    Raises:
        UserError: no such typing, or this version does not have it.
    """
    can_strong = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    if wanted not in TYPINGS:
        raise WrongValue(f"no typing named {wanted!r}", f"choose one of {', '.join(TYPINGS)}")
    if wanted == "strong" and not can_strong:
        raise UserError(f"{title(trt)} has no strong typing", "leave it out; TensorRT 10.0 introduced it", "typing")
    if wanted == "weak" and strong_only(trt):
        raise UserError(f"{title(trt)} has no weak typing", "leave it out; TensorRT 11.0 removed it", "typing")
    if wanted != "auto":
        return wanted
    # Weak typing lets TensorRT use fp16 for what int8 leaves in fp32, so this recipe takes it where it exists.
    int8_beside_fp32 = recipe.precision == "int8" and recipe.rest == "fp32"
    return "strong" if strong_only(trt) or (can_strong and not int8_beside_fp32) else "weak"


def limits_of(trt: Any) -> str:
    """Return the key of `recipe.VERSIONS` for a module, by its features."""
    if is_rtx(trt):
        return "rtx"
    if strong_only(trt):
        return "11.0"
    return "10.0" if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") else "8.5"
