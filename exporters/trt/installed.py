"""Which TensorRT is installed here, which GPUs there are, and what the installed version can do.

Versions are never compared: what a version has is asked of its module. A missing `BuilderFlag.FP16` means that the
graph alone says the precisions.
"""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from u2export.errors import Unavailable, UserError
from u2export.exporters.trt.recipe import Recipe
from u2export.install import how_to_install

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
LOCAL = "local"
# Boards TensorRT-RTX does not build for, whatever its version: only their own TensorRT does.
JETSON = {
    "sm53": "Jetson Nano and TX1", "sm62": "Jetson TX2", "sm72": "Jetson Xavier", "sm87": "Jetson Orin",
    "sm101": "Jetson Thor", "sm110": "Jetson Thor",
}  # fmt: skip
TYPINGS = ("auto", "weak", "strong")


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


def title(trt: Any) -> str:
    """Name and version of a runtime, for messages."""
    return f"TensorRT{'-RTX' if hasattr(trt, 'ComputeCapability') else ''} {trt.__version__}"
