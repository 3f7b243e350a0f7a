"""What a browser tells about itself and its device. Everything it tells is text of a stranger, and is bounded here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from u2export.benchmarks.device import Device
from u2export.benchmarks.web.runtime_files import VERSION
from u2export.text import one_line

# Names of browsers and systems in user agents, the special ones first: most browsers claim to be others too.
BROWSERS = (
    ("SamsungBrowser", "Samsung Internet"), ("EdgA?", "Edge"), ("OPR", "Opera"), ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"), ("Firefox", "Firefox"), ("HeadlessChrome", "Chromium"), ("Chrome", "Chrome"),
    ("Version", "Safari"),
)  # fmt: skip
SYSTEMS = (
    (r"Android (\d+(?:\.\d+)*)", "Android"), (r"(?:iPhone OS|CPU OS) (\d+(?:_\d+)*)", "iOS"),
    (r"Mac OS X (\d+(?:[._]\d+)*)", "macOS"), (r"Windows NT (\d+\.\d+)", "Windows NT"), (r"(?:Linux|X11)()", "Linux"),
)  # fmt: skip
LONGEST = 100


@dataclass(frozen=True)
class Identity:
    """What a page can do, and where it runs.

    Attributes:
        device: the device with its browser.
        environment: versions of the browser and of onnxruntime-web, and the step of the clock.
        threads: the most threads that WebAssembly can use here; 1 where the page is not isolated.
        gpu: whether the page has an adapter of WebGPU.
        half: whether the adapter computes in fp16.
        software: whether the adapter is a program, not a GPU.
    """

    device: Device
    environment: Mapping[str, Any]
    threads: int
    gpu: bool
    half: bool
    software: bool


def identity(told: Mapping[str, Any]) -> Identity:
    """Return what a page told about itself; a value of the wrong type counts as not told."""
    agent, data, gpu = _text(told.get("agent"), 400), _mapping(told.get("data")), _mapping(told.get("gpu"))
    browser, version = _browser(agent, data)
    cores = _number(told.get("cores"), 1, 4096)
    isolated = told.get("isolated") is True
    graphics = _graphics(_text(told.get("graphics")))
    graphics = graphics or " ".join(filter(None, (_text(gpu.get(k)) for k in ("vendor", "device"))))
    device = Device(
        model=_text(told.get("model")),
        cpu="",
        arch=_architecture(data),
        cores=int(cores),
        memory=_number(told.get("memory"), 0, 4096),
        os=_system(agent, data),
        accelerators={
            "browser": f"{browser} {version.partition('.')[0]}".strip(),
            **({"gpu": graphics} if graphics else {}),
        },
    )
    environment = {
        "onnxruntime-web": VERSION,
        "browser": f"{browser} {version}".strip(),
        "user_agent": agent,
        "secure": told.get("secure") is True,
        "isolated": isolated,
        "clock_step_us": round(_number(told.get("clock_us"), 0, 1e6), 3),
    }
    software = gpu.get("fallback") is True or "swiftshader" in _text(gpu.get("architecture")).lower()
    half = "shader-f16" in _texts(gpu.get("features"))
    return Identity(device, environment, int(cores) if isolated else 1, bool(gpu), half, software)


def _text(value: Any, longest: int = LONGEST) -> str:
    return one_line(value[:longest]).strip() if isinstance(value, str) else ""


def _texts(value: Any) -> list[str]:
    return [_text(item) for item in value[:200]] if isinstance(value, list) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _graphics(name: str) -> str:
    """Return the name of the GPU without its vendor and driver, between which Chromium puts it."""
    inside = re.fullmatch(r"ANGLE \((.*)\)", name)
    parts = inside[1].split(", ") if inside else [name]
    return "SwiftShader (no GPU)" if "SwiftShader" in name else parts[1] if len(parts) > 1 else parts[0]


def _number(value: Any, least: float, most: float) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return min(max(float(value), least), most) if good else least


def _browser(agent: str, data: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and version: of the brands the one that is neither made up nor the common engine, if there is one."""
    brands = data.get("brands")
    named = [
        (_text(b.get("brand")), _text(b.get("version"))) for b in (brands if isinstance(brands, list) else [])[:10]
        if isinstance(b, dict)
    ]  # fmt: skip
    real = [(name, version) for name, version in named if name and not re.search(r"not.*brand", name, re.IGNORECASE)]
    for name, version in sorted(real, key=lambda b: b[0] in ("Chromium", "HeadlessChrome")):
        return "Chromium" if name == "HeadlessChrome" else name, version
    for pattern, name in BROWSERS:
        if found := re.search(rf"\b{pattern}/([\d.]+)", agent):
            return name, found[1]
    return "unknown browser", ""


def _system(agent: str, data: Mapping[str, Any]) -> str:
    if platform := _text(data.get("platform")):
        return f"{platform} {_text(data.get('platformVersion'))}".strip()
    for pattern, name in SYSTEMS:
        if found := re.search(pattern, agent):
            return f"{name} {found[1].replace('_', '.')}".strip()
    return ""


def _architecture(data: Mapping[str, Any]) -> str:
    name, bits = _text(data.get("architecture")), _text(data.get("bitness"))
    return {("x86", "64"): "x86_64", ("arm", "64"): "arm64"}.get((name, bits), name)
